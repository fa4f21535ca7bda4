"""Personas, receipts and bonds as the user sees them."""

from __future__ import annotations

from typing import Final

from escrow.coins import txid_text
from p2pnode.api.schema import personas as p
from p2pnode.arbiters import ArbiterDirectory
from p2pnode.clock import Clock
from p2pnode.idprefix import id_range
from p2pnode.reputation.acquaintances import Acquaintance, Acquaintances, Standing
from p2pnode.reputation.bonds import BadBondTerms, Bonds, OwnBond
from p2pnode.reputation.chainsight import ChainSight
from p2pnode.reputation.exchange import OwnReceipt, Receipts
from p2pnode.reputation.exposures import Exposures
from p2pnode.reputation.history import Histories, History
from p2pnode.services.views import only
from p2pnode.tradestore import StoredTrade, TradeStore
from protocol import trade_state as st
from protocol.bond import Bond, bond_worth
from protocol.identity import parse_persona, persona_text
from protocol.rating import Mark
from protocol.receipt import Ending

MARKS: Final[dict[p.MarkName, Mark]] = {"bad": Mark.BAD, "neutral": Mark.NEUTRAL, "good": Mark.GOOD}
_MARK_NAMES: Final[dict[Mark, p.MarkName]] = {mark: name for name, mark in MARKS.items()}
SHOWN: Final = 50
"""Receipts and ratings in one answer, the newest first."""


class PersonaService:
    """`api.services.Personas`."""

    def __init__(
        self,
        own: bytes,
        acquaintances: Acquaintances,
        histories: Histories,
        exposures: Exposures,
        directory: ArbiterDirectory,
        trades: TradeStore,
        clock: Clock,
    ) -> None:
        """`own` is the node's persona."""
        self._own = own
        self._acquaintances = acquaintances
        self._histories = histories
        self._exposures = exposures
        self._directory = directory
        self._trades = trades
        self._clock = clock

    async def list(self) -> p.PersonaList:
        """Everybody the user has said something of."""
        return p.PersonaList(personas=tuple(_acquaintance(a) for a in self._acquaintances.all()))

    async def show(self, persona: str) -> p.PersonaView:
        """One persona, looked up in the DHT and checked on the chain. Raises BadId."""
        key = parse_persona(persona)
        history = await self._histories.look_up(key, fresh_seconds=5)
        return self._view(history)

    async def note(self, request: p.NoteRequest) -> p.PersonaView:
        """Keep a note. Raises BadId."""
        return self._changed(request.persona, note=request.note)

    async def stand(self, request: p.StandingRequest) -> p.PersonaView:
        """Trust, block, or neither. Raises BadId."""
        return self._changed(request.persona, standing=request.standing)

    def _changed(self, persona: str, *, standing: Standing | None = None, note: str | None = None) -> p.PersonaView:
        key = parse_persona(persona)
        self._acquaintances.set(key, self._clock.now(), standing=standing, note=note)
        return self._view(self._histories.known(key))

    def _view(self, history: History) -> p.PersonaView:
        said = self._acquaintances.get(history.persona)
        marks = [r.mark for r in history.ratings]
        endings = [r.ending for r in history.receipts]
        exposed = self._exposures.exposed(history.persona)
        with_us = sum(
            stored.state.peer == history.persona and isinstance(stored.state.phase, st.Completed)
            for stored in self._trades.all()
        )
        return p.PersonaView(
            persona=persona_text(history.persona),
            mine=history.persona == self._own,
            known="exposed" if exposed else "forged" if history.forged else "new" if history.new else "known",
            standing=said.standing,
            note=said.note,
            trades_with_us=with_us,
            score=history.score,
            completed=history.releases,
            settled=endings.count(Ending.SETTLED),
            ruled=endings.count(Ending.RULED),
            counterparties=history.counterparties,
            good=marks.count(Mark.GOOD),
            neutral=marks.count(Mark.NEUTRAL),
            bad=marks.count(Mark.BAD),
            unproved=history.unproved,
            rulings_in_time=len(history.rulings),
            rulings_late=history.late,
            first_height=min((r.proved.paid for r in history.receipts), default=None),
            forging_fee_sats=history.cost.fees,
            forging_locked_sats=history.cost.locked,
            forging_blocks=history.cost.blocks,
            bond=None if history.bond is None else _bond(history.bond, self._histories.height),
            arbiter=self._directory.newest_of(history.persona) is not None,
            receipts=tuple(
                p.ReceiptLine(
                    counterparty=persona_text(r.counterparty),
                    ending=_ending(r.ending),
                    value_sats=r.proved.value,
                    fee_sats=r.proved.fee,
                    blocks=r.proved.locked,
                    height=r.proved.paid,
                )
                for r in history.receipts[:SHOWN]
            ),
            ratings=tuple(
                p.RatingLine(
                    rater=persona_text(r.rater),
                    mark=_MARK_NAMES[r.mark],
                    text=r.text,
                    created=r.created,
                    credit=r.credit,
                )
                for r in history.ratings[:SHOWN]
            ),
        )


