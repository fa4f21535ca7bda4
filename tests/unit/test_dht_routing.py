"""The table and the search: exact, bounded, and not to be led astray."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kademlia.node import Node

from dht import beside
from dht.contact import Contact, Scope, node_id
from dht.lookup import GROUP_LIMIT, LOOSE, MAX_CANDIDATES, MAX_REGION, PACKED, Lookup
from dht.routing import GROUP_PER_BUCKET, GROUP_PER_TABLE, Table
from dht.sim.world import World as SimWorld


def contact(rng: random.Random, host: str | None = None) -> Contact:
    return Contact(
        rng.randbytes(32), host or f"{rng.randrange(1, 120)}.{rng.randrange(256)}.{rng.randrange(256)}.1", 1_000
    )


def table_of(rng: random.Random, count: int, size: int = 8) -> tuple[Table, list[Contact]]:
    table = Table(Node(node_id(rng.randbytes(32))), bucket_size=size, digit_bits=3, exempt=lambda _: False)
    made = [contact(rng) for _ in range(count)]
    for one in made:
        table.add_contact(one, 0.0)
    return table, made


@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(1, 20))
@settings(max_examples=60)
def test_closest_is_exact(seed: int, count: int, want: int) -> None:
    rng = random.Random(seed)
    table, _ = table_of(rng, count)
    target = rng.getrandbits(160)
    everyone = sorted(table, key=lambda c: c.long_id ^ target)
    assert table.closest(target, want) == everyone[:want]
    assert len(table) == len(everyone)


@given(st.integers(0, 2**32))
@settings(max_examples=40)
def test_counts_hold_through_entering_and_leaving(seed: int) -> None:
    rng = random.Random(seed)
    table, made = table_of(rng, 120, size=4)
    rng.shuffle(made)
    for one in made[:90]:
        table.remove_contact(one)
    assert len(table) == len(list(table))
    assert sum(table._groups.values()) == len(table)
    for one in list(table):
        table.remove_contact(one)
    # Replacements moved up; remove until nobody is left.
    while len(table):
        for one in list(table):
            table.remove_contact(one)
    assert table._groups == {}


def test_many_ids_behind_one_address_do_not_fill_the_table() -> None:
    rng = random.Random(1)
    table, _ = table_of(rng, 0)
    for _ in range(500):
        table.add_contact(contact(rng, f"44.1.1.{rng.randrange(1, 255)}"), 0.0)
    assert len(table) <= GROUP_PER_TABLE
    assert all(len(b.nodes) <= GROUP_PER_BUCKET for b in table.buckets)


def test_a_node_at_a_new_port_keeps_its_identity_and_loses_its_old_port() -> None:
    rng = random.Random(1)
    table, made = table_of(rng, 5)
    moved = Contact(made[0].key, "9.9.9.9", 77)
    assert table.add_contact(moved, 1.0)
    assert [c.port for c in table if c.id == moved.id] == [77]
    assert len(table) == 5


def test_a_node_that_was_only_named_is_never_handed_to_others() -> None:
    rng = random.Random(1)
    table, made = table_of(rng, 5)
    rumour = contact(rng)
    table.name([rumour])
    assert rumour not in table.closest(rumour.long_id, 20)
    assert table.closest(rumour.long_id, 20, named=True)[0] is rumour
    assert len(table) == len(made)


def test_unusable_addresses_have_a_scope_that_says_so() -> None:
    rng = random.Random(1)
    assert contact(rng, "127.0.0.1").scope is Scope.LOOPBACK
    assert contact(rng, "192.168.1.1").scope is Scope.PRIVATE
    assert contact(rng, "2a01::1").scope is Scope.GLOBAL


class World:
    """A network in a list: every node knows every other, unless it lies or is dead."""

    def __init__(self, seed: int, count: int) -> None:
        self.rng = random.Random(seed)
        self.nodes = [contact(self.rng) for _ in range(count)]
        self.dead: set[bytes] = set()

    def closest(self, target: int, count: int) -> list[Contact]:
        return sorted(self.nodes, key=lambda c: c.long_id ^ target)[:count]

    def run(self, lookup: Lookup, *, knows: int = 8) -> int:
        asked = 0
        while (one := lookup.next()) is not None:
            asked += 1
            if one.id in self.dead:
                lookup.late(one)
                lookup.failed(one)
            else:
                lookup.answered(one, self.closest(lookup.target, knows))
        return asked


@given(st.integers(0, 2**32))
@settings(max_examples=40)
def test_a_search_finds_the_closest_live_nodes(seed: int) -> None:
    world = World(seed, 200)
    target = world.rng.getrandbits(160)
    world.dead = {c.id for c in world.rng.sample(world.nodes, 60)}
    seeds = [c for c in world.rng.sample(world.nodes, 6) if c.id not in world.dead]
    if not seeds:
        return
    lookup = Lookup(target, seeds, own_id=bytes(20), k=8, alpha=3)
    world.run(lookup, knows=16)
    live = [c for c in world.closest(target, 16) if c.id not in world.dead]
    assert lookup.finished
    assert lookup.closest()[: len(live)] == live[:8]


def test_a_dead_node_costs_one_question_and_no_wait() -> None:
    world = World(3, 50)
    target = world.closest(0, 1)[0].long_id
    near = world.closest(target, 9)
    lookup = Lookup(target, near, own_id=bytes(20), k=8, alpha=3)
    first = [lookup.next() for _ in range(3)]
    assert lookup.next() is None
    assert first[0] is not None
    lookup.late(first[0])
    assert lookup.next() is near[3], "the slot of a late node is free at once"


def test_a_late_answer_still_counts() -> None:
    world = World(3, 50)
    near = world.closest(0, 8)
    lookup = Lookup(0, near, own_id=bytes(20), k=8, alpha=8)
    asked = list(iter(lookup.next, None))
    lookup.late(asked[0])
    for one in asked[1:]:
        lookup.answered(one, [])
    assert near[0] not in lookup.closest()
    lookup.answered(asked[0], [])
    assert lookup.closest() == near


def test_one_group_fills_only_so_many_places_of_a_search() -> None:
    rng = random.Random(1)
    liars = [contact(rng, f"44.1.1.{i + 1}") for i in range(100)]
    honest = contact(rng)
    lookup = Lookup(liars[0].long_id, [honest], own_id=bytes(20), k=8, alpha=3)
    assert lookup.next() is honest
    lookup.answered(honest, liars)
    assert len(list(iter(lookup.next, None))) <= GROUP_LIMIT


def test_those_named_from_afar_do_not_keep_a_nearer_one_out() -> None:
    """Liars name whom they like: their names must not fill the list before somebody honest is named."""
    rng = random.Random(2)
    target = rng.getrandbits(160)
    world = World(2, 400)
    liar, honest, *far = world.closest(target, 400)
    lookup = Lookup(target, [liar], own_id=bytes(20), k=8, alpha=1)
    assert lookup.next() is liar
    lookup.answered(liar, far[::-1])
    assert len(lookup.known()) == MAX_CANDIDATES
    lookup.add([honest])
    assert len(lookup.known()) == MAX_CANDIDATES
    assert lookup.next() is honest
    lookup.add([honest, *far])
    assert lookup.next() is None
    lookup.answered(honest, [])
    assert lookup.next() is far[0], "the nearest, too, though it was named last"


def test_ids_packed_around_a_key_do_not_push_the_honest_out() -> None:
    world = World(5, 1_000)
    target = world.rng.getrandbits(160)
    reach = world.closest(target, 8)[-1].long_id ^ target
    honest = world.closest(target, 4)
    packed = [contact(world.rng) for _ in range(20)]
    for i, one in enumerate(packed):
        one.long_id = target ^ (i + 1)
        one.id = one.long_id.to_bytes(20, "big")
    world.nodes += packed
    plain = Lookup(target, honest, own_id=bytes(20), k=8, alpha=3)
    world.run(plain, knows=40)
    assert not set(honest) & set(plain.closest()), "without a reach the attacker holds all eight places"
    aware = Lookup(target, honest, own_id=bytes(20), k=8, alpha=3, reach=reach)
    world.run(aware, knows=40)
    assert set(honest) <= set(aware.closest())


def packed_around(world: World, point: int, count: int) -> list[Contact]:
    """Identities next to a point, each with an address group of its own."""
    out = [contact(world.rng) for _ in range(count)]
    for i, one in enumerate(out):
        one.long_id = point ^ (i + 1)
        one.id = one.long_id.to_bytes(20, "big")
    return out


@pytest.mark.parametrize("crowds", [(300,), (30, 30), (30, 30, 30)])
def test_those_whom_crowds_hide_are_asked_once_they_are_found(crowds: tuple[int, ...]) -> None:
    """More ids than a search may know or ask, around the key and in the place where its holders live."""
    world = World(5, 1_000)
    target = world.rng.getrandbits(160)
    hidden = world.closest(target, 12)
    reach = hidden[7].long_id ^ target
    points = [target, target ^ reach * 3 // 5, target ^ reach * 4 // 5]
    liars = [one for point, count in zip(points, crowds, strict=False) for one in packed_around(world, point, count)]
    lookup = Lookup(target, liars[:8], own_id=bytes(20), k=8, alpha=3, reach=reach)
    rounds = 0
    while rounds < 2:
        while (asked := lookup.next()) is not None:
            lookup.answered(asked, world.rng.sample(liars, 8) if asked in liars else [])
        rounds += 1
        if rounds == 1:
            assert lookup.crowded
            assert lookup.thin, "hardly anybody is left where the liars are not"
            lookup.add(liars)
            lookup.add(hidden)
    reached = set(lookup.closest())
    assert len(reached) <= MAX_REGION
    assert sum(one in reached for one in hidden if one.long_id ^ target <= reach) >= 7
    assert not lookup.thin


def test_a_crowded_place_in_which_chance_put_few_reaches_as_far_as_to_six_of_them() -> None:
    world = World(5, 1_000)
    target = world.rng.getrandbits(160)
    reach = world.closest(target, 8)[-1].long_id ^ target
    world.nodes = [one for one in world.nodes if one.long_id ^ target > reach * 7 // 5]
    near = world.closest(target, 12)
    assert near[3].long_id ^ target > reach * 3 // 2
    lookup = Lookup(target, packed_around(world, target, 25), own_id=bytes(20), k=8, alpha=3, reach=reach)
    lookup.add(near)
    while (asked := lookup.next()) is not None:
        lookup.answered(asked, [])
    assert lookup.closest()[-LOOSE:] == near[:LOOSE]


def test_a_search_beside_a_crowd_hears_neither_of_it_nor_of_the_crowd_next_to_it() -> None:
    engine = SimWorld(1).add().engine
    world = World(5, 1_000)
    target = world.rng.getrandbits(160)
    near = world.closest(target, 20)
    reach = near[7].long_id ^ target
    outside = [one for one in near if one.long_id ^ target > reach // 2]
    crowd = packed_around(world, target, 25)
    met, unmet = (packed_around(world, target ^ reach * x // 4, 25) for x in (3, 5))
    lookup = Lookup(target, crowd[:8], own_id=bytes(20), k=8, alpha=3, reach=reach)
    lookup.add([*met[:6], *world.closest(0, 30)])
    there = beside.aside(engine, target ^ reach, lookup, again=False)
    there.add([*crowd, *met, *unmet, *outside])
    heard = set(there.known())
    assert not heard & {*crowd, *met}
    assert len(heard & set(unmet)) <= PACKED
    taken = {one.long_id >> lookup.cell_bits for one in (*met, *unmet)}
    assert heard >= {one for one in outside if one.long_id >> lookup.cell_bits not in taken}
    assert len(heard & set(outside)) >= 8


def test_disjoint_paths_never_ask_a_node_twice_and_one_liar_leads_one_path() -> None:
    world = World(9, 300)
    target = world.rng.getrandbits(160)
    seeds = world.rng.sample(world.nodes, 9)
    lookup = Lookup(target, seeds, own_id=bytes(20), k=8, alpha=1, paths=3)
    liar = seeds[0]
    false_ones = [contact(world.rng) for _ in range(16)]
    asked: list[Contact] = []
    while (one := lookup.next()) is not None:
        asked.append(one)
        lookup.answered(one, false_ones if one is liar or one in false_ones else world.closest(target, 8))
    assert len({c.id for c in asked}) == len(asked)
    assert set(world.closest(target, 4)) <= set(lookup.closest())


def test_a_search_begins_with_acquaintances_among_the_closest_and_nowhere_else() -> None:
    near = World(3, 40).closest(0, 39)
    reach = near[11].long_id
    known = {near[3].id, near[5].id, near[20].id}
    lookup = Lookup(0, near, own_id=bytes(20), k=8, alpha=3, reach=reach)
    lookup.prefer(lambda c: c.id in known)
    assert [lookup.next() for _ in range(4)] == [near[3], near[5], near[0], None]
    thin = Lookup(0, near, own_id=bytes(20), k=8, alpha=3, reach=near[2].long_id)
    thin.prefer(lambda c: c.id in known)
    assert thin.next() == near[0]
