"""The keystore: one BIP39 mnemonic, encrypted under a passphrase (DESIGN section 4).

The file is JSON: a header in clear and a box. The box is XSalsa20-Poly1305 (PyNaCl's SecretBox) under a key that
argon2id makes of the passphrase and a random salt; its cost stands in the header. Inside are the mnemonic, the
optional BIP39 passphrase and the network again, so that a changed header is noticed. A checksum over the file tells
damage from a wrong passphrase, which the box alone can't.

The file is made once, 0600, by a synced rename, and never changed after except by a change of the passphrase.
An empty passphrase must be asked for; the header says so, because a thief would try that first anyway.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from getpass import getpass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct
from nacl import bindings
from nacl.exceptions import CryptoError
from nacl.utils import random

from escrow.seed import EscrowRole, Seed, entropy_from_mnemonic, mnemonic_from_entropy, normalise
from p2pnode.config import KdfCost
from p2pnode.datadir import check_private, write_private
from protocol.errors import Action, DataCorrupt, UserError
from protocol.identity import SigningKey
from protocol.types import Network

PASSPHRASE_VARIABLE: Final = "P2PNODE_PASSPHRASE"  # noqa: S105  (its name, not its value)
MAX_PASSPHRASE: Final = 1_024
"""Bytes of a passphrase."""
_MAX_FILE: Final = 16_384

_COSTS: Final[dict[KdfCost, tuple[int, int]]] = {
    KdfCost.INTERACTIVE: (
        bindings.crypto_pwhash_argon2id_OPSLIMIT_INTERACTIVE,
        bindings.crypto_pwhash_argon2id_MEMLIMIT_INTERACTIVE,
    ),
    KdfCost.MODERATE: (
        bindings.crypto_pwhash_argon2id_OPSLIMIT_MODERATE,
        bindings.crypto_pwhash_argon2id_MEMLIMIT_MODERATE,
    ),
    KdfCost.SENSITIVE: (
        bindings.crypto_pwhash_argon2id_OPSLIMIT_SENSITIVE,
        bindings.crypto_pwhash_argon2id_MEMLIMIT_SENSITIVE,
    ),
}
"""(passes, bytes of memory) as libsodium recommends them."""


class WrongPassphrase(UserError):
    """The passphrase is wrong: nothing was changed, try again."""

    code = 3120


class NoPassphrase(UserError):
    """The keystore needs its passphrase: start in a terminal, set P2PNODE_PASSPHRASE or keystore.passphrase_file."""

    code = 3121


class PassphraseUnfit(UserError):
    """That passphrase can't be used."""

    code = 3122


class WrongDataDirNetwork(UserError):
    """The data directory holds a node of another network."""

    code = 3123
    action = Action.STOP


class KeystoreExists(UserError):
    """There is a keystore already, and it is never overwritten: choose another data directory."""

    code = 3124


class Kdf(Struct, frozen=True, forbid_unknown_fields=True):
    """How the key was made. The bounds keep a tampered file from exhausting this machine."""

    name: Literal["argon2id"]
    passes: Annotated[int, Meta(ge=1, le=16)]
    memory_bytes: Annotated[int, Meta(ge=8_192, le=2 * 2**30)]
    salt: Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]


class KeystoreFile(Struct, frozen=True, forbid_unknown_fields=True):
    """What lies on disk. `checksum` is the SHA-256 of the encoding with an empty checksum."""

    format: Literal["p2pnode-keystore"]
    version: Literal[1]
    network: Literal["mainnet", "testnet", "signet", "regtest"]
    has_passphrase: bool
    kdf: Kdf
    box: Annotated[str, Meta(pattern=r"\A([0-9a-f]{2})+\Z")]
    checksum: str


class _Secret(Struct, frozen=True, forbid_unknown_fields=True):
    network: str
    mnemonic: str
    bip39_passphrase: str = ""


