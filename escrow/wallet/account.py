"""One BIP84 account: its keys, its scripts, and the descriptors that name it (BIP380, BIP382).

What needs no secret is `Account`, made of an extended public key; with it a wallet can watch. `SigningAccount` has the
private key as well. Both give the same scripts and the same public descriptors, character for character those of BDK
and of Bitcoin Core (hardened steps written as `'`), because the wallet's file is claimed by them.
"""

from __future__ import annotations

import hmac
import re
from enum import IntEnum
from typing import Final

from coincurve import PublicKey

from escrow.hd import HARDENED, ExtendedKey, base58check, base58check_decode, hash160
from escrow.psbt import KeyOrigin
from protocol.errors import UserError
from protocol.types import Network


class Keychain(IntEnum):
    """BIP84's two branches of an account."""

    EXTERNAL = 0
    """Addresses that are handed out."""
    INTERNAL = 1
    """Change, refunds and payouts to oneself."""


class BadDescriptor(UserError):
    """That is not a descriptor of a native segwit account: give wpkh(XPUB/<0;1>/*), or the account's xpub."""

    code = 3240


_XPUB: Final = bytes.fromhex("0488b21e")
_TPUB: Final = bytes.fromhex("043587cf")
_XPRV: Final = bytes.fromhex("0488ade4")
_TPRV: Final = bytes.fromhex("04358394")
# SLIP-132 marks native segwit in the version; the key is the same.
_VERSIONS: Final = {_XPUB: True, bytes.fromhex("04b24746"): True, _TPUB: False, bytes.fromhex("045f1cf6"): False}
_ORIGIN: Final = re.compile(r"\A[0-9a-fA-F]{8}(/[0-9]{1,10}['hH]?)*\Z")
_WPKH: Final = re.compile(r"\A(?:\[([^\]]*)\])?([1-9A-HJ-NP-Za-km-z]{100,115})(?:/(<0;1>|0)/\*)?\Z")
_INPUT: Final = "0123456789()[],'/*abcdefgh@:$%{}IJKLMNOPQRSTUVWXYZ&+-.;<=>?!^_|~ijklmnopqrstuvwxyzABCDEFGH`#\"\\ "
_OUTPUT: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR: Final = (0xF5DEE51989, 0xA9FDCA3312, 0x1BAB10E32D, 0x3706B1677A, 0x644D626FFD)


class PublicNode:
    """An extended public key (BIP32) and what can be derived without secrets."""

    __slots__ = ("chain_code", "public")

    def __init__(self, public: bytes, chain_code: bytes) -> None:
        self.public = public
        self.chain_code = chain_code

    def child(self, index: int) -> PublicNode:
        """The child at an index that is not hardened (CKDpub). Raises ValueError with probability 2^-127."""
        digest = hmac.digest(self.chain_code, self.public + index.to_bytes(4, "big"), "sha512")
        return PublicNode(PublicKey(self.public).add(digest[:32]).format(), digest[32:])


