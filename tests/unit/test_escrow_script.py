"""Scripts that other wallets read as we do, and nothing else taken for one."""

from __future__ import annotations

from hashlib import sha256

import bdkpython as bdk
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from escrow.address import address_of
from escrow.errors import BadArbiterKey, BadEscrowTerms
from escrow.keys import public_key
from escrow.script import EscrowScript, Role, build_script, decode_script, escrow_script, script_size
from protocol.contract import contract_id
from protocol.types import Branch, EscrowType, Network, Side
from tests.unit.escrow_support import NETWORK, Deal, fixed

B, S, A, B2, S2, A2 = (public_key(fixed("script key", i)) for i in range(6))
ONE = build_script((B, S, A), None, 0)
TWO = build_script((B, S, A), (B2, S2, A2), 1008)
DELAYS = (1, 16, 17, 127, 128, 255, 256, 1008, 32_767, 32_768, 65_535)


def multi(*keys: bytes) -> bytes:
    return b"\x52" + b"".join(b"\x21" + key for key in keys) + b"\x53\xae"


def test_scripts_are_these_bytes() -> None:
    assert ONE.witness_script == multi(B, S, A)
    assert TWO.witness_script == b"\x63" + multi(B, S, A) + b"\x67\x02\xf0\x03\xb2\x69" + multi(B2, S2, A2) + b"\x68"
    for script in (ONE, TWO):
        assert script.script_pubkey == b"\x00\x20" + sha256(script.witness_script).digest()


@pytest.mark.parametrize("delay", DELAYS)
def test_every_delay_is_pushed_in_the_shortest_way(delay: int) -> None:
    """Another push of the same number is another script, and nodes do not relay its spend."""
    script = build_script((B, S, A), (B2, S2, A2), delay)
    assert script_size(EscrowType.WSH_2OF3_BACKUP, delay) == len(script.witness_script)
    assert decode_script(script.witness_script) == script
    known = bdk.Descriptor(script.descriptor, bdk.NetworkKind.TEST)
    assert str(known.derive_address(0, bdk.Network.REGTEST)) == address_of(script.script_pubkey, Network.REGTEST)


def test_descriptor_of_one_arbiter_is_what_bdk_reads() -> None:
    known = bdk.Descriptor(ONE.descriptor, bdk.NetworkKind.MAIN)
    assert str(known.derive_address(0, bdk.Network.BITCOIN)) == address_of(ONE.script_pubkey, Network.MAINNET)
    known.sanity_check()


def test_display_names_every_operation() -> None:
    assert ONE.asm == ("OP_2", B.hex(), S.hex(), A.hex(), "OP_3", "OP_CHECKMULTISIG")
    assert TWO.asm[0] == "OP_IF"
    assert TWO.asm[7:11] == ("OP_ELSE", "1008", "OP_CHECKSEQUENCEVERIFY", "OP_VERIFY")
    assert build_script((B, S, A), (B2, S2, A2), 7).asm[8] == "OP_7"


@pytest.mark.parametrize("script", [ONE, TWO], ids=["one", "two"])
def test_other_scripts_are_not_taken_for_an_escrow(script: EscrowScript) -> None:
    raw = script.witness_script
    assert decode_script(raw) == script
    foreign = [
        b"",
        raw[:-1],
        raw + b"\x51",
        b"\x51" + raw[1:],
        raw.replace(b"\x53\xae", b"\x53\xaf"),
        raw.replace(b"\x21" + S, b"\x21" + B),
        raw.replace(S, b"\x02" + b"\xff" * 32),
        raw.replace(b"\x02\xf0\x03", b"\x03\xf0\x03\x00"),
        raw.replace(b"\xb2\x69", b"\xb1\x69"),
        raw.replace(b"\x52", b"\x51", 1),
        bytes(len(raw)),
    ]
    for other in foreign:
        if other != raw:
            with pytest.raises(ValueError, match=r"."):
                decode_script(other)


