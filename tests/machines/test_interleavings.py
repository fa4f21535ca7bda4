"""Random trades, random amounts, random trouble: whatever happens, nobody honest is left without a way to its due.

Whole nodes over twins of chain, wallet and post (`tests/court.py`), driven by Hypothesis: users and arbiters act or
don't, messages are lost, repeated and forged, nodes die and come back or are restored from old copies, blocks come and
are undone, clocks jump by days, one party cheats. After every step:

* each transaction on the chain spends what it says: value in = value out + fee, no output is dust, and the fee is the
  plan's;
* each honest party can, from what its own disk and seed hold, spend the escrow together with its counterparty, with the
  arbiter, and with the backup arbiter after the delay: each transaction is built, passes every gate, and Bitcoin Core's
  verifier (where py-bitcoinkernel is installed) accepts it.

In the end everybody but an honest party and one drawn helper leaves, and the real nodes come to the honest party's due,
or to its own coins where nothing was funded. Hypothesis prints the seed and the steps of a failure.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from escrow.coins import OutPoint, TxOut
from escrow.errors import BadPayout
from escrow.funding import derive_funding
from escrow.keys import arbiter_secret
from escrow.payout import PayoutPlan, assemble_payout, derive_payout, dues_of, sign_payout
from escrow.script import Role
from escrow.sizes import dust_limit
from escrow.transactions import parse, txid_of
from escrow.verify import consensus_holds, gate_payout
from p2pnode import backup, delivery, executor
from p2pnode.delivery import Undelivered
from protocol import case_events as ce
from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol.contract import Contract
from protocol.errors import P2PError
from protocol.messages import Claim
from protocol.outcome import ReleaseOutcome, RulingOutcome
from protocol.ruling import Reason
from protocol.trade_state import TERMINAL, TradeState
from protocol.types import PPM, Branch, EscrowType, Side
from protocol.wire import Envelope, open_envelope
from tests.court import Court, CourtNode
from tests.world import NETWORK, Killed

EXAMPLES = int(os.environ.get("P2PNODE_INTERLEAVINGS", "6"))
"""Trades that are played; a few hundred for a search by hand, with `HYPOTHESIS_PROFILE=explore`."""
FEE_SCRIPT = b"\x00\x14" + b"\x07" * 20
PARTIES = ("buyer", "seller")
JUDGES = ("main", "backup")
HELPERS = ("counterparty", "main", "backup")


def decide(judge: CourtNode, share: int, forfeit: int = 0) -> None:
    """An arbiter's command."""
    if judge.case is not None:
        rate = judge.case.contract.fees.payout
        judge.act(ce.Decide(share, forfeit, Reason.OTHER, "because", FEE_SCRIPT, rate))


