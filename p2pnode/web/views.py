"""What each page shows: the services' own views, gathered for a template."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from p2pnode.api import dispute_schema as d
from p2pnode.api import schema as s
from p2pnode.api.errors import BadRequest
from p2pnode.api.schema import personas as p
from p2pnode.api.services import RoleMissing, Services
from p2pnode.web import forms

Facts = dict[str, Any]
View = Callable[[Services, str, Mapping[str, str]], Awaitable[tuple[str, Facts]]]

HISTORY: Final = 50


async def overview(services: Services, _: str, __: Mapping[str, str]) -> tuple[str, Facts]:
    """How the node does, and what waits for its user."""
    info = await services.node.info()
    trades = await services.trades.list(open_only=True) if services.trades else s.TradeList(trades=())
    cases = await services.cases.list(open_only=True) if services.cases else d.CaseList(cases=())
    balance = await services.wallet.balance() if services.wallet else None
    return "overview.html", {"info": info, "trades": trades.trades, "cases": cases.cases, "balance": balance}


async def offers(services: Services, _: str, query: Mapping[str, str]) -> tuple[str, Facts]:
    """The book, or one's own offers."""
    if services.offers is None:
        raise RoleMissing("this node does not trade: a bootstrap node has no offers")
    fields = [(_OFFER_FIELDS[name], text) for name, text in query.items() if name in _OFFER_FIELDS]
    page = await services.offers.find(forms.read(fields, s.OfferFilter))
    return "offers.html", {"page": page, "query": {name: query.get(name, "") for name in _OFFER_FIELDS}}


async def offer(services: Services, item: str, _: Mapping[str, str]) -> tuple[str, Facts]:
    """One offer, with what can be done with it."""
    if services.offers is None:
        raise RoleMissing("this node does not trade: a bootstrap node has no offers")
    guard = await services.guard.show()
    return "offer.html", {"offer": await services.offers.show(item), "guarded": guard.state == "on"}


async def new_offer(services: Services, _: str, __: Mapping[str, str]) -> tuple[str, Facts]:
    """An empty offer, to be filled in."""
    guard = await services.guard.show()
    return "offer_new.html", {"guarded": guard.state == "on"}


async def trades(services: Services, _: str, __: Mapping[str, str]) -> tuple[str, Facts]:
    """All trades."""
    if services.trades is None:
        raise RoleMissing("this node does not trade: a bootstrap node has no trades")
    return "trades.html", {"trades": (await services.trades.list(open_only=False)).trades}


async def trade(services: Services, item: str, _: Mapping[str, str]) -> tuple[str, Facts]:
    """One trade with its chat, settlements and dispute."""
    if services.trades is None or services.disputes is None:
        raise RoleMissing("this node does not trade: a bootstrap node has no trades")
    shown = await services.trades.show(item)
    dispute = await services.disputes.show(shown.id)
    guard = await services.guard.show()
    receipt = None
    if services.receipts is not None and shown.phase == "completed":
        receipt = await services.receipts.show(shown.id)
    return "trade.html", {"trade": shown, "dispute": dispute, "guarded": guard.state == "on", "receipt": receipt}


async def cases(services: Services, _: str, __: Mapping[str, str]) -> tuple[str, Facts]:
    """The arbiter's queue."""
    if services.cases is None:
        raise RoleMissing("this node is no arbiter: add the role arbiter to its configuration and start it again")
    return "cases.html", {"cases": (await services.cases.list(open_only=False)).cases}


async def case(services: Services, item: str, query: Mapping[str, str]) -> tuple[str, Facts]:
    """One case: both claims side by side, all that was said, and the scales."""
    if services.cases is None:
        raise RoleMissing("this node is no arbiter: add the role arbiter to its configuration and start it again")
    shown = await services.cases.show(item)
    decides = "rule" in shown.actions
    facts = await quote(services, shown.id, query) if decides else {}
    guard = await services.guard.show()
    reasons = msgspec.inspect.type_info(d.ReasonName)
    names = [str(name) for name in reasons.values] if isinstance(reasons, msgspec.inspect.LiteralType) else []
    more = {"case": shown, "decides": decides, "looked": "share" in query, "reasons": names}
    return "case.html", {**facts, **more, "guarded": guard.state == "on"}


async def quote(services: Services, item: str, query: Mapping[str, str]) -> Facts:
    """What a decision would pay to whom, to the satoshi."""
    if services.cases is None:
        raise RoleMissing("this node is no arbiter")
    share, forfeit = (_percent(query.get(name, default)) for name, default in (("share", "50"), ("forfeit", "0")))
    request = d.QuoteRequest(buyer_share_ppm=share, forfeit_ppm=forfeit)
    return {"quote": await services.cases.quote(item, request)}


