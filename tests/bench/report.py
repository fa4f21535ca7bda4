"""How a bench tells what it measured: `say` to the reader, `target` to be judged, all of it into one JSON file.

A bench that is run by `python -m tests.bench` finds the file's path in BENCH_OUT; run alone it only prints.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was measured beside what is required."""

    what: str
    value: float
    limit: float
    at_least: bool
    """The value must not be below the limit; else not above."""

    @property
    def ok(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def line(self) -> str:
        bound = "at least" if self.at_least else "at most"
        return f"{'pass' if self.ok else 'MISS'}  {self.what}: {self.value:.4g}, {bound} {self.limit:.4g}"


class Report:
    """The result of one bench."""

    def __init__(self, bench: str) -> None:
        self.bench = bench
        self.verdicts: list[Verdict] = []
        self.skipped: list[str] = []
        self.numbers: dict[str, Any] = {}

    def at_most(self, what: str, value: float, limit: float) -> None:
        """A target that is an upper bound."""
        self._judge(Verdict(what, value, limit, at_least=False))

    def at_least(self, what: str, value: float, limit: float) -> None:
        """A target that is a lower bound."""
        self._judge(Verdict(what, value, limit, at_least=True))

    def _judge(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        print(verdict.line(), flush=True)

    def skip(self, what: str, why: str) -> None:
        """A row that can't be measured here."""
        self.skipped.append(f"{what}: {why}")
        print(f"skip  {what}: {why}", flush=True)

    def write(self) -> None:
        """Leave everything for whoever runs all benches."""
        if path := os.environ.get("BENCH_OUT"):
            found = {
                "bench": self.bench,
                "verdicts": [asdict(v) | {"ok": v.ok} for v in self.verdicts],
                "skipped": self.skipped,
                "numbers": self.numbers,
            }
            Path(path).write_text(json.dumps(found, indent=1) + "\n")
