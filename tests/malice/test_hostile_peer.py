"""A peer that breaks the protocol with valid signatures: each attack is refused, recorded nowhere, and moves no coin.

The attacker holds its own persona key, so every altered message is signed anew; only what it says is wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest
from msgspec.structs import replace

from escrow.coins import OutPoint, TxOut
from escrow.keys import make_keys
from escrow.signatures import sign_ecdsa
from escrow.transactions import build, txid_of
from p2pnode.intake import KeyReuse, NoSuchCoins, OutOfOrder
from protocol.contract import trade_id
from protocol.errors import P2PError
from protocol.identity import SigningKey
from protocol.messages import (
    Accept,
    Funding,
    Header,
    Message,
    OpenedDetails,
    Paid,
    Payload,
    PaymentDetails,
    Released,
    Seal,
    Take,
    decode,
    encode,
)
from protocol.types import Side
from protocol.wire import Kind, open_envelope
from tests.world import NETWORK, World, make_arbiter

Edit = Callable[[World, Message], tuple[Header, Payload]]


def resign(world: World, message: Message, header: Header, payload: Payload) -> bytes:
    """The altered message, signed by the persona that sent the true one."""
    sender = next(n for n in world.both if n.keyring.owns(message.envelope.signer))
    kind, body = encode(header, payload)
    return sender.keyring.persona.seal(kind, NETWORK, body).raw


async def attack(folder: Path, side: Side, kind: Kind, edit: Edit) -> tuple[World, list[P2PError]]:
    """Run a trade in which every message of `kind` is altered; returns what the victim answered."""
    world = World(folder, side)

    def tamper(raw: bytes) -> bytes:
        envelope = open_envelope(raw, NETWORK)
        if envelope.kind != kind:
            return raw
        message = decode(envelope)
        return resign(world, message, *edit(world, message))

    world.post.tamper = tamper
    try:
        happy = world.happy()
        with suppress(AssertionError):
            task = asyncio.ensure_future(happy)
            await world.until(lambda: bool(world.post.refused) or declined(world) or task.done(), "end")
            world.declined = declined(world)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    finally:
        await world.end()
    return world, world.post.refused


def declined(world: World) -> bool:
    """Whether the maker's node turned the take down after it had recorded it."""
    return world.maker.alive and world.maker.phase == "Declined"


def take_edit(change: Callable[[World, Take], Take]) -> Edit:
    """An altered take, under the trade id that goes with it."""

    def edit(world: World, message: Message) -> tuple[Header, Payload]:
        assert isinstance(message.payload, Take)
        take = change(world, message.payload)
        identity = trade_id(take.bargain.offer, take.party.persona, take.party.nonce)
        return replace(message.header, trade_id=identity), take

    return edit


P = TypeVar("P", bound=Payload)


def edit_of(cls: type[P], change: Callable[[World, P], Payload]) -> Edit:
    """An altered payload under the true header."""

    def edit(world: World, message: Message) -> tuple[Header, Payload]:
        assert isinstance(message.payload, cls)
        return message.header, change(world, message.payload)

    return edit


def forged_coin(take: Take) -> Take:
    """An input that claims more than its previous transaction gives."""
    coin = take.party.inputs[0]
    return replace(take, party=replace(take.party, inputs=(replace(coin, value=coin.value * 2),)))


def foreign_previous(take: Take) -> Take:
    """A previous transaction that is not the one of the input."""
    other = build(
        [(OutPoint(bytes(32), 0), 0)], [TxOut(take.party.inputs[0].value, take.party.inputs[0].script_pubkey)]
    )
    return replace(take, funding=Funding((other,)))


def imaginary_coin(take: Take) -> Take:
    """A perfect previous transaction, which no block holds: a free way to withdraw every offer of the book."""
    coin = take.party.inputs[0]
    made_up = build([(OutPoint(bytes([5]) * 32, 0), 0)], [TxOut(coin.value, coin.script_pubkey)])
    fake = replace(coin, txid=txid_of(made_up), vout=0)
    return replace(take, party=replace(take.party, inputs=(fake,)), funding=Funding((made_up,)))


def other_proof(take: Take) -> Take:
    """Escrow keys that somebody else proved."""
    keys = replace(take.party.keys, main_proof=bytes(64))
    return replace(take, party=replace(take.party, keys=keys))


