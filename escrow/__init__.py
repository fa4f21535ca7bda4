"""The Bitcoin side of a trade: keys, scripts, funding and payout transactions, wallet and chain backends.

It knows contracts and chains, and nothing of peers, channels or the DHT. Everything on chain is derived here from
the signed contract; no script, amount or transaction is taken from a peer.
"""
