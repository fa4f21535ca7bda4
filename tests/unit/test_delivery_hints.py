"""A take goes the way that its offer hints at, without a look-up; and by the DHT's word where the hint is stale."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from p2pnode.contacts import Contacts
from p2pnode.database import Database
from p2pnode.delivery import Delivery, Undelivered
from p2pnode.publisher import OwnContact
from p2pnode.tradestore import OutgoingMessage, TradeStore
from protocol.contact import Address, ContactRecord, NodeContact
from protocol.identity import SigningKey
from protocol.types import Network
from protocol.wire import Envelope, Kind, pack
from tests.network.channel_support import eventually
from tests.world import FixedClock

NETWORK = Network.REGTEST
MAKER = SigningKey(b"m" * 32)
NODE, OLD_NODE, RELAY = b"n" * 32, b"o" * 32, b"r" * 32


class Roads:
    """Ways to nodes; notes by which each message came."""

    def __init__(self, *nodes: bytes) -> None:
        self.nodes = nodes
        self.came: list[ContactRecord] = []

    async def deliver(self, contact: ContactRecord, payload: bytes, seconds: float) -> None:
        del payload, seconds
        await asyncio.sleep(0)
        if contact.contact.node not in self.nodes:
            raise Undelivered
        self.came.append(contact)


class Taker:
    """One that sends takes."""

    def __init__(self, roads: Roads, hints: tuple[NodeContact, ...]) -> None:
        self.database = Database(":memory:")
        self.clock = FixedClock("taker")
        self.trades = TradeStore(self.database)
        self.answer = asyncio.Event()
        self.lookups = 0
        self.maker = OwnContact(
            Database(":memory:"), MAKER, NETWORK, self.clock, NODE, lambda: (Address("127.0.0.1", 9),)
        )
        self.delivery = Delivery(
            self.trades,
            Contacts(self.database, NETWORK, self._lookup),
            roads,
            self.clock,
            on_refusal=lambda _: None,
            hints=lambda _: hints,
        )

    async def _lookup(self, _persona: bytes) -> list[Envelope]:
        self.lookups += 1
        await self.answer.wait()
        return [self.maker.envelope()]

    def send(self, number: int = 0) -> None:
        envelope = MAKER.seal(Kind.CHAT, NETWORK, pack(f"take {number}"))
        message = OutgoingMessage(envelope.id, number, bytes(32), MAKER.public, envelope.raw)
        self.trades.queue_message(message, self.clock.now())
        self.delivery.kick(MAKER.public)


@pytest.fixture
async def made() -> AsyncIterator[list[Taker]]:
    takers: list[Taker] = []
    yield takers
    for taker in takers:
        await taker.delivery.close()


async def test_take_needs_no_look_up_when_the_offer_says_where_its_maker_is(made: list[Taker]) -> None:
    roads = Roads(NODE)
    hints = NodeContact(NODE, ()), NodeContact(RELAY, (Address("127.0.0.1", 7),))
    taker = Taker(roads, hints)
    made.append(taker)
    taker.send()
    await eventually(lambda: len(roads.came) == 1)
    assert not taker.answer.is_set()
    assert (roads.came[0].contact, roads.came[0].relays) == (hints[0], hints[1:])
    # Meanwhile the DHT was asked: what follows goes by the maker's own record.
    assert taker.lookups == 1
    taker.answer.set()
    await eventually(lambda: taker.delivery._contacts.known(MAKER.public) is not None)
    taker.send(1)
    await eventually(lambda: len(roads.came) == 2)
    assert roads.came[1].contact.addresses == (Address("127.0.0.1", 9),)


async def test_stale_hint_delays_a_take_and_does_not_stop_it(made: list[Taker]) -> None:
    roads = Roads(NODE)
    taker = Taker(roads, (NodeContact(OLD_NODE, ()),))
    made.append(taker)
    taker.answer.set()
    taker.send()
    await eventually(lambda: len(roads.came) == 1)
    assert roads.came[0].contact.node == NODE


def test_offer_of_a_maker_whom_nobody_dials_names_a_relay() -> None:
    database, clock = Database(":memory:"), FixedClock("maker")
    addresses = [Address("9.8.7.6", 1), Address("2600::1", 1), Address("9.8.7.5", 1)]
    relays = [NodeContact(RELAY, tuple(addresses)), NodeContact(OLD_NODE, ())]

    def hint(own: list[Address], behind: list[NodeContact]) -> tuple[NodeContact, ...]:
        return OwnContact(database, MAKER, NETWORK, clock, NODE, lambda: own, lambda: behind).hint()

    assert hint(addresses, relays) == (NodeContact(NODE, tuple(addresses[:2])),)
    assert hint([], relays) == (NodeContact(NODE, ()), NodeContact(RELAY, tuple(addresses[:2])))
    assert hint([], []) == ()
