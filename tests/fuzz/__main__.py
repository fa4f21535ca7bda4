"""Fuzz every decoder, each in a process of its own: `python -m tests.fuzz [--seconds 60] [--jobs 1] [WORD...]`.

WORD: only targets with one of these words in their name. The corpus grows from run to run under out/fuzz; an input that
crashes is written beside it and belongs into tests/fuzz/crashes/<target>/ once its cause is mended.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from tests.fuzz.targets import TARGETS, seeds

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out" / "fuzz"
MAX_BYTES = 8_192


def fuzz(name: str, seconds: int) -> bool:
    """Run one target; tells whether nothing raised."""
    corpus = OUT / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for raw in seeds(name):
        (corpus / sha256(raw).hexdigest()[:16]).write_bytes(raw)
    command = [sys.executable, "-m", "tests.fuzz.one", name, str(corpus), f"-max_total_time={seconds}"]
    command += [f"-max_len={MAX_BYTES}", "-timeout=10", "-rss_limit_mb=2048", f"-artifact_prefix={OUT}/{name}-"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False, timeout=seconds + 300
    )
    (OUT / f"{name}.log").write_text(done.stderr)
    runs = re.findall(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    told = f"{runs[-1] if runs else '?':>10} inputs, {covered[-1] if covered else '?':>6} edges"
    if done.returncode == 0:
        print(f"ok     {name:<14}{told}", flush=True)
        return True
    wrote = re.findall(r"Test unit written to (\S+)", done.stderr)
    print(f"CRASH  {name:<14}{told}: {wrote[-1] if wrote else ''} (see out/fuzz/{name}.log)", flush=True)
    return False


def main() -> int:
    """Run the targets; 1 when any crashed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="per target")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time")
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("not run: atheris is not installed (it comes for Linux on x86_64; `make fuzz` sees to it)")
        return 0
    names = [name for name in TARGETS if not args.words or any(word in name for word in args.words)]
    if not names:
        print("no such target; there are:", ", ".join(TARGETS), file=sys.stderr)
        return 1
    OUT.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        good = list(pool.map(lambda name: fuzz(name, args.seconds), names))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
