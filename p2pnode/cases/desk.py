"""An arbiter's desk: its parts put together, for the node and for tests alike."""

from __future__ import annotations

from collections.abc import Callable

from escrow.chain.base import ChainBackend
from p2pnode.cases.engine import CaseEngine
from p2pnode.cases.intake import Announced, CaseIntake
from p2pnode.cases.recall import CaseRecall
from p2pnode.cases.store import CaseStore
from p2pnode.cases.work import CaseWork
from p2pnode.clock import Clock
from p2pnode.contacts import Contacts
from p2pnode.conversations import Conversations
from p2pnode.keyring import Keyring
from p2pnode.notices import Notices
from p2pnode.tradestore import TradeStore
from protocol.case_events import CaseState
from protocol.types import Network


class CaseDesk:
    """Everything that deciding cases needs. `Intake.cases` is set to its `intake`, `Recall.cases` to its `recall`."""

    def __init__(
        self,
        trades: TradeStore,
        conversations: Conversations,
        notices: Notices,
        keyring: Keyring,
        contacts: Contacts,
        backend: ChainBackend,
        announced: Announced,
        network: Network,
        clock: Clock,
    ) -> None:
        """`announced` finds an announcement of ours by its id, however old."""
        self.cases = CaseStore(trades.database)
        self.engine = CaseEngine(self.cases, conversations, notices, clock, lambda: self.work.height)
        self.work = CaseWork(self.engine, backend, keyring)
        self.intake = CaseIntake(self.engine, trades, contacts, keyring.persona.public, announced, network, clock)
        self.recall = CaseRecall(self.engine, self.intake, trades, keyring, clock)

    def kick_on(self, kick: Callable[[bytes], None]) -> None:
        """Call `kick` with both parties' personas after each step: something may wait for them."""

        def after(state: CaseState) -> None:
            kick(state.contract.buyer.persona)
            kick(state.contract.seller.persona)

        self.engine.subscribe(after)

    async def start(self) -> None:
        """Begin."""
        await self.work.start()

    async def close(self) -> None:
        """Stop."""
        await self.work.close()
