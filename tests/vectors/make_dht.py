"""Makes `tests/vectors/dht.json` anew: `python -m tests.vectors.make_dht`. Deterministic; part of the specification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dht import messages, packet, sync, topics
from dht.contact import Contact, node_id, pack_address, puzzle_zero_bits
from dht.records import RecordMeta, tag_of
from protocol.identity import SigningKey
from protocol.types import Network, Side

FILE = Path(__file__).parent / "dht.json"
A = SigningKey(bytes(range(32)))
B = SigningKey(bytes(range(32, 64)))
RID = bytes(range(12))
SALT = bytes(range(8))
TOKEN = b"\x11" * 8
TOPIC = bytes(range(20))


def nodes() -> list[dict[str, Any]]:
    """Ids, puzzles and packed contacts."""
    made = []
    for key, host, port in ((A, "203.0.113.7", 9_735), (B, "2001:db8::7", 65_535)):
        contact = Contact(key.public, host, port)
        made.append(
            {
                "key": key.public.hex(),
                "id": node_id(key.public).hex(),
                "puzzle_zero_bits": puzzle_zero_bits(key.public),
                "host": host,
                "port": port,
                "packed": contact.packed.hex(),
            }
        )
    return made


def packets() -> dict[str, Any]:
    """Keys of a pair, a request and its reply."""
    to_b, from_b = packet.direction_keys(A.x25519_secret, A.public, B.public, B.x25519_public, Network.REGTEST)
    question = messages.request(messages.Op.FIND_NODE, 0, TOKEN, messages.find_node_body(TOPIC, 8))
    answer = messages.reply(
        messages.Op.FIND_NODE, 0, TOKEN, messages.contacts_body([Contact(A.public, "203.0.113.7", 9_735)])
    )
    return {
        "a_seed": A.seed.hex(),
        "b_seed": B.seed.hex(),
        "network": int(Network.REGTEST),
        "key_a_to_b": to_b.hex(),
        "key_b_to_a": from_b.hex(),
        "id": RID.hex(),
        "salt": SALT.hex(),
        "request_plaintext": question.hex(),
        "request": packet.seal_request(to_b, A.public, RID, question).hex(),
        "reply_plaintext": answer.hex(),
        "reply": packet.seal_reply(from_b, RID, SALT, answer).hex(),
        "hello": packet.hello(RID).hex(),
        "welcome": packet.welcome(RID, B.public).hex(),
    }


def bodies() -> dict[str, str]:
    """One body of each op."""
    first = messages.FIRST
    value = messages.value_body(3, b"\x22" * 8, more=True, records=[b"one", b"three"], large=[(b"\x33" * 8, 4_000)])
    return {
        "ping_reply": pack_address("203.0.113.7", 9_735).hex(),
        "find_node": messages.find_node_body(TOPIC, 8).hex(),
        "find_value": messages.find_value_body(TOPIC, 8, first, b"\x22" * 8).hex(),
        "find_value_reply": (value + messages.contacts_body([])).hex(),
        "store": messages.store_body(TOPIC, 8, b"record").hex(),
        "store_older_reply": messages.older_body([], b"newer").hex(),
        "store_part": messages.store_part_body(TOPIC, bytes(2_000), 1_024).hex(),
        "fetch_part": messages.fetch_body(TOPIC, b"\x33" * 8, 1_024).hex(),
    }


def invalid() -> list[dict[str, str]]:
    """Reply plaintexts that must be refused, by the op they answer and why."""
    head = bytes((messages.Op.FIND_VALUE | 0x80, 0)) + TOKEN
    return [
        {"op": "2", "why": "shorter than its head", "plaintext": "8200"},
        {"op": "2", "why": "answers another op", "plaintext": (b"\x83\0" + TOKEN + b"\0").hex()},
        {"op": "2", "why": "seventeen contacts", "plaintext": (b"\x82\0" + TOKEN + b"\x11").hex()},
        {"op": "2", "why": "the list ends early", "plaintext": (b"\x82\0" + TOKEN + b"\x01\x04" + bytes(20)).hex()},
        {"op": "2", "why": "family 5", "plaintext": (b"\x82\0" + TOKEN + b"\x01\x05" + bytes(60)).hex()},
        {"op": "3", "why": "no records field", "plaintext": (head + bytes(5)).hex()},
        {"op": "3", "why": "a record ends early", "plaintext": (head + bytes(11) + b"\x01\x00\x09abc").hex()},
        {"op": "3", "why": "a list of large records ends early", "plaintext": (head + bytes(12) + b"\x02abc").hex()},
    ]


def records() -> dict[str, str]:
    """Tags and topics."""
    meta = RecordMeta(A.public, b"offer", 1, 1, ())
    n = Network.REGTEST
    return {
        "publisher": A.public.hex(),
        "sub_key": b"offer".hex(),
        "tag": tag_of(meta).hex(),
        "offers_EUR_sell": topics.offers_topic(n, "EUR", Side.SELL).hex(),
        "offers_EUR_sell_3_5": topics.offers_topic(n, "EUR", Side.SELL, (3, 5)).hex(),
        "contact_of_publisher": topics.contact_topic(n, A.public).hex(),
        "arbiters": topics.arbiters_topic(n).hex(),
        "mailbox_of_publisher": topics.mailbox_topic(n, A.public).hex(),
    }


def reconciliation() -> dict[str, Any]:
    """A set of records and the sums of it."""
    entries = [(bytes([i]) * 8, bytes([255 - i]) * 16) for i in range(40)]
    index = sync.Index(entries)
    return {
        "entries": [[tag.hex(), name.hex()] for tag, name in entries],
        "digest": index.digest.hex(),
        "ask": sync.ask(TOPIC, [index.sum(sync.FIRST, sync.LAST)]).hex(),
        "parts": [sync.pack_sum(part).hex() for part in index.split(sync.FIRST, sync.LAST)],
    }


def make() -> dict[str, Any]:
    """Everything in the file."""
    return {
        "nodes": nodes(),
        "packets": packets(),
        "bodies": bodies(),
        "invalid_replies": invalid(),
        "records": records(),
        "reconciliation": reconciliation(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(make(), indent=1) + "\n")
