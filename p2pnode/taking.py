"""Taking an offer: our side of the trade is prepared, then the machine is told (DESIGN section 7, message 1)."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from escrow.chain.base import ChainBackend
from escrow.wallet.base import Wallet
from p2pnode.clock import Clock
from p2pnode.contribution import Contributor
from p2pnode.engine import Engine
from p2pnode.keyring import Keyring
from p2pnode.policy import TradePolicy
from protocol import trade_events as ev
from protocol.announcement import Announcement
from protocol.contract import Bargain, required_confirmations, trade_id
from protocol.errors import UserError
from protocol.messages import Details, Funding, Take
from protocol.offer import Offer, reference
from protocol.types import EscrowType, Network
from protocol.wire import Envelope

CONFIRMATION_TARGET = 6
"""Blocks within which the funding should be mined at the fee rate that we propose."""


class TooShallow(UserError):
    """The offer asks for fewer confirmations of the escrow than this node's configuration (trade.confirmations)."""

    code = 3310


class ArbiterChoice(Struct, frozen=True):
    """An arbiter, with the announcement that it is bound to."""

    envelope: Envelope
    announcement: Announcement


class Taking:
    """The taker's first step."""

    def __init__(
        self,
        engine: Engine,
        keyring: Keyring,
        contributor: Contributor,
        wallet: Wallet,
        backend: ChainBackend,
        policy: TradePolicy,
        network: Network,
        clock: Clock,
        *,
        contact: Callable[[], Envelope],
    ) -> None:
        """`contact` gives our current contact record."""
        self._engine = engine
        self._keyring = keyring
        self._contributor = contributor
        self._wallet = wallet
        self._backend = backend
        self._policy = policy
        self._network = network
        self._clock = clock
        self._contact = contact

    async def take(  # noqa: PLR0913  (a take has these parts)
        self,
        envelope: Envelope,
        offer: Offer,
        *,
        amount: int,
        price: int,
        method: str,
        details: Details,
        arbiter: ArbiterChoice,
        backup: ArbiterChoice | None,
        escrow_type: EscrowType,
        fee_rate: int | None = None,
        payout: bytes | None = None,
    ) -> bytes:
        """Begin a trade on a verified offer; returns its id once the take is recorded.

        A release pays to the script `payout`, if one is given.

        Raises InsufficientFunds and the wallet's other errors, FeesRefused, TooBusy, ChainError.
        """
        self._policy.check_load(self._engine.trades)
        self._policy.check_amount(amount)
        if max(offer.confirmations, required_confirmations(amount)) < self._policy.confirmations:
            raise TooShallow
        rate = fee_rate or await self._backend.fee_rate(CONFIRMATION_TARGET)
        fees = self._policy.fees(rate)
        bargain = Bargain(reference(envelope, offer), amount, price, method, escrow_type, fees)
        persona = self._keyring.persona.public
        nonce = self._clock.random(32)
        identity = trade_id(bargain.offer, persona, nonce)
        try:
            contribution = await self._contributor.prepare(
                identity, offer.side.other, persona, offer, bargain, details, nonce, payout=payout
            )
            take = Take(
                bargain=bargain,
                arbiter=arbiter.envelope.raw,
                backup=backup.envelope.raw if backup else None,
                party=contribution.party,
                funding=Funding(contribution.previous),
                contact=self._contact().raw,
                keepsake=contribution.keepsake,
            )
            event = ev.TakeOffer(self._network, identity, offer, take, contribution.opened)
            self._engine.apply(identity, event)
        except BaseException:
            # No trade holds these coins: let them go at once, not at the next start.
            await self._wallet.release(identity)
            raise
        return identity
