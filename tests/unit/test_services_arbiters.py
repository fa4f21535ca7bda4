"""The directory of arbiters over real DHT nodes: what it believes, keeps, and forgets."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from escrow.bond import spend_bond
from escrow.coins import OutPoint
from p2pnode.api.schema import AnnounceRequest
from p2pnode.api.services import RoleMissing
from p2pnode.arbiters import CAPACITY, KEPT_VERSIONS, ArbiterDirectory, BadAnnouncement, Listed
from p2pnode.database import Database
from p2pnode.reputation.ranking import ArbiterRanking
from p2pnode.services.arbiters import ArbiterService
from p2pnode.services.choosing import (
    Need,
    NoArbiter,
    TakeWishes,
    choose_for_take,
    kept_arbiters,
    known_arbiters,
    named_arbiters,
)
from protocol.announcement import ARBITER_WORK_BITS, AnnouncementExpired, FeeTerms
from protocol.bond import BadBond
from protocol.contract import BadContract, Contract, arbiter_terms, check_terms
from protocol.errors import PeerViolation
from protocol.identity import persona_text
from protocol.offer import ArbiterRef, Offer
from protocol.types import Branch, EscrowType, Side
from protocol.wire import Kind, digest, open_envelope, pack
from protocol.work import find_work
from tests.unit.escrow_support import Deal
from tests.unit.reputation_support import Ledger, Observer, bond_of, contradiction
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


# --- rules -------------------------------------------------------------------------------------------------------


def offer_by(maker: Party, *arbiters: Listed) -> Offer:
    refs = tuple(ArbiterRef(x.announcement.persona, x.envelope.id) for x in arbiters)
    return offer_of(maker.persona, arbiters=refs, escrow_types=(EscrowType.WSH_2OF3,))


ANY = TakeWishes(arbiter=None, backup=None, escrow_type=None)


async def test_an_arbiter_that_is_a_party_is_refused(nodes: list[Party]) -> None:
    arbiter, second, trader = nodes
    listed = [await arbiter.announce(), await second.announce()]
    await trader.directory.refresh()
    need = Need("EUR", ("sepa",), 100_000, arbiter.persona)
    with pytest.raises(NoArbiter):
        named_arbiters(trader.directory, [arbiter.persona], need)
    assert [ref.persona for ref in known_arbiters(trader.directory, need)] == [second.persona]
    chosen = choose_for_take(trader.directory, offer_by(trader, *listed), "sepa", 100_000, arbiter.persona, ANY)
    assert chosen.arbiter.announcement.persona == second.persona
    deal = Deal()
    for persona in (deal.party(Side.BUY).persona, deal.party(Side.SELL).persona):
        contract = replace(deal.contract(), arbiter=replace(deal.arbiter(Branch.MAIN), persona=persona))
        with pytest.raises(BadContract, match="are the same"):
            check_terms(contract, _offer_for(contract))


async def test_an_arbiter_that_shares_a_key_with_a_party_is_refused() -> None:
    """A maker whose second name is the arbiter: two of the three keys would be one person's for sure."""
    deal = Deal()
    for party in (deal.party(Side.BUY), deal.party(Side.SELL)):
        for key in (party.keys.main, party.keys.backup):
            negated = bytes([key[0] ^ 1]) + key[1:]
            for shared in (key, negated):
                contract = replace(deal.contract(), arbiter=replace(deal.arbiter(Branch.MAIN), base_point=shared))
                with pytest.raises(BadContract, match="are the same"):
                    check_terms(contract, _offer_for(contract))
    one = replace(
        deal.contract(), backup=replace(deal.arbiter(Branch.BACKUP), base_point=deal.arbiter(Branch.MAIN).base_point)
    )
    with pytest.raises(BadContract, match="are the same"):
        check_terms(one, _offer_for(one))
    check_terms(deal.contract(), _offer_for(deal.contract()))


