"""Views as tables for people. What a peer wrote is shown as plain text: no markup, no control characters."""

from __future__ import annotations

import sys
import time
from itertools import zip_longest
from typing import Final

import msgspec
from msgspec import Struct
from rich.console import Console, Group, RenderableType
from rich.text import Text

from p2pnode.api import schema as s
from p2pnode.console import case_tables, dispute_tables, persona_tables
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
    pairs,
    phase,
    row,
    span,
    tx,
    when,
)
from p2pnode.money import format_minor, format_percent, format_sats

WIDE: Final = 200
"""Columns of a table that goes to a file or a pipe."""


def show(view: Struct, *, as_json: bool) -> None:
    """Print a view to stdout: a table, or one JSON document."""
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(view), indent=2).decode())  # noqa: T201
        return
    # Without a terminal there is no width to keep to, and cut lines would be lost on whoever reads them.
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    # Rich would end the process when the reader is gone; `cli.main` knows better, so the writing is ours.
    with console.capture() as capture:
        console.print(render(view))
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))  # noqa: T201


def render(view: Struct) -> RenderableType:  # noqa: C901, PLR0911, PLR0912  (one case per view)
    """The table of a view."""
    match view:
        case s.NodeView():
            return _node(view)
        case s.StopView():
            return Text("The node is shutting down.")
        case s.OfferPage():
            return _offers(view)
        case s.OfferView():
            return _offer(view)
        case s.TradeList():
            return _trades(view)
        case s.TradeView():
            return trade(view)
        case s.PageLink():
            return Text(clean(view.url))
        case s.FactorView():
            return Text(_factor(view))
        case s.FactorSecret():
            return pairs([("secret", view.secret), ("uri", view.uri), ("next", "p2pnode 2fa confirm CODE")])
        case s.RecoveryCodes():
            return Text(_recovery(view))
        case s.BalanceView():
            return _balance(view)
        case s.AddressView():
            return Text(clean(view.address))
        case s.UtxoList():
            return _utxos(view)
        case s.HistoryView():
            return _history(view)
        case s.BumpView():
            what = "replaces the other transaction" if view.how == "replaced" else "child that pays for both"
            return pairs([("txid", view.txid), ("what", what), ("fee", btc(view.fee_sats))])
        case s.LabelList():
            return _labels(view)
        case s.DescriptorsView():
            return Text(f"{clean(view.external)}\n{clean(view.internal)}")
        case s.SentView():
            rows = [("txid", view.txid), ("amount", btc(view.amount_sats)), ("fee", btc(view.fee_sats))]
            return pairs(rows)
        case s.PeerList():
            return _peers(view)
        case s.PeerView():
            return pairs([("node", view.node), ("address", view.address)])
        case s.ArbiterList():
            return _arbiters(view)
        case s.ArbiterView():
            return _arbiter(view)
        case _ if persona_tables.knows(view):
            return persona_tables.render(view)
        case _ if case_tables.knows(view):
            return case_tables.render(view)
        case _:
            return dispute_tables.render(view)


