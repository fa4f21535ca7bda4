"""Receipts: that a trade took place, between whom, and where on the chain it can be seen (SPEC section 14.2).

A receipt names an escrow's outpoint and the payout that spent it, each with its block. It carries four signatures: of
both personas, which consent to its publication, and of both escrow keys, which stand in the script that the payout
reveals. So nobody can claim an escrow that is not its own, and a made-up trade needs a real escrow: real coins locked
for real blocks, and real fees. Everything but the signatures is checked on the reader's own chain backend.

After a trade each side sends the other its half. Without the consent of both it stays what it is: two signed halves
that only the two of them have.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final

from msgspec import Meta, Struct

from protocol.errors import Malformed, PeerViolation
from protocol.types import (
    Blocks,
    Branch,
    Hash32,
    Height,
    Network,
    PersonaId,
    PubKey33,
    Sequence,
    Side,
    Signature64,
    Txid,
    UnixTime,
)
from protocol.wire import Envelope, Kind, digest, envelope_id, pack, sign_body, unpack, verify_body
from protocol.work import NO_WORK, WorkNonce, work_bits

RECEIPT_WORK_BITS: Final = 12
MAX_RECEIPT_LIFETIME: Final = 400 * 86_400
"""Seconds; records are made anew while their publisher is there."""


class BadReceipt(PeerViolation):
    """The receipt is not signed by those whom it names, or does not fit its trade."""

    code = 2197


class Ending(IntEnum):
    """How a trade that was funded ended."""

    RELEASED = 1
    SETTLED = 2
    RULED = 3


class Receipt(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What two parties say of one trade. Keys are the escrow's main ones; blocks are hashes in internal byte order."""

    buyer: PersonaId
    seller: PersonaId
    buyer_key: PubKey33
    seller_key: PubKey33
    funding_txid: Txid
    vout: Annotated[int, Meta(ge=0, le=65_535)]
    funding_block: Hash32
    payout_txid: Txid
    payout_block: Hash32
    ending: Ending

    @property
    def outpoint(self) -> bytes:
        """The escrow's output: txid and index, 36 bytes as in a transaction."""
        return self.funding_txid + self.vout.to_bytes(4, "little")

    def persona(self, side: Side) -> bytes:
        """The party on `side`."""
        return self.buyer if side is Side.BUY else self.seller

    def key(self, side: Side) -> bytes:
        """The escrow key of the party on `side`."""
        return self.buyer_key if side is Side.BUY else self.seller_key

    def side_of(self, persona: bytes) -> Side | None:
        """On which side `persona` was; None: on neither."""
        return next((side for side in Side if self.persona(side) == persona), None)

    def other(self, persona: bytes) -> bytes:
        """The counterparty of one of the two. Raises ValueError for a third."""
        side = self.side_of(persona)
        if side is None:
            raise ValueError("not a party of this receipt")
        return self.persona(side.other)


