"""One mnemonic, and every secret of a node derived from it (DESIGN section 4).

Theory of operation. A BIP39 mnemonic gives a BIP32 master key. Coins live under BIP84, so that any wallet finds them.
Every other secret is BIP85 entropy: the private key at an all-hardened path, hashed with HMAC-SHA512 under
`bip-entropy-from-k`, of which the first 32 bytes are taken. Hardened steps and the hash keep the secrets apart: who
learns one, learns nothing of the others, of the coins, or of the mnemonic.

The paths, all below `m/83696968'/7352944'/0'` (BIP85, our application number, layout version):

    0'/i'               node key i: seed of an Ed25519 key
    1'/i'               persona key i: seed of an Ed25519 key
    2'/i'               arbiter base key of persona i: secp256k1
    3'/r'/w0'/.../w8'   escrow key of role r in a trade: secp256k1
    4'/0'               key of backup files: XChaCha20-Poly1305
    5'/w0'/.../w8'      key of what we leave with a trade's counterparty: XSalsa20-Poly1305
    6'/i'/h'            key of persona i's bond that is locked until height h: secp256k1

w0 to w8 are the 32 bytes of the trade id in words of 31 bits, most significant bit first, the last word filled up with
23 zero bits. So every trade and role has a key of its own, and mnemonic and contract alone give it back. 7352944 is
0x703270, "p2p". `protocol/SPEC.md` has the same text, `tests/vectors/keys.json` the vectors.

No clock and no randomness: new entropy is an argument. The functions run in milliseconds, except `bip39_seed`
(2,048 rounds of PBKDF2, about 2 ms).
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from difflib import get_close_matches
from enum import IntEnum
from functools import cache
from typing import Final

from mnemonic import Mnemonic as _Wordlist

from escrow.hd import HARDENED, ORDER, ExtendedKey
from protocol.errors import UserError

BIP85: Final = 83696968
APPLICATION: Final = 0x703270
LAYOUT: Final = 0

_NODE, _PERSONA, _ARBITER, _ESCROW, _BACKUP, _KEEPSAKE, _BOND = range(7)
_WORD_COUNTS: Final = {12: 16, 15: 20, 18: 24, 21: 28, 24: 32}
"""Words of a mnemonic to bytes of entropy (BIP39)."""


class EscrowRole(IntEnum):
    """What an escrow key is for. The numbers are part of the derivation path."""

    BUYER = 0
    SELLER = 1
    BUYER_BACKUP = 2
    """The buyer's key in the branch of the backup arbiter."""
    SELLER_BACKUP = 3
    """The seller's key in the branch of the backup arbiter."""


class BadMnemonic(UserError):
    """That is not a valid mnemonic: check the words, their order and their number."""

    code = 3210


def mnemonic_from_entropy(entropy: bytes) -> str:
    """The words of 16, 20, 24, 28 or 32 bytes of entropy (BIP39, English); 32 bytes give 24 words.

    Raises ValueError for another length.
    """
    if len(entropy) not in _WORD_COUNTS.values():
        raise ValueError("BIP39 entropy has 16, 20, 24, 28 or 32 bytes")
    check_bits = len(entropy) // 4
    number = int.from_bytes(entropy, "big") << check_bits | hashlib.sha256(entropy).digest()[0] >> (8 - check_bits)
    count = (len(entropy) * 8 + check_bits) // 11
    words = _words()
    return " ".join(words[number >> 11 * (count - 1 - i) & 0x7FF] for i in range(count))


