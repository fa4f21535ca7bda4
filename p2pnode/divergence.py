"""Records that contradict each other: noticed at the message that shows it, kept as a proof, told to both sides.

Each message names its sender's previous one, so whoever changes its story signs the contradiction itself. The first
that is met in a chain is kept with the message that it contradicts: both are signed by whom they accuse, so that
anybody can check it (`protocol.transcript.check_fork`). The sender's node learns of it by the refusal (2145).
"""

from __future__ import annotations

from contextlib import suppress

from p2pnode.clock import Clock
from p2pnode.conversations import Conversations
from p2pnode.notices import Notices
from p2pnode.tradestore import TradeStore
from protocol.transcript import BadTranscript, Fork, check_fork, header_of
from protocol.types import Network
from protocol.wire import Envelope

TOPIC = "transcript-diverged"
"""The notice to the user, on either side."""


class Divergences:
    """What contradicts our records."""

    def __init__(
        self, trades: TradeStore, conversations: Conversations, notices: Notices, network: Network, clock: Clock
    ) -> None:
        self._trades = trades
        self._db = trades.database.connection
        self._conversations = conversations
        self._notices = notices
        self._network = network
        self._clock = clock

    def met(self, envelope: Envelope) -> None:
        """A verified message does not fit the chain that its sender has told before: keep it, and tell the user."""
        header = header_of(envelope)
        conversation = self._conversations.get(header.trade_id)
        trade_id = header.trade_id if conversation is None else conversation.trade_id
        for number in (header.number, header.number - 1):
            ours = self._trades.message(header.trade_id, number, out=False) if number >= 0 else None
            if ours is not None:
                self._keep(Fork(envelope.signer, number, ours, envelope.raw), header.trade_id, trade_id)
        self._notices.add(TOPIC, self._clock.now(), trade_id=trade_id)
        self._notices.wake()

    def _keep(self, fork: Fork, chain: bytes, trade_id: bytes) -> None:
        """Only a proof is kept: a message that claims to have seen what we never sent accuses nobody."""
        with suppress(BadTranscript):
            check_fork(fork, self._network)
            self._db.execute(
                "INSERT OR IGNORE INTO forks VALUES (?, ?, ?, ?, ?, ?, ?)",
                (chain, trade_id, fork.signer, fork.number, fork.first, fork.second, self._clock.now()),
            )

    def of_trade(self, trade_id: bytes) -> tuple[Fork, ...]:
        """The proofs that were met in a trade and its conversations."""
        rows = self._db.execute(
            "SELECT signer, number, first, second FROM forks WHERE trade_id = ? ORDER BY at, chain", (trade_id,)
        )
        return tuple(Fork(*row) for row in rows)


def pairs(forks: tuple[Fork, ...]) -> tuple[tuple[bytes, bytes], ...]:
    """As a bundle holds them."""
    return tuple((fork.first, fork.second) for fork in forks)
