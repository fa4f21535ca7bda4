"""The table of routes: from it the server routes and the OpenAPI document is made, so that they can't disagree.

A route names its method, path, query, body and answer, and the service method that it stands for. Every method but GET
is a write and needs an idempotency key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, Final, Generic, TypeVar

from msgspec import Meta, Struct, convert
from msgspec.structs import replace

from p2pnode.api import dispute_schema as d
from p2pnode.api import evidence_schema as e
from p2pnode.api import schema as s
from p2pnode.api.schema import personas as p
from p2pnode.api.services import (
    BondDesk,
    Cases,
    Disputes,
    Offers,
    Personas,
    RoleMissing,
    Services,
    TradeReceipts,
    Trades,
    WalletService,
)
from protocol.announcement import LanguageCode
from protocol.types import CurrencyCode, MethodCode

PREFIX: Final = "/api/v1"
BODY_LIMIT: Final = 128 * 1024
"""Bytes of the largest request, but for files."""
FILE_LIMIT: Final = 6 * 1024 * 1024

Q = TypeVar("Q", bound=s.Request)
B = TypeVar("B", bound=s.Request)


Until = Callable[[Coroutine[Any, Any, None], float], Awaitable[None]]
"""Await the first, at most that many seconds and no longer than the server lives."""


class NoQuery(s.Request, frozen=True, kw_only=True):
    """No query parameters."""


class TradeQuery(s.Request, frozen=True, kw_only=True):
    """Which trades to list."""

    open: bool = False


class ExhibitQuery(s.Request, frozen=True, kw_only=True):
    """Which file: its number in the list."""

    number: Annotated[int, Meta(ge=1, le=10_000)]


class HistoryQuery(s.Request, frozen=True, kw_only=True):
    """How many transactions to list."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 50


class ArbiterQuery(s.Request, frozen=True, kw_only=True):
    """Which arbiters to list."""

    currency: CurrencyCode | None = None
    method: MethodCode | None = None
    language: LanguageCode | None = None


class EventQuery(s.Request, frozen=True, kw_only=True):
    """Which events to return: those after the cursor (None: from now on); `wait`: seconds to wait for the first."""

    after: s.Cursor | None = None
    wait: Annotated[int, Meta(ge=0, le=60)] = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 200


class Ask(Generic[Q, B]):
    """One request, parsed."""

    def __init__(self, services: Services, item: str, query: Q, body: B, *, until: Until, url: str) -> None:
        """`item` is the id in the path, empty where the path has none; `until` waits for the server at `url`."""
        self.services = services
        self.item = item
        self.query = query
        self.body = body
        self.until = until
        self.url = url

    @property
    def offers(self) -> Offers:
        """The offers, if this node has any. Raises RoleMissing."""
        if self.services.offers is None:
            raise RoleMissing("this node does not trade: a bootstrap node has no offers")
        return self.services.offers

    @property
    def trades(self) -> Trades:
        """The trades. Raises RoleMissing."""
        if self.services.trades is None:
            raise RoleMissing("this node does not trade: a bootstrap node has no trades")
        return self.services.trades

    @property
    def disputes(self) -> Disputes:
        """Settlements, disputes and chat. Raises RoleMissing."""
        if self.services.disputes is None:
            raise RoleMissing("this node does not trade: a bootstrap node has no disputes")
        return self.services.disputes

    @property
    def cases(self) -> Cases:
        """The arbiter's desk. Raises RoleMissing."""
        if self.services.cases is None:
            raise RoleMissing("this node is no arbiter: add the role arbiter to its configuration and start it again")
        return self.services.cases

    @property
    def wallet(self) -> WalletService:
        """The wallet. Raises RoleMissing."""
        if self.services.wallet is None:
            raise RoleMissing("this node has no wallet: a bootstrap node holds no coins")
        return self.services.wallet

    @property
    def personas(self) -> Personas:
        """Personas. Raises RoleMissing."""
        if self.services.personas is None:
            raise RoleMissing("this node does not trade: a bootstrap node knows nothing of personas")
        return self.services.personas

    @property
    def receipts(self) -> TradeReceipts:
        """Receipts of trades. Raises RoleMissing."""
        if self.services.receipts is None:
            raise RoleMissing("this node does not trade: a bootstrap node has no receipts")
        return self.services.receipts

    @property
    def bonds(self) -> BondDesk:
        """Bonds. Raises RoleMissing."""
        if self.services.bonds is None:
            raise RoleMissing("this node has no wallet: a bootstrap node has no bonds")
        return self.services.bonds


