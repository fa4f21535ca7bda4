"""The daemon: configuration, storage, the engine that records each decision before acting, channels, API and client.

This layer wires `dht`, `escrow` and `protocol` together and is the only one that reads the clock, draws
randomness and talks to sockets and files on behalf of a user. `p2pnode.app` is the composition root.
"""