@given(st.binary(max_size=240))
def test_random_bytes_are_refused_in_one_way(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_script(raw)


@pytest.mark.parametrize(
    ("main", "backup", "delay"),
    [
        ((B, B, A), None, 0),
        ((B, S, b"\x03" + B[1:] if B[0] == 2 else b"\x02" + B[1:]), None, 0),
        ((B, S, A), (B2, S2, A), 1008),
        ((B, S, A), (B2, S2, B), 1008),
        ((B, S, bytes(33)), None, 0),
        ((B, S, A), None, 1008),
        ((B, S, A), (B2, S2, A2), 0),
        ((B, S, A), (B2, S2, A2), 65_536),
    ],
    ids=["twice", "mirrored", "arbiter twice", "across branches", "no point", "delay alone", "no delay", "too long"],
)
def test_escrows_that_could_be_spent_otherwise_are_refused(
    main: tuple[bytes, bytes, bytes], backup: tuple[bytes, bytes, bytes] | None, delay: int
) -> None:
    with pytest.raises(ValueError, match=r"."):
        build_script(main, backup, delay)


@pytest.mark.parametrize(("branch", "selector"), [(Branch.MAIN, b"\x01"), (Branch.BACKUP, b"")])
def test_witness_has_signatures_in_the_order_of_the_keys(branch: Branch, selector: bytes) -> None:
    witness = TWO.witness(branch, {Role.ARBITER: b"\x0a", Role.BUYER: b"\x0b"})
    assert witness == (b"", b"\x0b\x01", b"\x0a\x01", selector, TWO.witness_script)
    assert ONE.witness(Branch.MAIN, {Role.SELLER: b"\x0a", Role.BUYER: b"\x0b"}) == (
        b"",
        b"\x0b\x01",
        b"\x0a\x01",
        ONE.witness_script,
    )


def test_one_or_three_signatures_and_a_missing_branch_make_no_witness() -> None:
    for signers in ([Role.BUYER], list(Role)):
        with pytest.raises(ValueError, match="two"):
            TWO.witness(Branch.MAIN, dict.fromkeys(signers, b"\x0a"))
    with pytest.raises(ValueError, match="backup"):
        ONE.witness(Branch.BACKUP, dict.fromkeys([Role.BUYER, Role.SELLER], b"\x0a"))


class TestOfAContract:
    def test_arbiter_key_depends_on_every_word_of_the_contract(self) -> None:
        """So an arbiter's signature can't be carried from one contract to another."""
        contract = Deal().contract()
        first = escrow_script(contract, NETWORK)
        other = escrow_script(replace(contract, price=contract.price + 1), NETWORK)
        assert first.main[:2] == other.main[:2]
        assert first.main[Role.ARBITER] != other.main[Role.ARBITER]
        assert escrow_script(contract, Network.SIGNET).main[Role.ARBITER] != first.main[Role.ARBITER]

    def test_no_public_data_gives_the_arbiters_key(self) -> None:
        """The announcement is public; the key on chain is neither its base point nor the other trade's key."""
        deals = [Deal(name=f"deal {i}") for i in range(3)]
        contracts = [deal.contract() for deal in deals]
        keys = {escrow_script(c, NETWORK).main[Role.ARBITER] for c in contracts}
        assert len(keys) == 3
        assert not keys & {c.arbiter.base_point for c in contracts}

    def test_keys_stand_at_their_places(self) -> None:
        deal = Deal()
        contract = deal.contract()
        script = escrow_script(contract, NETWORK)
        for branch in Branch:
            expected = tuple(public_key(deal.signer(contract, role, branch)) for role in Role)
            assert script.keys(branch) == expected
        assert script.delay == contract.backup_delay

    def test_type_and_backup_arbiter_must_fit(self) -> None:
        contract = Deal().contract()
        for broken in (replace(contract, backup=None), replace(contract, escrow_type=EscrowType.WSH_2OF3)):
            with pytest.raises(BadEscrowTerms, match="backup"):
                escrow_script(broken, NETWORK)

    def test_peer_that_copies_our_key_is_refused(self) -> None:
        contract = Deal().contract()
        copied = replace(contract.buyer, keys=contract.seller.keys)
        with pytest.raises(BadEscrowTerms, match="different"):
            escrow_script(replace(contract, buyer=copied), NETWORK)

    def test_bad_base_point_is_refused(self) -> None:
        contract = Deal().contract()
        with pytest.raises(BadArbiterKey):
            escrow_script(replace(contract, arbiter=replace(contract.arbiter, base_point=bytes(33))), NETWORK)

    def test_each_contract_has_its_own_id(self) -> None:
        deal = Deal()
        assert contract_id(deal.contract(), NETWORK) == contract_id(deal.contract(), NETWORK)
        assert deal.party(Side.BUY).keys.main != deal.party(Side.SELL).keys.main
