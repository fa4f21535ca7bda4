"""Where records are found: the 20-byte topics (SPEC, DHT topics).

A topic is BLAKE2b-160 over `len(x) as u8 ‖ x` of its parts, personalised with its name, the network first. A market's
offers are spread over shards by the leading bits of the offer's id, so that no node holds a whole large market; how
deep a market is sharded is read off the answers (`dht.market`), never announced.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Final

from dht.contact import ID_BYTES
from protocol.types import Network, Side

MAX_SHARD_BITS: Final = 8


def topic(name: bytes, network: Network, *parts: bytes) -> bytes:
    """A 20-byte topic of `name` (at most 16 bytes) and parts (at most 255 bytes each)."""
    h = blake2b(bytes([int(network)]), digest_size=ID_BYTES, person=name)
    for part in parts:
        h.update(bytes([len(part)]))
        h.update(part)
    return h.digest()


@lru_cache(maxsize=4_096)
def offers_topic(network: Network, currency: str, side: Side, shard: tuple[int, int] = (0, 0)) -> bytes:
    """The topic of one shard of a market. `shard`: (bits, prefix), (0, 0) for the undivided market."""
    bits, prefix = shard
    if not 0 <= bits <= MAX_SHARD_BITS or not 0 <= prefix < 1 << bits:
        raise ValueError("there is no such shard")
    return topic(b"p2pnode/offers", network, currency.encode(), bytes([int(side)]), bytes([bits, prefix]))


def shard_of(offer_id: bytes, bits: int) -> tuple[int, int]:
    """The shard of `bits` bits that an offer belongs to."""
    return bits, offer_id[0] >> (8 - bits) if bits else 0


def offer_topics(network: Network, currency: str, side: Side, offer_id: bytes) -> tuple[bytes, ...]:
    """Every topic that an offer may be stored under, the undivided market first: for its validator."""
    return _topics_of(network, currency, side, offer_id[0])


@lru_cache(maxsize=8_192)
def _topics_of(network: Network, currency: str, side: Side, first: int) -> tuple[bytes, ...]:
    one = bytes([first])
    return tuple(offers_topic(network, currency, side, shard_of(one, bits)) for bits in range(MAX_SHARD_BITS + 1))


def contact_topic(network: Network, persona: bytes) -> bytes:
    """Where the contact record of a persona is found."""
    return topic(b"p2pnode/contact", network, persona)


def arbiters_topic(network: Network) -> bytes:
    """Where arbiters announce themselves."""
    return topic(b"p2pnode/arbiters", network)


def reputation_topic(network: Network, persona: bytes) -> bytes:
    """Where a persona's bond, its receipts, what others say of it, and proofs against it are found."""
    return topic(b"p2pnode/standing", network, persona)


def anchor_topic(network: Network, outpoint: bytes) -> bytes:
    """Where everything that stands on one output of the chain (36 bytes) meets, so that nothing counts twice."""
    return topic(b"p2pnode/anchor", network, outpoint)


def equivocations_topic(network: Network) -> bytes:
    """Where proofs against arbiters are found."""
    return topic(b"p2pnode/exposed", network)


def mailbox_topic(network: Network, persona: bytes) -> bytes:
    """Where sealed messages for a persona wait."""
    return topic(b"p2pnode/mailbox", network, persona)


def parcel_topic(network: Network, author: bytes, part: int) -> bytes:
    """Where chunks of a piece of mail lie. `author`: the key that signs them; `part`: which eight of them, from 0."""
    return topic(b"p2pnode/parcel", network, author, bytes([part]))


def receipt_topic(network: Network, persona: bytes, slip: bytes) -> bytes:
    """Where the sender of a piece of mail finds the answer of `persona` to its slip (the key that signed it)."""
    return topic(b"p2pnode/receipt", network, persona, slip)