def trade(view: s.TradeView) -> RenderableType:
    """A trade: the bargain, where it stands, what is to do, the chain, the steps."""
    give, get = ("receive", "pay") if view.side == "buy" else ("give", "get")
    escrow = view.escrow
    rows: list[tuple[str, Cell]] = [
        ("id", view.id),
        ("phase", phase(view.phase)),
        ("next", view.hint),
        ("you may", ", ".join(view.actions)),
        ("you", f"{'buy' if view.side == 'buy' else 'sell'} as {view.seat}"),
        (f"you {give}", btc(view.amount_sats)),
        (f"you {get}", f"{view.volume} {view.currency} by {view.method}"),
        ("price", f"{view.price} {view.currency}"),
        ("deposits", f"buyer {btc(view.buyer_deposit_sats)}, seller {btc(view.seller_deposit_sats)}"),
        *((DEADLINES.get(x.name, x.name), due(x)) for x in view.deadlines),
        ("paid out to", f"{view.payout_address}, outside of the wallet" if view.payout_outside else "the wallet"),
        ("peer", view.peer),
        ("arbiter", view.arbiter),
        ("backup arbiter", view.backup),
        ("ended", view.ending or view.outcome),
    ]
    parts: list[RenderableType] = [pairs(rows)]
    if view.peer_details:
        what = "Pay to" if view.side == "buy" else "The buyer pays from"
        parts.append(pairs(list(view.peer_details.items()), title=what))
    if view.payment_note:
        parts.append(pairs([("note", view.payment_note)]))
    if escrow.funding_txid is not None:
        parts.append(
            pairs(
                [
                    ("address", escrow.address),
                    ("value", None if escrow.value_sats is None else btc(escrow.value_sats)),
                    ("funding", tx(escrow.funding_txid, escrow.vout)),
                    ("", depth(escrow.funding_depth, view.confirmations_required)),
                    ("payout", escrow.payout_txid),
                    ("", depth(escrow.payout_depth, None) if escrow.payout_txid else None),
                ],
                title=f"Escrow (type {escrow.type})",
            )
        )
    if view.steps:
        steps = columns("when", "what", "phase", title="Steps")
        for step in view.steps:
            row(steps, when(step.at), step.event, phase(step.phase))
        parts.append(steps)
    return Group(*parts)


def reach_rows(view: s.ReachView) -> list[tuple[str, Cell]]:
    """How others reach the node, and what to do about it."""
    told = " (by the configuration)" if view.told else ""
    rows: list[tuple[str, Cell]] = [("reachability", f"{view.state}{told}, since {when(view.since)}")]
    for way in view.addresses:
        datagrams = {
            "strangers": "UDP from anybody",
            "untried": "UDP from those that it knows; strangers not tried",
            "known": "UDP only from those that it wrote to",
            "no": "no UDP",
        }
        rows.append(("", f"{way.host}: {'TCP' if way.tcp else 'no TCP'}, {datagrams[way.udp]}"))
    if view.published:
        rows.append(("published as", ", ".join(view.published)))
    if view.mapped_port is not None:
        rows.append(("port of the router", f"{view.mapped_port}, by {view.mapped_by}"))
    rows += [
        ("relay", f"{relay.node[:20]}… at {', '.join(relay.addresses)}, since {when(relay.since)}")
        for relay in view.relays
    ]
    by = "datagrams" if view.carried_by == "udp" else "channels, because no datagram passes"
    rows.append(("DHT", f"{view.dht}, by {by}"))
    if view.advice:
        rows.append(("what to do", view.advice))
    return rows


def _node(view: s.NodeView) -> RenderableType:
    chain = view.chain
    rows: list[tuple[str, Cell]] = [
        ("network", view.network),
        ("roles", ", ".join(view.roles)),
        ("persona", view.persona),
        ("node", view.node),
        ("listens on", ", ".join(view.listen)),
        *([] if view.reach is None else reach_rows(view.reach)),
        ("peers", f"{view.dht.peers} known, {view.sessions} connected, some {view.dht.network_size} in the network"),
        ("records", str(view.dht.records)),
        ("chain", None if chain is None else _chain(chain)),
        ("open offers", str(view.open_offers)),
        ("open trades", str(view.open_trades)),
        ("up", span(view.uptime_seconds)),
        ("data directory", view.data_dir),
        ("API", view.api),
        ("version", f"{view.version} (process {view.pid})"),
    ]
    return pairs(rows)


def _chain(chain: s.ChainView) -> str:
    height = "no block yet" if chain.height is None else f"block {chain.height}"
    return f"{chain.backend} {chain.health}, {height}" + (f": {chain.detail}" if chain.detail else "")


def _offers(page: s.OfferPage) -> RenderableType:
    if not page.offers:
        return Text("There are no such offers.")
    table = columns(
        "id", "maker", "BTC", "price", "deposits", "methods", "arbiters", "expires", "", right=("BTC", "price")
    )
    for offer in page.offers:
        row(
            table,
            offer.id[:SHORT],
            f"{offer.side}s",
            _range(offer),
            _price(offer),
            f"{format_percent(offer.buyer_deposit_ppm)} / {format_percent(offer.seller_deposit_ppm)}",
            ", ".join(offer.methods),
            str(len(offer.arbiters)),
            span(offer.expires - int(time.time())),
            f"yours, {offer.state}" if offer.mine else offer.state if offer.state != "open" else "",
        )
    if page.next is None:
        return table
    return Group(table, Text("There are more: narrow the list, or raise --limit.", style="dim"))