class ReceiptService:
    """`api.services.TradeReceipts`."""

    def __init__(self, trades: TradeStore, receipts: Receipts) -> None:
        self._trades = trades
        self._receipts = receipts

    async def show(self, trade: str) -> p.ReceiptView:
        """The receipt of one of our trades. Raises NotFound, AmbiguousId."""
        stored = self._find(trade)
        return self._view(stored, self._receipts.get(stored.state.trade_id))

    async def publish(self, trade: str, request: p.PublishRequest) -> p.ReceiptView:  # noqa: ARG002  (it says yes)
        """Consent to its publication. Raises NotFound, NotRatable."""
        stored = self._find(trade)
        return self._view(stored, self._receipts.publish(stored.state.trade_id))

    async def rate(self, trade: str, request: p.RateRequest) -> p.ReceiptView:
        """Say what we think of the counterparty. Raises NotFound, NotRatable."""
        stored = self._find(trade)
        return self._view(stored, self._receipts.rate(stored.state.trade_id, MARKS[request.mark], request.text))

    def _find(self, trade: str) -> StoredTrade:
        low, high = id_range(trade)
        found = [s for s in self._trades.all() if low <= s.state.trade_id <= high]
        return only(found, "trade", trade)

    def _view(self, stored: StoredTrade, found: OwnReceipt) -> p.ReceiptView:
        own, peer = self._receipts.halves(found)
        half = own or peer
        return p.ReceiptView(
            trade=stored.state.trade_id.hex(),
            counterparty=persona_text(stored.state.peer),
            ending=None if half is None else _ending(half.receipt.ending),
            signed_by_us=own is not None,
            signed_by_peer=peer is not None,
            public_for_us=own is not None and own.consent is not None,
            public_for_peer=peer is not None and peer.consent is not None,
            published=found.record is not None,
            mark=None if found.mark is Mark.NONE else _MARK_NAMES[found.mark],
            text=found.note,
            funding_txid=None if half is None else txid_text(half.receipt.funding_txid),
            payout_txid=None if half is None else txid_text(half.receipt.payout_txid),
        )


class BondService:
    """`api.services.BondsService`."""

    def __init__(self, bonds: Bonds, sight: ChainSight) -> None:
        self._bonds = bonds
        self._sight = sight

    async def list(self) -> p.BondList:
        """All bonds of this node."""
        await self._bonds.look()
        tip = self._sight.height
        return p.BondList(bonds=tuple(_own_bond(bond, tip) for bond in self._bonds.all()), tip=tip)

    async def create(self, request: p.BondRequest) -> p.BondView:
        """Lock coins. Raises BadBondTerms and what a payment raises."""
        if (request.until_height is None) == (request.blocks is None):
            raise BadBondTerms("say until which block, or for how many blocks, and not both")
        until = request.until_height or self._sight.height + (request.blocks or 0)
        made = await self._bonds.create(request.amount_sats, until, request.fee_rate_sats_per_kvb)
        return _own_bond(made, self._sight.height)

    async def spend(self, bond: str, request: p.BondSpend) -> p.BondView:
        """Take one back. Raises NotFound, BondLocked, BadBondTerms, Rejected."""
        found = self._bonds.find(bond)
        spent = await self._bonds.spend(found.txid, request.address, request.fee_rate_sats_per_kvb)
        return _own_bond(spent, self._sight.height)

    async def search(self, request: p.BondSearch) -> p.BondList:
        """Find them from the mnemonic."""
        await self._bonds.restore(request.from_height)
        return await self.list()


def _acquaintance(said: Acquaintance) -> p.AcquaintanceView:
    return p.AcquaintanceView(
        persona=persona_text(said.persona), standing=said.standing, note=said.note, updated=said.updated
    )


def _ending(ending: Ending) -> p.EndingName:
    return _ENDINGS[ending]


_ENDINGS: Final[dict[Ending, p.EndingName]] = {
    Ending.RELEASED: "released",
    Ending.SETTLED: "settled",
    Ending.RULED: "ruled",
}


def _bond(bond: Bond, tip: int) -> p.BondLine:
    return p.BondLine(
        txid=txid_text(bond.txid),
        vout=bond.vout,
        value_sats=bond.value,
        lock_height=bond.lock_height,
        worth_sat_years=bond.worth(tip),
    )


def _own_bond(bond: OwnBond, tip: int) -> p.BondView:
    left = max(0, bond.lock_height - tip)
    if bond.spent is not None:
        state: p.BondStateName = "spent"
    elif bond.height is None:
        state = "waiting"
    else:
        state = "standing" if left else "free"
    return p.BondView(
        txid=txid_text(bond.txid),
        vout=bond.vout,
        persona=persona_text(bond.persona),
        value_sats=bond.value,
        lock_height=bond.lock_height,
        height=bond.height,
        state=state,
        blocks_left=left,
        worth_sat_years=bond_worth(bond.value, left) if state == "standing" else 0,
        spent_by=None if bond.spent is None else txid_text(bond.spent),
    )
