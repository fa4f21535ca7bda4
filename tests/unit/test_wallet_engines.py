"""Both engines side by side: what one derives, counts and signs, the other must derive, count and sign alike.

A wallet that is moved to a machine without BDK must find the same addresses, the same coins and the same file.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from escrow.chain.base import BlockRef
from escrow.coins import OutPoint, TxOut
from escrow.errors import GateRefused
from escrow.hd import ExtendedKey
from escrow.seed import Seed, mnemonic_from_entropy
from escrow.transactions import REPLACEABLE, build, txid_of
from escrow.wallet.account import Account, BadDescriptor, SigningAccount, with_checksum
from escrow.wallet.bdk import BdkEngine
from escrow.wallet.engine import EngineCoin, Fact, Keychain, Snapshot, WalletEngine, WatchOnly
from escrow.wallet.engines import make_engine
from escrow.wallet.native import NativeEngine, WatchEngine
from protocol.types import Network

ROOT = Path(__file__).parents[2]


def master(name: str) -> ExtendedKey:
    return Seed.from_mnemonic(mnemonic_from_entropy(random.Random(name).randbytes(16))).master


PAIR = (BdkEngine(master("pair"), Network.REGTEST), NativeEngine(master("pair"), Network.REGTEST))
SCRIPTS = [[PAIR[1].script(keychain, index) for index in range(3)] for keychain in Keychain]
STRANGE = b"\x00\x14" + bytes(20)


@settings(max_examples=20)
@given(st.binary(min_size=16, max_size=16), st.sampled_from(Network), st.sampled_from(Keychain), st.integers(0, 10**6))
def test_addresses_and_file_identity_are_the_same(
    entropy: bytes, network: Network, keychain: Keychain, index: int
) -> None:
    key = Seed.from_mnemonic(mnemonic_from_entropy(entropy)).master
    bdk, native = BdkEngine(key, network), NativeEngine(key, network)
    assert native.identity == bdk.identity
    assert native.descriptors == bdk.descriptors
    assert native.script(keychain, index) == bdk.script(keychain, index)
    watching = Account.parse(native.descriptors[0], network)
    assert watching.identity == bdk.identity
    assert watching.script(keychain, index) == bdk.script(keychain, index)


def block(height: int) -> BlockRef:
    return BlockRef(height, height.to_bytes(32, "big"), 1_000 + height, 900 + height)


@st.composite
def histories(draw: st.DrawFn) -> Snapshot:
    """Transactions that pay us and strangers, spend each other, and conflict; some in blocks, in a possible order."""
    facts: list[Fact] = []
    outputs: list[tuple[OutPoint, int]] = [(OutPoint(bytes([9, n]) + bytes(30), n), -1) for n in range(3)]
    buried: set[OutPoint] = set()
    height = 1
    for number in range(draw(st.integers(1, 8))):
        spends = draw(st.lists(st.sampled_from(outputs), min_size=1, max_size=2, unique=True))
        if draw(st.integers(0, 9)) == 0:
            spends = [(OutPoint(bytes(32), 0xFFFFFFFF), -1)]
        scripts = draw(st.lists(st.sampled_from([*SCRIPTS[0], *SCRIPTS[1], STRANGE]), min_size=1, max_size=3))
        raw = build([(o, REPLACEABLE) for o, _ in spends], [TxOut(1_000 + number, s) for s in scripts])
        # A block holds no second spend, and nothing whose parents are not in blocks.
        could = all(o not in buried and (p == -1 or facts[p].block is not None) for o, p in spends)
        coinbase = spends[0][0].txid == bytes(32)
        if could and (coinbase or draw(st.booleans())):
            facts.append(Fact(raw, block(height), 5))
            buried |= {o for o, _ in spends if o.txid != bytes(32)}
            height += 1
        elif not coinbase:
            facts.append(Fact(raw, None, draw(st.integers(1, 3))))
        else:
            continue
        txid = txid_of(raw)
        outputs += [(OutPoint(txid, n), len(facts) - 1) for n in range(len(scripts))]
    unique = {txid_of(f.raw): f for f in reversed(facts)}
    return Snapshot(tuple(unique.values()), {Keychain.EXTERNAL: 3, Keychain.INTERNAL: 3}, block(height))


def counted(engine: WalletEngine, snapshot: Snapshot) -> list[EngineCoin]:
    engine.load(snapshot)
    return sorted(engine.coins(), key=lambda c: c.outpoint)


@settings(max_examples=100)
@given(histories())
def test_unspent_coins_are_the_same_through_conflicts(snapshot: Snapshot) -> None:
    bdk, native = PAIR
    assert counted(native, snapshot) == counted(bdk, snapshot)
    assert counted(native, Snapshot(snapshot.facts[::-1], snapshot.revealed, snapshot.tip)) == counted(bdk, snapshot)


@settings(max_examples=40)
@given(st.data())
def test_signatures_are_the_same_bytes(data: st.DataObject) -> None:
    bdk, native = PAIR
    count = data.draw(st.integers(1, 6))
    sources = [
        build(
            [(OutPoint(bytes([n, 7]) + bytes(30), n), REPLACEABLE)],
            [TxOut(data.draw(st.integers(0, 10**12)), data.draw(st.sampled_from([*SCRIPTS[0], *SCRIPTS[1]])))],
        )
        for n in range(count)
    ]
    snapshot = Snapshot((), {Keychain.EXTERNAL: 3, Keychain.INTERNAL: 3}, block(5))
    bdk.load(snapshot)
    foreign = (OutPoint(b"\x09" * 32, 1), data.draw(st.sampled_from([0, REPLACEABLE, 0xFFFFFFFF])))
    inputs = [*((OutPoint(txid_of(raw), 0), REPLACEABLE) for raw in sources), foreign]
    outputs = [TxOut(data.draw(st.integers(0, 10**9)), STRANGE) for _ in range(data.draw(st.integers(1, 3)))]
    unsigned = build(inputs, outputs)
    mine = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    previous = {n: sources[n] for n in mine}
    signed = native.sign(unsigned, previous)
    assert signed == bdk.sign(unsigned, previous)
    assert all(len(signature) <= 71 for signature, _ in signed.values())


@pytest.mark.parametrize("engine", PAIR, ids=["bdk", "native"])
def test_a_coin_of_a_stranger_is_not_signed(engine: WalletEngine) -> None:
    source = build([(OutPoint(b"\x07" * 32, 0), REPLACEABLE)], [TxOut(5, STRANGE)])
    engine.load(Snapshot((), {Keychain.EXTERNAL: 3, Keychain.INTERNAL: 3}, block(5)))
    unsigned = build([(OutPoint(txid_of(source), 0), REPLACEABLE)], [TxOut(4, STRANGE)])
    with pytest.raises(GateRefused, match="could not sign input 0"):
        engine.sign(unsigned, {0: source})


def test_an_amount_of_another_transaction_is_not_signed() -> None:
    """The signature covers the amount; a forged source would make us burn the difference as a fee."""
    source = build([(OutPoint(b"\x07" * 32, 0), REPLACEABLE)], [TxOut(5, SCRIPTS[0][0])])
    unsigned = build([(OutPoint(b"\x08" * 32, 0), REPLACEABLE)], [TxOut(4, STRANGE)])
    with pytest.raises(GateRefused):
        PAIR[1].sign(unsigned, {0: source})


def test_a_watching_engine_counts_and_never_signs() -> None:
    watching = WatchEngine(Account.parse(PAIR[1].descriptors[0], Network.REGTEST))
    script = watching.script(Keychain.EXTERNAL, 0)
    raw = build([(OutPoint(b"\x07" * 32, 0), REPLACEABLE)], [TxOut(5_000, script)])
    assert [c.value for c in counted(watching, Snapshot((Fact(raw, block(1), 1),), {}, block(1)))] == [5_000]
    with pytest.raises(WatchOnly, match="only watches"):
        watching.sign(raw, {0: raw})


class TestDescriptors:
    # BIP380, test vectors.
    @pytest.mark.parametrize(("body", "checksum"), [("raw(deadbeef)", "89f8spxm")])
    def test_checksum_is_that_of_the_bip(self, body: str, checksum: str) -> None:
        assert with_checksum(body) == f"{body}#{checksum}"

    def test_every_way_to_write_an_account_gives_the_same(self) -> None:
        account = SigningAccount(master("d"), Network.REGTEST)
        external = account.descriptors[0]
        body = external.partition("#")[0]
        multipath = body.replace("/0/*", "/<0;1>/*")
        for text in (external, body, multipath, with_checksum(multipath), body.replace("'", "h"), f" {external}\n"):
            assert Account.parse(text, Network.REGTEST).identity == account.identity
        bare = Account.parse(account.xpub, Network.REGTEST)
        assert bare.script(Keychain.INTERNAL, 7) == account.script(Keychain.INTERNAL, 7)

    def test_what_is_not_a_public_account_of_this_network_is_refused_in_one_line(self) -> None:
        account = SigningAccount(master("d"), Network.REGTEST)
        main = SigningAccount(master("d"), Network.MAINNET)
        external = account.descriptors[0]
        mistyped = external.replace("/84'", "/85'")
        for text, says in [
            (mistyped, "checksum"),
            (account.private_descriptors[0], "private key"),
            (main.descriptors[0], "another network"),
            (account.xpub[:-1] + "2", "damaged"),
            ("wpkh()", "native segwit"),
            (f"pkh({account.xpub})", "native segwit"),
            ("", "native segwit"),
        ]:
            with pytest.raises(BadDescriptor, match=says) as refused:
                Account.parse(text, Network.REGTEST)
            assert "\n" not in refused.value.detail


def test_without_bdk_the_wallet_takes_the_other_engine_by_itself() -> None:
    code = (
        "import sys; sys.modules['bdkpython'] = None\n"
        "from escrow.seed import Seed, mnemonic_from_entropy\n"
        "from escrow.wallet.engines import NoBdk, make_engine\n"
        "from protocol.types import Network\n"
        "key = Seed.from_mnemonic(mnemonic_from_entropy(bytes(16))).master\n"
        "assert type(make_engine(key, Network.REGTEST)).__name__ == 'NativeEngine'\n"
        "try: make_engine(key, Network.REGTEST, 'bdk')\n"
        "except NoBdk as e: print(e.detail)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert "wallet.engine" in done.stdout
    assert type(make_engine(master("a"), Network.REGTEST)).__name__ == "BdkEngine"
    assert type(make_engine(master("a"), Network.REGTEST, "native")).__name__ == "NativeEngine"