class Account:
    """The public half of an account."""

    def __init__(self, network: Network, node: PublicNode, origin: str, xpub: str) -> None:
        """Name the parts: `origin` is `fingerprint/84'/0'/0'` or empty, `xpub` the text of `node`."""
        self.network = network
        self.origin = origin
        self.xpub = xpub
        self._public = node.public
        self._branches = {keychain: node.child(keychain) for keychain in Keychain}

    @classmethod
    def parse(cls, text: str, network: Network) -> Account:
        """Read `wpkh([origin]xpub/<0;1>/*)`, its external half `.../0/*`, or a bare extended public key.

        A checksum is checked if there is one. Raises BadDescriptor, also for a key of another network.
        """
        body, mark, checksum = text.strip().partition("#")
        if mark and (any(c not in _INPUT for c in body) or with_checksum(body) != f"{body}#{checksum}"):
            raise BadDescriptor("the descriptor's checksum does not fit: check for a mistyped character")
        inner = body[5:-1] if body.startswith("wpkh(") and body.endswith(")") else body
        match = _WPKH.match(inner)
        if match is None or (match[1] is not None and not _ORIGIN.match(match[1])):
            raise BadDescriptor
        if match[2][1:4] == "prv":
            raise BadDescriptor("that descriptor has a private key: a watch-only wallet takes the public one")
        try:
            payload = base58check_decode(match[2])
            if len(payload) != 78 or payload[:4] not in _VERSIONS:
                raise BadDescriptor("that is not an extended public key of a native segwit account")
            node = PublicNode(PublicKey(payload[45:]).format(), payload[13:45])
        except ValueError as e:
            raise BadDescriptor("the extended public key is damaged: check for a mistyped character") from e
        if _VERSIONS[payload[:4]] != (network is Network.MAINNET):
            raise BadDescriptor(f"that extended key belongs to another network than {network.name.lower()}")
        version = _XPUB if network is Network.MAINNET else _TPUB
        origin = re.sub("[hH]", "'", match[1].lower()) if match[1] else ""
        return cls(network, node, origin, base58check(version + payload[4:]))

    @property
    def descriptors(self) -> tuple[str, str]:
        """The external and the internal descriptor, public, with checksums."""
        origin = f"[{self.origin}]" if self.origin else ""
        external, internal = (with_checksum(f"wpkh({origin}{self.xpub}/{k:d}/*)") for k in Keychain)
        return external, internal

    @property
    def identity(self) -> str:
        """What the wallet's file must belong to."""
        return f"{self.network.name} {self.descriptors[0]} {self.descriptors[1]}"

    def key_origin(self, keychain: Keychain, index: int) -> KeyOrigin:
        """Where the key at an index comes from.

        Without an origin in its descriptor, the extended key counts as its own master, as it does in Bitcoin Core.
        """
        fingerprint, *steps = self.origin.split("/")
        master = bytes.fromhex(fingerprint) if fingerprint else hash160(self._public)[:4]
        path = [int(step.rstrip("'")) + (HARDENED if step.endswith("'") else 0) for step in steps]
        return KeyOrigin(self._branches[keychain].child(index).public, master, (*path, int(keychain), index))

    def script(self, keychain: Keychain, index: int) -> bytes:
        """The P2WPKH script at an index."""
        return b"\x00\x14" + hash160(self._branches[keychain].child(index).public)


class SigningAccount(Account):
    """An account with its private key. Its repr shows no secret."""

    def __init__(self, master: ExtendedKey, network: Network) -> None:
        """BIP84's first account of a master key."""
        main = network is Network.MAINNET
        coin = 0 if main else 1
        self._key = master.derive(84 + HARDENED, coin + HARDENED, HARDENED)
        self._secrets = {keychain: self._key.derive(keychain) for keychain in Keychain}
        self._private = _XPRV if main else _TPRV
        origin = f"{master.fingerprint.hex()}/84'/{coin}'/0'"
        xpub = self._key.xpub(_XPUB if main else _TPUB)
        super().__init__(network, PublicNode(self._key.public, self._key.chain_code), origin, xpub)

    def __repr__(self) -> str:
        """Name the account by its origin."""
        return f"SigningAccount({self.origin})"

    def secret(self, keychain: Keychain, index: int) -> bytes:
        """The secret behind a script, 32 bytes."""
        return self._secrets[keychain].derive(index).secret

    @property
    def private_descriptors(self) -> tuple[str, str]:
        """Both descriptors with the account's private key: whoever reads them can spend everything."""
        xprv = self._key.xprv(self._private)
        external, internal = (with_checksum(f"wpkh([{self.origin}]{xprv}/{k:d}/*)") for k in Keychain)
        return external, internal


def with_checksum(body: str) -> str:
    """A descriptor with its checksum (BIP380). Raises ValueError for characters that no descriptor has."""
    symbols: list[int] = []
    groups: list[int] = []
    for c in body:
        value = _INPUT.index(c)
        symbols.append(value & 31)
        groups.append(value >> 5)
        if len(groups) == 3:
            symbols.append(groups[0] * 9 + groups[1] * 3 + groups[2])
            groups = []
    if groups:
        symbols.append(groups[0] if len(groups) == 1 else groups[0] * 3 + groups[1])
    check = 1
    for value in [*symbols, 0, 0, 0, 0, 0, 0, 0, 0]:
        top = check >> 35
        check = (check & 0x7FFFFFFFF) << 5 ^ value
        for i, generator in enumerate(_GENERATOR):
            check ^= generator if top >> i & 1 else 0
    check ^= 1
    return f"{body}#{''.join(_OUTPUT[check >> 5 * (7 - i) & 31] for i in range(8))}"
