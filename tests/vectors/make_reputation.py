"""Makes `reputation.json`: records of SPEC section 14, valid and not: `python -m tests.vectors.make_reputation`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from dht.topics import anchor_topic, equivocations_topic, reputation_topic
from escrow.keys import arbiter_public, arbiter_secret, public_key
from escrow.signatures import sign_schnorr
from protocol.bond import BOND_WORK_BITS, BondRecord, bond_message
from protocol.identity import SigningKey
from protocol.rating import Mark, Rating
from protocol.receipt import (
    RECEIPT_WORK_BITS,
    Ending,
    RulingReceipt,
    receipt_id,
    receipt_message,
    ruling_receipt_message,
)
from protocol.types import Branch
from protocol.wire import Envelope, Kind, pack
from protocol.work import find_work
from tests.unit.escrow_support import NETWORK
from tests.unit.reputation_support import Ledger, bond_of, contradiction, key_of, rating, trade
from tests.unit.services_support import T0

PATH: Final = Path(__file__).parent / "reputation.json"
DAY: Final = 86_400


def made() -> dict[str, Any]:
    """The whole document."""
    ann, bob, eve = key_of("ann"), key_of("bob"), key_of("eve")
    ledger = Ledger()
    done = trade(ledger, ann, bob, "vector")
    signed = done.signed()
    secret = b"\x21" * 32
    bond = bond_of(ledger, ann, secret, 10_000_000, 50_400)
    base, contract = b"\x31" * 32, b"\x41" * 32
    ruled = RulingReceipt(
        ann.public, 1, public_key(base), contract, Branch.MAIN, done.receipt.funding_txid, done.receipt.vout,
        done.receipt.funding_block, done.receipt.payout_txid, done.receipt.payout_block, 100, 140, 144, bytes(64),
        T0, T0 + DAY,
    )  # fmt: skip
    ruled = replace(
        ruled, key_signature=sign_schnorr(arbiter_secret(base, contract), ruling_receipt_message(ruled, NETWORK))
    )
    bonded = BondRecord(ann.public, 1, bond, T0, T0 + DAY)
    standing = {name: reputation_topic(NETWORK, key.public) for name, key in (("ann", ann), ("bob", bob), ("eve", eve))}
    said = Rating(eve.public, 1, signed, Mark.BAD, "", T0, T0 + DAY)
    valid = [
        _case("a bond", _sealed(ann, Kind.BOND, bonded, BOND_WORK_BITS), standing["ann"]),
        _case("a rating", rating(signed, ann, Mark.GOOD, text="fast"), standing["bob"]),
        _case("the same at its outpoint", rating(signed, ann), anchor_topic(NETWORK, done.receipt.outpoint)),
        _case("a ruling receipt", _sealed(ann, Kind.RULING_RECEIPT, ruled, RECEIPT_WORK_BITS), standing["ann"]),
        _case("two rulings by one arbiter", contradiction(ann), equivocations_topic(NETWORK)),
    ]
    invalid = [
        _case("a bond of another persona", _sealed(eve, Kind.BOND, replace(bonded, persona=eve.public), BOND_WORK_BITS),
              standing["eve"]),
        _case("a bond of another amount",
              _sealed(ann, Kind.BOND, replace(bonded, bond=replace(bond, value=1)), BOND_WORK_BITS), standing["ann"]),
        _case("a rating by a third", _sealed(eve, Kind.RATING, said, RECEIPT_WORK_BITS), standing["bob"]),
        _case("a rating under a stranger's topic", rating(signed, ann), standing["eve"]),
        _case("a consent of the wrong party", rating(replace(signed, seller_consent=signed.buyer_consent), ann),
              standing["bob"]),
        _case("an escrow key of the wrong party",
              rating(replace(signed, buyer_key_signature=signed.seller_key_signature), ann), standing["bob"]),
        _case("another ending than was signed",
              rating(replace(signed, receipt=replace(signed.receipt, ending=Ending.RULED)), ann), standing["bob"]),
        _case("a ruling receipt whose heights were changed",
              _sealed(ann, Kind.RULING_RECEIPT, replace(ruled, ruled=101), RECEIPT_WORK_BITS), standing["ann"]),
        _case("a rating without work", ann.seal(Kind.RATING, NETWORK, pack(replace(said, rater=ann.public))),
              standing["bob"]),
    ]  # fmt: skip
    return {
        "network": int(NETWORK),
        "now": T0,
        "digests": {
            "bond message": bond_message(NETWORK, ann.public, bond).hex(),
            "receipt id": receipt_id(done.receipt, NETWORK).hex(),
            "receipt message": receipt_message(done.receipt, NETWORK).hex(),
            "ruling receipt message": ruling_receipt_message(ruled, NETWORK).hex(),
            "arbiter key": arbiter_public(public_key(base), contract).hex(),
        },
        "valid": valid,
        "invalid": invalid,
    }


def _sealed(key: SigningKey, kind: Kind, value: object, bits: int) -> Envelope:
    return key.seal(kind, NETWORK, find_work(kind, NETWORK, pack(value), bits))


def _case(why: str, envelope: Envelope, topic: bytes) -> dict[str, str]:
    return {"why": why, "topic": topic.hex(), "record": envelope.raw.hex()}


if __name__ == "__main__":
    PATH.write_text(json.dumps(made(), indent=1) + "\n")
