"""PSBTs from files: what is damaged, changed, stale or of another trade never becomes a signature."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable

import pytest

from escrow.coins import TxOut
from escrow.funding import derive_funding
from escrow.hd import hash160
from escrow.keys import public_key
from escrow.payout import derive_payout
from escrow.psbt import (
    IN_FINAL_SCRIPT,
    IN_FINAL_WITNESS,
    IN_ORIGIN,
    IN_PARTIAL,
    IN_PREVIOUS,
    IN_SIGHASH,
    IN_SPENT,
    IN_TAP_INTERNAL,
    IN_TAP_SIGNATURE,
    IN_WITNESS_SCRIPT,
    MAX_PSBT,
    OUT_ORIGIN,
    BadPsbt,
    KeyOrigin,
    Psbt,
    StalePsbt,
    UnsignedPsbt,
    decode,
    encode,
    field,
    keyed,
    pack_output,
    pack_witness,
    read,
    text,
    unpack_witness,
)
from escrow.psbtplan import (
    OwnSpend,
    funding_psbt,
    own_psbt,
    own_rate,
    payout_of,
    payout_psbt,
    previous_by_txid,
    read_funding,
    read_own,
    read_payout,
)
from escrow.script import Role
from escrow.signatures import sign_ecdsa
from escrow.transactions import REPLACEABLE, Witness, build, p2wpkh_code, sighash_v0, vsize, with_witnesses
from protocol.outcome import ReleaseOutcome
from protocol.types import Branch, Side
from tests.unit.escrow_support import NETWORK, Deal, cancelled, coin, fixed, p2wpkh, ruled

DEAL = Deal(buyer_coins=(coin(100_000, "one"), coin(250_000, "two", taproot=True)))
CONTRACT = DEAL.contract()
FUNDING = derive_funding(CONTRACT, NETWORK)
PAYOUT = derive_payout(CONTRACT, NETWORK)
SIGNATURES = DEAL.signatures(CONTRACT, PAYOUT, Role.BUYER)
PREVIOUS = previous_by_txid(*(c.previous for c in (*DEAL.buyer_coins, *DEAL.seller_coins)))


def signed_payout() -> Psbt:
    return payout_psbt(CONTRACT, NETWORK, PAYOUT, SIGNATURES)


def signed_funding(side: Side = Side.BUY, *, final: bool = False) -> Psbt:
    """As a signing device gives it back."""
    psbt = funding_psbt(FUNDING, side, previous=PREVIOUS)
    inputs = [dict(fields) for fields in psbt.inputs]
    for index, witness in zip(FUNDING.indices(side), DEAL.witnesses(FUNDING, side), strict=True):
        if final:
            inputs[index][field(IN_FINAL_WITNESS)] = pack_witness(witness)
        elif len(witness) == 2:
            inputs[index][field(IN_PARTIAL, witness[1])] = witness[0]
        else:
            inputs[index][field(IN_TAP_SIGNATURE)] = witness[0]
    return Psbt(psbt.unsigned, tuple(inputs), psbt.outputs)


def with_input(psbt: Psbt, index: int, **changes: tuple[int, bytes]) -> Psbt:
    inputs = [dict(fields) for fields in psbt.inputs]
    inputs[index].update({field(kind): value for kind, value in changes.values()})
    return Psbt(psbt.unsigned, tuple(inputs), psbt.outputs, psbt.extra)


# --- the format --------------------------------------------------------------------------------------------------


def raw_psbt(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Our payout with these fields at its input, in this order: also what no dictionary can hold."""
    whole = {b"\x00": PAYOUT.unsigned}

    def packed(fields: list[tuple[bytes, bytes]]) -> bytes:
        return b"".join(bytes([len(k)]) + k + bytes([len(v)]) + v for k, v in fields) + b"\0"

    return b"psbt\xff" + packed(list(whole.items())) + packed(pairs) + b"\0" * len(PAYOUT.outputs)


