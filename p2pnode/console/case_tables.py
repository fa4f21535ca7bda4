"""The arbiter's desk as tables for people: the queue, a case with both sides, what a decision pays, the evidence."""

from __future__ import annotations

import time
from typing import Final

from msgspec import Struct
from rich.console import Group, RenderableType
from rich.text import Text

from p2pnode.api import dispute_schema as d
from p2pnode.api import evidence_schema as e
from p2pnode.console.cells import (
    DEADLINES,
    SHORT,
    Cell,
    btc,
    clean,
    columns,
    depth,
    due,
    due_short,
    moment,
    pairs,
    phase,
    row,
    span,
)
from p2pnode.console.dispute_tables import claim, ruling, timeline
from p2pnode.console.evidence import agrees, picture
from p2pnode.money import format_percent

_SHOWN: Final = (d.CaseList, d.CaseView, d.QuoteView, d.Preview, e.EvidenceList, e.EvidenceFile)


def knows(view: Struct) -> bool:
    """Whether this is a view of the desk."""
    return isinstance(view, _SHOWN)


def render(view: Struct) -> RenderableType:
    """The table of a view."""
    match view:
        case d.CaseList():
            return _cases(view)
        case d.CaseView():
            return _case(view)
        case d.QuoteView():
            return _preview(d.Preview(case="", escrow_value_sats=view.escrow_value_sats, rows=(_row("so", view),)))
        case d.Preview():
            return _preview(view)
        case e.EvidenceList():
            return _evidence(view)
        case e.EvidenceFile():
            return picture(view)
        case _:
            raise TypeError(f"there is no table for {type(view).__name__}")


# --- the queue ---------------------------------------------------------------------------------------------------


def _cases(view: d.CaseList) -> RenderableType:
    if not view.cases:
        return Text("There are no cases.")
    found = columns(
        "case", "age", "phase", "role", "amount", "for", "buyer asks", "seller asks", "due", "", right=("amount",)
    )
    for one in view.cases:
        soonest = min(one.deadlines, key=lambda x: x.estimated_at, default=None)
        sides = [format_percent(p.claim.buyer_share_ppm) if p.claim else "-" for p in (one.buyer, one.seller)]
        row(
            found,
            one.id[:SHORT],
            span(int(time.time()) - one.created),
            phase(one.phase),
            one.role,
            btc(one.amount_sats),
            f"{one.volume} {one.currency} by {one.method}",
            *sides,
            due_short(soonest) if one.open else "",
            _mark(one),
        )
    return found


def _mark(view: d.CaseView) -> Text:
    if view.overdue and view.open:
        return Text("overdue", style="bold red")
    if "accept" in view.actions:
        return Text("accept or decline", style="yellow")
    return Text("ready to be ruled" if "rule" in view.actions else "")


# --- one case ----------------------------------------------------------------------------------------------------


def _case(view: d.CaseView) -> RenderableType:
    rows: list[tuple[str, Cell]] = [
        ("case", view.id),
        ("phase", phase(view.phase)),
        ("you may", ", ".join(view.actions)),
        ("you are", "the backup arbiter" if view.role == "backup" else "the arbiter"),
        ("opened by", f"the {view.opened_by}, {moment(view.created)} ({span(int(time.time()) - view.created)} ago)"),
        ("about", f"{btc(view.amount_sats)} for {view.volume} {view.currency} by {view.method}"),
        ("deposits", f"buyer {btc(view.buyer_deposit_sats)}, seller {btc(view.seller_deposit_sats)}"),
        ("your fee", btc(view.fee_sats)),
        ("escrow", f"{btc(view.escrow_value_sats)} in {view.funding_txid}, {depth(view.escrow_depth, None)}"),
        ("spent by", view.spent_by),
        *((DEADLINES.get(x.name, x.name), due(x)) for x in view.deadlines),
        (
            "",
            Text("your time is over: the case may have gone to the backup", style="bold red") if view.overdue else None,
        ),
        ("ended", view.ending),
    ]
    sides = columns("", "buyer", "seller", title="Both sides")
    for name, one, other in (
        ("persona", view.buyer.persona, view.seller.persona),
        ("asks", _asks(view.buyer), _asks(view.seller)),
        ("evidence", _shown(view.buyer), _shown(view.seller)),
        ("account", _account(view.buyer), _account(view.seller)),
    ):
        row(sides, name, one, other)
    parts: list[RenderableType] = [pairs(rows), sides]
    if view.findings:
        shown = [(f.who or "nobody", f.what) for f in view.findings]
        parts.append(pairs(shown, title="The record itself shows"))
    if view.ruling is not None:
        parts.append(pairs(ruling(view.ruling), title="Ruling"))
    return Group(*parts, timeline(view.timeline))


def _asks(view: d.PartyView) -> str:
    return claim(view.claim) or "has not told its side"


def _shown(view: d.PartyView) -> str:
    return f"{view.evidence}{f' in time, {view.late} late' if view.late else ''}"


def _account(view: d.PartyView) -> str:
    return "\n".join(f"{name}: {value}" for name, value in view.details.items())


# --- what a decision pays ----------------------------------------------------------------------------------------


def _row(label: str, quote: d.QuoteView) -> d.PreviewRow:
    return d.PreviewRow(label=label, buyer_share_ppm=quote.buyer_share_ppm, quote=quote)


def _preview(view: d.Preview) -> RenderableType:
    names = ("buyer's share", "buyer gets", "seller gets", "arbiter's fee", "network fee", "together")
    found = columns("", *names, right=names)
    for one in view.rows:
        quote = one.quote
        share = format_percent(one.buyer_share_ppm)
        if quote is None:
            row(found, one.label, share, Text(clean(one.trouble), style="red"), "", "", "", "")
            continue
        parts = (quote.buyer_sats, quote.seller_sats, quote.arbiter_sats, quote.mining_fee_sats)
        forfeit = f", {format_percent(quote.forfeit_ppm)} forfeit" if quote.forfeit_ppm else ""
        row(found, one.label, share + forfeit, *(f"{sats:,} sat" for sats in (*parts, sum(parts))))
    if not view.escrow_value_sats:
        return found
    note = f"The escrow holds {view.escrow_value_sats:,} sat: amount, both deposits and the fee of a release."
    return Group(found, Text(note, style="dim"))


# --- evidence ----------------------------------------------------------------------------------------------------


def _evidence(view: e.EvidenceList) -> RenderableType:
    if not view.items:
        return Text("No files were shown.")
    found = columns(
        "n", "from", "when", "block", "type", "size", "hash", "signed log", "name and note", right=("n", "size")
    )
    for one in view.items:
        row(
            found,
            str(one.number),
            one.by,
            moment(one.at) if one.at else "",
            f"{one.height:,}" if one.height else "",
            one.media,
            f"{one.size_bytes:,}",
            one.content[:SHORT],
            agrees(one),
            f"{one.name}\n{one.note}" if one.note else one.name,
        )
    return found
