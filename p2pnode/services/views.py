"""From states to what the API shows of them: offers, trades, their escrows. Reads the store, changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from msgspec.structs import replace

from escrow.address import address_of
from escrow.coins import txid_text
from p2pnode.api.schema import (
    ActionName,
    EscrowView,
    NetworkName,
    OfferView,
    SideName,
    StepView,
    TradeView,
    price_text,
)
from p2pnode.api.schema.base import DeadlineView
from p2pnode.api.services import AmbiguousId
from p2pnode.blocktime import BlockTimes
from p2pnode.idprefix import id_range
from p2pnode.money import format_minor
from p2pnode.offerbook import BookEntry
from p2pnode.ownoffers import OwnOffer
from p2pnode.prices import Prices
from p2pnode.services.dispute_views import outcome_text
from p2pnode.services.hints import hint
from p2pnode.tradestore import StoredTrade, TradeStore
from protocol.contract import Contract, Party, required_confirmations
from protocol.errors import IllegalTransition, NotFound
from protocol.identity import persona_text
from protocol.messages import OpenedDetails
from protocol.offer import FixedPrice, MarketPrice, Offer, deposit, price_at, volume
from protocol.trade import step
from protocol.trade_events import Cancel, Command, DeclarePaid, Release
from protocol.trade_state import TERMINAL, TradeState
from protocol.types import Network, Side
from protocol.wire import Kind, parse_envelope

DescribeEscrow = Callable[[Contract, Network], tuple[bytes, str]]
"""The witness script and the address that a contract's escrow has."""

SIDE_NAMES: Final[dict[Side, SideName]] = {Side.BUY: "buy", Side.SELL: "sell"}
SIDES: Final[dict[SideName, Side]] = {name: side for side, name in SIDE_NAMES.items()}
NETWORK_NAMES: Final[dict[Network, NetworkName]] = {
    Network.MAINNET: "mainnet",
    Network.TESTNET: "testnet",
    Network.SIGNET: "signet",
    Network.REGTEST: "regtest",
}
_COMMANDS: Final[tuple[tuple[ActionName, Command], ...]] = (
    ("pay", DeclarePaid()),
    ("release", Release()),
    ("cancel", Cancel()),
)

T = TypeVar("T")


def kebab(name: str) -> str:
    """`SigningFunding` as `signing-funding`; what is in kebab-case already stays."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def only(found: Sequence[T], what: str, prefix: str) -> T:
    """The one thing that an id means. Raises NotFound, AmbiguousId."""
    if not found:
        raise NotFound(f"no {what} has an id that begins with {prefix}")
    if len(found) > 1:
        raise AmbiguousId(f"{len(found)} {what}s have an id that begins with {prefix}: give more of it")
    return found[0]


# --- offers ------------------------------------------------------------------------------------------------------


class OfferViews:
    """Makes views of offers; `prices` is asked for the market where an offer has a margin."""

    def __init__(self, prices: Prices | None, payout: Callable[[bytes], str | None]) -> None:
        """`payout` tells the address that an own offer's releases pay to, if not the wallet."""
        self._prices = prices
        self._payout = payout

    def price(self, offer: Offer) -> int | None:
        """The exact price of an offer now; None where it needs a market price and there is none."""
        price = offer.price
        if isinstance(price, FixedPrice) or self._prices is None:
            return price_at(price, offer.side, None)
        return price_at(price, offer.side, self._prices(offer.currency, price.feeds))

    def own(self, own: OwnOffer) -> OfferView:
        """An own offer, in whatever state."""
        view = self._view(own.offer, own.sequence, state=own.state.value, mine=True, stored_on=own.stored_on)
        return replace(view, payout_address=self._payout(own.offer_id))

    def listed(self, entry: BookEntry, *, mine: bool = False) -> OfferView:
        """An offer of the book, which is open."""
        return self._view(entry.offer, entry.offer.sequence, state="open", mine=mine, stored_on=None)

    def _view(self, offer: Offer, sequence: int, *, state: str, mine: bool, stored_on: int | None) -> OfferView:
        market = offer.price if isinstance(offer.price, MarketPrice) else None
        price = self.price(offer)
        return OfferView(
            id=offer.offer_id.hex(),
            sequence=sequence,
            maker=persona_text(offer.maker),
            mine=mine,
            state=state,
            side=SIDE_NAMES[offer.side],
            amount_min_sats=offer.amount_min,
            amount_max_sats=offer.amount_max,
            currency=offer.currency,
            price=price_text(price, offer.currency),
            price_minor_per_btc=price,
            margin_ppm=None if market is None else market.margin,
            price_limit_minor_per_btc=None if market is None else market.limit,
            methods=offer.methods,
            payment_window_blocks=offer.payment_window,
            buyer_deposit_ppm=offer.buyer_deposit,
            seller_deposit_ppm=offer.seller_deposit,
            arbiters=tuple(persona_text(a.persona) for a in offer.arbiters),
            escrow_types=tuple(int(kind) for kind in offer.escrow_types),
            backup_delay_blocks=offer.backup_delay,
            confirmations=offer.confirmations,
            terms=offer.terms,
            min_completed_trades=offer.requirements.completed_trades,
            created=offer.created,
            expires=offer.expires,
            stored_on=stored_on,
        )


