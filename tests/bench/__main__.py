"""Run the benchmarks: every `bench_*.py` below this folder, each as a process of its own, one after the other.

    python -m tests.bench            all of them
    python -m tests.bench trade dht  those with one of these words in their path

A benchmark is a module that prints its measurements, one per line, and ends with exit code 0; a number that must
hold is asserted in a test, not here. One process at a time: two would measure each other.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def main(words: list[str]) -> int:
    """Run the benchmarks that match; 1 if any failed or none matched."""
    found = [path.relative_to(ROOT) for path in sorted(HERE.rglob("bench_*.py"))]
    chosen = [path for path in found if not words or any(word in str(path) for word in words)]
    if not chosen:
        print("no such benchmark; there are:", ", ".join(map(str, found)) or "none", file=sys.stderr)
        return 1
    failed = []
    for path in chosen:
        module = ".".join(path.with_suffix("").parts)
        print(f"== {module}", flush=True)
        if subprocess.run([sys.executable, "-m", module], cwd=ROOT, check=False).returncode != 0:
            failed.append(module)
    if failed:
        print("failed:", *failed, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
