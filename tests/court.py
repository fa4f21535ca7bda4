"""A world with arbiters that are nodes themselves: everything real but chain, wallet and post."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from p2pnode.cases.desk import CaseDesk
from p2pnode.delivery import Refusal
from p2pnode.engine import correspondents
from p2pnode.taking import ArbiterChoice
from protocol import case_events as ce
from protocol import dispute_events as dv
from protocol import trade_events as ev
from protocol.announcement import ARBITER_WORK_BITS, Announcement, FeeTerms
from protocol.case_events import CaseState
from protocol.messages import Claim
from protocol.ruling import Reason
from protocol.types import Branch, EscrowType, Side
from protocol.wire import Envelope, Kind, pack
from protocol.work import find_work
from tests.twins import TwinChain, TwinPost
from tests.world import NETWORK, NOW, PATIENCE, TwinNode, World


class CourtNode(TwinNode):
    """A node that finds the others' contact records, and decides cases where it has announced to."""

    def __init__(
        self, name: str, folder: Path, chain: TwinChain, post: TwinPost, directory: dict[bytes, Envelope]
    ) -> None:
        super().__init__(name, folder, chain, post)
        self.directory = directory
        self.announced: dict[bytes, tuple[Envelope, Announcement]] = {}
        directory[self.keyring.persona.public] = self.contact()

    async def up(self, *, dies_at: int | None = None, loses_it: bool = False) -> None:
        await super().up(dies_at=dies_at, loses_it=loses_it)
        if not self.alive:
            return  # it died on the way
        self.desk = CaseDesk(
            self.engine.trades,
            self.engine.conversations,
            self.notices,
            self.keyring,
            self.contacts,
            self.backend,
            self.announced.get,
            NETWORK,
            self.clock,
        )
        self.desk.kick_on(self.delivery.kick)
        self.engine.subscribe(lambda state: self.delivery.kick_all(correspondents(state)))
        if self.announced:
            self.intake.cases = self.desk.intake
            self.recall.cases = self.desk.recall
        await self.desk.start()

    def tasks(self) -> list[object]:  # type: ignore[override]
        return [*super().tasks(), *self.desk.work._tasks]

    async def down(self) -> None:
        await self.desk.close()
        await super().down()

    def _refused(self, refusal: Refusal) -> None:
        self.engine.refused(refusal.message.trade_id, refusal.code, refusal.text)

    async def _no_lookup(self, persona: bytes) -> list[Envelope]:
        found = self.directory.get(persona)
        return [found] if found is not None else []

    def announce(self, *, response_blocks: int = 144, fee: int = 5_000, sequence: int = 1) -> ArbiterChoice:
        """Offer to decide."""
        persona = self.keyring.persona
        announcement = Announcement(
            persona=persona.public,
            sequence=sequence,
            base_point=self.keyring.arbiter_base_point,
            fee=FeeTerms(fee, 1_000, 50_000),
            currencies=(),
            methods=(),
            languages=("en",),
            max_amount=10**9,
            response_blocks=response_blocks,
            policy_hash=bytes(32),
            policy="",
            bond=None,
            created=NOW - 100,
            expires=NOW + 10**6,
        )
        body = find_work(Kind.ARBITER, NETWORK, pack(announcement), ARBITER_WORK_BITS)
        envelope = persona.seal(Kind.ARBITER, NETWORK, body)
        choice = ArbiterChoice(envelope, announcement)
        self.announced[envelope.id] = (envelope, announcement)
        return choice

    @property
    def case(self) -> CaseState | None:
        """The only case."""
        cases = self.desk.cases.all()
        return cases[0].state if cases else None

    @property
    def case_phase(self) -> str:
        """Its phase."""
        return type(self.case.phase).__name__ if self.case else "None"

    def act(self, event: ce.CaseEvent) -> None:
        """A command of the arbiter."""
        assert self.case is not None
        self.desk.engine.apply(self.case.trade_id, event)

    async def decide(self, share: int, forfeit: int = 0, text: str = "because") -> None:
        """Rule."""
        script = await self.wallet.change_script()
        self.act(ce.Decide(share, forfeit, Reason.OTHER, text, script, 2_000))


class Court(World):
    """Maker, taker, arbiter and backup arbiter."""

    def __init__(
        self, folder: Path, maker_side: Side, *, deposit: int = 100_000, escrow: EscrowType | None = None
    ) -> None:
        super().__init__(folder, maker_side, deposit=deposit, escrow=escrow)
        directory: dict[bytes, Envelope] = {}
        self.maker, self.taker, self.main, self.backup = (
            CourtNode(name, folder, self.chain, self.post, directory) for name in ("maker", "taker", "main", "backup")
        )
        self.both = (self.maker, self.taker)
        self.judges = (self.main, self.backup)
        self.arbiters = (self.main.announce(), self.backup.announce())

    async def begin(self) -> None:
        for judge in self.judges:
            if not judge.alive:
                await judge.up()
        await super().begin()

    async def fund(self, amount: int = 1_000_000) -> None:
        """Up to a buried escrow with open details."""
        await self.begin()
        await self.take(amount)
        await self.until(lambda: len(self.chain.mempool) == 1 and self.phases("Funding"), "funding")
        self.chain.mine(2)
        await self.until(
            lambda: (
                self.phases("Funded") and self.buyer.trade is not None and self.buyer.trade.peer_details is not None
            ),
            "funded with details",
        )

    async def pay(self) -> None:
        """Up to the declared payment."""
        await self.fund()
        self.give(self.buyer, ev.DeclarePaid("ref"))
        await self.until(lambda: self.phases("Paid"), "paid")

    def give(self, node: TwinNode, event: ev.TradeEvent) -> None:
        """A user's command."""
        assert node.trade is not None
        node.engine.apply(node.trade.trade_id, event)

    async def open(self, node: TwinNode, share: int, text: str = "look") -> None:
        """A party opens, or answers; returns when the arbiter has it."""
        self.give(node, dv.OpenDispute(Claim(text, share)))
        await self.until(lambda: not node.engine.trades.recipients() or not node.alive, "openings delivered")

    async def backup_hears(self) -> None:
        """The backup arbiter has the case, sees the escrow, and was told both sides."""
        await self.until(lambda: self.backup.case is not None, "the backup is asked by itself")
        for side in Side:
            await self.until(
                lambda side=side: self.backup.case is not None and self.backup.case.party(side).claim is not None,  # type: ignore[misc]
                f"the {side.name} side's claim",
            )
        await self.until(lambda: self.backup.case is not None and self.backup.case.buried, "the escrow")

    async def until_up(self, done: Callable[[], bool], what: str) -> None:
        """As `until`, but a node that was taken down stays down."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while not done():
            assert loop.time() < deadline, f"never came to: {what}"
            await asyncio.sleep(0.002)

    async def pause(self) -> None:
        """Let everything run for a moment."""
        await asyncio.sleep(0.01)

    async def finish(self, *nodes: TwinNode) -> None:
        """The payout is in the mempool: bury it, and wait for everybody's end."""
        await self.until(lambda: len(self.chain.mempool) == 1, "a payout")
        self.chain.mine(2)
        for node in nodes or self.both:
            await self.until(lambda node=node: node.phase == "Completed", f"{node.name}'s end")  # type: ignore[misc]

    async def end(self) -> None:
        for judge in self.judges:
            if judge.alive:
                await judge.down()
        await super().end()

    def judge(self, branch: Branch) -> CourtNode:
        """The arbiter of a branch."""
        return self.main if branch is Branch.MAIN else self.backup
