"""A Kademlia DHT of signed, validated, multi-value records; it knows nothing of offers, trades or Bitcoin.

Routing, lookup, records, storage and RPC are separate so that each can be judged and replaced by itself. Time and
keys are arguments; the only I/O is the datagram endpoint that `dht.node` opens.
"""