GUARDED: Final = frozenset({
    "offer_create", "offer_edit", "offer_take", "trade_pay", "trade_release", "trade_settle", "trade_accept",
    "trade_raise_fee", "dispute_complete", "case_rule", "send", "consolidate", "bump", "second_factor_remove",
    "bond_create", "bond_spend",
})  # fmt: skip
"""Routes that need a code of the second factor, where that is on."""


class Route(Struct, frozen=True, kw_only=True):
    """One method on one path. `{id}` in the path is the id of an offer or a trade."""

    method: str
    path: str
    name: str
    summary: str
    answer: type[s.Response]
    call: Callable[[Ask[Any, Any]], Awaitable[s.Response]]
    query: type[s.Request]
    body: type[s.Request] | None
    status: int
    limit: int = BODY_LIMIT
    """Bytes of the largest body."""

    @property
    def guarded(self) -> bool:
        """Whether it needs a code of the second factor, where that is on: whatever moves, locks or signs away coins."""
        return self.name in GUARDED

    @property
    def writes(self) -> bool:
        """Whether it changes anything."""
        return self.method != "GET"


def _route(
    place: str,
    name: str,
    summary: str,
    call: Callable[[Ask[Q, B]], Awaitable[s.Response]],
    answer: type[s.Response],
    *,
    query: type[Q],
    body: type[B],
    status: int = 200,
    limit: int = BODY_LIMIT,
) -> Route:
    method, _, path = place.partition(" ")
    has_body = body is not s.Empty or method == "POST"
    return Route(
        method=method,
        path=path,
        name=name,
        summary=summary,
        answer=answer,
        call=call,
        query=query,
        body=body if has_body else None,
        status=status,
        limit=limit,
    )


def _get(
    path: str,
    name: str,
    summary: str,
    call: Callable[[Ask[Q, s.Empty]], Awaitable[s.Response]],
    answer: type[s.Response],
    query: type[Q],
) -> Route:
    return _route(f"GET {path}", name, summary, call, answer, query=query, body=s.Empty)


def _do(
    place: str,
    name: str,
    summary: str,
    call: Callable[[Ask[NoQuery, B]], Awaitable[s.Response]],
    answer: type[s.Response],
    body: type[B],
    status: int = 200,
    *,
    limit: int = BODY_LIMIT,
) -> Route:
    return _route(place, name, summary, call, answer, query=NoQuery, body=body, status=status, limit=limit)


async def _info(ask: Ask[NoQuery, s.Empty]) -> s.NodeView:
    return replace(await ask.services.node.info(), api=ask.url)


async def _stop(ask: Ask[NoQuery, s.Empty]) -> s.StopView:
    await ask.services.node.stop()
    return s.StopView()


async def _events(ask: Ask[EventQuery, s.Empty]) -> s.EventPage:
    feed = ask.services.events
    after = await feed.last() if ask.query.after is None else ask.query.after
    found = tuple(await feed.since(after, ask.query.limit))
    if not found and ask.query.wait:
        await ask.until(feed.wait(after), ask.query.wait)
        found = tuple(await feed.since(after, ask.query.limit))
    return s.EventPage(events=found, next=found[-1].number if found else after)


async def _page(ask: Ask[NoQuery, s.Empty]) -> s.PageLink:
    return s.PageLink(url=f"{ask.url}/enter/{ask.services.pages.link()}")


