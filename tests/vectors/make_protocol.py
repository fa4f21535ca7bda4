"""Makes `tests/vectors/protocol/*.json` anew: `python -m tests.vectors.make_protocol`. Deterministic.

The files are part of the specification: a change in one of them is a change of the protocol.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
from msgspec import structs

from protocol.announcement import Announcement, FeeTerms
from protocol.contract import contract_id, details_hash, required_confirmations, trade_id
from protocol.identity import SigningKey, node_text, persona_text
from protocol.mailbox import (
    ANSWER_WORK_BITS,
    CHUNK_BYTES,
    CHUNK_WORK_BITS,
    SLIP_WORK_BITS,
    Answer,
    Chunk,
    Slip,
    chunk_key,
    make_answer,
    make_parcel,
    open_slip,
    read_slip,
    slip_key,
    withdraw_parcel,
)
from protocol.messages import NONE_YET, Decline, Header, encode
from protocol.offer import SALT_BYTES, MarketPrice, Offer, Revocation, deposit, make_offer_id, price_at, volume
from protocol.types import Network, Side
from protocol.wire import Envelope, Kind, digest, pack, seal
from protocol.work import find_work, work_bits
from tests.machines.duel import Duel, offer_of, tagged

FOLDER = Path(__file__).parent / "protocol"
SEED = bytes(range(32))
NETWORK = Network.REGTEST


def envelopes() -> dict[str, Any]:
    """Envelopes that verify, and broken ones by what is wrong with them."""
    good = seal(Kind.DECLINE, NETWORK, SEED, pack(("hello", 1)))
    fields = msgpack.unpackb(good.raw, raw=False)

    def changed(index: int, value: object) -> str:
        return bytes(msgpack.packb([*fields[:index], value, *fields[index + 1 :]], use_bin_type=True)).hex()

    return {
        "valid": [
            {
                "seed": SEED.hex(),
                "kind": int(Kind.DECLINE),
                "network": int(NETWORK),
                "body": good.body.hex(),
                "signer": good.signer.hex(),
                "signature": good.signature.hex(),
                "id": good.id.hex(),
                "raw": good.raw.hex(),
            }
        ],
        "invalid": [
            {"why": "version", "raw": changed(0, 2), "error": 2002},
            {"why": "another kind than was signed", "raw": changed(1, 28), "error": 2003},
            {"why": "another network", "raw": changed(2, 1), "error": 2004},
            {"why": "another signer", "raw": changed(3, SigningKey(bytes(32)).public), "error": 2003},
            {"why": "altered body", "raw": changed(4, good.body + b"\x00"), "error": 2003},
            {"why": "altered signature", "raw": changed(5, bytes(64)), "error": 2003},
            {"why": "short signature", "raw": changed(5, bytes(63)), "error": 2002},
            {"why": "additional field", "raw": bytes(msgpack.packb([*fields, 1])).hex(), "error": 2002},
            {"why": "trailing byte", "raw": good.raw.hex() + "00", "error": 2002},
            {"why": "body as text", "raw": changed(4, "text"), "error": 2002},
            {
                "why": "kind as a long integer",
                "raw": good.raw.replace(b"\x01\x1e", b"\x01\xcc\x1e", 1).hex(),
                "error": 2002,
            },
            {"why": "map", "raw": "80", "error": 2002},
            {"why": "empty", "raw": "", "error": 2002},
        ],
    }


def offers() -> dict[str, Any]:
    """Offers with enough work, and what breaks one."""
    maker = SigningKey(SEED)
    plain = offer_of(Side.SELL)
    salt = tagged("offer", SALT_BYTES)
    base: dict[str, Any] = {f: getattr(plain, f) for f in plain.__struct_fields__} | {
        "maker": maker.public,
        "offer_id": make_offer_id(maker.public, salt),
    }

    def raw(bits: int = 14, **changes: object) -> str:
        body = find_work(Kind.OFFER, NETWORK, pack(Offer(**(base | changes))), bits)
        return maker.seal(Kind.OFFER, NETWORK, body).raw.hex()

    lazy = maker.seal(Kind.OFFER, NETWORK, pack(Offer(**base)))

    def revocation(offer_id: bytes) -> str:
        body = pack(Revocation(maker.public, offer_id, 1, plain.side, plain.currency, plain.expires))
        return maker.seal(Kind.OFFER_REVOCATION, NETWORK, body).raw.hex()

    return {
        "now": 1_500,
        "valid": [
            {"raw": raw(), "note": "a fixed price"},
            {"raw": raw(price=MarketPrice(20_000, "default", 7_000_000)), "note": "a margin"},
        ],
        "invalid": [
            {"why": "amounts upside down", "raw": raw(amount_min=2_000_000), "error": 2002},
            {"why": "expired", "raw": raw(expires=1_400), "error": 2120},
            {"why": "lives too long", "raw": raw(expires=1_000 + 31 * 86_400), "error": 2002},
            {"why": "from the future", "raw": raw(created=10_000, expires=20_000), "error": 2002},
            {"why": "a method twice", "raw": raw(methods=("sepa", "sepa")), "error": 2002},
            {"why": "no backup arbiter", "raw": raw(arbiters=plain.arbiters[:1]), "error": 2002},
            {"why": "currency in small letters", "raw": raw(currency="eur"), "error": 2002},
            {
                "why": "signed by another than its maker",
                "raw": raw(maker=tagged("other"), offer_id=make_offer_id(tagged("other"), salt)),
                "error": 2002,
            },
            {"why": "the id of another maker's offer", "raw": raw(offer_id=plain.offer_id), "error": 2002},
            {"why": "an id of the salt alone", "raw": raw(offer_id=bytes(8) + salt), "error": 2002},
            {"why": "no work", "raw": lazy.raw.hex(), "error": 2002, "work": work_bits(lazy.id)},
        ],
        "revocation": revocation(base["offer_id"]),
        "invalid_revocation": {
            "why": "the id of another maker's offer",
            "raw": revocation(plain.offer_id),
            "error": 2002,
        },
    }


def contracts() -> dict[str, Any]:
    """Contract bytes and ids for both casts."""
    cases = []
    for side in Side:
        duel = Duel(side)
        contract = duel.contract
        cases.append(
            {
                "maker_side": side.name.lower(),
                "offer": pack(duel.offer).hex(),
                "bargain": pack(duel.take.take.bargain).hex(),
                "taker": pack(duel.taker_party).hex(),
                "maker": pack(duel.maker_party).hex(),
                "arbiter": pack(contract.arbiter).hex(),
                "backup": pack(contract.backup).hex(),
                "contract": pack(contract).hex(),
                "contract_id": contract_id(contract, NETWORK).hex(),
            }
        )
    return {"valid": cases}


def numbers() -> dict[str, Any]:
    """Rounding, hashes and texts."""
    fee = FeeTerms(5_000, 1_000, 50_000)
    reference = Duel(Side.SELL).take.take.bargain.offer
    amounts = (1, 999, 10_000, 123_457, 100_000_000, 2_100_000_000_000_000)
    return {
        "volume": [[a, p, volume(a, p)] for a in amounts for p in (1, 99, 6_500_000, 10**12)],
        "deposit": [[a, s, deposit(a, s)] for a in amounts for s in (0, 1, 150_000, 1_000_000)],
        "arbiter_fee": [[a, fee.fee(a)] for a in amounts],
        "market_price": [
            [r, m, limit, side.name.lower(), price_at(MarketPrice(m, "default", limit), side, r)]
            for r in (1, 6_543_211)
            for m in (-20_000, 0, 15_001)
            for limit in (None, 6_500_000)
            for side in Side
        ],
        "confirmations": [[a, required_confirmations(a)] for a in (1_000_000, 1_000_001, 10_000_001, 100_000_001)],
        "digest": [
            {"tag": "p2pnode/test", "parts": ["", "00ff"], "digest": digest(b"p2pnode/test", b"", b"\0\xff").hex()}
        ],
        "trade_id": trade_id(reference, tagged("taker"), tagged("nonce")).hex(),
        "details_hash": details_hash(bytes(32), pack((("iban", "DE00"),))).hex(),
        "persona": [SEED.hex(), persona_text(SEED)],
        "node": [SEED.hex(), node_text(SEED)],
        "message": encode(Header(tagged("trade"), 0, NONE_YET, NONE_YET), Decline(1100, "no"))[1].hex(),
    }


def mail() -> dict[str, Any]:
    """Parcels, their answers and withdrawals, and what a recipient, a sender or a holder must refuse."""
    secret, recipient = tagged("parcel"), SigningKey(SEED)
    created, expires = 1_000_000, 1_000_000 + 86_400
    small = seal(Kind.DECLINE, NETWORK, tagged("author"), pack(("mail", 1)))
    large = seal(Kind.DECLINE, NETWORK, tagged("author"), pack(("mail", bytes(range(256)) * 4)))

    def parcel(envelope: Envelope) -> dict[str, Any]:
        made = make_parcel(secret, recipient.public, envelope.raw, NETWORK, created=created, expires=expires)
        manifest = open_slip(read_slip(made.slip, NETWORK), recipient)
        count = len(made.chunks)
        gone = withdraw_parcel(secret, recipient.public, count, NETWORK, created=created, expires=expires)
        answers = [
            make_answer(read_slip(made.slip, NETWORK), recipient, envelope.id, code, NETWORK) for code in (0, 2142)
        ]
        return {
            "envelope": envelope.raw.hex(),
            "slip": made.slip.raw.hex(),
            "chunks": [chunk.raw.hex() for chunk in made.chunks],
            "manifest": {"seed": manifest.seed.hex(), "count": count, "hash": manifest.hash.hex()},
            "answers": [
                {"code": code, "raw": answer.raw.hex()} for code, answer in zip((0, 2142), answers, strict=True)
            ],
            "withdrawal": [gone.slip.raw.hex(), *(chunk.raw.hex() for chunk in gone.chunks)],
        }

    return {
        "secret": secret.hex(),
        "recipient_seed": SEED.hex(),
        "slip_key": slip_key(secret).public.hex(),
        "chunk_key": chunk_key(secret).public.hex(),
        "created": created,
        "expires": expires,
        "parcels": [parcel(small), parcel(large)],
        "invalid": _bad_mail(secret, recipient, created),
    }


def _bad_mail(secret: bytes, recipient: SigningKey, created: int) -> list[dict[str, Any]]:
    """Records that no holder keeps, by what is wrong with them."""
    key, cutter, other = slip_key(secret), chunk_key(secret), SigningKey(tagged("other"))
    day, box = created + 86_400, bytes(81)
    good = Slip(key.public, recipient.public, created, day, box)
    chunk = Chunk(cutter.public, 0, created, day, bytes(CHUNK_BYTES))
    answer = Answer(recipient.public, key.public, created, day, bytes(74))

    def made(why: str, kind: Kind, signer: SigningKey, value: Slip | Chunk | Answer, bits: int) -> dict[str, Any]:
        body = find_work(kind, NETWORK, pack(value), bits) if bits else pack(value)
        return {"why": why, "raw": signer.seal(kind, NETWORK, body).raw.hex(), "error": 2002}

    slips, chunks, answers = Kind.MAIL_SLIP, Kind.MAIL_CHUNK, Kind.MAIL_ANSWER
    return [
        made("a slip signed by another key", slips, other, good, SLIP_WORK_BITS),
        made("a slip without work", slips, key, good, 0),
        made("a slip's box too short", slips, key, structs.replace(good, sealed=bytes(80)), SLIP_WORK_BITS),
        made("a slip of 15 days", slips, key, structs.replace(good, expires=created + 15 * 86_400), SLIP_WORK_BITS),
        made("a slip that expires as it is made", slips, key, structs.replace(good, expires=created), SLIP_WORK_BITS),
        made("a chunk signed by another key", chunks, other, chunk, CHUNK_WORK_BITS),
        made("a chunk without work", chunks, cutter, chunk, 0),
        made("a chunk too short", chunks, cutter, structs.replace(chunk, data=bytes(799)), CHUNK_WORK_BITS),
        made("a chunk beyond the last", chunks, cutter, structs.replace(chunk, index=64), CHUNK_WORK_BITS),
        made("an answer by another than the recipient", answers, other, answer, ANSWER_WORK_BITS),
        made("an answer without work", answers, recipient, answer, 0),
        made("an answer too long", answers, recipient, structs.replace(answer, sealed=bytes(75)), ANSWER_WORK_BITS),
    ]


def announcement() -> Announcement:
    """An announcement for tests."""
    key = SigningKey(SEED)
    return Announcement(
        key.public, 1, b"\x02" + tagged("A"), FeeTerms(5_000, 1_000, 50_000), ("EUR",), (), ("en",), 10**8, 144,
        tagged("policy"), "fair", None, 1_000, 100_000,
    )  # fmt: skip


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(exist_ok=True)
    for make in (envelopes, offers, contracts, numbers, mail):
        (FOLDER / f"{make.__name__}.json").write_text(json.dumps(make(), indent=1) + "\n")


if __name__ == "__main__":
    main()
