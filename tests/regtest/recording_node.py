"""Runs a node that writes down all that it ever decrypts: `recording_node.py FILE python cli.py ...`.

Everything that reaches a node from others comes encrypted, over channels, in DHT packets or as mail; there is no other
way in. What these primitives return is therefore all that it learns from the network.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from nacl import bindings

PRIMITIVES = (
    "crypto_aead_chacha20poly1305_ietf_decrypt",
    "crypto_secretbox_open",
    "crypto_box_open",
    "crypto_box_seal_open",
)


def record(name: str, file: BinaryIO) -> None:
    """Write down what a primitive returns, each with its length in front."""
    plain: Callable[..., bytes] = getattr(bindings, name)

    def recorded(*args: object, **kwargs: object) -> bytes:
        found = plain(*args, **kwargs)
        file.write(len(found).to_bytes(4, "big") + found)
        file.flush()
        return found

    setattr(bindings, name, recorded)


def main() -> None:
    """Patch, then become the node."""
    # Kept open as long as the node runs.
    file = Path(sys.argv[1]).open("ab")  # noqa: SIM115
    for name in PRIMITIVES:
        record(name, file)
    program = sys.argv[3]
    sys.argv = sys.argv[3:]
    sys.path.insert(0, str(Path(program).parent))
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