class Trouble(RuleBasedStateMachine):
    """One trade."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.pauses = (delivery.FIRST_PAUSE, delivery.LONGEST_PAUSE, executor.FIRST_PAUSE, executor.LONGEST_PAUSE)
        delivery.FIRST_PAUSE = executor.FIRST_PAUSE = 0.002  # type: ignore[misc]
        delivery.LONGEST_PAUSE = executor.LONGEST_PAUSE = 0.01  # type: ignore[misc]
        self.lose = 0
        self.cheat: str | None = None
        self.copies: dict[str, tuple[bytes, dict[OutPoint, bytes]]] = {}
        self.moves = 0
        self.proved: set[tuple[str, bytes]] = set()
        self.judged: set[bytes] = set()
        self.complaints: list[str] = []

    # --- the beginning ----------------------------------------------------------------------------------------------

    @initialize(
        side=st.sampled_from(list(Side)),
        escrow=st.sampled_from(list(EscrowType)),
        deposit=st.sampled_from([0, 20_000, 150_000, 500_000]),
        amount=st.integers(100_000, 2_000_000),
        fee_rate=st.sampled_from([1_000, 2_000, 7_351, 25_000]),
        helper=st.sampled_from(HELPERS),
        honest=st.sampled_from(PARTIES),
    )
    def begin(
        self, side: Side, escrow: EscrowType, deposit: int, amount: int, fee_rate: int, helper: str, honest: str
    ) -> None:
        """Publish the offer and take it."""
        self.court = Court(Path(self.folder.name), side, deposit=deposit, escrow=escrow)
        backed = escrow is EscrowType.WSH_2OF3_BACKUP
        self.helper = helper if backed or helper != "backup" else "main"
        self.honest = honest
        self.amount = amount
        self.fee_rate = fee_rate
        for node in self.everybody():
            node.reconciles = True
            node._no_lookup = self.finder(node)  # type: ignore[assignment,method-assign]
        self.court.post.tamper = self.on_the_way
        self.run(self.court.begin())
        self.rich = {name: self.node(name).wallet.worth() for name in PARTIES}
        self.run(self.take())

    async def take(self) -> None:
        async def rate(target_blocks: int) -> int:
            del target_blocks
            return self.fee_rate

        self.court.taker.backend.fee_rate = rate  # type: ignore[method-assign]
        await self.court.take(self.amount)
        await self.settle()

    # --- what users do ----------------------------------------------------------------------------------------------

    @rule(buys=st.booleans())
    def user_pays_or_releases(self, buys: bool) -> None:
        """The next step of a happy trade."""
        self.command(*(("buyer", ev.DeclarePaid("ref")) if buys else ("seller", ev.Release())))

    @rule(who=st.sampled_from(PARTIES), share=st.integers(0, 10))
    def user_disputes(self, who: str, share: int) -> None:
        """Opens a dispute, or answers."""
        self.command(who, dv.OpenDispute(Claim("look", share * PPM // 10)))

    @rule(who=st.sampled_from(PARTIES), part=st.integers(0, 8), rate=st.integers(0, 3))
    def user_proposes(self, who: str, part: int, rate: int) -> None:
        """Another division."""
        state = self.state(who)
        if state is not None and state.contract is not None:
            fees = state.contract.fees
            pot = state.contract.amount + state.contract.buyer_deposit + state.contract.seller_deposit
            self.command(who, dv.ProposeSettlement(pot * part // 8, min(fees.payout + 1_000 * rate, fees.payout_max)))

    @rule(who=st.sampled_from(PARTIES))
    def user_accepts(self, who: str) -> None:
        """Whatever the other has proposed last."""
        state = self.state(who)
        offered = [o for o in state.settlement.options if o.peer_signature is not None] if state is not None else []
        if offered:
            self.command(who, dv.AcceptSettlement(offered[-1].txid))

    @rule(who=st.sampled_from(PARTIES), chat=st.booleans())
    def user_talks_or_leaves(self, who: str, chat: bool) -> None:
        """A line of chat, or away while that is possible."""
        self.command(who, dv.SendChat("hello") if chat else ev.Cancel("changed my mind"))

    @rule(who=st.sampled_from(JUDGES), what=st.integers(0, 2), share=st.integers(0, 4), forfeit=st.integers(0, 2))
    def arbiter_acts(self, who: str, what: int, share: int, forfeit: int) -> None:
        """Accepts, declines or decides."""
        judge = self.judge(who)
        if not judge.alive or judge.case is None:
            return

        async def act() -> None:
            with suppress(P2PError, Killed):
                if what == 0:
                    judge.act(ce.AcceptCase(self.court.chain.height))
                elif what == 1:
                    judge.act(ce.DeclineCase("not mine"))
                else:
                    decide(judge, share * PPM // 4, forfeit * PPM // 2)
            await self.settle()

        self.run(act())

    # --- what happens to them ---------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 3))
    def blocks_come(self, count: int) -> None:
        """With all that waits."""
        self.court.chain.mine(count)
        self.run(self.settle())

    @rule(count=st.sampled_from([12, 80, 145, 300]))
    def time_passes(self, count: int) -> None:
        """Deadlines in blocks go by; clocks agree with nobody."""
        self.court.chain.mine_empty(count)
        for n, node in enumerate(self.everybody()):
            node.clock.time += (count * 600, -86_400, 86_400, 0)[n]
        self.run(self.settle())

    @rule(depth=st.integers(1, 2))
    def blocks_are_undone(self, depth: int) -> None:
        """Only what trades made: coins of before stay."""
        if self.court.chain.height - depth > 8:
            self.court.chain.reorganise(depth)
            self.run(self.settle())

    @rule(count=st.integers(1, 4))
    def messages_are_lost(self, count: int) -> None:
        """The next ones, once each."""
        self.lose = count

    @rule(back=st.integers(1, 6))
    def message_comes_again(self, back: int) -> None:
        """A copy of an old one, to everybody."""
        carried = self.court.post.carried
        if len(carried) >= back:
            self.run(self.inject(carried[-back], self.everybody()))

    @rule(who=st.sampled_from((*PARTIES, *JUDGES)), commits=st.integers(0, 4), loses=st.booleans())
    def node_dies(self, who: str, commits: int, loses: bool) -> None:
        """Now or at a commit to come; and is started again."""
        node = self.anybody(who)
        if not node.alive:
            return
        if commits:
            node.database.dies_at = node.database.commits + commits
            node.database.loses_it = loses
        else:
            self.run(self.stop(node))
        self.run(self.settle())

    @rule(who=st.sampled_from(PARTIES))
    def backup_is_made(self, who: str) -> None:
        """Of the honest party only: who cheats needs no copy."""
        node = self.node(who)
        if node.alive and who != self.cheat:
            copy = backup.snapshot_database(node.folder / f"{node.name}.db", node.clock.time)
            self.copies[who] = (copy, dict(node.held))

    @precondition(lambda self: self.copies)
    @rule(who=st.sampled_from(PARTIES))
    def machine_is_lost(self, who: str) -> None:
        """And the node comes back on another, from its backup."""
        if who in self.copies and who != self.cheat:
            self.run(self.restore(who))

    # --- what cheats do ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.cheat is None)
    @rule()
    def one_turns_bad(self) -> None:
        """The other than the one whose due is asked for in the end."""
        self.cheat = "seller" if self.honest == "buyer" else "buyer"

    @precondition(lambda self: self.cheat is not None)
    @rule(at=st.integers(0, 2**16), value=st.integers(1, 255))
    def cheat_forges(self, at: int, value: int) -> None:
        """Its last message with a byte changed, signed as if it were meant."""
        bad = self.node(self.cheat or "")
        mine = [e for e in (open_envelope(raw, NETWORK) for raw in self.court.post.carried)
                if e.signer == bad.keyring.persona.public]  # fmt: skip
        if mine:
            body = bytearray(mine[-1].body)
            body[at % len(body)] ^= value
            forged = bad.keyring.persona.seal(mine[-1].kind, NETWORK, bytes(body))
            self.run(self.inject(forged.raw, [self.node(self.honest)]))

    @precondition(lambda self: self.cheat is not None)
    @rule()
    def cheat_spends_its_coins(self) -> None:
        """The inputs of the funding, elsewhere."""
        bad = self.node(self.cheat or "")
        state = self.state(self.cheat or "")
        if state is None or not bad.held:
            return

        async def spend() -> None:
            with suppress(P2PError):
                await bad.wallet.double_spend(state.trade_id, 60_000)
            await self.settle()

        self.run(spend())

    @precondition(lambda self: self.cheat is not None)
    @rule()
    def cheat_goes_silent(self) -> None:
        """Its node is off until the next restart."""
        bad = self.node(self.cheat or "")
        if bad.alive:
            self.run(self.stop(bad))

    # --- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def value_is_conserved(self) -> None:
        """On every transaction."""
        if not hasattr(self, "court"):
            return
        chain = self.court.chain
        for raw in chain.broadcasts:
            if txid_of(raw) in self.judged:
                continue
            self.judged.add(txid_of(raw))
            tx = parse(raw)
            brought = sum(chain.outputs[OutPoint(i.prevout.hash, i.prevout.n)].value for i in tx.vin)
            fee = brought - sum(o.nValue for o in tx.vout)
            assert fee >= 0
            assert all(o.nValue >= dust_limit(bytes(o.scriptPubKey)) for o in tx.vout), "an output is dust"
            planned = self.planned_fee(txid_of(raw))
            assert planned is None or planned == fee

    def planned_fee(self, txid: bytes) -> int | None:
        for name in PARTIES:
            state = self.state(name)
            if state is None or state.contract is None:
                continue
            funding = derive_funding(state.contract, NETWORK)
            if funding.txid == txid:
                return funding.fee
            outcome = state.outcome_of(txid)
            if outcome is not None:
                return derive_payout(state.contract, NETWORK, outcome).fee
        return None

    @invariant()
    def the_honest_can_get_their_due(self) -> None:
        """With their own keys and one of the other two, by what their own disk holds."""
        if not hasattr(self, "court"):
            return
        for name in PARTIES:
            state = self.state(name)
            if name == self.cheat or state is None or state.contract is None or state.facts is None:
                continue
            self.check_dues(name, state, state.contract)

    def check_dues(self, name: str, state: TradeState, contract: Contract) -> None:
        funding = derive_funding(contract, NETWORK)
        escrow = OutPoint(funding.txid, funding.escrow_vout)
        if self.court.chain.depth_of(funding.txid) is None or (name, funding.txid) in self.proved:
            return
        self.proved.add((name, funding.txid))
        assert state.facts is not None
        assert state.facts.funding_txid == funding.txid
        own = Role.of(state.side)
        spent = TxOut(funding.escrow_value, funding.escrow.script_pubkey)
        assert self.court.chain.outputs[escrow] == spent, "the funding on the chain is not the contract's"
        share = PPM if state.buys else 0
        rate = contract.fees.payout
        for helper, outcome in (
            (Role.of(state.side.other), ReleaseOutcome()),
            (Role.ARBITER, RulingOutcome(Branch.MAIN, share, 0, FEE_SCRIPT, rate)),
            (Role.ARBITER, RulingOutcome(Branch.BACKUP, share, 0, FEE_SCRIPT, rate)),
        ):
            try:
                plan = derive_payout(contract, NETWORK, outcome)
            except BadPayout:
                # No second arbiter in this escrow; or its fee and the miners' are more than what the loser has in it.
                assert not isinstance(outcome, ReleaseOutcome)
                assert outcome.branch is Branch.MAIN or contract.backup is None
                continue
            signatures = {role: sign_payout(plan, self.secret(role, plan)) for role in (own, helper)}
            tx = assemble_payout(plan, signatures)
            gate_payout(contract, NETWORK, tx, outcome)
            consensus_holds(tx, [spent])
            due = dues_of(contract, outcome)[own]
            assert plan.value(own) >= due - plan.fee, "the honest party gets less than its due"
            if isinstance(outcome, ReleaseOutcome):
                assert plan.value(own) in (due, 0)

    def secret(self, role: Role, plan: PayoutPlan) -> bytes:
        if role is Role.ARBITER:
            judge = self.judge("main" if plan.branch is Branch.MAIN else "backup")
            base = judge.keyring.arbiter_secret(judge.keyring.persona.public)
            return arbiter_secret(base, plan.contract_id)
        side = Side.BUY if role is Role.BUYER else Side.SELL
        node = self.node(side.name.lower().replace("buy", "buyer").replace("sell", "seller"))
        state = self.last_state(node)
        assert state is not None
        main, second = node.keyring.escrow_secrets(state.trade_id, side)
        return main if plan.branch is Branch.MAIN else second

    # --- the end ----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Everybody leaves but one honest party and its helper; then it must come to its due."""
        try:
            if hasattr(self, "court"):
                self.run(self.finish())
        finally:
            if hasattr(self, "court"):
                self.run(self.close())
            names = ("FIRST_PAUSE", "LONGEST_PAUSE")
            for (module, name), value in zip([(m, n) for m in (delivery, executor) for n in names], self.pauses, strict=True):  # fmt: skip  # noqa: E501
                setattr(module, name, value)
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
            self.folder.cleanup()

    async def finish(self) -> None:
        self.lose = 0
        helper = "main" if self.helper == "counterparty" and self.cheat is not None else self.helper
        leaving: list[CourtNode] = []
        if helper != "counterparty":
            leaving.append(self.node("seller" if self.honest == "buyer" else "buyer"))
        if helper == "backup":
            leaving.append(self.judge("main"))
        for node in leaving:
            if node.alive:
                await self.stop(node)
        self.gone = leaving
        for node in self.everybody():
            if node.alive:
                node.database.dies_at = None
        node, chain = self.node(self.honest), self.court.chain
        for _ in range(70):
            await self.settle()
            state = node.trade if node.alive else None
            if state is not None and isinstance(state.phase, TERMINAL):
                break
            await self.next_step(helper, node, state)
            if chain.mempool:
                chain.mine(2)
            else:
                chain.mine_empty(24)
        state = self.state(self.honest)
        if state is not None:
            self.check_end(node, state)

    async def next_step(self, helper: str, node: CourtNode, state: TradeState | None) -> None:
        """What an honest user does, and those that help it."""
        node.clock.time += 1_000
        if state is None:
            return
        for name in PARTIES if helper == "counterparty" else (self.honest,):
            self.try_command(name, ev.DeclarePaid("ref") if name == "buyer" else ev.Release())
            options = (self.state(name) or state).settlement.options
            for option in options:
                if option.peer_signature is not None and helper == "counterparty":
                    self.try_command(name, dv.AcceptSettlement(option.txid))
        if helper == "counterparty" and state.dispute is None:
            return
        self.try_command(self.honest, dv.OpenDispute(Claim("mine", PPM if state.buys else 0)))
        for judge in (self.judge("main"), self.judge("backup")):
            if judge.alive and judge.case is not None and judge not in self.gone:
                try:
                    if judge.case_phase == "Queued":
                        judge.act(ce.AcceptCase(self.court.chain.height))
                    decide(judge, PPM if state.buys else 0)
                except P2PError as e:
                    self.complaints.append(e.detail)
        self.try_command(self.honest, dv.CompleteRuling())

    def check_end(self, node: CourtNode, state: TradeState) -> None:
        name = type(state.phase).__name__
        cases = [judge.case_phase if judge.alive else "-" for judge in (self.court.main, self.court.backup)]
        who = f"{self.honest} with {self.helper} (cheat: {self.cheat})"
        story = f"{who}: {name} {state.ending!r}, {cases} {self.complaints[-3:]}"
        assert isinstance(state.phase, TERMINAL), f"stuck: {story}, dispute {state.dispute}, payout {state.payout}"
        assert name != "Anomalous", story
        assert not node.held, f"coins stay reserved: {story}"
        if name == "Completed" and state.payout.outcome is not None and state.contract is not None:
            plan = derive_payout(state.contract, NETWORK, state.payout.outcome)
            assert self.court.chain.depth_of(plan.txid), story
        elif state.contract is not None:
            funding = derive_funding(state.contract, NETWORK)
            assert not self.court.chain.depth_of(funding.txid), f"the escrow is left alone: {story}"

    # --- machinery --------------------------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        async def patient() -> None:
            try:
                async with asyncio.timeout(60):
                    await work
            except TimeoutError:
                for task in asyncio.all_tasks():
                    task.print_stack()
                raise

        self.loop.run_until_complete(patient())

    def finder(self, asker: CourtNode) -> Callable[[bytes], Coroutine[Any, Any, list[Envelope]]]:
        """The DHT, where everybody's record is as fresh as the asker's clock wants it."""

        async def find(persona: bytes) -> list[Envelope]:
            found = [node for node in self.everybody() if node.keyring.persona.public == persona]
            return [node.contact(asker.clock.time) for node in found]

        return find

    def node(self, name: str) -> CourtNode:
        found = self.court.buyer if name == "buyer" else self.court.seller
        assert isinstance(found, CourtNode)
        return found

    def judge(self, name: str) -> CourtNode:
        return self.court.main if name == "main" else self.court.backup

    def anybody(self, name: str) -> CourtNode:
        return self.judge(name) if name in JUDGES else self.node(name)

    def everybody(self) -> list[CourtNode]:
        return [self.node(name) for name in PARTIES] + [self.judge(name) for name in JUDGES]

    def state(self, name: str) -> TradeState | None:
        node = self.node(name)
        return node.trade if node.alive else None

    def last_state(self, node: CourtNode) -> TradeState | None:
        return node.trade if node.alive else self.state("buyer") or self.state("seller")

    def command(self, who: str, event: ev.TradeEvent) -> None:
        async def give() -> None:
            self.try_command(who, event)
            await self.settle()

        self.run(give())

    def try_command(self, who: str, event: ev.TradeEvent) -> None:
        node = self.node(who)
        if node.alive and node.trade is not None:
            with suppress(P2PError, Killed):
                node.engine.apply(node.trade.trade_id, event)

    def on_the_way(self, raw: bytes) -> bytes:
        if self.lose > 0:
            self.lose -= 1
            raise Undelivered
        return raw

    async def inject(self, raw: bytes, nodes: list[CourtNode]) -> None:
        for node in nodes:
            if node.alive:
                with suppress(P2PError, Killed):
                    await node.intake.deliver(bytes(32), raw)
        await self.settle()

    async def stop(self, node: CourtNode) -> None:
        node.die()
        await node.buried()

    async def restore(self, who: str) -> None:
        node = self.node(who)
        if node.alive:
            await self.stop(node)
        copy, held = self.copies.pop(who)
        self.moves += 1
        node.folder = Path(self.folder.name) / f"machine{self.moves}"
        node.folder.mkdir()
        (node.folder / f"{node.name}.db").write_bytes(copy)
        node.held.clear()
        node.held.update(held)
        await self.settle()

    gone: list[CourtNode] = []  # noqa: RUF012

    async def settle(self) -> None:
        """Let everything run until nothing moves, or for a while."""
        for _ in range(25):
            for node in self.everybody():
                if not node.alive and node not in self.gone:
                    with suppress(Killed):
                        await node.buried()
                        await node.up()
            await asyncio.sleep(0.002)
            if all(n.alive and not n.engine.trades.recipients() and not n.engine.trades.trades_with_effects()
                   and not n.engine.trades.held() for n in self.everybody() if n not in self.gone):  # fmt: skip
                await asyncio.sleep(0.002)
                return

    async def close(self) -> None:
        for node in self.everybody():
            if node.alive:
                await self.stop(node)


TestInterleavings = Trouble.TestCase
TestInterleavings.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=16,
    phases=[Phase.generate],
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