# The faults of BIP174's invalid vectors, at the fields that we read.
@pytest.mark.parametrize(
    "pairs",
    [
        [(b"\x03", b"\x01\0\0\0"), (b"\x03", b"\x01\0\0\0")],
        [(b"\x03\0", b"\x01\0\0\0")],
        [(b"\x00\0", b"")],
        [(b"\x01\0", b"")],
        [(b"\x05\0", b"\x51")],
        [(b"\x08\0", b"\x00")],
        [(b"\x02" + PAYOUT.keys[0][:-1], b"")],
        [(b"\x02" + b"\x02" + b"\xff" * 32, b"")],
        [(b"\x06" + PAYOUT.keys[0] + b"\0", b"")],
        [(b"\xfc\x07p2p", b"")],
    ],
    ids=[
        "a field twice", "hash type's key", "previous transaction's key", "spent output's key", "script's key",
        "witness's key", "signature's key too short", "signature's key no point", "origin's key too long",
        "proprietary without a name",
    ],
)  # fmt: skip
def test_field_that_bip174_calls_invalid_is_refused(pairs: list[tuple[bytes, bytes]]) -> None:
    assert decode(raw_psbt([(b"\x03", b"\x01\0\0\0")])).inputs
    with pytest.raises(BadPsbt, match="damaged"):
        decode(raw_psbt(pairs))


@pytest.mark.parametrize("psbt", [signed_payout(), signed_funding(), signed_funding(final=True)])
def test_binary_and_base64_come_back_as_they_were(psbt: Psbt) -> None:
    raw = encode(psbt)
    broken_lines = b"\r\n".join(text(psbt).encode()[i : i + 64] for i in range(0, len(text(psbt)), 64))
    for form in (raw, text(psbt).encode(), broken_lines + b"\n"):
        assert encode(read(form)) == raw
    again = decode(raw)
    assert (again.unsigned, list(map(dict, again.inputs)), dict(again.extra)) == (
        psbt.unsigned,
        list(map(dict, psbt.inputs)),
        dict(psbt.extra),
    )


def test_fields_that_we_do_not_know_survive() -> None:
    """Another program's notes are its own; to drop them would break its next step."""
    psbt = with_input(signed_payout(), 0, unknown=(0xEE, b"theirs"))
    assert encode(decode(encode(psbt))) == encode(psbt)
    assert read_payout(PAYOUT, decode(encode(psbt))) == SIGNATURES


def bent(change: Callable[[bytes], bytes]) -> bytes:
    return change(encode(signed_payout()))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"psbt",
        b"psbt\xff",
        b"psbt\xff\x00",
        bent(lambda raw: raw[:-1]),
        bent(lambda raw: raw + b"\0"),
        bent(lambda raw: raw.replace(b"psbt\xff", b"psbt\xfe")),
        bent(lambda raw: raw[:5] + b"\x01\xfb\x04\x02\0\0\0" + raw[5:]),
        bent(lambda raw: raw[:5] + b"\xff" * 9),
        bent(lambda raw: raw[:5] + b"\xfd\x01\x00" + raw[6:]),
        bytes(MAX_PSBT + 1),
        b"psbt\xff" + bytes(MAX_PSBT),
        b"cHNidP8=" * (MAX_PSBT // 4),
    ],
    ids=[
        "nothing", "half of the magic", "magic alone", "no transaction", "cut", "longer", "other magic", "version 2",
        "endless length",
        "length not in its shortest form", "large", "large with magic", "large in Base64",
    ],
)  # fmt: skip
def test_damaged_bytes_are_refused_in_one_line(raw: bytes) -> None:
    with pytest.raises(BadPsbt) as told:
        read(raw)
    assert "\n" not in told.value.detail


def test_random_damage_never_raises_anything_else_nor_yields_a_wrong_signature() -> None:
    chance = random.Random(11)
    for psbt, look in (
        (signed_payout(), lambda p: read_payout(PAYOUT, p)),
        (signed_funding(), lambda p: read_funding(FUNDING, Side.BUY, p)),
        (signed_funding(final=True), lambda p: read_funding(FUNDING, Side.BUY, p)),
    ):
        whole, right = encode(psbt), look(psbt)
        for _ in range(400):
            at = chance.randrange(len(whole))
            changed = whole[:at] + bytes([chance.randrange(256)]) + whole[at + chance.randrange(2) :]
            try:
                found = look(decode(changed))
            except (BadPsbt, StalePsbt, UnsignedPsbt):
                continue
            assert found in (right, {})


