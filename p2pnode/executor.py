"""Act: carry out what the machine decided and the engine recorded (DESIGN section 3).

Each trade's effects run one after the other, in the order they were asked for; different trades do not wait for each
other. An effect is done when its result is committed, so a crash between the two runs it again: signing is
deterministic, coins are reserved by trade, a transaction that the chain knows is broadcast with success. What may
succeed later is tried again with growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol, assert_never

from escrow.chain.base import ChainBackend, Rejected
from escrow.inputs import check_witnesses
from escrow.payout import derive_payout, sign_payout
from escrow.psbtplan import previous_by_txid
from escrow.wallet.base import Wallet
from p2pnode.chainwatch import ChainWatch
from p2pnode.clock import Clock
from p2pnode.completing import contract_of, funding_of, outcome_of, release_of
from p2pnode.contracting import agreed_arbiters, derive
from p2pnode.contribution import Contributor
from p2pnode.engine import Engine, own_persona
from p2pnode.keyring import Keyring
from p2pnode.signing import AwaitingSignature, FundingSigner, WalletSigner
from p2pnode.tradestore import PendingEffect
from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.contract import build_contract, sign_contract
from protocol.errors import Action, IllegalTransition, P2PError
from protocol.messages import Accept, Details, decode
from protocol.outcome import Outcome
from protocol.trade import WITHDRAWN
from protocol.trade_state import TERMINAL, TradeState
from protocol.types import Branch
from protocol.wire import parse_envelope

FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 60.0
PERSONS_PAUSE: Final = 2.0
"""Between two looks whether a person has signed."""
RECLAIM_RATE_FACTOR: Final = 2
"""A reclaim must beat the transaction that it replaces, and be mined before the counterparty thinks again."""

log = logging.getLogger(__name__)


class Makers(Protocol):
    """What the executor needs of our own offers."""

    def details_of(self, offer_id: bytes, method: str) -> Details:
        """Our payment details for a method of one of our offers. Raises NotFound."""
        ...

    def payout_of(self, offer_id: bytes) -> bytes | None:
        """The outside script that the coins of trades on this offer go to; None: the wallet."""
        ...


class ContractFiles(Protocol):
    """Where contract files go before anything is signed."""

    def export(self, state: TradeState) -> Path:
        """Write the trade's contract file, durably. Again is fine."""
        ...


