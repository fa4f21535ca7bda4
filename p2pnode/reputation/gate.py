"""Whom this node trades with: the user's lists, limits for strangers, and what an offer asks of its taker.

A persona without history is new, not bad: what the user risks with one is the user's own setting. It is no stranger
whom the user trusts, who has completed a trade with us, or who can show a receipt that our own chain proves.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from p2pnode.reputation.acquaintances import Acquaintances
from p2pnode.reputation.history import Histories, History
from p2pnode.tradestore import TradeStore
from protocol import trade_state as st
from protocol.errors import PeerRefusal, UserError
from protocol.offer import Offer


class NotWelcome(PeerRefusal):
    """The maker's node does not trade with this persona."""

    code = 2156


class StrangersLimit(PeerRefusal):
    """The maker's node trades only so much with personas without history: ask for less, or show receipts."""

    code = 2157


class TooFewTrades(PeerRefusal):
    """The maker asks for completed trades that others can see, and this persona can't show as many."""

    code = 2158


class PersonaBlocked(UserError):
    """You have blocked that persona: see `p2pnode persona unblock`."""

    code = 3332


class OverStrangersLimit(UserError):
    """That is over your own limit for personas without history (trade.new_peer_...)."""

    code = 3333


class StrangerLimits(Struct, frozen=True):
    """What the user risks with new counterparties; None: no limit but the general ones."""

    max_amount: int | None = None
    """Satoshis of one trade."""
    max_open: int | None = None
    """Trades with new counterparties that may be open at a time."""

    @property
    def any(self) -> bool:
        """Whether there is any."""
        return self.max_amount is not None or self.max_open is not None


class Gate:
    """Asked before a trade begins, by the taker's side and by the maker's."""

    def __init__(
        self,
        acquaintances: Acquaintances,
        histories: Histories,
        trades: TradeStore,
        limits: StrangerLimits,
        *,
        refuses_arbiter: Callable[[bytes], str | None] = lambda _persona: None,
    ) -> None:
        """`refuses_arbiter` says why an arbiter is out of the question, if it is."""
        self.acquaintances = acquaintances
        self._histories = histories
        self._trades = trades
        self._limits = limits
        self._refuses_arbiter = refuses_arbiter

    # --- our own offers -----------------------------------------------------------------------------------------

    async def admit(self, taker: bytes, offer: Offer, amount: int, arbiters: tuple[bytes, ...]) -> None:
        """Whether a stranger may take an offer of ours. Raises NotWelcome, TooFewTrades, StrangersLimit."""
        if self.acquaintances.blocks(taker):
            raise NotWelcome
        for arbiter in arbiters:
            if (why := self._refuses_arbiter(arbiter)) is not None:
                reason = why.replace("you have", "its user has")
                raise NotWelcome(f"the maker's node takes no trade with that arbiter: {reason}")
        asked = offer.requirements.completed_trades
        if self.acquaintances.trusts(taker) or not (asked or self._limits.any):
            return
        with_us = self.completed_with(taker)
        if self._limits.any and not with_us:
            history = await self._histories.look_up(taker)
            if history.new or history.forged:
                self._check_limits(amount, taker, StrangersLimit)
        if asked > with_us:
            history = await self._histories.look_up(taker)
            if history.releases < asked:
                raise TooFewTrades(
                    f"the maker asks for {asked} completed trades, and its node can prove {history.releases} of yours "
                    "(see `p2pnode trade receipt --publish`)"
                )

    def hides(self, persona: bytes) -> bool:
        """Whether offers of this persona are not to be shown."""
        return self.acquaintances.blocks(persona)

    # --- offers of others ---------------------------------------------------------------------------------------

    async def consent(self, maker: bytes, amount: int) -> None:
        """Whether the user's own rules allow a take. Raises PersonaBlocked, OverStrangersLimit."""
        if self.acquaintances.blocks(maker):
            raise PersonaBlocked
        if not self._limits.any or self.acquaintances.trusts(maker) or self.completed_with(maker):
            return
        history = await self._histories.look_up(maker)
        if history.new or history.forged:
            self._check_limits(amount, maker, OverStrangersLimit)

    def _check_limits(self, amount: int, persona: bytes, refusal: type[StrangersLimit | OverStrangersLimit]) -> None:
        most, at_once = self._limits.max_amount, self._limits.max_open
        if most is not None and amount > most:
            raise refusal(
                f"{amount:,} sat is over the {most:,} sat that one trade with a persona without history may have"
            )
        if at_once is not None and self._open_with_strangers(persona) >= at_once:
            raise refusal(f"{at_once} trades with personas without history are open already: wait until one has ended")

    def _open_with_strangers(self, persona: bytes) -> int:
        return sum(
            self._is_stranger(stored.state.peer) or stored.state.peer == persona
            for stored in self._trades.all(open_only=True)
        )

    def _is_stranger(self, persona: bytes) -> bool:
        if self.acquaintances.trusts(persona) or self.completed_with(persona):
            return False
        known: History = self._histories.known(persona)
        return known.new or known.forged

    def completed_with(self, persona: bytes) -> int:
        """Trades with that persona that we have completed ourselves."""
        return sum(
            stored.state.peer == persona and isinstance(stored.state.phase, st.Completed)
            for stored in self._trades.all()
        )
