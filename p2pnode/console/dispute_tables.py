"""Settlements, disputes and cases as tables for people."""

from __future__ import annotations

from msgspec import Struct
from rich.console import Group, RenderableType
from rich.text import Text

from p2pnode.api import dispute_schema as d
from p2pnode.console.cells import DEADLINES, SHORT, Cell, btc, clean, columns, due, moment, pairs, phase, row
from p2pnode.money import format_percent


def render(view: Struct) -> RenderableType:
    """The table of a view."""
    match view:
        case d.DisputeView():
            return _dispute(view)
        case d.BundleView():
            return pairs([("trade", view.trade), ("size", f"{view.size_bytes:,} bytes")])
        case d.AttachmentView():
            return pairs([("file", view.name), ("content", view.content), ("size", f"{view.size_bytes:,} bytes")])
        case d.FileData():
            return pairs([("content", view.content), ("type", view.media), ("size", f"{view.size_bytes:,} bytes")])
        case d.Verified():
            return _verified(view)
        case _:
            raise TypeError(f"there is no table for {type(view).__name__}")


def _dispute(view: d.DisputeView) -> RenderableType:
    rows: list[tuple[str, Cell]] = [
        ("trade", view.trade),
        ("phase", phase(view.phase)),
        ("you may", ", ".join(view.actions)),
        ("outcome", view.outcome),
        *((DEADLINES.get(x.name, x.name), due(x)) for x in view.deadlines),
    ]
    if view.disputed:
        rows.append(("decides", "the backup arbiter" if view.bench == "backup" else "the arbiter"))
        rows += [("you ask", claim(view.own_claim)), ("the peer asks", claim(view.peer_claim))]
    parts: list[RenderableType] = [pairs(rows)]
    for name, arbiter in (("Arbiter", view.arbiter), ("Backup arbiter", view.backup)):
        if arbiter is not None and view.disputed:
            parts.append(_arbiter(name, arbiter))
    if view.proposals:
        parts.append(_proposals(view))
    return Group(*parts, timeline(view.timeline))


def claim(view: d.ClaimView | None) -> str:
    """A claim in one line; empty for none."""
    return "" if view is None else f"{format_percent(view.buyer_share_ppm)} of the amount for the buyer: {view.text}"


def _arbiter(title: str, view: d.ArbiterStatusView) -> RenderableType:
    rows: list[tuple[str, Cell]] = [
        ("persona", view.persona),
        ("answer", f"{view.answer}{' (took more time)' if view.extended else ''}"),
        ("says", view.text),
    ]
    if view.contradicted:
        rows.append(("beware", Text("signed two different rulings for this trade", style="bold red")))
    if view.ruling is not None:
        rows += ruling(view.ruling)
    return pairs(rows, title=title)


def ruling(view: d.RulingView) -> list[tuple[str, Cell]]:
    """A ruling with what it pays."""
    lost = f", {format_percent(view.forfeit_ppm)} of the loser's deposit forfeited" if view.forfeit_ppm else ""
    return [
        ("ruling", f"{format_percent(view.buyer_share_ppm)} of the amount to the buyer{lost}"),
        ("reason", f"{view.reason}: {view.text}"),
        ("buyer gets", btc(view.buyer_sats)),
        ("seller gets", btc(view.seller_sats)),
        ("arbiter gets", btc(view.arbiter_sats)),
        ("payout", view.payout_txid),
    ]


def _proposals(view: d.DisputeView) -> RenderableType:
    found = columns("proposal", "signed by", "buyer gets", "seller gets", "", right=("buyer gets", "seller gets"))
    for one in view.proposals:
        what = "cancels the trade" if one.cancels else ""
        row(found, one.txid[:SHORT], one.by, btc(one.buyer_sats), btc(one.seller_sats), what)
    return found


def timeline(lines: tuple[d.LineView, ...]) -> RenderableType:
    """What was said: when by this node, at which block by the speaker's own word."""
    found = columns("when", "block", "from", "to", "what", "text", right=("block",), title="Said")
    for one in lines:
        files = "".join(f"\n[{a.name}, {a.media}, {a.size_bytes:,} bytes]" for a in one.attachments)
        block = f"{one.height:,}" if one.height else ""
        row(found, moment(one.at) if one.at else "", block, one.by, one.to, one.kind, clean(one.text + files))
    return found


def _verified(view: d.Verified) -> RenderableType:
    rows: list[tuple[str, Cell]] = [
        ("network", view.network),
        ("contract", view.contract_id),
        ("buyer", f"{view.buyer}{f', came to {view.buyer_phase}' if view.buyer_phase else ''}"),
        ("seller", f"{view.seller}{f', came to {view.seller_phase}' if view.seller_phase else ''}"),
        ("messages", f"{view.messages}{f', {view.left_out} left out' if view.left_out else ''}"),
        *(("claim", text) for text in view.claims),
        *(("ruling", text) for text in view.rulings),
    ]
    found = [(f.who or "somebody", f.what) for f in view.findings]
    if not found:
        return Group(
            pairs(rows), Text("Every signature holds, and nobody is shown to have broken anything.", style="green")
        )
    return Group(pairs(rows), pairs(found, title="Every signature holds. The record shows against"))