class Executor:
    """Runs effects."""

    def __init__(
        self,
        engine: Engine,
        wallet: Wallet,
        backend: ChainBackend,
        watch: ChainWatch,
        keyring: Keyring,
        contributor: Contributor,
        makers: Makers,
        files: ContractFiles,
        clock: Clock,
    ) -> None:
        self.signer: FundingSigner = WalletSigner(wallet)
        """Signs our inputs of fundings; set another one before `start` where the keys are elsewhere."""
        self._engine = engine
        self._trades = engine.trades
        self._wallet = wallet
        self._backend = backend
        self._watch = watch
        self._keyring = keyring
        self._contributor = contributor
        self._makers = makers
        self._files = files
        self._clock = clock
        self._workers: dict[bytes, asyncio.Task[None]] = {}
        self._closing = False
        engine.subscribe(lambda state: self.kick(state.trade_id))

    def start(self) -> None:
        """Take up what an earlier run left."""
        for trade_id in self._trades.trades_with_effects():
            self.kick(trade_id)

    def kick(self, trade_id: bytes) -> None:
        """There may be something to do for this trade."""
        worker = self._workers.get(trade_id)
        if not self._closing and (worker is None or worker.done()):
            self._workers[trade_id] = asyncio.create_task(self._drain(trade_id), name="effects")

    async def close(self) -> None:
        """Stop; what is not done is taken up at the next start."""
        self._closing = True
        for worker in self._workers.values():
            worker.cancel()
        await asyncio.gather(*self._workers.values(), return_exceptions=True)

    async def _drain(self, trade_id: bytes) -> None:
        pause = FIRST_PAUSE
        while not self._trades.is_held(trade_id) and (pending := self._trades.pending_effects(trade_id)):
            try:
                await self._run(pending[0])
                pause = FIRST_PAUSE
            except AwaitingSignature as e:
                log.info("%s waits: %s", type(pending[0].effect).__name__, e.detail)
                self._ask(trade_id)
                pause = PERSONS_PAUSE / 2
            except P2PError as e:
                log.warning("%s waits: %s", type(pending[0].effect).__name__, e.detail)
            except Exception:
                log.exception("%s failed", type(pending[0].effect).__name__)
            else:
                continue
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        # A step that was recorded since the last look has found this worker alive and did not start another.
        self._workers.pop(trade_id, None)

    async def _run(self, pending: PendingEffect) -> None:
        stored = self._trades.get(pending.trade_id)
        if stored is None:
            self._trades.finish_effect(pending.id)
            return
        result = await self._perform(pending.effect, stored.state)
        if result is None:
            self._trades.finish_effect(pending.id)
            return
        try:
            self._engine.apply(pending.trade_id, result, done=pending.id)
        except IllegalTransition as e:
            # The trade went another way meanwhile (the user cancelled, the chain spoke first).
            log.info("a result came too late: %s", e.detail)
            self._trades.finish_effect(pending.id)

    def _ask(self, trade_id: bytes) -> None:
        """A person must sign: the machine tells the user, once, and sets the deadline."""
        stored = self._trades.get(trade_id)
        if stored is None or stored.state.funding.awaited:
            return
        with suppress(IllegalTransition):
            self._engine.apply(trade_id, ev.SignatureAwaited())

    async def _perform(  # noqa: PLR0911  (one per effect)
        self, effect: ev.DeferredEffect, state: TradeState
    ) -> ev.TradeEvent | None:
        match effect:
            case ev.PrepareContribution():
                return await self._prepare(state)
            case ev.SignFunding(accept):
                return await self._sign_funding(accept, state)
            case ev.BroadcastFunding():
                return await self._broadcast_funding(state)
            case ev.WatchEscrow():
                await self._watch.watch(state)
            case ev.StopWatching():
                await self._watch.unwatch(state)
            case ev.SignPayout():
                release = derive(contract_of(state), state.network).payout
                return ev.PayoutSigned(sign_payout(release, self._escrow_secret(state)))
            case ev.BroadcastPayout():
                return await self._broadcast_payout(state)
            case ev.ReclaimCoins():
                if not isinstance(state.phase, st.Reclaiming):
                    # The chain spoke first: the funding is out, or something else took the coins.
                    return None
                rate = state.take.bargain.fees.funding * RECLAIM_RATE_FACTOR
                return ev.CoinsReclaimed((await self.signer.reclaim(state.trade_id, rate)).txid)
            case ev.ReleaseCoins():
                await self._wallet.release(state.trade_id)
            case dv.SignOutcome(outcome):
                return self._sign_outcome(outcome, state)
            case dv.BroadcastOutcome(txid):
                return await self._broadcast_outcome(txid, state)
            case _:
                assert_never(effect)
        return None

    async def _prepare(self, state: TradeState) -> ev.TradeEvent:
        """The maker's side, and with it the contract."""
        take = state.take
        try:
            details = self._makers.details_of(state.offer.offer_id, take.bargain.method)
            contribution = await self._contributor.prepare(
                state.trade_id,
                state.side,
                own_persona(state),
                state.offer,
                take.bargain,
                details,
                self._clock.random(32),
                payout=self._makers.payout_of(state.offer.offer_id),
            )
            arbiter, backup = agreed_arbiters(take, state.network)
            contract = build_contract(
                state.offer, take.bargain, taker=take.party, maker=contribution.party, arbiter=arbiter, backup=backup
            )
            facts = derive(contract, state.network).facts
        except P2PError as e:
            if e.action is Action.RETRY:
                raise
            # The peer is not told why: what our wallet holds is none of its business.
            log.warning("a take is declined: %s", e.detail)
            return ev.ContributionFailed(WITHDRAWN, "the maker can't serve this take now")
        seed = self._keyring.persona_key(own_persona(state)).seed
        signature = sign_contract(contract, state.network, seed)
        return ev.ContributionReady(
            contribution.previous, contract, facts, signature, contribution.opened, contribution.keepsake
        )

    async def _sign_funding(self, accept: Accept | None, state: TradeState) -> ev.TradeEvent | None:
        """Export, sign the contract, sign our inputs; what we hand out passes the check that the peer will make."""
        if not isinstance(state.phase, st.SigningFunding):
            # The user may have left while a person was asked to sign; what was asked for later must not wait for that.
            return None
        contract = contract_of(state)
        derived = derive(contract, state.network)
        await asyncio.to_thread(self._files.export, state)
        plan = derived.funding
        witnesses: tuple[tuple[bytes, ...], ...] = ()
        if plan.indices(state.side):
            previous = self._previous(accept, state)
            witnesses = await self.signer.sign_funding(plan, state.side, previous, holder=state.trade_id)
        check_witnesses(plan, state.side, witnesses)
        signature = sign_contract(contract, state.network, self._keyring.persona_key(own_persona(state)).seed)
        return ev.FundingSigned(witnesses, signature, accept)

    def _previous(self, accept: Accept | None, state: TradeState) -> dict[bytes, bytes]:
        """The whole previous transactions of both parties by txid: some signing devices ask for all of them."""
        if accept is None:
            # It was the first message of the maker.
            raw = self._trades.message(state.trade_id, 0, out=state.made)
            payload = None if raw is None else decode(parse_envelope(raw, state.network)).payload
            accept = payload if isinstance(payload, Accept) else None
        makers = accept.funding.previous if accept is not None else ()
        return previous_by_txid(*state.take.funding.previous, *makers)

    async def _broadcast_funding(self, state: TradeState) -> ev.TradeEvent | None:
        if isinstance(state.phase, TERMINAL):
            # The chain spoke first: a rival of the funding is buried, or the trade is over.
            return None
        tx = funding_of(state)
        try:
            await self._backend.broadcast(tx)
        except Rejected as e:
            return ev.FundingDelayed(e.reason) if e.too_cheap else ev.FundingRefused(e.reason)
        return ev.FundingBroadcast()

    async def _broadcast_payout(self, state: TradeState) -> ev.TradeEvent | None:
        try:
            return ev.PayoutBroadcast(await self._backend.broadcast(release_of(state)))
        except Rejected as e:
            if e.too_cheap and state.payout.depth is None:
                return ev.PayoutDelayed(e.reason)
            self._check_unspent(state, e)
            return None

    def _sign_outcome(self, outcome: Outcome, state: TradeState) -> ev.TradeEvent:
        """Our signature on a settlement's or a ruling's payout, as we derive it ourselves."""
        plan = derive_payout(contract_of(state), state.network, outcome)
        return dv.OutcomeSigned(outcome, plan.txid, sign_payout(plan, self._escrow_secret(state, plan.branch)))

    async def _broadcast_outcome(self, txid: bytes, state: TradeState) -> ev.TradeEvent | None:
        """A settlement or a ruling, from the two signatures that we hold."""
        tx = outcome_of(state, txid)
        try:
            return dv.OutcomeBroadcast(await self._backend.broadcast(tx))
        except Rejected as e:
            if e.too_cheap and state.payout.depth is None:
                return ev.PayoutDelayed(e.reason)
            self._check_unspent(state, e)
            return None

    def _check_unspent(self, state: TradeState, rejected: Rejected) -> None:
        """Raise what the backend said, unless our chain shows another payout: then ours is not needed."""
        stored = self._trades.get(state.trade_id)
        if stored is None or stored.state.payout.depth is None:
            raise rejected
        log.info("a payout was not needed: %s", rejected.reason)

    def _escrow_secret(self, state: TradeState, branch: Branch = Branch.MAIN) -> bytes:
        main, backup = self._keyring.escrow_secrets(state.trade_id, state.side)
        return main if branch is Branch.MAIN else backup
