"""The trade machine: one pure, role-blind function (DESIGN section 3, SPEC section 8).

`step(state, event)` returns the next state and the effects it asks for. It reads no clock, draws no randomness and
touches no key; whoever calls it commits state, event and effects in one transaction before any effect is carried out.
The transitions are the table `TRANSITIONS`: a handler for each (phase, event) pair that is legal, with the phases it
may lead to. Every other pair raises IllegalTransition and changes nothing.

Three rules carry the money. The seller signs and broadcasts the funding last. Whoever's funding signature is out
watches the chain from that commit on, and leaves only by spending its own inputs. Only our own chain backend moves a
trade into or out of Funded and into Completed; what a peer says of the chain is never more than a hint.

The handlers, in the order of a trade's life:

* `trade_agreeing`: from the take to the broadcast of the funding, and every way out before coins are locked;
* `trade_escrow`: what our chain backend sees of the funding and of what spends it;
* `trade_paying`: payment details, payment, release;
* `trade_settling`: another division of the escrow by agreement, more time to pay, chat;
* `trade_raising`: the same payout at a higher fee rate;
* `trade_dispute`: the arbiters.

A settlement or a dispute is no phase but a fact beside it: the phase says how the trade stands, and a release stays
possible whatever else goes on. What ends a trade is a transaction in our chain; `TradeState.outcome_of` knows each one
that is legal.
"""

from __future__ import annotations

from protocol import trade_dispute, trade_escrow, trade_paying, trade_raising, trade_settling
from protocol import trade_events as ev
from protocol import trade_state as st
from protocol.errors import IllegalTransition
from protocol.trade_agreeing import ANSWER_SECONDS, FUNDING_DEADLINE_BLOCKS, WITHDRAWN, witnesses_of
from protocol.trade_events import TradeEvent
from protocol.trade_state import TradeState
from protocol.trade_table import TRANSITIONS, Step, refusal
from protocol.types import Seat

__all__ = ["ANSWER_SECONDS", "FUNDING_DEADLINE_BLOCKS", "TRANSITIONS", "WITHDRAWN", "Step", "step", "witnesses_of"]

HANDLERS = (trade_escrow, trade_paying, trade_settling, trade_raising, trade_dispute)
"""Loaded for what they enter in the table, besides `trade_agreeing`."""


def step(state: TradeState | None, event: TradeEvent) -> Step:
    """Decide. `state` is None only before `TakeOffer` or `TakeReceived`. Raises IllegalTransition."""
    if state is None:
        return _begin(event)
    entry = TRANSITIONS.get((type(state.phase), type(event)))
    if entry is None:
        raise refusal(state, event)
    handler, targets = entry
    new, effects = handler(state, event)
    if type(new.phase) not in targets:
        raise AssertionError(f"{type(state.phase).__name__} may not lead to {type(new.phase).__name__}")
    return new, effects


def _begin(event: TradeEvent) -> Step:
    match event:
        case ev.TakeOffer():
            state = TradeState(
                trade_id=event.trade_id,
                network=event.network,
                seat=Seat.TAKER,
                side=event.offer.side.other,
                peer=event.offer.maker,
                offer=event.offer,
                take=event.take,
                phase=st.Taking(),
                own_details=event.own_details,
            )
            return state, (ev.SendMessage(event.take), ev.SetTimer("answer", seconds=ANSWER_SECONDS))
        case ev.TakeReceived():
            state = TradeState(
                trade_id=event.trade_id,
                network=event.network,
                seat=Seat.MAKER,
                side=event.offer.side,
                peer=event.take.party.persona,
                offer=event.offer,
                take=event.take,
                phase=st.Accepting(),
            )
            return state, (ev.PrepareContribution(), ev.NotifyUser("offer-taken"))
        case _:
            raise IllegalTransition(f"{type(event).__name__} belongs to a trade that this node does not know")