def _offer(offer: s.OfferView) -> RenderableType:
    rows: list[tuple[str, Cell]] = [
        ("id", offer.id),
        ("version", str(offer.sequence)),
        ("state", offer.state + (", yours" if offer.mine else "")),
        ("maker", offer.maker),
        (f"the maker {offer.side}s", f"{_range(offer)} BTC"),
        ("price", _price(offer)),
        ("methods", ", ".join(offer.methods)),
        ("payment window", f"{offer.payment_window_blocks} blocks"),
        ("buyer's deposit", format_percent(offer.buyer_deposit_ppm)),
        ("seller's deposit", format_percent(offer.seller_deposit_ppm)),
        ("arbiters", "\n".join(offer.arbiters)),
        ("escrow types", ", ".join(map(str, offer.escrow_types))),
        ("confirmations", f"{offer.confirmations} or more"),
        ("asks of takers", f"{offer.min_completed_trades} completed trades" if offer.min_completed_trades else None),
        ("terms", offer.terms),
        ("pays out to", offer.payout_address),
        ("made", when(offer.created)),
        ("expires", f"{when(offer.expires)} (in {span(offer.expires - int(time.time()))})"),
        ("stored on", None if offer.stored_on is None else f"{offer.stored_on} nodes"),
    ]
    return pairs(rows)


def _trades(found: s.TradeList) -> RenderableType:
    if not found.trades:
        return Text("There are no trades.")
    table = columns("id", "you", "BTC", "for", "method", "phase", "next", "due", right=("BTC", "for"))
    for view in found.trades:
        row(
            table,
            view.id[:SHORT],
            f"{view.side} ({view.seat})",
            format_sats(view.amount_sats),
            f"{view.volume} {view.currency}",
            view.method,
            phase(view.phase),
            view.hint,
            due_short(next(iter(view.deadlines), None)),
        )
    return table


def _balance(view: s.BalanceView) -> RenderableType:
    table = columns("", "BTC", right=("BTC",))
    rows = (
        ("spendable", view.spendable_sats),
        ("confirmed", view.confirmed_sats),
        ("pending", view.pending_sats),
        ("reserved for trades", view.reserved_sats),
        ("frozen", view.frozen_sats),
        ("immature", view.immature_sats),
        ("in escrows", view.escrow_sats),
        ("of these, put in by you", view.escrow_own_sats),
    )
    for name, sats in rows:
        if sats or name == "spendable":
            row(table, name, format_sats(sats))
    return table


def _utxos(found: s.UtxoList) -> RenderableType:
    if not found.utxos:
        return Text("The wallet is empty.")
    table = columns("coin", "BTC", "confirmations", "held", "label", right=("BTC", "confirmations"))
    for coin in found.utxos:
        held = f"by trade {coin.trade[:SHORT]}" if coin.trade else "frozen" if coin.frozen else ""
        place = f"{coin.txid}:{coin.vout}"
        row(table, place, format_sats(coin.value_sats), str(coin.confirmations), held, coin.label)
    return table


def _labels(found: s.LabelList) -> RenderableType:
    if not found.labels:
        return Text("There are no labels.")
    table = columns("type", "of", "label", "")
    for label in found.labels:
        row(table, label.type, label.ref, label.label, "frozen" if label.spendable is False else "")
    return table


def _history(view: s.HistoryView) -> RenderableType:
    if not view.entries:
        return Text("There are no transactions.")
    table = columns("when", "txid", "BTC", "fee", "block", "label", right=("BTC", "fee", "block"))
    for entry in view.entries:
        fee = "" if entry.fee_sats is None else format_sats(entry.fee_sats)
        block = "waiting" if entry.height is None else str(entry.height)
        row(table, when(entry.time), entry.txid, format_sats(entry.net_sats), fee, block, entry.label)
    return table