TAKES: dict[str, Callable[[World, Take], Take]] = {
    "a lower price": lambda _, t: replace(t, bargain=replace(t.bargain, price=t.bargain.price - 1)),
    "an amount outside the range": lambda _, t: replace(t, bargain=replace(t.bargain, amount=50_000)),
    "a method that is not offered": lambda _, t: replace(t, bargain=replace(t.bargain, method="cash")),
    "fees above the band": lambda _, t: replace(
        t, bargain=replace(t.bargain, fees=replace(t.bargain.fees, payout_max=10_000_000))
    ),
    "an older version of the offer": lambda _, t: replace(
        t, bargain=replace(t.bargain, offer=replace(t.bargain.offer, envelope=bytes(32)))
    ),
    "an arbiter that the maker did not name": lambda _, t: replace(t, arbiter=make_arbiter(3).envelope.raw),
    "one arbiter for both branches": lambda _, t: replace(t, backup=t.arbiter),
    "no backup arbiter": lambda _, t: replace(t, backup=None),
    "a key it does not hold": lambda _, t: other_proof(t),
    "a coin worth less than claimed": lambda _, t: forged_coin(t),
    "coins that were never mined": lambda _, t: imaginary_coin(t),
    "another previous transaction": lambda _, t: foreign_previous(t),
    "no coins": lambda _, t: replace(t, party=replace(t.party, inputs=(), change_script=None), funding=Funding(())),
    "a payout script of an unknown witness version": lambda _, t: replace(
        t, party=replace(t.party, payout_script=b"\x60\x20" + bytes(32))
    ),
    "somebody else's contact record": lambda w, t: replace(t, contact=w.maker.contact().raw),
    "another persona than its signer's": lambda _, t: replace(
        t, party=replace(t.party, persona=SigningKey(bytes(32)).public)
    ),
}


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("name", TAKES)
async def test_bent_take_is_refused(tmp_path: Path, side: Side, name: str) -> None:
    world, refused = await attack(tmp_path, side, Kind.TAKE, take_edit(TAKES[name]))
    assert refused or world.declined, name
    assert len(world.chain.broadcasts) == 0


def bent_witness(signature_end: bytes) -> Callable[[tuple[tuple[bytes, ...], ...]], tuple[tuple[bytes, ...], ...]]:
    """Witnesses with another sighash byte."""
    return lambda stacks: tuple((stack[0][:-1] + signature_end, *stack[1:]) for stack in stacks)


def accept_edit(change: Callable[[World, Accept], Accept]) -> Edit:
    return edit_of(Accept, change)


ACCEPTS: dict[str, tuple[Side, Callable[[World, Accept], Accept]]] = {
    "contract signature of another document": (Side.SELL, lambda _, a: replace(a, contract_signature=bytes(64))),
    "another payout script, signed for the first": (
        Side.SELL,
        lambda _, a: replace(a, party=replace(a.party, payout_script=b"\x00\x14" + bytes(20))),
    ),
    "another persona": (
        Side.SELL,
        lambda _, a: replace(a, party=replace(a.party, persona=SigningKey(bytes(32)).public)),
    ),
    "witnesses of a seller": (Side.SELL, lambda _, a: replace(a, witnesses=((b"x" * 71, b"\x02" * 33),))),
    "no witnesses of a buyer": (Side.BUY, lambda _, a: replace(a, witnesses=None)),
    "a buyer's witness with SIGHASH_NONE": (
        Side.BUY,
        lambda _, a: replace(a, witnesses=bent_witness(b"\x02")(a.witnesses or ())),
    ),
    "a buyer's witness with ANYONECANPAY": (
        Side.BUY,
        lambda _, a: replace(a, witnesses=bent_witness(b"\x81")(a.witnesses or ())),
    ),
}


@pytest.mark.parametrize("name", ACCEPTS)
async def test_bent_accept_is_refused_and_the_taker_signs_nothing(tmp_path: Path, name: str) -> None:
    side, change = ACCEPTS[name]
    world, refused = await attack(tmp_path, side, Kind.ACCEPT, accept_edit(change))
    assert refused, name
    assert len(world.chain.broadcasts) == 0


async def test_taker_that_reuses_an_escrow_key_is_refused(tmp_path: Path) -> None:
    """One key in two escrows lets a signature of one be tried in the other, and links them on chain."""
    world = World(tmp_path, Side.SELL)
    await world.begin()
    secrets = (bytes([7]) * 32, bytes([8]) * 32)

    def same_keys(raw: bytes) -> bytes:
        message = decode(open_envelope(raw, NETWORK))
        if not isinstance(message.payload, Take):
            return raw
        keys = make_keys(*secrets, message.header.trade_id, message.payload.party.persona)
        take = replace(message.payload, party=replace(message.payload.party, keys=keys))
        return resign(world, message, message.header, take)

    world.post.tamper = same_keys
    earlier = world.maker.engine.trades
    with world.maker.database.transaction():
        assert earlier.claim_keys(bytes(32), [make_keys(*secrets, bytes(32), bytes(32)).main])
    await world.take()
    await world.until(lambda: bool(world.post.refused), "refusal")
    assert isinstance(world.post.refused[0], KeyReuse)
    assert world.maker.trade is None
    await world.end()


