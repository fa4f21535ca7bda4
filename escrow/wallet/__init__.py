"""The user's own coins: one Protocol in `base`, and what implements it."""