def _peers(found: s.PeerList) -> RenderableType:
    if not found.peers:
        return Text("No peers are known: add one with `p2pnode peer add`, or set node.seeds.")
    table = columns("node", "address", "how", "seen", "round trip", right=("round trip",))
    for peer in found.peers:
        way = {True: "channel, ours", False: "channel, theirs", None: "dht"}[peer.outgoing]
        seen = "" if peer.last_seen is None else f"{span(int(time.time()) - peer.last_seen)} ago"
        rtt = "" if peer.rtt_ms is None else f"{peer.rtt_ms} ms"
        row(table, peer.node or "", peer.address, way, seen, rtt)
    return table


def _arbiters(found: s.ArbiterList) -> RenderableType:
    if not found.arbiters:
        return Text("No arbiters are known yet.")
    table = columns(
        "",
        "arbiter",
        "fee",
        "up to BTC",
        "currencies",
        "methods",
        "languages",
        "answers in",
        "bond",
        "points",
        "why",
        right=("", "up to BTC", "points"),
    )
    for one in found.arbiters:
        row(
            table,
            str(one.rank),
            one.persona + (" (you)" if one.mine else ""),
            _fee(one),
            format_sats(one.max_amount_sats),
            ", ".join(one.currencies) or "any",
            ", ".join(one.methods) or "any",
            ", ".join(one.languages),
            f"{one.response_blocks} blocks",
            _arbiters_bond(one),
            str(one.points),
            ", ".join(one.why),
        )
    return table


def _arbiters_bond(one: s.ArbiterView) -> str:
    if one.bond_sats is None:
        return "none"
    until = f" until block {one.bond_lock_height:,}" if one.bond_lock_height is not None else ""
    return f"{btc(one.bond_sats)}{until}" + ("" if one.bond_state == "stands" else f" ({one.bond_state})")


def _arbiter(one: s.ArbiterView) -> RenderableType:
    rows: list[tuple[str, Cell]] = [
        ("arbiter", one.persona),
        ("announcement", one.announcement),
        ("fee", _fee(one)),
        ("up to", btc(one.max_amount_sats)),
        ("currencies", ", ".join(one.currencies) or "any"),
        ("methods", ", ".join(one.methods) or "any"),
        ("languages", ", ".join(one.languages)),
        ("answers in", f"{one.response_blocks} blocks"),
        ("policy", one.policy),
        ("bond", _arbiters_bond(one)),
        ("points", f"{one.points}: {', '.join(one.why)}" if one.why else None),
        ("expires", when(one.expires)),
    ]
    return pairs(rows)


def _fee(one: s.ArbiterView) -> str:
    return f"{format_percent(one.fee_ppm)}, {btc(one.fee_floor_sats)} to {btc(one.fee_cap_sats)}"


def _range(offer: s.OfferView) -> str:
    least, most = format_sats(offer.amount_min_sats), format_sats(offer.amount_max_sats)
    return most if least == most else f"{least} – {most}"


def _price(offer: s.OfferView) -> str:
    text = "unknown" if offer.price is None else f"{offer.price} {offer.currency}"
    if offer.margin_ppm is None:
        return text
    sign = "+" if offer.margin_ppm >= 0 else ""
    limit = offer.price_limit_minor_per_btc
    bound = "" if limit is None else f", limit {format_minor(limit, offer.currency)}"
    return f"{text} (market {sign}{format_percent(offer.margin_ppm)}{bound})"


def _factor(view: s.FactorView) -> str:
    match view.state:
        case "off":
            return "The second factor is off: `p2pnode 2fa enable` switches it on."
        case "pending":
            return "The second factor waits for its first code: `p2pnode 2fa confirm CODE`."
        case "on":
            return f"The second factor is on; {view.recovery_left} recovery codes are left."


def _recovery(view: s.RecoveryCodes) -> str:
    codes = "\n".join(f"  {a}    {b}" for a, b in zip_longest(view.codes[::2], view.codes[1::2], fillvalue=""))
    return f"The second factor is on. Recovery codes, each good once; they are not shown again:\n\n{clean(codes)}\n"
