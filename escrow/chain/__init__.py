"""Views of the Bitcoin chain: one Protocol in `base`, one module per backend."""