LATER: dict[str, tuple[Kind, Side, Edit]] = {
    "a seal with another contract signature": (
        Kind.SEAL,
        Side.SELL,
        edit_of(Seal, lambda _, s: replace(s, contract_signature=bytes(64))),
    ),
    "a buyer's seal without witnesses": (Kind.SEAL, Side.SELL, edit_of(Seal, lambda _, s: replace(s, witnesses=()))),
    "a seller's seal with another txid": (
        Kind.SEAL,
        Side.BUY,
        edit_of(Seal, lambda _, s: replace(s, funding_txid=bytes(32))),
    ),
    "payment details that were not committed to": (
        Kind.PAYMENT_DETAILS,
        Side.SELL,
        edit_of(PaymentDetails, lambda _, d: PaymentDetails(OpenedDetails(d.opened.salt, (("iban", "thief"),)))),
    ),
    "a payout signature over something else": (
        Kind.PAID,
        Side.SELL,
        edit_of(Paid, lambda _, p: replace(p, payout_signature=sign_ecdsa(bytes([7]) * 32, bytes(32)))),
    ),
    "another payout's txid": (Kind.RELEASED, Side.SELL, edit_of(Released, lambda _, r: Released(bytes(32)))),
}


@pytest.mark.parametrize("name", LATER)
async def test_bent_message_after_the_accept_is_refused(tmp_path: Path, name: str) -> None:
    kind, side, edit = LATER[name]
    _, refused = await attack(tmp_path, side, kind, edit)
    assert refused, name


HEADERS: dict[str, Callable[[Header], Header]] = {
    "a message that claims another past": lambda h: replace(h, prev=bytes([1]) * 32),
    "a message that saw what was never sent": lambda h: replace(h, seen=bytes([1]) * 32),
    "a message that skips one": lambda h: replace(h, number=h.number + 1),
    "a message of another trade": lambda h: replace(h, trade_id=bytes(32)),
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("kind", [Kind.ACCEPT, Kind.SEAL, Kind.PAID])
async def test_broken_chain_is_refused(tmp_path: Path, name: str, kind: Kind) -> None:
    _, refused = await attack(tmp_path, Side.SELL, kind, lambda _, m: (HEADERS[name](m.header), m.payload))
    assert refused
    assert isinstance(refused[0], OutOfOrder) == (name == "a message that skips one")


async def test_take_by_a_third_party_of_a_recorded_take_is_refused(tmp_path: Path) -> None:
    """A stranger that copies a take can't open a second trade with it: it changes nothing."""
    world = World(tmp_path, Side.SELL)
    try:
        await world.begin()
        await world.take()
        await world.until(lambda: world.phases("Funding"), "funding")
        raw = next(r for r in world.post.carried if open_envelope(r, NETWORK).kind == Kind.TAKE)
        before = len(world.maker.engine.trades.all())
        assert await world.maker.intake.deliver(bytes(32), raw) == b""
        assert len(world.maker.engine.trades.all()) == before
        copied = SigningKey(bytes([9]) * 32).seal(Kind.TAKE, NETWORK, open_envelope(raw, NETWORK).body)
        with pytest.raises(P2PError):
            await world.maker.intake.deliver(bytes(32), copied.raw)
    finally:
        await world.end()


async def test_one_coin_takes_one_offer_at_a_time(tmp_path: Path) -> None:
    """A single coin shown in every take could empty a maker's book for nothing."""
    world = World(tmp_path, Side.SELL)
    try:
        await world.begin()
        await world.take()
        await world.until(lambda: world.maker.trade is not None, "the first take")
        raw = next(r for r in world.post.carried if open_envelope(r, NETWORK).kind == Kind.TAKE)
        message = decode(open_envelope(raw, NETWORK))
        assert isinstance(message.payload, Take)
        again = replace(message.payload, party=replace(message.payload.party, nonce=bytes(32)))
        identity = trade_id(again.bargain.offer, again.party.persona, again.party.nonce)
        second = resign(world, message, replace(message.header, trade_id=identity), again)
        with pytest.raises(NoSuchCoins, match="pledged"):
            await world.maker.intake.deliver(bytes(32), second)
    finally:
        await world.end()