ROUTES: Final[tuple[Route, ...]] = (
    _get("/info", "info", "Who this node is and how it does", _info, s.NodeView, NoQuery),
    _do("POST /stop", "stop", "Shut the node down in order", _stop, s.StopView, s.Empty, 202),
    _get("/offers", "offers", "List the book, or one's own offers",
         lambda ask: ask.offers.find(ask.query), s.OfferPage, s.OfferFilter),
    _do("POST /offers", "offer_create", "Sign and publish an offer",
        lambda ask: ask.offers.create(ask.body), s.OfferView, s.OfferDraft, 201),
    _get("/offers/{id}", "offer", "Show an offer",
         lambda ask: ask.offers.show(ask.item), s.OfferView, NoQuery),
    _do("PATCH /offers/{id}", "offer_edit", "Publish the next version of an own offer",
        lambda ask: ask.offers.edit(ask.item, ask.body), s.OfferView, s.OfferEdit),
    _do("DELETE /offers/{id}", "offer_revoke", "Withdraw an own offer",
        lambda ask: ask.offers.revoke(ask.item), s.OfferView, s.Empty),
    _do("POST /offers/{id}/take", "offer_take", "Take an offer: begin a trade",
        lambda ask: ask.offers.take(ask.item, ask.body), s.TradeView, s.TakeRequest, 201),
    _get("/trades", "trades", "List trades, newest first",
         lambda ask: ask.trades.list(open_only=ask.query.open), s.TradeList, TradeQuery),
    _get("/trades/{id}", "trade", "Show a trade with its steps",
         lambda ask: ask.trades.show(ask.item), s.TradeView, NoQuery),
    _do("POST /trades/{id}/pay", "trade_pay", "Buyer: declare that the payment was made",
        lambda ask: ask.trades.pay(ask.item, ask.body), s.TradeView, s.PayRequest),
    _do("POST /trades/{id}/release", "trade_release", "Seller: release the coins to the buyer",
        lambda ask: ask.trades.release(ask.item), s.TradeView, s.Empty),
    _do("POST /trades/{id}/fee", "trade_raise_fee", "Propose a higher fee rate for an agreed payout that waits",
        lambda ask: ask.trades.raise_fee(ask.item, ask.body), s.TradeView, s.RaiseFeeRequest),
    _do("POST /trades/{id}/cancel", "trade_cancel", "Leave a trade that is not funded",
        lambda ask: ask.trades.cancel(ask.item, ask.body), s.TradeView, s.CancelRequest),
    _get("/trades/{id}/dispute", "dispute", "Show a trade's settlements, dispute and chat",
         lambda ask: ask.disputes.show(ask.item), d.DisputeView, NoQuery),
    _do("POST /trades/{id}/dispute", "dispute_open", "Open a dispute, or answer one",
        lambda ask: ask.disputes.open(ask.item, ask.body), d.DisputeView, d.DisputeRequest, 201),
    _do("POST /trades/{id}/dispute/evidence", "dispute_evidence", "Show something to the arbiter",
        lambda ask: ask.disputes.evidence(ask.item, ask.body), d.DisputeView, d.EvidenceRequest, 201),
    _get("/trades/{id}/evidence", "evidence", "The files that were shown in a trade, held against the signed messages",
         lambda ask: ask.disputes.exhibits(ask.item), e.EvidenceList, NoQuery),
    _get("/trades/{id}/evidence/file", "evidence_file", "One of these files, with its bytes",
         lambda ask: ask.disputes.exhibit(ask.item, ask.query.number), e.EvidenceFile, ExhibitQuery),
    _do("POST /trades/{id}/dispute/complete", "dispute_complete", "Complete what the arbiter ruled",
        lambda ask: ask.disputes.complete(ask.item), d.DisputeView, s.Empty),
    _get("/trades/{id}/dispute/bundle", "dispute_bundle", "All that was said and signed, for anybody to verify",
         lambda ask: ask.disputes.bundle(ask.item), d.BundleView, NoQuery),
    _do("POST /trades/{id}/chat", "trade_chat", "Write to the counterparty, or to the arbiter",
        lambda ask: ask.disputes.chat(ask.item, ask.body), d.DisputeView, d.ChatRequest, 201),
    _do("POST /trades/{id}/settle", "trade_settle", "Propose a settlement, or to cancel the trade",
        lambda ask: ask.disputes.settle(ask.item, ask.body), d.DisputeView, d.SettleRequest, 201),
    _do("POST /trades/{id}/settle/accept", "trade_accept", "Accept a settlement that was proposed",
        lambda ask: ask.disputes.accept(ask.item, ask.body), d.DisputeView, d.AcceptRequest),
    _do("POST /trades/{id}/extend", "trade_extend", "Buyer: ask for more time to pay; seller: give it",
        lambda ask: ask.disputes.extend(ask.item, ask.body), d.DisputeView, d.ExtendRequest),
    _do("POST /files", "file_upload", "Keep a file, to be shown to a counterparty or an arbiter",
        lambda ask: ask.disputes.upload(ask.body), d.AttachmentView, d.FileUpload, 201, limit=FILE_LIMIT),
    _get("/files/{id}", "file", "The bytes of a file that was shown",
         lambda ask: ask.disputes.file(ask.item), d.FileData, NoQuery),
    _get("/cases", "cases", "The arbiter's queue, those first that wait longest",
         lambda ask: ask.cases.list(open_only=ask.query.open), d.CaseList, TradeQuery),
    _get("/cases/{id}", "case", "A case with all that was said",
         lambda ask: ask.cases.show(ask.item), d.CaseView, NoQuery),
    _get("/cases/{id}/evidence", "case_evidence", "The files that were shown in a case, held against the log",
         lambda ask: ask.cases.exhibits(ask.item), e.EvidenceList, NoQuery),
    _get("/cases/{id}/evidence/file", "case_evidence_file", "One of these files, with its bytes",
         lambda ask: ask.cases.exhibit(ask.item, ask.query.number), e.EvidenceFile, ExhibitQuery),
    _get("/cases/{id}/quote", "case_quote", "What a decision would pay to whom",
         lambda ask: ask.cases.quote(ask.item, ask.query), d.QuoteView, d.QuoteRequest),
    _get("/cases/{id}/bundle", "case_bundle", "All that was said and signed, for anybody to verify",
         lambda ask: ask.cases.bundle(ask.item), d.BundleView, NoQuery),
    _do("POST /cases/{id}/accept", "case_accept", "Hear the case",
        lambda ask: ask.cases.accept(ask.item), d.CaseView, s.Empty),
    _do("POST /cases/{id}/decline", "case_decline", "Do not decide the case",
        lambda ask: ask.cases.decline(ask.item, ask.body), d.CaseView, d.CaseText),
    _do("POST /cases/{id}/extend", "case_extend", "Take more time, once",
        lambda ask: ask.cases.extend(ask.item, ask.body), d.CaseView, d.CaseExtension),
    _do("POST /cases/{id}/write", "case_write", "Write to one party",
        lambda ask: ask.cases.write(ask.item, ask.body), d.CaseView, d.CaseLine, 201),
    _do("POST /cases/{id}/rule", "case_rule", "Decide, once and for all",
        lambda ask: ask.cases.rule(ask.item, ask.body), d.CaseView, d.RuleRequest),
    _get("/wallet/balance", "balance", "The wallet's balance",
         lambda ask: ask.wallet.balance(), s.BalanceView, NoQuery),
    _do("POST /wallet/addresses", "address", "A fresh receiving address",
        lambda ask: ask.wallet.address(ask.body), s.AddressView, s.AddressRequest, 201),
    _get("/wallet/utxos", "utxos", "Unspent coins, largest first",
         lambda ask: ask.wallet.utxos(), s.UtxoList, NoQuery),
    _get("/wallet/history", "history", "Transactions, newest first",
         lambda ask: ask.wallet.history(ask.query.limit), s.HistoryView, HistoryQuery),
    _do("POST /wallet/send", "send", "Pay to an address",
        lambda ask: ask.wallet.send(ask.body), s.SentView, s.SendRequest, 201),
    _do("POST /wallet/consolidate", "consolidate", "Make one coin of many",
        lambda ask: ask.wallet.consolidate(ask.body), s.SentView, s.ConsolidateRequest, 201),
    _do("POST /wallet/bump", "bump", "Raise the fee of a transaction that waits",
        lambda ask: ask.wallet.bump(ask.body), s.BumpView, s.BumpRequest, 201),
    _do("POST /wallet/freeze", "freeze", "Set coins aside, or give them back",
        lambda ask: ask.wallet.freeze(ask.body), s.UtxoList, s.FreezeRequest),
    _get("/wallet/labels", "labels", "Labels of addresses, coins and transactions",
         lambda ask: ask.wallet.labels(), s.LabelList, NoQuery),
    _do("POST /wallet/labels", "set_labels", "Keep labels",
        lambda ask: ask.wallet.set_labels(ask.body), s.LabelList, s.LabelImport),
    _get("/wallet/descriptors", "descriptors", "The wallet's public descriptors",
         lambda ask: ask.wallet.descriptors(), s.DescriptorsView, NoQuery),
    _get("/peers", "peers", "Sessions and known nodes",
         lambda ask: ask.services.peers.list(), s.PeerList, NoQuery),
    _do("POST /peers", "peer_add", "Get to know a node",
        lambda ask: ask.services.peers.add(ask.body), s.PeerView, s.PeerAdd, 201),
    _get("/arbiters", "arbiters", "Arbiters that this node knows",
         lambda ask: ask.services.arbiters.list(ask.query.currency, ask.query.method, ask.query.language),
         s.ArbiterList, ArbiterQuery),
    _do("POST /arbiters/announcement", "announce", "Announce this node's persona as an arbiter",
        lambda ask: ask.services.arbiters.announce(ask.body), s.ArbiterView, s.AnnounceRequest, 201),
    _get("/personas", "personas", "Personas that the user has said something of",
         lambda ask: ask.personas.list(), p.PersonaList, NoQuery),
    _get("/persona", "persona", "What is known of a persona, checked on the chain",
         lambda ask: ask.personas.show(ask.query.persona), p.PersonaView, p.PersonaQuery),
    _do("POST /persona/note", "persona_note", "Keep a note on a persona",
        lambda ask: ask.personas.note(ask.body), p.PersonaView, p.NoteRequest),
    _do("POST /persona/standing", "persona_standing", "Trust a persona, block it, or neither",
        lambda ask: ask.personas.stand(ask.body), p.PersonaView, p.StandingRequest),
    _get("/trades/{id}/receipt", "trade_receipt", "Who has signed a trade's receipt, and whether it is public",
         lambda ask: ask.receipts.show(ask.item), p.ReceiptView, NoQuery),
    _do("POST /trades/{id}/receipt", "trade_publish", "Consent to the publication of a trade's receipt",
        lambda ask: ask.receipts.publish(ask.item, ask.body), p.ReceiptView, p.PublishRequest),
    _do("POST /trades/{id}/rating", "trade_rate", "Rate the counterparty of a trade",
        lambda ask: ask.receipts.rate(ask.item, ask.body), p.ReceiptView, p.RateRequest),
    _get("/bonds", "bonds", "Bonds of this node's persona",
         lambda ask: ask.bonds.list(), p.BondList, NoQuery),
    _do("POST /bonds", "bond_create", "Lock coins as a bond",
        lambda ask: ask.bonds.create(ask.body), p.BondView, p.BondRequest, 201),
    _do("POST /bonds/{id}/spend", "bond_spend", "Take a bond back whose height has come",
        lambda ask: ask.bonds.spend(ask.item, ask.body), p.BondView, p.BondSpend),
    _do("POST /bonds/search", "bond_search", "Find bonds from the mnemonic",
        lambda ask: ask.bonds.search(ask.body), p.BondList, p.BondSearch),
    _do("POST /page", "page", "A link that logs a browser of this machine in, once",
        _page, s.PageLink, s.Empty, 201),
    _get("/second-factor", "second_factor", "Whether codes of a second factor are asked for",
         lambda ask: ask.services.guard.show(), s.FactorView, NoQuery),
    _do("POST /second-factor", "second_factor_begin", "Make the secret of a second factor, for a device",
        lambda ask: ask.services.guard.begin(), s.FactorSecret, s.Empty, 201),
    _do("POST /second-factor/confirm", "second_factor_confirm", "Switch it on with a first code of the device",
        lambda ask: ask.services.guard.confirm(ask.body.code), s.RecoveryCodes, s.FactorConfirm),
    _do("DELETE /second-factor", "second_factor_remove", "Switch the second factor off",
        lambda ask: ask.services.guard.remove(), s.FactorView, s.Empty),
    _get("/events", "events", "Events after a cursor, waiting for the first", _events, s.EventPage, EventQuery),
)  # fmt: skip


def check_id(text: str) -> str:
    """The id in a path, in lower case. Raises msgspec.ValidationError."""
    return convert(text.lower(), s.IdText)