def test_transaction_that_is_signed_already_is_no_psbt() -> None:
    script_sig = bytearray(PAYOUT.unsigned)
    at = 4 + 1 + 36
    signed = bytes(script_sig[:at]) + b"\x01\x51" + bytes(script_sig[at + 1 :])
    psbt = signed_payout()
    with pytest.raises(BadPsbt, match="must be unsigned"):
        decode(encode(Psbt(signed, psbt.inputs, psbt.outputs)))


@pytest.mark.parametrize("stack", [(), (b"",), (b"a" * 300, b"", b"b")])
def test_witness_stacks_come_back(stack: Witness) -> None:
    assert unpack_witness(pack_witness(stack)) == stack
    for damaged in (pack_witness(stack) + b"\0", b"\x05" + pack_witness(stack)[1:]):
        with pytest.raises(BadPsbt):
            unpack_witness(damaged)


# --- funding -----------------------------------------------------------------------------------------------------


def test_export_tells_a_device_all_that_it_asks_for() -> None:
    origin = KeyOrigin(b"\x02" + bytes(32), b"\x01\x02\x03\x04", (0x80000054, 0, 5))
    scripts = [c.spent.script_pubkey for c in DEAL.buyer_coins]
    change = CONTRACT.buyer.change_script
    assert change is not None
    psbt = funding_psbt(FUNDING, Side.BUY, previous=PREVIOUS, origins=dict.fromkeys([*scripts, change], origin))
    packed = bytes.fromhex("01020304" + "54000080" + "00000000" + "05000000")
    for planned, fields in zip(FUNDING.inputs, psbt.inputs, strict=True):
        # Of all inputs the amounts, so that the fee can be shown, and the whole transactions that prove them.
        assert fields[field(IN_SPENT)] == pack_output(planned.spent)
        assert fields[field(IN_PREVIOUS)] == PREVIOUS[planned.outpoint.txid]
        own_key = (
            field(IN_ORIGIN, origin.public) if planned.spent.script_pubkey == scripts[0] else field(IN_TAP_INTERNAL)
        )
        assert (own_key in fields) == (planned.side is Side.BUY)
    told = [o.owner for o, fields in zip(FUNDING.outputs, psbt.outputs, strict=True) if fields]
    assert told == [Role.BUYER]
    assert {field(OUT_ORIGIN, origin.public): packed} in list(map(dict, psbt.outputs))


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("side", Side)
def test_import_gives_the_witnesses_that_messages_carry(side: Side, final: bool) -> None:
    psbt = read(text(signed_funding(side, final=final)).encode())
    assert read_funding(FUNDING, side, psbt) == DEAL.witnesses(FUNDING, side)


def test_import_without_our_signatures_says_which_coin_lacks_one() -> None:
    for psbt in (funding_psbt(FUNDING, Side.BUY), signed_funding(Side.SELL)):
        with pytest.raises(UnsignedPsbt, match=str(FUNDING.inputs[FUNDING.indices(Side.BUY)[0]].outpoint)):
            read_funding(FUNDING, Side.BUY, psbt)


def test_import_of_another_trade_is_stale() -> None:
    other = Deal(name="other", buyer_coins=DEAL.buyer_coins, seller_coins=DEAL.seller_coins)
    plan = derive_funding(other.contract(), NETWORK)
    with pytest.raises(StalePsbt):
        read_funding(plan, Side.BUY, signed_funding())


def changed_value(index: int) -> tuple[int, bytes]:
    spent = FUNDING.inputs[index].spent
    return IN_SPENT, pack_output(TxOut(spent.value + 1, spent.script_pubkey))