class ReceiptHalf(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Either to the other after the trade: the receipt, signed by my escrow key; with `consent` it may be published.

    `consent` is the persona's signature as `sign_receipt` makes it. Not part of the transcript.
    """

    trade_id: Hash32
    receipt: Receipt
    key_signature: Signature64
    consent: Signature64 | None


class SignedReceipt(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A receipt with all four signatures, ready for the public."""

    receipt: Receipt
    buyer_key_signature: Signature64
    buyer_consent: Signature64
    seller_key_signature: Signature64
    seller_consent: Signature64

    def key_signature(self, side: Side) -> bytes:
        """The escrow key's signature of the party on `side`."""
        return self.buyer_key_signature if side is Side.BUY else self.seller_key_signature


def receipt_id(receipt: Receipt, network: Network) -> bytes:
    """The name of a receipt, 32 bytes."""
    return envelope_id(Kind.RECEIPT, network, pack(receipt))


def receipt_message(receipt: Receipt, network: Network) -> bytes:
    """The 32 bytes that an escrow key signs (BIP340)."""
    return digest(b"p2pnode/receipt", receipt_id(receipt, network))


def sign_receipt(receipt: Receipt, network: Network, seed: bytes) -> bytes:
    """A persona's consent that this receipt becomes public, 64 bytes."""
    return sign_body(Kind.RECEIPT, network, seed, pack(receipt))


def check_consents(signed: SignedReceipt, network: Network) -> None:
    """The personas' signatures, and that they differ. Escrow keys are `escrow.receipt`'s to check.

    Raises BadReceipt, BadSignature.
    """
    receipt = signed.receipt
    if receipt.buyer == receipt.seller or receipt.buyer_key[1:] == receipt.seller_key[1:]:
        raise BadReceipt("a trade with oneself is no trade")
    body = pack(receipt)
    verify_body(Kind.RECEIPT, network, receipt.buyer, body, signed.buyer_consent)
    verify_body(Kind.RECEIPT, network, receipt.seller, body, signed.seller_consent)


def read_half(envelope: Envelope, network: Network) -> ReceiptHalf:
    """The half in a verified envelope, its consent checked. Raises Malformed, BadReceipt, BadSignature."""
    if envelope.kind != Kind.RECEIPT_HALF or envelope.network != network:
        raise Malformed("not half a receipt")
    half = unpack(envelope.body, ReceiptHalf, limit=Kind.RECEIPT_HALF.limit)
    if half.receipt.side_of(envelope.signer) is None:
        raise BadReceipt("half a receipt must be signed by one of its parties")
    if half.consent is not None:
        verify_body(Kind.RECEIPT, network, envelope.signer, pack(half.receipt), half.consent)
    return half


class RulingReceipt(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An arbiter's public record of one ruling that was paid out, without the parties' names.

    `key_signature` is by the arbiter's key in that escrow, which signed the payout too. Heights: when the arbiter was
    asked and when it ruled; the chain bounds both. `promised`: the blocks that it had announced to answer in.
    """

    arbiter: PersonaId
    sequence: Sequence
    base_point: PubKey33
    contract_id: Hash32
    branch: Branch
    funding_txid: Txid
    vout: Annotated[int, Meta(ge=0, le=65_535)]
    funding_block: Hash32
    payout_txid: Txid
    payout_block: Hash32
    opened: Height
    ruled: Height
    promised: Blocks
    key_signature: Signature64
    created: UnixTime
    expires: UnixTime
    work: WorkNonce = NO_WORK

    @property
    def outpoint(self) -> bytes:
        """The escrow's output, 36 bytes."""
        return self.funding_txid + self.vout.to_bytes(4, "little")

    @property
    def in_time(self) -> bool:
        """Whether the arbiter kept its promise: so many blocks to answer, as many again to rule."""
        return self.ruled - self.opened <= 2 * self.promised


def ruling_receipt_message(value: RulingReceipt, network: Network) -> bytes:
    """The 32 bytes that the arbiter's escrow key signs."""
    return digest(
        b"p2pnode/ruling-receipt",
        bytes([network]),
        value.arbiter,
        value.contract_id,
        value.outpoint,
        value.payout_txid,
        b"".join(n.to_bytes(4, "big") for n in (value.opened, value.ruled, value.promised)),
    )


def read_ruling_receipt(envelope: Envelope, network: Network, now: int) -> RulingReceipt:
    """The ruling receipt in a verified envelope; its key is `escrow.receipt`'s to check. Raises Malformed."""
    if envelope.kind != Kind.RULING_RECEIPT or envelope.network != network:
        raise Malformed("not a ruling receipt of this network")
    value = unpack(envelope.body, RulingReceipt, limit=Kind.RULING_RECEIPT.limit)
    if value.arbiter != envelope.signer:
        raise Malformed("a ruling receipt must be signed by the arbiter that it names")
    if not value.opened <= value.ruled:
        raise Malformed("a ruling can't come before it was asked for")
    check_lifetime(value.created, value.expires, now)
    check_work(envelope)
    return value


def check_lifetime(created: int, expires: int, now: int) -> None:
    """A record's times. Raises Malformed."""
    if not created < expires <= created + MAX_RECEIPT_LIFETIME or now >= expires:
        raise Malformed("a receipt's record must live for at most 400 days, and not be over")


def check_work(envelope: Envelope) -> None:
    """The price of flooding. Raises Malformed."""
    if work_bits(envelope.id) < RECEIPT_WORK_BITS:
        raise Malformed("a receipt's record needs more proof of work")
