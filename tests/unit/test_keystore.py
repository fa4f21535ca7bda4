"""The keystore: what protects the mnemonic at rest, and what happens when the file or the passphrase is not right."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from escrow.seed import BadMnemonic, EscrowRole, Seed
from p2pnode import keystore
from p2pnode.config import KdfCost
from p2pnode.datadir import DataDirUnusable, DiskError, TooOpen
from p2pnode.keystore import (
    Keys,
    KeystoreExists,
    NoPassphrase,
    PassphraseUnfit,
    WrongDataDirNetwork,
    WrongPassphrase,
    ask_passphrase,
    check_new_passphrase,
    create,
    new_mnemonic,
    read,
    unlock,
)
from protocol.errors import DataCorrupt
from protocol.types import Network

WORDS = "legal winner thank year wave sausage worth useful legal winner thank yellow"
PASS = "pässword 🔑"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keystore.json"


def make(path: Path, passphrase: str = PASS, network: Network = Network.REGTEST) -> Keys:
    return create(path, mnemonic=WORDS, passphrase=passphrase, network=network, cost=KdfCost.INTERACTIVE)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("made") / "keystore.json"
    make(path)
    return path.read_bytes()


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def rewritten(made: bytes, change: Callable[[dict[str, object]], object]) -> bytes:
    """A keystore that was changed by somebody who also mended the checksum."""
    tree = json.loads(made)
    change(tree)
    try:
        file = msgspec.convert(tree, keystore.KeystoreFile)
    except msgspec.ValidationError:
        return json.dumps(tree).encode()
    return msgspec.json.encode(msgspec.structs.replace(file, checksum=keystore._checksum(file)))


class TestRoundTrip:
    def test_the_passphrase_gives_back_every_key(self, path: Path) -> None:
        before = make(path)
        after = unlock(path, PASS, Network.REGTEST)
        seed = Seed.from_mnemonic(WORDS)
        trade = bytes(range(32))
        for keys in (before, after):
            assert keys.mnemonic == WORDS
            assert keys.node().seed == seed.node_key()
            assert keys.persona(3).seed == seed.persona_key(3)
            assert keys.arbiter_base() == seed.arbiter_base_key()
            assert keys.escrow(trade, EscrowRole.SELLER) == seed.escrow_key(trade, EscrowRole.SELLER)

    def test_the_mnemonics_own_passphrase_is_kept(self, path: Path) -> None:
        create(
            path, mnemonic=WORDS, passphrase=PASS, network=Network.REGTEST, cost=KdfCost.INTERACTIVE,
            bip39_passphrase="TREZOR",
        )  # fmt: skip
        assert unlock(path, PASS, Network.REGTEST).persona().seed == Seed.from_mnemonic(WORDS, "TREZOR").persona_key()

    def test_a_new_mnemonic_has_256_bits_and_is_new(self) -> None:
        words = {new_mnemonic() for _ in range(3)}
        assert len(words) == 3
        assert all(len(w.split()) == 24 for w in words)

    def test_the_file_is_private_and_holds_no_word_in_clear(self, path: Path) -> None:
        make(path)
        assert path.stat().st_mode & 0o777 == 0o600
        text = path.read_text()
        for secret in (*WORDS.split(), WORDS.encode().hex()[:16], PASS):
            assert secret not in text
        assert [p.name for p in path.parent.iterdir()] == ["keystore.json"]

    def test_salt_and_nonce_are_fresh_each_time(self, path: Path, made: bytes) -> None:
        make(path)
        one, two = json.loads(made), json.loads(path.read_bytes())
        assert one["kdf"]["salt"] != two["kdf"]["salt"]
        assert one["box"][:48] != two["box"][:48]

    def test_keys_show_no_secret(self) -> None:
        keys = Keys(Network.REGTEST, WORDS)
        shown = f"{keys!r} {keys} {keys.persona()!r} {keys.seed!r}"
        assert "winner" not in shown
        assert keys.persona().seed.hex()[:12] not in shown

    @pytest.mark.parametrize("cost", [KdfCost.INTERACTIVE, KdfCost.MODERATE])
    def test_a_guess_costs_what_the_file_says(self, path: Path, cost: KdfCost) -> None:
        create(path, mnemonic=WORDS, passphrase=PASS, network=Network.REGTEST, cost=cost)
        kdf = read(path).kdf
        assert (kdf.passes, kdf.memory_bytes >> 20) == {"interactive": (2, 64), "moderate": (3, 256)}[cost.value]
        before = time.process_time()
        with pytest.raises(WrongPassphrase):
            unlock(path, "x", Network.REGTEST)
        assert time.process_time() - before > 0.01


class TestRefusals:
    @pytest.mark.parametrize("wrong", ["", "pässword", PASS + " ", PASS.upper()])
    def test_a_wrong_passphrase_is_told_apart_from_damage(self, path: Path, made: bytes, wrong: str) -> None:
        with pytest.raises(WrongPassphrase, match="nothing was changed"):
            unlock(put(path, made), wrong, Network.REGTEST)
        assert path.read_bytes() == made

    def test_damage_anywhere_is_told_as_damage(self, path: Path, made: bytes) -> None:
        for at in range(0, len(made), 7):
            broken = bytearray(made)
            broken[at] ^= 0x01
            put(path, bytes(broken))
            # A changed space between the fields, or the case of a digit, may mean the same.
            try:
                assert read(path).box == json.loads(made)["box"]
            except DataCorrupt as e:
                assert "backup" in e.detail  # noqa: PT017

    @pytest.mark.parametrize("cut", [0, 1, 100, -1, -20])
    def test_a_cut_file_is_told_as_damage(self, path: Path, made: bytes, cut: int) -> None:
        with pytest.raises(DataCorrupt):
            read(put(path, made.rstrip()[:cut]))

    def test_a_huge_file_is_not_parsed(self, path: Path) -> None:
        with pytest.raises(DataCorrupt):
            read(put(path, b"[" * 100_000))

    @pytest.mark.parametrize(
        "change",
        [
            lambda t: t["kdf"].update(memory_bytes=2**40),
            lambda t: t["kdf"].update(passes=10**6),
            lambda t: t["kdf"].update(memory_bytes=1),
            lambda t: t["kdf"].update(name="md5"),
            lambda t: t.update(version=2),
            lambda t: t.update(extra=1),
            lambda t: t.update(box="xyz"),
        ],
    )
    def test_a_file_made_to_harm_is_refused_before_any_work(
        self, path: Path, made: bytes, change: Callable[[dict[str, object]], object]
    ) -> None:
        with pytest.raises(DataCorrupt):
            unlock(put(path, rewritten(made, change)), PASS, Network.REGTEST)

    def test_a_cheaper_cost_in_the_header_opens_nothing(self, path: Path, made: bytes) -> None:
        cheap = rewritten(made, lambda t: t["kdf"].update(passes=1, memory_bytes=8192))  # type: ignore[attr-defined]
        with pytest.raises(WrongPassphrase):
            unlock(put(path, cheap), PASS, Network.REGTEST)

    def test_a_keystore_made_to_look_like_another_networks_is_refused(self, path: Path, made: bytes) -> None:
        put(path, rewritten(made, lambda t: t.update(network="mainnet")))
        with pytest.raises(DataCorrupt, match="another network"):
            unlock(path, PASS, Network.MAINNET)

    def test_the_wrong_network_says_which_is_right(self, path: Path, made: bytes) -> None:
        with pytest.raises(WrongDataDirNetwork, match=r"holds a regtest node.*--network regtest"):
            unlock(put(path, made), PASS, Network.MAINNET)

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
    def test_a_file_that_others_can_touch_is_refused(self, path: Path, made: bytes, mode: int) -> None:
        put(path, made).chmod(mode)
        with pytest.raises(TooOpen, match="chmod 600"):
            unlock(path, PASS, Network.REGTEST)

    def test_a_missing_file_is_one_line(self, path: Path) -> None:
        with pytest.raises(DataDirUnusable, match=r"keystore\.json"):
            read(path)

    def test_an_existing_keystore_is_never_overwritten(self, path: Path, made: bytes) -> None:
        put(path, made)
        with pytest.raises(KeystoreExists):
            make(path)
        assert path.read_bytes() == made
        assert [p.name for p in path.parent.iterdir()] == ["keystore.json"]

    def test_a_wrong_mnemonic_writes_nothing(self, path: Path) -> None:
        with pytest.raises(BadMnemonic):
            create(path, mnemonic="abandon " * 12, passphrase=PASS, network=Network.REGTEST)
        assert not path.exists()

    def test_a_full_disk_leaves_nothing_behind(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DiskError, match="No space left"):
            make(path)
        assert list(path.parent.iterdir()) == []


class TestAsking:
    def never(self, _: str) -> str:
        raise AssertionError("nobody should be asked")

    def test_the_file_comes_before_the_environment_and_that_before_the_prompt(self, tmp_path: Path) -> None:
        file = put(tmp_path / "pass", b"from file\nsecond line\n")
        environ = {"P2PNODE_PASSPHRASE": "from environment"}
        assert ask_passphrase(environ, file, read_secret=self.never) == "from file"
        assert ask_passphrase(environ, read_secret=self.never) == "from environment"
        assert ask_passphrase({}, interactive=True, read_secret=lambda _: "typed") == "typed"

    def test_a_passphrase_file_that_others_read_is_refused(self, tmp_path: Path) -> None:
        file = put(tmp_path / "pass", b"secret\n")
        file.chmod(0o644)
        with pytest.raises(TooOpen):
            ask_passphrase({}, file)

    @pytest.mark.parametrize("data", [b"", b"\n", b"\nsecret"])
    def test_an_empty_passphrase_file_is_no_empty_passphrase(self, tmp_path: Path, data: bytes) -> None:
        with pytest.raises(PassphraseUnfit, match="first line"):
            ask_passphrase({}, put(tmp_path / "pass", data))

    def test_nobody_is_asked_without_a_terminal(self) -> None:
        with pytest.raises(NoPassphrase):
            ask_passphrase({}, interactive=False, read_secret=self.never)

    def test_a_new_passphrase_mistyped_once_is_not_used(self) -> None:
        typed = iter(["one", "two"])
        with pytest.raises(PassphraseUnfit, match="differ"):
            ask_passphrase({}, confirm=True, interactive=True, read_secret=lambda _: next(typed))

    def test_an_empty_passphrase_is_taken_only_on_purpose(self) -> None:
        with pytest.raises(PassphraseUnfit, match="--no-passphrase"):
            check_new_passphrase("", allow_empty=False)
        check_new_passphrase("", allow_empty=True)
        with pytest.raises(PassphraseUnfit, match="1024"):
            check_new_passphrase("x" * 1025, allow_empty=False)

    def test_the_file_says_that_it_has_no_passphrase(self, path: Path) -> None:
        make(path, "")
        assert read(path).has_passphrase is False
        assert unlock(path, "", Network.REGTEST).mnemonic == WORDS
