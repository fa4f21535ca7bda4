"""Fuzz one target: `python -m tests.fuzz.one TARGET CORPUS [libFuzzer's options]`."""

from __future__ import annotations

import sys

import atheris

# Only what is imported in here is followed by the fuzzer: our own decoders.
with atheris.instrument_imports(include=["dht", "protocol", "escrow", "p2pnode", "tests.fuzz"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Until the time is over or something raises."""
    target = TARGETS[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