def _offer_for(contract: Contract) -> Offer:
    chosen = [a for a in (contract.arbiter, contract.backup) if a is not None]
    return offer_of(
        contract.seller.persona,
        amount_min=contract.amount,
        amount_max=contract.amount,
        methods=(contract.method,),
        arbiters=tuple(ArbiterRef(a.persona, a.announcement) for a in chosen),
        escrow_types=(contract.escrow_type,),
    )


async def test_an_expired_arbiter_is_refused(nodes: list[Party]) -> None:
    arbiter, _, trader = nodes
    listed = await arbiter.announce(lifetime=3_600)
    await trader.directory.refresh()
    advance(nodes, 3_600)
    with pytest.raises(NoArbiter, match="expired"):
        choose_for_take(trader.directory, offer_by(arbiter, listed), "sepa", 100_000, trader.persona, ANY)
    with pytest.raises(NoArbiter):
        named_arbiters(trader.directory, [arbiter.persona], Need("EUR", ("sepa",), 100_000, trader.persona))


async def test_an_arbiter_whose_terms_do_not_fit_is_refused(nodes: list[Party]) -> None:
    arbiter, second, trader = nodes
    listed = await arbiter.announce(currencies=("EUR",), methods=("sepa",), max_amount=1_000_000)
    await trader.directory.refresh()
    for currency, method, amount in (("USD", "sepa", 1), ("EUR", "cash", 1), ("EUR", "sepa", 1_000_001)):
        with pytest.raises(NoArbiter, match="does not serve"):
            named_arbiters(trader.directory, [arbiter.persona], Need(currency, (method,), amount, trader.persona))
    with pytest.raises(NoArbiter, match="does not serve"):
        choose_for_take(trader.directory, offer_by(second, listed), "sepa", 1_000_001, trader.persona, ANY)


async def test_a_new_fee_after_the_offer_changes_no_trade_of_it(nodes: list[Party]) -> None:
    """The offer names the announcement by its id; the contract's fee follows from that one."""
    arbiter, second, trader = nodes
    first = await arbiter.announce(fee=FeeTerms(1_000, 0, 10**6))
    await trader.directory.refresh()
    offer = offer_by(second, first)
    dearer = await arbiter.announce(fee=FeeTerms(500_000, 0, 10**6))
    await trader.directory.refresh(fresh_seconds=0)
    newest = trader.directory.newest_of(arbiter.persona)
    assert newest is not None
    assert newest.envelope.id == dearer.envelope.id
    chosen = choose_for_take(trader.directory, offer, "sepa", 1_000_000, trader.persona, ANY)
    assert chosen.arbiter.envelope.id == first.envelope.id
    terms = arbiter_terms(chosen.arbiter.envelope.id, chosen.arbiter.announcement, 1_000_000)
    assert (terms.fee, terms.announcement) == (1_000, first.envelope.id)


async def test_arbiters_are_found_by_currency_method_and_language(nodes: list[Party]) -> None:
    arbiter, second, trader = nodes
    await arbiter.announce(languages=("de", "en"), currencies=("EUR",), fee=FeeTerms(1_000, 0, 10**6))
    await second.announce(languages=("pt",), methods=("pix",), currencies=("BRL", "EUR"))
    service = ArbiterService(trader.directory)

    async def found(*wanted: str | None) -> list[str]:
        return [a.persona for a in (await service.list(*wanted)).arbiters]

    both = [persona_text(p.persona) for p in (arbiter, second)]
    assert await found(None, None, None) == both
    assert await found(None, None, "de") == both[:1]
    assert await found(None, None, "pt") == both[1:]
    assert await found("BRL", None, "de") == []
    assert await found("EUR", "sepa", "en") == both[:1]
    assert await found("BRL", "pix", "pt") == both[1:]