class Keys:
    """An unlocked keystore. Its repr shows no secret."""

    def __init__(self, network: Network, mnemonic: str, bip39_passphrase: str = "") -> None:
        """Derive from a mnemonic. Raises BadMnemonic."""
        self.network = network
        self.mnemonic = normalise(mnemonic)
        self.bip39_passphrase = bip39_passphrase
        self.seed = Seed.from_mnemonic(self.mnemonic, bip39_passphrase)

    def __repr__(self) -> str:
        """Name the master key by its fingerprint."""
        return f"Keys({self.network.name.lower()}, {self.seed.master.fingerprint.hex()})"

    def node(self, index: int = 0) -> SigningKey:
        """Node key `index`: transport and DHT."""
        return SigningKey(self.seed.node_key(index))

    def persona(self, index: int = 0) -> SigningKey:
        """Persona `index`: who signs offers, contracts and messages."""
        return SigningKey(self.seed.persona_key(index))

    def arbiter_base(self, index: int = 0) -> bytes:
        """The secp256k1 secret of the base point that persona `index` announces, 32 bytes."""
        return self.seed.arbiter_base_key(index)

    def escrow(self, trade_id: bytes, role: EscrowRole) -> bytes:
        """The secp256k1 secret of one role in one trade, 32 bytes."""
        return self.seed.escrow_key(trade_id, role)


def new_mnemonic() -> str:
    """24 fresh words."""
    return mnemonic_from_entropy(random(32))


def create(
    path: Path,
    *,
    mnemonic: str,
    passphrase: str,
    network: Network,
    cost: KdfCost = KdfCost.MODERATE,
    bip39_passphrase: str = "",
) -> Keys:
    """Write a keystore and return its keys.

    An empty `passphrase` leaves the mnemonic open to whoever reads the file; callers ask for it on purpose only.
    Raises BadMnemonic, PassphraseUnfit, KeystoreExists, DiskError.
    """
    entropy_from_mnemonic(mnemonic)
    keys = Keys(network, mnemonic, bip39_passphrase)
    data = _seal(keys, passphrase, cost)
    try:
        write_private(path, data, replace=False)
    except FileExistsError:
        raise KeystoreExists(f"{path} exists and is never overwritten: choose another data directory") from None
    return keys


def read(path: Path) -> KeystoreFile:
    """The keystore's header and box. Raises TooOpen, DataDirUnusable, DataCorrupt."""
    check_private(path)
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise DataCorrupt(f"the keystore {path} can't be read: {e.strerror or e}") from e
    damaged = f"the keystore {path} is damaged: restore it from a backup, or with `p2pnode init --restore`"
    if len(raw) > _MAX_FILE:
        raise DataCorrupt(damaged)
    try:
        file = msgspec.json.decode(raw, type=KeystoreFile)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise DataCorrupt(damaged) from e
    if file.checksum != _checksum(file):
        raise DataCorrupt(damaged)
    return file


def check_network(file: KeystoreFile, network: Network, path: Path) -> None:
    """That the keystore belongs to `network`. Raises WrongDataDirNetwork."""
    asked = network.name.lower()
    if file.network != asked:
        raise WrongDataDirNetwork(
            f"the data directory {path.parent} holds a {file.network} node, and {asked} was asked for: "
            f"give --network {file.network} or another --datadir"
        )


def unlock(path: Path, passphrase: str, network: Network) -> Keys:
    """The keys. Takes as long as the keystore's cost says: call it off the event loop.

    Raises WrongPassphrase, WrongDataDirNetwork, DataCorrupt, TooOpen.
    """
    file = read(path)
    check_network(file, network, path)
    key = _derive(passphrase, bytes.fromhex(file.kdf.salt), file.kdf.passes, file.kdf.memory_bytes)
    box = bytes.fromhex(file.box)
    nonce, sealed = box[: bindings.crypto_secretbox_NONCEBYTES], box[bindings.crypto_secretbox_NONCEBYTES :]
    try:
        secret = msgspec.json.decode(bindings.crypto_secretbox_open(sealed, nonce, key), type=_Secret)
    except (CryptoError, ValueError):
        if not file.has_passphrase:
            raise DataCorrupt(
                f"the keystore {path} does not open without a passphrase, as it says: it was changed"
            ) from None
        raise WrongPassphrase from None
    if secret.network != file.network:
        raise DataCorrupt(f"the keystore {path} was changed: its header names another network than its box")
    return Keys(network, secret.mnemonic, secret.bip39_passphrase)