@pytest.mark.parametrize(
    "change",
    [
        changed_value(0),
        (IN_SPENT, b""),
        (IN_PREVIOUS, coin(1, "foreign").previous),
        (IN_PREVIOUS, b"\0"),
        (IN_SIGHASH, (0x81).to_bytes(4, "little")),
        (IN_SIGHASH, b""),
    ],
)
@pytest.mark.parametrize("index", range(3))
def test_import_that_contradicts_the_contract_anywhere_is_refused(index: int, change: tuple[int, bytes]) -> None:
    """Also at the counterparty's inputs: then somebody showed the user another fee than the real one."""
    with pytest.raises(BadPsbt):
        read_funding(FUNDING, Side.BUY, with_input(signed_funding(), index, bad=change))


@pytest.mark.parametrize("position", [0, 1])
def test_import_with_a_wrong_signature_is_refused(position: int) -> None:
    index = FUNDING.indices(Side.BUY)[position]
    (witness,) = (DEAL.witnesses(FUNDING, Side.BUY)[position],)
    item = bytearray(witness[0])
    item[20] ^= 1
    bad = pack_witness((bytes(item), *witness[1:]))
    with pytest.raises(BadPsbt, match="not valid"):
        read_funding(FUNDING, Side.BUY, with_input(signed_funding(), index, bad=(IN_FINAL_WITNESS, bad)))
    with pytest.raises(BadPsbt, match="native segwit"):
        read_funding(FUNDING, Side.BUY, with_input(signed_funding(), index, bad=(IN_FINAL_SCRIPT, b"\x51")))


# --- payouts -----------------------------------------------------------------------------------------------------


def test_payout_says_what_it_is_and_is_derived_again() -> None:
    for outcome in (
        PAYOUT.outcome,
        ReleaseOutcome(12_345),
        cancelled(CONTRACT),
        ruled(300_000, 50_000, branch=Branch.BACKUP),
    ):
        plan = derive_payout(CONTRACT, NETWORK, outcome)
        psbt = read(text(payout_psbt(CONTRACT, NETWORK, plan)).encode())
        assert payout_of(CONTRACT, NETWORK, psbt) == plan
        assert read_payout(plan, psbt) == {}


def test_payout_that_lies_about_what_it_is_is_stale() -> None:
    """The hint says refund, the transaction releases: what is shown to the user is what is signed, or nothing is."""
    refund = payout_psbt(CONTRACT, NETWORK, derive_payout(CONTRACT, NETWORK, cancelled(CONTRACT)))
    release = signed_payout()
    liar = Psbt(release.unsigned, release.inputs, release.outputs, refund.extra)
    plan = payout_of(CONTRACT, NETWORK, liar)
    with pytest.raises(StalePsbt):
        read_payout(plan, liar)


def test_payout_without_or_with_a_damaged_hint_is_refused() -> None:
    psbt = signed_payout()
    (key,) = psbt.extra
    for extra in ({}, {key: b"{}"}, {key: b"\xff"}, {key: b'{"outcome":{"type":"release"},"more":1}'}):
        with pytest.raises(BadPsbt):
            payout_of(CONTRACT, NETWORK, Psbt(psbt.unsigned, psbt.inputs, psbt.outputs, extra))


def test_payout_with_a_foreign_key_script_or_hash_is_refused() -> None:
    stranger = fixed("stranger")
    foreign = dict(signed_payout().inputs[0]) | {
        field(IN_PARTIAL, public_key(stranger)): SIGNATURES[Role.BUYER] + b"\x01"
    }
    with pytest.raises(BadPsbt, match="not one of this escrow's"):
        read_payout(PAYOUT, Psbt(PAYOUT.unsigned, (foreign,), signed_payout().outputs))
    with pytest.raises(BadPsbt, match="another escrow script"):
        read_payout(PAYOUT, with_input(signed_payout(), 0, script=(IN_WITNESS_SCRIPT, b"\x51")))
    spent = TxOut(PAYOUT.escrow_value, p2wpkh(stranger))
    with pytest.raises(BadPsbt, match="another value or script"):
        read_payout(PAYOUT, with_input(signed_payout(), 0, spent=(IN_SPENT, pack_output(spent))))
    with pytest.raises(BadPsbt, match="finalised already"):
        read_payout(PAYOUT, with_input(signed_payout(), 0, final=(IN_FINAL_WITNESS, pack_witness((b"",)))))


