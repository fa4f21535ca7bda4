"""What a persona's name is worth here: bonds, receipts and ratings, proofs against arbiters, and the user's own lists.

`kinds` are the rules of the records, `chainsight` holds them against our own chain backend, `store` keeps them,
`exchange` makes receipts of our own trades, `history` reads those of others, `standing` decides what follows from it.
"""