def ask_passphrase(
    environ: Mapping[str, str],
    file: Path | None = None,
    *,
    prompt: str = "Passphrase: ",
    confirm: bool = False,
    interactive: bool | None = None,
    read_secret: Callable[[str], str] = getpass,
) -> str:
    """The passphrase from `file`, the environment or a prompt, in that order; the first of them that is there.

    `confirm` asks twice. `interactive` says whether there is a terminal to ask at (None: look).
    Raises NoPassphrase, PassphraseUnfit, TooOpen, DataDirUnusable.
    """
    if file is not None:
        check_private(file)
        lines = file.read_bytes()[: MAX_PASSPHRASE + 2].decode("utf-8", "replace").splitlines()
        if not lines or not lines[0]:
            raise PassphraseUnfit(f"the first line of {file} is empty: it should be the passphrase")
        return lines[0]
    if PASSPHRASE_VARIABLE in environ:
        return environ[PASSPHRASE_VARIABLE]
    if not (sys.stdin.isatty() if interactive is None else interactive):
        raise NoPassphrase
    first = read_secret(prompt)
    if confirm and read_secret("The same again: ") != first:
        raise PassphraseUnfit("the two passphrases differ: nothing was written, try again")
    return first


def check_new_passphrase(passphrase: str, *, allow_empty: bool) -> None:
    """That a new passphrase is one. Raises PassphraseUnfit."""
    if not passphrase and not allow_empty:
        raise PassphraseUnfit("the passphrase is empty: give one, or ask for none with --no-passphrase")
    if len(passphrase.encode()) > MAX_PASSPHRASE:
        raise PassphraseUnfit(f"a passphrase has at most {MAX_PASSPHRASE} bytes")


def _seal(keys: Keys, passphrase: str, cost: KdfCost) -> bytes:
    check_new_passphrase(passphrase, allow_empty=True)
    passes, memory = _COSTS[cost]
    salt = random(bindings.crypto_pwhash_SALTBYTES)
    nonce = random(bindings.crypto_secretbox_NONCEBYTES)
    network = keys.network.name.lower()
    secret = msgspec.json.encode(_Secret(network, keys.mnemonic, keys.bip39_passphrase))
    box = nonce + bindings.crypto_secretbox(secret, nonce, _derive(passphrase, salt, passes, memory))
    file = msgspec.convert(
        {
            "format": "p2pnode-keystore",
            "version": 1,
            "network": network,
            "has_passphrase": passphrase != "",
            "kdf": {"name": "argon2id", "passes": passes, "memory_bytes": memory, "salt": salt.hex()},
            "box": box.hex(),
            "checksum": "",
        },
        KeystoreFile,
    )
    whole = msgspec.structs.replace(file, checksum=_checksum(file))
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"


def _derive(passphrase: str, salt: bytes, passes: int, memory: int) -> bytes:
    try:
        return bytes(
            bindings.crypto_pwhash_alg(
                bindings.crypto_secretbox_KEYBYTES,
                passphrase.encode(),
                salt,
                passes,
                memory,
                bindings.crypto_pwhash_ALG_ARGON2ID13,
            )
        )
    except (CryptoError, MemoryError) as e:
        raise PassphraseUnfit(
            f"the keystore's passphrase check needs {memory >> 20} MiB of memory, which this machine does not give"
        ) from e


def _checksum(file: KeystoreFile) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(file, checksum=""))).hexdigest()
