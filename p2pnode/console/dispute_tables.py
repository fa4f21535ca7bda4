"""Settlements, disputes and cases as tables for people."""

from __future__ import annotations

from msgspec import Struct
from rich.console import Group, RenderableType
from rich.text import Text

from p2pnode.api import dispute_schema as d
from p2pnode.console.cells import SHORT, Cell, btc, clean, columns, depth, pairs, phase, row, when
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
        case d.CaseList():
            return _cases(view)
        case d.CaseView():
            return _case(view)
        case d.QuoteView():
            return _quote(view)
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
        *((x.name, _deadline(x)) for x in view.deadlines),
    ]
    if view.disputed:
        rows.append(("decides", "the backup arbiter" if view.bench == "backup" else "the arbiter"))
        rows += [("you ask", _claim(view.own_claim)), ("the peer asks", _claim(view.peer_claim))]
    parts: list[RenderableType] = [pairs(rows)]
    for name, arbiter in (("Arbiter", view.arbiter), ("Backup arbiter", view.backup)):
        if arbiter is not None and view.disputed:
            parts.append(_arbiter(name, arbiter))
    if view.proposals:
        parts.append(_proposals(view))
    return Group(*parts, _timeline(view.timeline))


def _deadline(view: d.DeadlineView) -> str:
    left = (
        f"in {view.blocks} blocks" if view.blocks > 0 else "now" if view.blocks == 0 else f"{-view.blocks} blocks ago"
    )
    return f"block {view.height}, {left}, about {when(view.time)}"


def _claim(view: d.ClaimView | None) -> str:
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
        rows += _ruling(view.ruling)
    return pairs(rows, title=title)


def _ruling(view: d.RulingView) -> list[tuple[str, Cell]]:
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


def _timeline(lines: tuple[d.LineView, ...]) -> RenderableType:
    found = columns("when", "from", "to", "what", "text")
    for one in lines:
        files = "".join(f"\n[{a.name}, {a.media}, {a.size_bytes:,} bytes]" for a in one.attachments)
        row(found, when(one.at) if one.at else "", one.by, one.to, one.kind, clean(one.text + files))
    return found


def _cases(view: d.CaseList) -> RenderableType:
    found = columns(
        "case", "phase", "role", "amount", "for", "buyer asks", "seller asks", "next deadline", right=("amount",)
    )
    for one in view.cases:
        due = min(one.deadlines, key=lambda x: x.height, default=None)
        sides = [f"{format_percent(p.claim.buyer_share_ppm)}" if p.claim else "-" for p in (one.buyer, one.seller)]
        price = f"{one.volume} {one.currency} by {one.method}"
        row(
            found,
            one.id[:SHORT],
            phase(one.phase),
            one.role,
            btc(one.amount_sats),
            price,
            *sides,
            "" if due is None else f"{due.name}: block {due.height}, {due.blocks} left",
        )
    return found


def _case(view: d.CaseView) -> RenderableType:
    rows: list[tuple[str, Cell]] = [
        ("case", view.id),
        ("phase", phase(view.phase)),
        ("you may", ", ".join(view.actions)),
        ("you are", "the backup arbiter" if view.role == "backup" else "the arbiter"),
        ("opened by", f"the {view.opened_by}, {when(view.created)}"),
        ("about", f"{btc(view.amount_sats)} for {view.volume} {view.currency} by {view.method}"),
        ("deposits", f"buyer {btc(view.buyer_deposit_sats)}, seller {btc(view.seller_deposit_sats)}"),
        ("your fee", btc(view.fee_sats)),
        ("escrow", f"{btc(view.escrow_value_sats)} in {view.funding_txid}, {depth(view.escrow_depth, None)}"),
        ("spent by", view.spent_by),
        *((x.name, _deadline(x)) for x in view.deadlines),
        ("ended", view.ending),
    ]
    sides = columns("", "buyer", "seller")
    for name, cell in (("persona", _persona), ("asks", _asks), ("evidence", _evidence), ("account", _account)):
        row(sides, name, cell(view.buyer), cell(view.seller))
    parts: list[RenderableType] = [pairs(rows), sides]
    if view.findings:
        shown = [(f.who or "nobody", f.what) for f in view.findings]
        parts.append(pairs(shown, title="The record itself shows"))
    if view.ruling is not None:
        parts.append(pairs(_ruling(view.ruling), title="Ruling"))
    return Group(*parts, _timeline(view.timeline))


def _persona(view: d.PartyView) -> str:
    return view.persona


def _asks(view: d.PartyView) -> str:
    return _claim(view.claim) or "has not told its side"


def _evidence(view: d.PartyView) -> str:
    return f"{view.evidence}{f' and {view.late} late' if view.late else ''}"


def _account(view: d.PartyView) -> str:
    return "\n".join(f"{name}: {value}" for name, value in view.details.items())


def _quote(view: d.QuoteView) -> RenderableType:
    rows: list[tuple[str, Cell]] = [
        ("buyer's share", format_percent(view.buyer_share_ppm)),
        ("forfeit", format_percent(view.forfeit_ppm) if view.forfeit_ppm else ""),
        ("buyer gets", f"{view.buyer_sats:,} sat"),
        ("seller gets", f"{view.seller_sats:,} sat"),
        ("arbiter gets", f"{view.arbiter_sats:,} sat"),
        ("miners get", f"{view.mining_fee_sats:,} sat"),
    ]
    return pairs(rows)


def _verified(view: d.Verified) -> RenderableType:
    rows: list[tuple[str, Cell]] = [
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
