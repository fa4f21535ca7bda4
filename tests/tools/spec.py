"""Puts into SPEC.md what the code knows better: `python -m tests.tools.spec`. The rest of the text is left alone.

A region lies between `<!-- name:begin -->` and `<!-- name:end -->`. A test compares; this writes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, get_args

from protocol import case_events as ce
from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.arbitration import CASE_TRANSITIONS
from protocol.trade import TRANSITIONS
from protocol.wire import Kind
from tests.machines.samples import members

SPEC: Final = Path(__file__).parent.parent.parent / "protocol" / "SPEC.md"

Table = Mapping[tuple[type, type], tuple[object, frozenset[type]]]


def diagram(table: Table, phases: object, starts: Mapping[str, type], ends: tuple[type, ...]) -> str:
    """A Mermaid state diagram: one arrow for each pair of phases, with the events that may lead along it."""
    arrows: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for (source, event), (_, targets) in table.items():
        for target in targets - {source}:
            arrows[source.__name__, target.__name__].add(event.__name__)
    order = [p.__name__ for p in members(phases)]
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    [*] --> {target.__name__}: {event}" for event, target in starts.items()]
    for arrow in sorted(arrows, key=lambda a: (order.index(a[0]), order.index(a[1]))):
        lines.append(f"    {arrow[0]} --> {arrow[1]}: {', '.join(sorted(arrows[arrow]))}")
    lines += [f"    {end.__name__} --> [*]" for end in ends]
    return "\n".join([*lines, "```"])


def events_table(table: Table, groups: Mapping[str, object]) -> str:
    """A row for each event: in which phases it is legal, and where it may lead."""
    lines = ["| event | legal in | may lead to |", "| --- | --- | --- |"]
    for group, union in groups.items():
        lines.append(f"| **{group}** | | |")
        for event in members(union) if get_args(union) else [union]:
            assert isinstance(event, type)
            rows = [(source, targets - {source}) for (source, e), (_, targets) in table.items() if e is event]
            if rows:
                legal = _phases({source for source, _ in rows})
                leads = _phases({t for _, targets in rows for t in targets}) or "stays"
                lines.append(f"| {event.__name__} | {legal} | {leads} |")
    return "\n".join(lines)


def _phases(found: set[type]) -> str:
    order = [*members(st.AnyPhase), *members(ce.AnyCasePhase)]
    return ", ".join(p.__name__ for p in sorted(found, key=order.index))


def machine() -> str:
    """The trader's machine."""
    starts = {"TakeOffer": st.Taking, "TakeReceived": st.Accepting}
    groups = {
        "commands": ev.TakeOffer | ev.DeclarePaid | ev.Release | ev.Cancel | dv.DisputeCommand,
        "messages of the peer": ev.AcceptReceived
        | ev.SealReceived
        | ev.DetailsReceived
        | ev.PaidReceived
        | ev.ReleasedReceived
        | ev.DeclineReceived
        | ev.DeliveryRefused
        | dv.DisputePeerEvent,
        "messages of an arbiter": dv.ArbiterEvent,
        "chain facts": ev.ChainFact,
        "deadlines": ev.TimerFired,
        "results of effects": ev.EffectResult,
    }
    return f"{diagram(TRANSITIONS, st.AnyPhase, starts, st.TERMINAL)}\n\n{events_table(TRANSITIONS, groups)}"


def arbiter() -> str:
    """The arbiter's machine."""
    groups = {
        "commands": ce.CaseCommand,
        "messages of the parties": ce.PartyEvent,
        "chain facts": ce.CaseChainFact,
        "deadlines": ce.CaseTimerFired,
        "results of effects": ce.RulingSigned,
    }
    drawn = diagram(CASE_TRANSITIONS, ce.AnyCasePhase, {"CaseOpened": ce.Queued}, ce.CASE_TERMINAL)
    return f"{drawn}\n\n{events_table(CASE_TRANSITIONS, groups)}"


def kinds() -> str:
    """The registry of kinds, in two columns."""
    rows = [f"{int(k)} | {k.name.lower().replace('_', ' ')} | {k.limit:,}" for k in Kind]
    half = -(-len(rows) // 2)
    lines = ["| kind | what | limit, bytes | kind | what | limit, bytes |", "| --- | --- | --- | --- | --- | --- |"]
    for left, right in zip(rows[:half], [*rows[half:], " | | "], strict=False):
        lines.append(f"| {left} | {right} |")
    return "\n".join(lines)


REGIONS: Final[Mapping[str, Callable[[], str]]] = {"machine": machine, "arbiter": arbiter, "kinds": kinds}


def filled(text: str) -> str:
    """The text with every region made anew."""
    for name, make in REGIONS.items():
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(\n<!-- {name}:end -->)", re.DOTALL)
        text = pattern.sub(partial(_between, make()), text)
    return text


def _between(made: str, marks: re.Match[str]) -> str:
    return f"{marks[1]}{made}{marks[2]}"


def main() -> None:
    """Fill SPEC.md."""
    SPEC.write_text(filled(SPEC.read_text()))


if __name__ == "__main__":
    main()