def test_signature_of_one_role_under_anothers_key_is_refused() -> None:
    fields = {field(IN_PARTIAL, PAYOUT.keys[Role.SELLER]): SIGNATURES[Role.BUYER] + b"\x01"}
    with pytest.raises(BadPsbt, match="the seller's signature"):
        read_payout(PAYOUT, Psbt(PAYOUT.unsigned, (fields,), signed_payout().outputs))


def test_escrow_keys_are_told_as_single_keys() -> None:
    fields = signed_payout().inputs[0]
    assert {fields[field(IN_ORIGIN, key)] for key in PAYOUT.keys} == {hash160(key)[:4] for key in PAYOUT.keys}


def test_base64_with_foreign_characters_is_refused() -> None:
    good = base64.b64encode(encode(signed_payout()))
    with pytest.raises(BadPsbt):
        read(good[:20] + b"!" + good[20:])


# --- coins of our own, outside of a contract ---------------------------------------------------------------------

OWN = [coin(70_000, "own one"), coin(80_000, "own two")]
RECLAIM = OwnSpend(
    build([(c.outpoint, REPLACEABLE) for c in OWN], [TxOut(149_000, p2wpkh(fixed("back")))]),
    tuple(c.spent for c in OWN),
    tuple(c.previous for c in OWN),
    1_000,
)


def reclaim(*, signed: int = 2, unsigned: bytes = RECLAIM.unsigned, flip: bool = False, raw: bytes = b"") -> Psbt:
    """The reclaim with some of its inputs signed; `unsigned` replaces its transaction, `flip` bends a signature."""
    psbt = own_psbt(RECLAIM, {})
    inputs = [dict(fields) for fields in psbt.inputs]
    for index, one in enumerate(OWN[:signed]):
        code = p2wpkh_code(one.spent.script_pubkey)
        der = sign_ecdsa(one.secret, sighash_v0(RECLAIM.unsigned, index, code, one.spent.value))
        if flip and index == 1:
            der = der[:20] + bytes([der[20] ^ 1]) + der[21:]
        inputs[index][field(IN_PARTIAL, public_key(one.secret))] = der + b"\x01"
    if raw:
        inputs[0][field(IN_PREVIOUS)] = raw
    return Psbt(unsigned, tuple(inputs), psbt.outputs)


def test_reclaim_tells_a_device_all_and_comes_back_signed() -> None:
    asked = own_psbt(RECLAIM, {OWN[0].spent.script_pubkey: KeyOrigin(public_key(OWN[0].secret), b"abcd", (1, 2))})
    assert all({field(IN_SPENT), field(IN_PREVIOUS)} <= set(fields) for fields in asked.inputs)
    assert keyed(asked.inputs[0], IN_ORIGIN)
    witnesses = read_own(asked, reclaim())
    assert [w[1] for w in witnesses] == [public_key(c.secret) for c in OWN]
    size = vsize(with_witnesses(RECLAIM.unsigned, witnesses))
    assert own_rate(asked) == pytest.approx(1_000 * 1_000 / size, rel=0.01)


def test_reclaim_that_is_unsigned_bent_stale_or_lies_is_refused() -> None:
    asked = own_psbt(RECLAIM, {})
    with pytest.raises(UnsignedPsbt):
        read_own(asked, reclaim(signed=1))
    with pytest.raises(BadPsbt, match="not valid"):
        read_own(asked, reclaim(flip=True))
    other = build([(c.outpoint, REPLACEABLE) for c in OWN], [TxOut(149_000, p2wpkh(fixed("thief")))])
    with pytest.raises(StalePsbt):
        read_own(asked, reclaim(unsigned=other))
    with pytest.raises(BadPsbt, match="another previous transaction"):
        read_own(asked, reclaim(raw=OWN[1].previous))
    damaged = Psbt(asked.unsigned, ({}, {}), asked.outputs)
    with pytest.raises(BadPsbt, match="damaged"):
        read_own(damaged, reclaim())