async def wallet(services: Services, _: str, __: Mapping[str, str]) -> tuple[str, Facts]:
    """The node's own coins."""
    if services.wallet is None:
        raise RoleMissing("this node has no wallet: a bootstrap node holds no coins")
    balance, utxos, history, guard = await asyncio.gather(
        services.wallet.balance(), services.wallet.utxos(), services.wallet.history(HISTORY), services.guard.show()
    )
    facts = {"balance": balance, "utxos": utxos.utxos, "history": history.entries, "guarded": guard.state == "on"}
    return "wallet.html", facts


async def arbiters(services: Services, _: str, query: Mapping[str, str]) -> tuple[str, Facts]:
    """The arbiters that this node knows."""
    currency = query.get("currency", "").strip().upper() or None
    method = query.get("method", "").strip().lower() or None
    found = await services.arbiters.list(currency, method)
    info = await services.node.info()
    facts = {"arbiters": found.arbiters, "announces": "arbiter" in info.roles}
    return "arbiters.html", {**facts, "currency": currency or "", "method": method or ""}


async def persona(services: Services, _: str, query: Mapping[str, str]) -> tuple[str, Facts]:
    """One persona: what our own chain proves of it, what it would cost to forge, and the user's own word."""
    if services.personas is None:
        raise RoleMissing("this node does not trade: a bootstrap node knows nothing of personas")
    return "persona.html", {"who": await services.personas.show(query.get("persona", ""))}


async def settings(services: Services, _: str, __: Mapping[str, str]) -> tuple[str, Facts]:
    """The node, its peers, and the second factor."""
    info, peers, factor = await asyncio.gather(services.node.info(), services.peers.list(), services.guard.show())
    return "settings.html", {"info": info, "peers": peers.peers, "factor": factor}


PAGES: Final[dict[str, View]] = {
    "/": overview,
    "/offers": offers,
    "/offers/new": new_offer,
    "/offers/{id}": offer,
    "/trades": trades,
    "/trades/{id}": trade,
    "/cases": cases,
    "/cases/{id}": case,
    "/wallet": wallet,
    "/arbiters": arbiters,
    "/persona": persona,
    "/node": settings,
}

_OFFER_FIELDS: Final = {
    "side": "side",
    "currency": "currency:currency",
    "method": "method",
    "amount": "amount_sats:sats",
    "mine": "mine:yes",
    "cursor": "cursor",
}
"""The filters of the book, and the fields that they become."""

_DONE: Final = {
    "offer_create": "The offer is published.",
    "offer_edit": "The new version is published.",
    "offer_revoke": "The offer is withdrawn.",
    "offer_take": "The offer is taken; the trade has begun.",
    "trade_pay": "The seller is told that you have paid.",
    "trade_release": "The coins are released.",
    "trade_cancel": "You have left the trade.",
    "trade_chat": "Sent.",
    "trade_settle": "The settlement is proposed.",
    "trade_accept": "The settlement is accepted.",
    "trade_extend": "Done.",
    "dispute_open": "The arbiter is told.",
    "dispute_evidence": "The arbiter gets to see it.",
    "dispute_complete": "The ruling is carried out.",
    "case_accept": "You hear the case.",
    "case_decline": "The parties are told that you do not decide.",
    "case_extend": "You have more time.",
    "case_write": "Sent.",
    "case_rule": "You have decided; both parties get the ruling.",
    "trade_rate": "The rating is kept; others see it once both of you consent.",
    "trade_publish": "Your consent is sent.",
    "persona_note": "The note is kept.",
    "persona_standing": "Kept.",
    "second_factor_remove": "The second factor is off.",
}


def done(name: str, result: object) -> str:
    """One line about what was done."""
    match result:
        case s.SentView(txid=txid):
            return f"Sent, in transaction {txid}."
        case s.BumpView(txid=txid):
            return f"The fee is raised, by transaction {txid}."
        case _:
            return _DONE.get(name, "Done.")


def place_of(name: str, result: object) -> str:
    """The page of what a write has made or changed."""
    match result:
        case s.OfferView(id=offer):
            return f"/offers/{offer}"
        case s.TradeView(id=trade) | d.DisputeView(trade=trade):
            return f"/trades/{trade}"
        case d.CaseView(id=case):
            return f"/cases/{case}"
        case p.ReceiptView(trade=trade):
            return f"/trades/{trade}"
        case p.PersonaView(persona=name_of):
            return f"/persona?persona={name_of}"
        case _ if name.startswith(("second_factor", "peer")):
            return "/node"
        case _:
            return "/wallet"


def _percent(text: str) -> int:
    """Parts per million of a whole or halved percentage. Raises BadRequest."""
    try:
        value = round(float(text.strip().rstrip("%") or "0") * 10_000)
    except (ValueError, OverflowError):
        raise BadRequest("a share is a number from 0 to 100") from None
    if not 0 <= value <= 1_000_000:
        raise BadRequest("a share is from 0 to 100 percent")
    return value
