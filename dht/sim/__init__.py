"""The DHT in virtual time: the very same engine, with thousands of nodes, loss, churn, NAT and attackers.

Only two things differ from a real node. Datagrams travel through a heap of events instead of sockets, and the keys of a
pair of nodes come from a hash instead of a Diffie-Hellman (a minute of CPU per million pairs that proves nothing here).
Everything is drawn from one seeded generator, so a run repeats exactly.
"""
