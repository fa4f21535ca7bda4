"""Personas, receipts and bonds as tables for people."""

from __future__ import annotations

from typing import Final

from msgspec import Struct
from rich.console import Group, RenderableType
from rich.text import Text

from p2pnode.api.schema import personas as p
from p2pnode.console.cells import SHORT, Cell, btc, columns, pairs, row, when

_VIEWS: Final = (p.PersonaView, p.PersonaList, p.ReceiptView, p.BondView, p.BondList)
_KNOWN: Final = {
    "new": Text("new: nothing is known of it, neither good nor bad", style="cyan"),
    "known": Text("known", style="green"),
    "forged": Text("forged: one escrow was shown for several personas; nothing of it counts", style="bold red"),
    "exposed": Text("exposed: as an arbiter it gave two rulings in one contract", style="bold red"),
}
_MARKS: Final = {"good": "green", "neutral": "yellow", "bad": "red"}


def knows(view: Struct) -> bool:
    """Whether `render` has a table for it."""
    return isinstance(view, _VIEWS)


def render(view: Struct) -> RenderableType:
    """The table of a view."""
    match view:
        case p.PersonaView():
            return _persona(view)
        case p.PersonaList():
            return _personas(view)
        case p.ReceiptView():
            return _receipt(view)
        case p.BondView():
            return _bond(view)
        case p.BondList():
            return _bonds(view)
        case _:
            raise TypeError(f"there is no table for {type(view).__name__}")


def _persona(view: p.PersonaView) -> RenderableType:
    cost = (
        f"about {view.forging_fee_sats:,} sat in fees and {view.forging_locked_sats:,} sat locked for "
        f"{_blocks(view.forging_blocks)}"
    )
    bond = view.bond
    rulings = f"{view.rulings_in_time} in time, {view.rulings_late} late"
    history = view.receipts or view.rulings_in_time or view.rulings_late
    rows: list[tuple[str, Cell]] = [
        ("persona", view.persona + (" (you)" if view.mine else "")),
        ("history", _KNOWN[view.known]),
        ("you say", view.standing),
        ("note", view.note),
        ("trades with you", str(view.trades_with_us) if view.trades_with_us else None),
        ("score", f"{view.score:,}" if history else None),
        ("proved trades", _trades(view) if view.receipts else None),
        ("rated", f"{view.good} good, {view.neutral} neutral, {view.bad} bad" if view.ratings else None),
        ("rulings", rulings if view.rulings_in_time or view.rulings_late else None),
        ("since block", f"{view.first_height:,}" if view.first_height is not None else None),
        ("to forge this history", cost if view.receipts else None),
        ("bond", None if bond is None else f"{btc(bond.value_sats)} until block {bond.lock_height:,}"),
        ("arbiter", "yes" if view.arbiter else None),
        ("not proved here", f"{view.unproved} records, which count for nothing" if view.unproved else None),
    ]
    parts: list[RenderableType] = [pairs(rows)]
    if view.receipts:
        table = columns("with", "ended", "escrow", "fee", "locked", "block", right=("escrow", "fee", "locked", "block"))
        table.title = "Proved trades"
        for line in view.receipts:
            locked = _blocks(line.blocks)
            row(
                table,
                line.counterparty[: SHORT + 8],
                line.ending,
                btc(line.value_sats),
                f"{line.fee_sats:,} sat",
                locked,
                f"{line.height:,}",
            )
        parts.append(table)
    if view.ratings:
        table = columns("by", "", "says", "credit", "when", right=("credit",), title="Ratings")
        for said in view.ratings:
            mark = Text(said.mark, style=_MARKS[said.mark])
            row(table, said.rater[: SHORT + 8], mark, said.text, f"{said.credit:,}", when(said.created))
        parts.append(table)
    return Group(*parts)


def _blocks(count: int) -> str:
    return f"{count:,} block{'' if count == 1 else 's'}"


def _trades(view: p.PersonaView) -> str:
    return (
        f"{view.completed} completed, {view.settled} settled, {view.ruled} ruled, "
        f"with {view.counterparties} counterpart{'y' if view.counterparties == 1 else 'ies'}"
    )


def _personas(found: p.PersonaList) -> RenderableType:
    if not found.personas:
        return Text("You have noted, trusted or blocked nobody.")
    table = columns("persona", "", "note", "since")
    for one in found.personas:
        style = "red" if one.standing == "blocked" else "green"
        row(table, one.persona, Text(one.standing, style=style), one.note, when(one.updated))
    return table


def _receipt(view: p.ReceiptView) -> RenderableType:
    def both(ours: bool, theirs: bool) -> str:  # noqa: FBT001  (two answers, side by side)
        return f"you: {'yes' if ours else 'no'}, counterparty: {'yes' if theirs else 'no'}"

    rows: list[tuple[str, Cell]] = [
        ("trade", view.trade),
        ("counterparty", view.counterparty),
        ("ended", view.ending),
        ("signed", both(view.signed_by_us, view.signed_by_peer)),
        ("may be public", both(view.public_for_us, view.public_for_peer)),
        ("published", "yes" if view.published else "no"),
        ("your rating", view.mark),
        ("your words", view.text),
        ("funding", view.funding_txid),
        ("payout", view.payout_txid),
    ]
    return pairs(rows)


def _bond(view: p.BondView) -> RenderableType:
    return pairs(
        [
            ("bond", f"{view.txid}:{view.vout}"),
            ("persona", view.persona),
            ("amount", btc(view.value_sats)),
            ("state", _state(view)),
            ("locked until", f"block {view.lock_height:,}"),
            ("worth", f"{view.worth_sat_years:,} satoshi-years" if view.worth_sat_years else None),
            ("taken back by", view.spent_by),
        ]
    )


def _bonds(found: p.BondList) -> RenderableType:
    if not found.bonds:
        return Text("You have no bonds.")
    table = columns(
        "bond", "BTC", "until block", "", "worth, sat-years", right=("BTC", "until block", "worth, sat-years")
    )
    for one in found.bonds:
        row(
            table,
            one.txid[:SHORT],
            btc(one.value_sats).removesuffix(" BTC"),
            f"{one.lock_height:,}",
            _state(one),
            f"{one.worth_sat_years:,}",
        )
    return table


def _state(view: p.BondView) -> str:
    match view.state:
        case "waiting":
            return "waits for a block"
        case "standing":
            return f"{_blocks(view.blocks_left)} left"
        case "free":
            return "may be taken back"
        case "spent":
            return "taken back"
