"""The distributed order book: signed records in a hostile Kademlia network (ADR 0005).

Layers, each without I/O except the last two: `contact` (ids, addresses), `packet` and `messages` (bytes), `records`
and `storage` (what may be kept), `routing` (kademlia's table), `lookup` (the search), `rpc` (questions and answers),
`search` (get, put, find), `engine` (a whole node), `udp` and `node` (sockets, asyncio).
"""

from dht.contact import Contact
from dht.disk import open_storage
from dht.engine import EngineConfig
from dht.node import Clock, DhtConfig, DhtNode, Seed, Stats, mine_node_key
from dht.reading import Found
from dht.records import Record, RecordKind, RecordMeta
from dht.storage import Storage, StorageLimits
from dht.writing import PutResult

__all__ = [
    "Clock",
    "Contact",
    "DhtConfig",
    "DhtNode",
    "EngineConfig",
    "Found",
    "PutResult",
    "Record",
    "RecordKind",
    "RecordMeta",
    "Seed",
    "Stats",
    "Storage",
    "StorageLimits",
    "mine_node_key",
    "open_storage",
]
