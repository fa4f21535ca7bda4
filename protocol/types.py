"""The scalar types that every layer shares.

Amounts are integers with their unit in the type's name; there is no float near money. Constraints sit in the
types, so that `msgspec.convert` enforces them wherever bytes from outside become values (DESIGN: parse once, at
the edge). Constructors do not validate: values built from outside input go through `wire.unpack`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

from msgspec import Meta

MAX_MONEY: Final = 21_000_000 * 100_000_000
"""Satoshis that can ever exist."""

SATS_PER_BTC: Final = 100_000_000
PPM: Final = 1_000_000
"""Parts per million in one whole."""


class Network(IntEnum):
    """The Bitcoin chain that a node, and everything it signs, belongs to."""

    MAINNET = 1
    TESTNET = 2
    SIGNET = 3
    REGTEST = 4


class Side(IntEnum):
    """What a party does with bitcoin. Independent of maker and taker."""

    BUY = 1
    SELL = 2

    @property
    def other(self) -> Side:
        """The counterparty's side."""
        return Side.SELL if self is Side.BUY else Side.BUY


class Seat(IntEnum):
    """Who published the offer and who answered it. Independent of buyer and seller."""

    MAKER = 1
    TAKER = 2

    @property
    def other(self) -> Seat:
        """The counterparty's seat."""
        return Seat.TAKER if self is Seat.MAKER else Seat.MAKER


class EscrowType(IntEnum):
    """How coins are locked (DESIGN section 9)."""

    WSH_2OF3 = 1
    WSH_2OF3_BACKUP = 2


class Branch(IntEnum):
    """Which of a contract's two arbiters, and which set of the escrow's keys (SPEC section 6.1)."""

    MAIN = 1
    BACKUP = 2
    """Signs once the escrow is as old as the contract's delay."""


Sats = Annotated[int, Meta(ge=0, le=MAX_MONEY)]
"""An amount of bitcoin, in satoshis."""

PositiveSats = Annotated[int, Meta(ge=1, le=MAX_MONEY)]
"""An amount of bitcoin that is not zero, in satoshis."""

MinorUnits = Annotated[int, Meta(ge=1, le=10**18)]
"""An amount of a counter currency in its smallest unit (cents, yen); ISO 4217 gives the exponent."""

PricePerBtc = Annotated[int, Meta(ge=1, le=10**18)]
"""A price: minor units of the counter currency for one whole bitcoin."""

Ppm = Annotated[int, Meta(ge=0, le=PPM)]
"""A share, in parts per million, of at most one whole."""

SignedPpm = Annotated[int, Meta(ge=-PPM // 2, le=PPM)]
"""A margin above or below a reference, in parts per million."""

FeeRate = Annotated[int, Meta(ge=100, le=10_000_000)]
"""A fee rate in satoshis per 1,000 virtual bytes."""

Height = Annotated[int, Meta(ge=0, le=2**31 - 1)]
"""A block height."""

Blocks = Annotated[int, Meta(ge=1, le=65_535)]
"""A number of blocks; at most what a BIP68 relative lock can hold."""

UnixTime = Annotated[int, Meta(ge=0, le=2**40)]
"""Seconds since 1970-01-01 UTC."""

Sequence = Annotated[int, Meta(ge=0, le=2**53)]
"""A counter that only grows."""

Hash32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""A BLAKE2b-256 digest, or a 32-byte id made of one."""

Nonce32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""32 secret random bytes."""

PersonaId = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""An Ed25519 public key that signs offers, contracts, messages and rulings."""

NodeKey = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""An Ed25519 public key of a node: transport and DHT. Never an authority."""

Signature64 = Annotated[bytes, Meta(min_length=64, max_length=64)]
"""An Ed25519 signature (RFC 8032)."""

EcdsaDer = Annotated[bytes, Meta(min_length=8, max_length=71)]
"""A DER-encoded secp256k1 ECDSA signature without the sighash byte; with a low S it has at most 71 bytes."""

PubKey33 = Annotated[bytes, Meta(min_length=33, max_length=33)]
"""A compressed secp256k1 public key."""

Txid = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""A transaction id in internal byte order (reversed against what explorers show)."""

ScriptPubKey = Annotated[bytes, Meta(min_length=22, max_length=34)]
"""A native segwit output script: P2WPKH has 22 bytes, P2WSH and P2TR 34. There are no others in a contract."""

CurrencyCode = Annotated[str, Meta(pattern=r"\A[A-Z]{3,5}\Z")]
"""An ISO 4217 code, or the ticker of another currency, in capitals."""

MethodCode = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9-]{1,31}\Z")]
"""The name of a payment method in the registry, such as `sepa-instant`."""

ShortTerms = Annotated[str, Meta(max_length=400)]
"""Free text inside a public record, which must fit one datagram."""

Terms = Annotated[str, Meta(max_length=2_000)]
"""Free text shown to the counterparty."""
