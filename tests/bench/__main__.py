"""Run the benchmarks: every `bench_*.py` below this folder, each as a process of its own, one after the other.

    python -m tests.bench                   all of them
    python -m tests.bench trade dht         those with one of these words in their path
    python -m tests.bench --quick           the short form: fewer rounds, smaller networks

A benchmark is a module that prints its measurements and ends with exit code 0; with `--quick` in its arguments it takes
the short form, where it has one. Those that have targets to reach judge them through `tests.bench.report`; all verdicts
are printed once more at the end and written, with everything else that was printed, below out/bench. One process at a
time: two would measure each other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUT = ROOT / "out" / "bench"


def run(path: Path, *, quick: bool) -> dict[str, Any]:
    """One benchmark: what it printed, how it ended and what it judged."""
    module = ".".join(path.with_suffix("").parts)
    report = OUT / f"{path.stem.removeprefix('bench_')}.json"
    report.unlink(missing_ok=True)
    print(f"\n== {module}", flush=True)
    began = time.monotonic()
    command = [sys.executable, "-m", module, *(["--quick"] if quick and "--quick" in path.read_text() else [])]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"BENCH_OUT": str(report)}
    )
    printed: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        printed.append(line)
        sys.stdout.write(line)
        sys.stdout.flush()
    code = process.wait()
    found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {"verdicts": [], "skipped": []}
    found |= {"bench": module, "exit_code": code, "seconds": round(time.monotonic() - began, 1), "quick": quick}
    found["printed"] = "".join(printed).splitlines()
    report.write_text(json.dumps(found, indent=1) + "\n")
    return found


def summary(results: list[dict[str, Any]]) -> list[str]:
    """Every verdict, skip and failure."""
    out = []
    for result in results:
        for verdict in result["verdicts"]:
            word, bound = ("pass" if verdict["ok"] else "MISS"), ("at least" if verdict["at_least"] else "at most")
            out.append(f"{word}  {verdict['what']}: {verdict['value']:.4g}, {bound} {verdict['limit']:.4g}")
        out += [f"skip  {skipped}" for skipped in result["skipped"]]
        if result["exit_code"]:
            out.append(f"FAIL  {result['bench']} ended with exit code {result['exit_code']}")
    return out


def main() -> int:
    """Run the benchmarks that match; 1 if any failed or none matched, and for a missed target unless it was quick."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--quick", action="store_true", help="the short form")
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    found = [path.relative_to(ROOT) for path in sorted(HERE.rglob("bench_*.py"))]
    chosen = [path for path in found if not args.words or any(word in str(path) for word in args.words)]
    if not chosen:
        print("no such benchmark; there are:", ", ".join(map(str, found)) or "none", file=sys.stderr)
        return 1
    OUT.mkdir(parents=True, exist_ok=True)
    results = [run(path, quick=args.quick) for path in chosen]
    lines = summary(results)
    print("\n== targets\n" + "\n".join(lines))
    (OUT / "summary.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {OUT.relative_to(ROOT)}")
    bad = ("FAIL",) if args.quick else ("FAIL", "MISS")
    return 1 if any(line.startswith(bad) for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
