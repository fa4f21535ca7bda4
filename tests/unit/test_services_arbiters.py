"""The directory of arbiters over real DHT nodes: what it believes, keeps, and forgets."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from p2pnode.api.schema import AnnounceRequest
from p2pnode.api.services import RoleMissing
from p2pnode.arbiters import CAPACITY, KEPT_VERSIONS, ArbiterDirectory, BadAnnouncement
from p2pnode.database import Database
from p2pnode.services.arbiters import ArbiterService
from protocol.announcement import ARBITER_WORK_BITS, AnnouncementExpired, FeeTerms
from protocol.errors import PeerViolation
from protocol.identity import persona_text
from protocol.offer import ArbiterRef
from protocol.wire import Kind, digest, open_envelope, pack
from protocol.work import find_work
from tests.unit.services_support import (
    DETAILS,
    NETWORK,
    T0,
    Party,
    TestClock,
    advance,
    dht_node,
    keyring_of,
    offer_of,
    parties,
)


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[Party]]:
    async with parties(tmp_path, "arbiter", "second", "trader") as made:
        yield made


def personas(party: Party, *trade: object) -> list[bytes]:
    return [listed.announcement.persona for listed in party.directory.find(*trade)]  # type: ignore[arg-type]


async def test_an_announcement_is_found_by_one_who_never_heard_of_it(nodes: list[Party]) -> None:
    arbiter, _, trader = nodes
    listed = await arbiter.announce()
    assert trader.directory.get(listed.envelope.id) is None
    await trader.directory.refresh()
    found = trader.directory.get(listed.envelope.id)
    assert found is not None
    assert found == listed
    assert open_envelope(found.envelope.raw, NETWORK).signer == arbiter.persona
    assert found.announcement.base_point == arbiter.keyring.arbiter_base_point
    assert found.announcement.policy_hash == digest(b"p2pnode/policy", b"be fair")
    assert trader.directory.newest_of(arbiter.persona) == found
    assert trader.directory.newest_of(trader.persona) is None


async def test_the_cheapest_that_serves_the_trade_comes_first(nodes: list[Party]) -> None:
    arbiter, second, trader = nodes
    await arbiter.announce(fee=FeeTerms(10_000, 0, 10**6), currencies=("EUR",))
    await second.announce(fee=FeeTerms(1_000, 5_000, 10**6), methods=("sepa",), max_amount=2_000_000)
    await trader.directory.refresh()
    assert personas(trader, "EUR", "sepa", 100_000) == [arbiter.persona, second.persona]
    assert personas(trader, "EUR", "sepa", 1_000_000) == [second.persona, arbiter.persona]
    assert personas(trader, "EUR", "sepa", 2_000_001) == [arbiter.persona]
    assert personas(trader, "USD", "sepa") == [second.persona]
    assert personas(trader, "USD", "zelle") == []
    assert len(personas(trader)) == 2


async def test_a_replaced_announcement_is_not_chosen_but_still_found_by_its_id(nodes: list[Party]) -> None:
    arbiter, _, trader = nodes
    first = await arbiter.announce()
    await trader.directory.refresh()
    second = await arbiter.announce(fee=FeeTerms(9_000, 0, 10**6))
    await trader.directory.refresh(fresh_seconds=0)
    assert [x.envelope.id for x in trader.directory.find()] == [second.envelope.id]
    assert trader.directory.get(first.envelope.id) == first


async def test_expired_announcements_are_never_returned(nodes: list[Party]) -> None:
    arbiter, _, trader = nodes
    listed = await arbiter.announce(lifetime=3_600)
    await trader.directory.refresh()
    advance(nodes, 3_599)
    assert trader.directory.get(listed.envelope.id) == listed
    advance(nodes, 1)
    assert trader.directory.get(listed.envelope.id) is None
    assert trader.directory.newest_of(arbiter.persona) is None
    assert trader.directory.find() == []
    with pytest.raises(AnnouncementExpired):
        trader.directory.remember(listed.envelope, trader.clock.now())


async def test_an_older_announcement_does_not_come_back_when_the_newest_expires(nodes: list[Party]) -> None:
    """The arbiter withdrew its old terms; that they run longer changes nothing."""
    arbiter, _, trader = nodes
    await arbiter.announce(lifetime=90 * 86_400)
    await trader.directory.refresh()
    await arbiter.announce(lifetime=3_600)
    await trader.directory.refresh(fresh_seconds=0)
    advance(nodes, 3_600)
    assert trader.directory.newest_of(arbiter.persona) is None
    assert trader.directory.find() == []


async def test_announcements_that_break_a_rule_are_not_kept(nodes: list[Party]) -> None:
    arbiter, second, trader = nodes
    listed = await arbiter.announce()
    forged = second.keyring.persona.seal(Kind.ARBITER, NETWORK, listed.envelope.body)
    cheap = arbiter.keyring.persona.seal(Kind.ARBITER, NETWORK, pack(listed.announcement)[:-8] + bytes(8))
    for envelope in (forged, cheap):
        with pytest.raises(PeerViolation):
            trader.directory.remember(envelope, T0)
    assert trader.directory.find() == []


async def test_the_directory_stays_small_and_keeps_what_offers_refer_to(tmp_path: Path) -> None:
    clock = TestClock()
    database = Database(tmp_path / "node.db")
    dht = dht_node(keyring_of("trader"), clock, 1)
    held: set[bytes] = set()
    key = keyring_of("arbiter").persona
    mine = keyring_of("trader").persona
    directory = ArbiterDirectory(database, dht, NETWORK, clock, own=(mine.public,), referenced=lambda: held)
    rows = []
    for n in range(3 * KEPT_VERSIONS):
        rows.append((bytes([n]) * 32, key.public, n, b"", T0 + 10_000))
        rows.append((bytes([100 + n]) * 32, mine.public, n, b"", T0 + 1))
    rng = random.Random(3)
    rows += [(rng.randbytes(32), rng.randbytes(32), 0, b"", T0 + 5_000) for _ in range(CAPACITY + 50)]
    held.add(bytes([2]) * 32)
    with database.transaction() as connection:
        connection.executemany("INSERT INTO announcements VALUES (?, ?, ?, ?, ?)", rows)
        directory._prune(T0)

    def kept(persona: bytes) -> list[int]:
        found = database.connection.execute("SELECT sequence FROM announcements WHERE persona = ?", (persona,))
        return sorted(row[0] for row in found)

    assert kept(key.public) == [2, *range(2 * KEPT_VERSIONS, 3 * KEPT_VERSIONS)]
    assert len(kept(mine.public)) == 3 * KEPT_VERSIONS
    (count,) = database.connection.execute("SELECT count(*) FROM announcements").fetchone()
    assert count <= CAPACITY + 1 + 3 * KEPT_VERSIONS
    directory._prune(T0 + 1)
    assert len(kept(mine.public)) == 3 * KEPT_VERSIONS, "a trade made while one lived may be disputed after"
    database.close()


async def test_the_service_announces_only_for_an_arbiter(nodes: list[Party]) -> None:
    arbiter, _, trader = nodes
    request = AnnounceRequest(fee_ppm=5_000, currencies=("EUR",), policy="be fair")
    with pytest.raises(RoleMissing):
        await ArbiterService(trader.directory).announce(request)
    service = ArbiterService(
        arbiter.directory, arbiter.publisher, arbiter.keyring.persona, arbiter.keyring.arbiter_base_point
    )
    view = await service.announce(request)
    assert (view.persona, view.mine, view.fee_ppm, view.policy) == (
        persona_text(arbiter.persona),
        True,
        5_000,
        "be fair",
    )
    assert view.expires == T0 + request.lifetime_seconds
    (seen,) = (await ArbiterService(trader.directory).list("EUR", "sepa")).arbiters
    assert (seen.announcement, seen.mine) == (view.announcement, False)
    assert (await ArbiterService(trader.directory).list("USD", None)).arbiters == ()


async def test_an_announcement_that_can_not_be_made_says_why(nodes: list[Party]) -> None:
    arbiter, *_ = nodes
    for changes, says in (
        ({"fee": FeeTerms(1, 10, 5)}, "least fee"),
        ({"policy": "x" * 401}, "400 characters"),
        ({"methods": tuple(f"a-rather-long-method-name-{n}" for n in range(40))}, "datagram"),
    ):
        with pytest.raises(BadAnnouncement) as raised:
            await arbiter.announce(**changes)
        assert says in raised.value.detail
    assert arbiter.directory.find() == []


async def test_offers_name_the_announcements_that_must_be_kept(nodes: list[Party]) -> None:
    """The wiring of the two: an own offer's announcement survives any number of later ones."""
    arbiter, _, trader = nodes
    first = await arbiter.announce()
    await trader.directory.refresh()
    arbiters = (ArbiterRef(b"a" * 32, b"A" * 32), ArbiterRef(arbiter.persona, first.envelope.id))
    await trader.own.create(offer_of(trader.persona, arbiters=arbiters), DETAILS)
    for n in range(KEPT_VERSIONS + 1):
        later = replace(first.announcement, sequence=first.announcement.sequence + 1 + n)
        body = find_work(Kind.ARBITER, NETWORK, pack(later), ARBITER_WORK_BITS)
        trader.directory.remember(arbiter.keyring.persona.seal(Kind.ARBITER, NETWORK, body), T0)
    trader.directory._prune(T0)
    assert trader.directory.get(first.envelope.id) == first