def entropy_from_mnemonic(mnemonic: str) -> bytes:
    """Undo `mnemonic_from_entropy`; case and spaces are forgiven.

    Raises BadMnemonic: it names a word that is not in the list (and its place), or says that the checksum fails.
    """
    words = normalise(mnemonic).split(" ")
    if len(words) not in _WORD_COUNTS:
        raise BadMnemonic(f"a mnemonic has 12, 15, 18, 21 or 24 words, this has {len(words) if words[0] else 0}")
    known = _index()
    number = 0
    for place, word in enumerate(words, 1):
        if word not in known:
            close = get_close_matches(word, known, n=1)
            hint = f"; did you mean “{close[0]}”?" if close else ""
            raise BadMnemonic(f"word {place} of the mnemonic, “{word[:24]}”, is not in the word list{hint}")
        number = number << 11 | known[word]
    size = _WORD_COUNTS[len(words)]
    entropy = (number >> size // 4).to_bytes(size, "big")
    if mnemonic_from_entropy(entropy) != " ".join(words):
        raise BadMnemonic("the mnemonic's checksum does not fit: a word is wrong or two are swapped")
    return entropy


def normalise(mnemonic: str) -> str:
    """Lower case, NFKD, single spaces."""
    return " ".join(unicodedata.normalize("NFKD", mnemonic).lower().split())


def bip39_seed(mnemonic: str, passphrase: str = "") -> bytes:
    """The 64-byte BIP39 seed. Raises BadMnemonic."""
    entropy_from_mnemonic(mnemonic)
    salt = "mnemonic" + unicodedata.normalize("NFKD", passphrase)
    return hashlib.pbkdf2_hmac("sha512", normalise(mnemonic).encode(), salt.encode(), 2048)


class Seed:
    """The root of all keys. Its repr shows no secret."""

    def __init__(self, master: ExtendedKey) -> None:
        self.master = master
        self._base = master.derive(*_hardened(BIP85, APPLICATION, LAYOUT))

    @classmethod
    def from_mnemonic(cls, mnemonic: str, passphrase: str = "") -> Seed:
        """The seed of a mnemonic and an optional BIP39 passphrase. Raises BadMnemonic."""
        return cls(ExtendedKey.from_seed(bip39_seed(mnemonic, passphrase)))

    def __repr__(self) -> str:
        """Name the seed by its master fingerprint."""
        return f"Seed({self.master.fingerprint.hex()})"

    def node_key(self, index: int = 0) -> bytes:
        """The 32-byte Ed25519 seed of the node key."""
        return self._secret(_NODE, index)

    def persona_key(self, index: int = 0) -> bytes:
        """The 32-byte Ed25519 seed of persona `index`."""
        return self._secret(_PERSONA, index)

    def arbiter_base_key(self, index: int = 0) -> bytes:
        """The secp256k1 secret of the base point that persona `index` announces as an arbiter, 32 bytes."""
        return _in_group(self._secret(_ARBITER, index))

    def backup_key(self) -> bytes:
        """The 32-byte key under which backup files are encrypted."""
        return self._secret(_BACKUP, 0)

    def keepsake_key(self, trade_id: bytes) -> bytes:
        """The 32-byte key of what we alone can read in a trade. Raises ValueError as `escrow_key` does."""
        return self._secret(_KEEPSAKE, *trade_words(trade_id))

    def bond_key(self, index: int, lock_height: int) -> bytes:
        """The secp256k1 secret of persona `index`'s bond that is locked until a height, 32 bytes."""
        return _in_group(self._secret(_BOND, index, lock_height))

    def escrow_key(self, trade_id: bytes, role: EscrowRole) -> bytes:
        """The secp256k1 secret of one role in one trade, 32 bytes. Raises ValueError when the id has not 32 bytes."""
        return _in_group(self._secret(_ESCROW, role, *trade_words(trade_id)))

    def _secret(self, *path: int) -> bytes:
        return bip85_entropy(self._base.derive(*_hardened(*path)))[:32]


def bip85_entropy(key: ExtendedKey) -> bytes:
    """The 64 bytes that BIP85 makes of a derived key."""
    return hmac.digest(b"bip-entropy-from-k", key.secret, "sha512")


def trade_words(trade_id: bytes) -> tuple[int, ...]:
    """The nine 31-bit path elements of a 32-byte trade id. Raises ValueError for another length."""
    if len(trade_id) != 32:
        raise ValueError("a trade id has 32 bytes")
    number = int.from_bytes(trade_id, "big") << 23
    return tuple(number >> 31 * (8 - i) & 0x7FFF_FFFF for i in range(9))


def _in_group(secret: bytes) -> bytes:
    if not 0 < int.from_bytes(secret, "big") < ORDER:
        raise ValueError(
            "not a valid secp256k1 secret (probability 2^-127); start the trade again"
        )  # BIP85, HD-Seed WIF
    return secret


def _hardened(*path: int) -> tuple[int, ...]:
    return tuple(index + HARDENED for index in path)


@cache
def _words() -> tuple[str, ...]:
    return tuple(_Wordlist("english").wordlist)


@cache
def _index() -> dict[str, int]:
    return {word: i for i, word in enumerate(_words())}
