"""Addresses and secrets as QR codes that phones read off the terminal."""

from __future__ import annotations

import segno

_BLOCKS = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}
"""Two rows in one line, by which of the two is light: terminals are dark."""


def payment_code(address: str) -> str:
    """The lines of a `bitcoin:` URI (BIP21). Bech32 in capitals, which QR codes hold in fewer squares (BIP173)."""
    bech32 = "1" in address[:5] and address == address.lower()
    return squares(f"bitcoin:{address}".upper() if bech32 else f"bitcoin:{address}")


def squares(text: str) -> str:
    """The lines of any text's code."""
    rows = [tuple(not dark for dark in row) for row in segno.make_qr(text, error="L").matrix_iter(border=4)]
    if len(rows) % 2:
        rows.append((True,) * len(rows[0]))
    return "\n".join(
        "".join(_BLOCKS[pair] for pair in zip(upper, lower, strict=True))
        for upper, lower in zip(rows[::2], rows[1::2], strict=True)
    )