async def test_who_is_blocked_or_exposed_is_named_nowhere(nodes: list[Party], tmp_path: Path) -> None:
    arbiter, second, trader = nodes
    listed = [await arbiter.announce(), await second.announce()]
    await trader.directory.refresh()
    observer = Observer(tmp_path, Ledger())
    exposures = observer.exposures
    trader.directory.ranking = ranking = ArbiterRanking(
        observer.database, observer.histories, exposures, observer.acquaintances, observer.clock
    )
    need = Need("EUR", ("sepa",), 100_000, trader.persona)
    refs = known_arbiters(trader.directory, need)
    assert {ref.persona for ref in refs} == {arbiter.persona, second.persona}
    for refuse, why in (
        (lambda: observer.acquaintances.set(arbiter.persona, T0, standing="blocked"), "blocked"),
        (lambda: exposures.remember(contradiction(arbiter.keyring.persona)), "two rulings"),
    ):
        refuse()
        assert why in (ranking.refusal(arbiter.persona) or "")
        assert personas(trader) == [second.persona]
        with pytest.raises(NoArbiter, match=why):
            named_arbiters(trader.directory, [arbiter.persona], need)
        assert [ref.persona for ref in kept_arbiters(trader.directory, refs, need)] == [second.persona]
        chosen = choose_for_take(trader.directory, offer_by(trader, *listed), "sepa", 100_000, b"t" * 32, ANY)
        assert chosen.arbiter.announcement.persona == second.persona
        wish = TakeWishes(arbiter=arbiter.persona, backup=None, escrow_type=None)
        with pytest.raises(NoArbiter, match=why):
            choose_for_take(trader.directory, offer_by(trader, *listed), "sepa", 100_000, b"t" * 32, wish)
        observer.acquaintances.set(arbiter.persona, T0, standing="")
    observer.close()


async def test_a_bond_that_stands_lifts_an_arbiter_and_one_that_is_spent_does_not(
    nodes: list[Party], tmp_path: Path
) -> None:
    arbiter, second, trader = nodes
    ledger = Ledger()
    observer = Observer(tmp_path, ledger)
    trader.directory.ranking = ArbiterRanking(
        observer.database, observer.histories, observer.exposures, observer.acquaintances, observer.clock
    )
    await arbiter.announce(fee=FeeTerms(1_000, 0, 10**6))
    key = second.keyring.persona
    bond = bond_of(ledger, key, b"\x22" * 32, 50_000_000, 30_000)
    terms = (await second.announce(fee=FeeTerms(5_000, 0, 10**6))).announcement
    assert await second.directory.carry_bond(key, bond)
    assert not await second.directory.carry_bond(key, bond), "it is carried already"
    second.publisher.kick()
    newest = second.directory.newest_of(second.persona)
    assert newest is not None
    assert (newest.announcement.fee, newest.announcement.bond) == (terms.fee, bond)
    trader.directory.remember(newest.envelope, T0)
    service = ArbiterService(trader.directory)
    first, last = (await service.list(None, None)).arbiters
    assert (first.persona, first.bond_state, first.rank) == (persona_text(second.persona), "stands", 1)
    assert first.points > last.points
    assert "no bond" in last.why
    coin = OutPoint(bond.txid, bond.vout)
    spent, _ = spend_bond(coin, bond.value, bond.lock_height, b"\x22" * 32, b"\x00\x14" + bytes(20), 1_000)
    ledger.mine(spent)
    first, last = (await service.list(None, None)).arbiters
    assert (last.persona, last.bond_state) == (persona_text(second.persona), "spent")
    observer.close()


async def test_an_announcement_with_a_borrowed_bond_is_not_kept(nodes: list[Party]) -> None:
    arbiter, second, trader = nodes
    bond = bond_of(Ledger(), arbiter.keyring.persona, b"\x33" * 32, 50_000_000, 30_000)
    listed = await second.announce()
    body = pack(replace(listed.announcement, bond=bond))
    worked = find_work(Kind.ARBITER, NETWORK, body, ARBITER_WORK_BITS)
    with pytest.raises(BadBond):
        trader.directory.remember(second.keyring.persona.seal(Kind.ARBITER, NETWORK, worked), T0)