# --- trades ------------------------------------------------------------------------------------------------------


def possible(state: TradeState) -> tuple[ActionName, ...]:
    """What the user may do now: the machine itself is asked, it changes nothing."""
    found = []
    for name, command in _COMMANDS:
        try:
            step(state, command)
        except IllegalTransition:
            continue
        found.append(name)
    return tuple(found)


class TradeViews:
    """Makes views of trades."""

    def __init__(
        self, trades: TradeStore, network: Network, describe_escrow: DescribeEscrow, blocks: BlockTimes
    ) -> None:
        self._blocks = blocks
        self._trades = trades
        self._db = trades.database.connection
        self._network = network
        self._describe_escrow = describe_escrow

    def find(self, prefix: str) -> StoredTrade:
        """The trade whose id begins with these hex digits. Raises BadIdPrefix, NotFound, AmbiguousId."""
        rows = self._db.execute("SELECT trade_id FROM trades WHERE trade_id BETWEEN ? AND ?", id_range(prefix))
        return self._must(only([bytes(row[0]) for row in rows], "trade", prefix))

    def show(self, trade_id: bytes, *, steps: bool = True) -> TradeView:
        """One trade. Raises NotFound."""
        return self._view(self._must(trade_id), self._unacknowledged().get(trade_id, 0), steps=steps)

    def list(self, *, open_only: bool) -> tuple[TradeView, ...]:
        """Trades, newest first, without steps."""
        waiting = self._unacknowledged()
        found = self._trades.all(open_only=open_only)
        return tuple(self._view(stored, waiting.get(stored.state.trade_id, 0), steps=False) for stored in found)

    def _must(self, trade_id: bytes) -> StoredTrade:
        stored = self._trades.get(trade_id)
        if stored is None:
            raise NotFound("there is no such trade on this node")
        return stored

    def _unacknowledged(self) -> dict[bytes, int]:
        return {bytes(t): n for t, n in self._db.execute("SELECT trade_id, count(*) FROM outbox GROUP BY trade_id")}

    def _view(self, stored: StoredTrade, unacknowledged: int, *, steps: bool) -> TradeView:
        state = stored.state
        offer, bargain = state.offer, state.take.bargain
        arbiter, backup = self._arbiters(state)
        owed = volume(bargain.amount, bargain.price)
        return TradeView(
            id=state.trade_id.hex(),
            offer_id=offer.offer_id.hex(),
            phase=kebab(type(state.phase).__name__),
            open=not isinstance(state.phase, TERMINAL),
            side=SIDE_NAMES[state.side],
            seat="maker" if state.made else "taker",
            peer=persona_text(state.peer),
            amount_sats=bargain.amount,
            currency=offer.currency,
            price=format_minor(bargain.price, offer.currency),
            price_minor_per_btc=bargain.price,
            volume=format_minor(owed, offer.currency),
            volume_minor=owed,
            method=bargain.method,
            buyer_deposit_sats=deposit(bargain.amount, offer.buyer_deposit),
            seller_deposit_sats=deposit(bargain.amount, offer.seller_deposit),
            arbiter=persona_text(arbiter),
            backup=None if backup is None else persona_text(backup),
            confirmations_required=max(offer.confirmations, required_confirmations(bargain.amount)),
            payment_window_blocks=offer.payment_window,
            escrow=self._escrow(state),
            own_details=_details(state.own_details),
            peer_details=_details(state.peer_details),
            payment_note=state.payment_note,
            window_passed=state.window_passed,
            actions=possible(state),
            hint=hint(state),
            ending=state.ending,
            outcome=outcome_text(state.payout.outcome, state.contract),
            disputed=state.dispute is not None,
            window_ends_height=state.window_ends,
            payout_address=self._payout_address(state),
            payout_outside=_pays_outside(state),
            deadlines=self.deadlines(state),
            messages_sent=stored.heads.sent,
            messages_received=stored.heads.received,
            unacknowledged=unacknowledged,
            created=stored.created,
            updated=stored.updated,
            steps=self._steps(state.trade_id) if steps else (),
        )

    def deadlines(self, state: TradeState) -> tuple[DeadlineView, ...]:
        """What ends or begins next in a trade, soonest first; reminders are left out, for nothing follows from them."""
        found = []
        for timer in self._trades.timers(state.trade_id):
            if timer.name.endswith("reminder") or timer.name == "backup":
                continue
            if timer.at_height is not None:
                found.append(self._blocks.at(timer.name, timer.at_height))
            elif timer.at_time is not None:
                found.append(self._blocks.by_clock(timer.name, timer.at_time))
        waits = state.dispute is not None and not isinstance(state.phase, TERMINAL)
        if waits and state.backup_from is not None:
            found.append(self._blocks.at("backup", state.backup_from))
        return tuple(sorted(found, key=lambda x: x.estimated_at))

    def _steps(self, trade_id: bytes) -> tuple[StepView, ...]:
        return tuple(
            StepView(at=entry.at, event=kebab(type(entry.event).__name__), phase=kebab(entry.phase))
            for entry in self._trades.history(trade_id)
        )

    def _arbiters(self, state: TradeState) -> tuple[bytes, bytes | None]:
        """The personas of the arbiter and the backup: of the contract, before there is one of the take."""
        contract = state.contract
        if contract is not None:
            return contract.arbiter.persona, contract.backup.persona if contract.backup else None
        take = state.take
        return self._signer(take.arbiter), self._signer(take.backup) if take.backup else None

    def _signer(self, raw: bytes) -> bytes:
        # Verified when the take was made or received.
        return parse_envelope(raw, self._network, limit=Kind.ARBITER.limit).signer

    def _payout_address(self, state: TradeState) -> str | None:
        """Where a release pays our coins to, by the contract or, before there is one, by our take."""
        party = _own_party(state)
        return None if party is None else address_of(party.payout_script, self._network)

    def _escrow(self, state: TradeState) -> EscrowView:
        kind = int(state.take.bargain.escrow_type)
        contract, facts = state.contract, state.facts
        if contract is None or facts is None:
            return EscrowView(type=kind)
        script, address = self._describe_escrow(contract, self._network)
        paid_out = state.payout.txid or (facts.payout_txid if state.payout.announced else None)
        return EscrowView(
            type=kind,
            contract_id=facts.contract_id.hex(),
            script=script.hex(),
            address=address,
            value_sats=facts.escrow_value,
            funding_txid=txid_text(facts.funding_txid),
            vout=facts.escrow_vout,
            funding_fee_sats=facts.funding_fee,
            funding_depth=state.funding.depth,
            payout_txid=None if paid_out is None else txid_text(paid_out),
            payout_fee_sats=facts.payout_fee if paid_out == facts.payout_txid else None,
            payout_depth=state.payout.depth,
        )


def _own_party(state: TradeState) -> Party | None:
    if state.contract is not None:
        return state.contract.party(state.side)
    return None if state.made else state.take.party


def _pays_outside(state: TradeState) -> bool:
    """A payout to the wallet goes to the very script that refunds go to."""
    party = _own_party(state)
    return party is not None and party.payout_script != party.refund_script


def _details(opened: OpenedDetails | None) -> dict[str, str]:
    return {} if opened is None else dict(opened.details)
