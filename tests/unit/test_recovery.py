"""Recovery: a mnemonic and a contract file move the escrow by each legal path, and by no other."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from escrow.coins import txid_text
from escrow.errors import BadPayout, BadPayoutSignature, GateRefused
from escrow.payout import RELEASE, derive_payout
from escrow.psbtplan import read_payout
from escrow.recovery import NotInContract, NotOurs, NotYetLegal, Signer, check_open, find_signer, opens_at, recover
from escrow.script import Role
from escrow.seed import Seed, mnemonic_from_entropy
from escrow.verify import gate_payout
from p2pnode.contractfile import BadContractFile, ContractDirectory, ContractFile, HeldSignature, dump, load, parse
from protocol.outcome import Outcome, ReleaseOutcome
from protocol.types import Branch, EscrowType, Network
from tests.unit.escrow_support import NETWORK, cancelled, fixed, ruled, settled
from tests.unit.recovery_support import SeededDeal, escrow_of

DEAL = SeededDeal()
CONTRACT = DEAL.contract()
MAIN, BACKUP = Branch.MAIN, Branch.BACKUP
PARTIES = (Role.BUYER, Role.SELLER)
SEATS = [(Role.BUYER, MAIN), (Role.SELLER, MAIN), (Role.ARBITER, MAIN), (Role.ARBITER, BACKUP)]
"""Everybody with a mnemonic in the contract."""


class TestWhoIsWho:
    @pytest.mark.parametrize(("role", "branch"), SEATS)
    def test_each_mnemonic_finds_its_place(self, role: Role, branch: Branch) -> None:
        signer = find_signer(DEAL.seed(role, branch), CONTRACT, NETWORK)
        assert signer.role is role
        assert signer.branches == ((branch,) if role is Role.ARBITER else (MAIN, BACKUP))
        assert "Signer" in repr(signer)
        assert DEAL.secret(role, branch).hex() not in repr(signer)

    def test_a_second_persona_as_arbiter_is_found(self) -> None:
        """A node may announce itself under any of its personas."""

        class Second(SeededDeal):
            def secret(self, role: Role, branch: Branch = MAIN) -> bytes:
                return (
                    self.seed(role, branch).arbiter_base_key(3)
                    if role is Role.ARBITER
                    else super().secret(role, branch)
                )

        contract = Second().contract()
        signer = find_signer(DEAL.seed(Role.ARBITER), contract, NETWORK)
        plan = derive_payout(contract, NETWORK, ruled(0))
        assert recover(contract, NETWORK, plan, signer, {}).signatures.keys() == {Role.ARBITER}

    def test_strangers_mnemonic_is_refused(self) -> None:
        with pytest.raises(NotInContract):
            find_signer(Seed.from_mnemonic(mnemonic_from_entropy(bytes(32))), CONTRACT, NETWORK)

    def test_right_words_with_a_passphrase_that_does_not_belong_to_them_are_refused(self) -> None:
        with pytest.raises(NotInContract):
            find_signer(Seed.from_mnemonic(DEAL.words(Role.BUYER), "x"), CONTRACT, NETWORK)

    def test_words_of_another_trade_of_the_same_people_do_not_sign_this_one(self) -> None:
        """The keys are fresh in each trade; the mnemonic is the same."""
        other = SeededDeal(name="another")
        with pytest.raises(NotInContract):
            find_signer(other.seed(Role.BUYER), CONTRACT, NETWORK)


OUTCOMES: list[Outcome] = [
    RELEASE,
    cancelled(CONTRACT),
    settled(700_000),
    ruled(700_000, 200_000),
    ruled(0, branch=BACKUP),
]


class TestPaths:
    @pytest.mark.parametrize("outcome", OUTCOMES, ids=["release", "refund", "settlement", "ruling", "backup"])
    @pytest.mark.parametrize("first", [0, 1])
    def test_two_people_complete_each_path_in_either_order(self, outcome: Outcome, first: int) -> None:
        plan = derive_payout(CONTRACT, NETWORK, outcome)
        people = PARTIES if plan.keys is plan.escrow.main and outcome in OUTCOMES[:3] else (Role.BUYER, Role.ARBITER)
        one, two = people[first], people[1 - first]
        half = recover(CONTRACT, NETWORK, plan, self.signer(one, plan.branch), {})
        assert half.tx is None
        assert half.missing
        given = read_payout(plan, half.psbt)
        whole = recover(CONTRACT, NETWORK, plan, self.signer(two, plan.branch), given)
        assert whole.tx is not None
        assert not whole.missing
        gate_payout(CONTRACT, NETWORK, whole.tx, outcome)

    def test_release_at_a_higher_rate_within_the_band(self) -> None:
        plan = derive_payout(CONTRACT, NETWORK, ReleaseOutcome(20_000))
        half = recover(CONTRACT, NETWORK, plan, self.signer(Role.SELLER), {})
        whole = recover(CONTRACT, NETWORK, plan, self.signer(Role.BUYER), half.signatures)
        assert whole.tx is not None
        with pytest.raises(BadPayout):
            derive_payout(CONTRACT, NETWORK, ReleaseOutcome(CONTRACT.fees.payout_max + 1))

    @pytest.mark.parametrize("outcome", OUTCOMES[:3])
    def test_arbiter_does_not_sign_what_is_for_the_parties_to_agree_on(self, outcome: Outcome) -> None:
        """On chain its signature would do, together with either party's."""
        plan = derive_payout(CONTRACT, NETWORK, outcome)
        with pytest.raises(NotOurs, match="rulings only"):
            recover(CONTRACT, NETWORK, plan, self.signer(Role.ARBITER), {})

    def test_arbiters_do_not_sign_in_each_others_branch(self) -> None:
        for own, other in ((MAIN, BACKUP), (BACKUP, MAIN)):
            plan = derive_payout(CONTRACT, NETWORK, ruled(0, branch=other))
            with pytest.raises(NotOurs, match="main" if other is MAIN else "backup"):
                recover(CONTRACT, NETWORK, plan, self.signer(Role.ARBITER, own), {})

    def test_both_parties_without_the_arbiter_do_not_make_a_ruling(self) -> None:
        plan = derive_payout(CONTRACT, NETWORK, ruled(0))
        given = recover(CONTRACT, NETWORK, plan, self.signer(Role.BUYER), {}).signatures
        done = recover(CONTRACT, NETWORK, plan, self.signer(Role.SELLER), given)
        assert done.tx is None
        assert done.missing == (Role.ARBITER,)

    def test_release_with_a_signature_of_party_and_arbiter_is_not_complete(self) -> None:
        plan = derive_payout(CONTRACT, NETWORK)
        given = DEAL.signatures(CONTRACT, plan, Role.ARBITER)
        done = recover(CONTRACT, NETWORK, plan, self.signer(Role.SELLER), given)
        assert done.tx is None
        assert done.missing == (Role.BUYER,)

    @pytest.mark.parametrize("role", PARTIES)
    def test_ruling_that_all_three_signed_takes_two_signatures(self, role: Role) -> None:
        plan = derive_payout(CONTRACT, NETWORK, ruled(0))
        given = DEAL.signatures(CONTRACT, plan, *Role)
        done = recover(CONTRACT, NETWORK, plan, self.signer(role), given)
        assert set(done.signatures) == {role, Role.ARBITER}
        assert done.tx is not None

    def test_foreign_signature_is_refused_not_assembled(self) -> None:
        plan = derive_payout(CONTRACT, NETWORK)
        other = DEAL.signatures(CONTRACT, derive_payout(CONTRACT, NETWORK, cancelled(CONTRACT)), Role.BUYER)
        with pytest.raises(BadPayoutSignature):
            recover(CONTRACT, NETWORK, plan, self.signer(Role.SELLER), other)

    def test_foreign_signature_does_not_travel_on_in_a_psbt_that_is_not_complete(self) -> None:
        plan = derive_payout(CONTRACT, NETWORK, ruled(0))
        other = DEAL.signatures(CONTRACT, derive_payout(CONTRACT, NETWORK), Role.BUYER)
        with pytest.raises(BadPayoutSignature):
            recover(CONTRACT, NETWORK, plan, self.signer(Role.SELLER), other)

    def test_nothing_is_given_out_that_the_gates_refuse(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A fault in how a payout is put together must not reach the user as a transaction."""
        plan = derive_payout(CONTRACT, NETWORK)
        given = DEAL.signatures(CONTRACT, plan, Role.BUYER)
        monkeypatch.setattr("escrow.recovery.assemble_payout", lambda *_: plan.unsigned)
        with pytest.raises(GateRefused):
            recover(CONTRACT, NETWORK, plan, self.signer(Role.SELLER), given)

    def test_backup_branch_is_not_attempted_before_it_opens(self) -> None:
        plan = derive_payout(CONTRACT, NETWORK, ruled(0, branch=BACKUP))
        assert opens_at(CONTRACT, plan, 500) == 1508
        check_open(CONTRACT, plan, 500, 1507)
        with pytest.raises(NotYetLegal, match=r"block 1,508, 1 blocks from now"):
            check_open(CONTRACT, plan, 500, 1506)
        check_open(CONTRACT, derive_payout(CONTRACT, NETWORK), 500, 500)

    @staticmethod
    def signer(role: Role, branch: Branch = MAIN) -> Signer:
        return find_signer(DEAL.seed(role, branch), CONTRACT, NETWORK)


class TestContractFile:
    FILE = DEAL.file(
        height=812,
        held=(
            DEAL.held(Role.SELLER),
            DEAL.held(Role.SELLER, settled(5)),
            DEAL.held(Role.ARBITER, ruled(0, branch=BACKUP)),
        ),
    )

    def test_comes_back_as_it_was_written(self) -> None:
        assert parse(dump(self.FILE)) == self.FILE
        bare = ContractFile(CONTRACT, NETWORK, self.FILE.side)
        assert parse(dump(bare)) == bare

    def test_single_funded_contract_of_type_1_comes_back(self) -> None:
        file = SeededDeal(buyer_deposit=0, seller_deposit=0, escrow_type=EscrowType.WSH_2OF3).file()
        assert parse(dump(file)) == file

    def test_tells_a_person_where_the_escrow_is(self) -> None:
        shown = json.loads(dump(self.FILE))
        assert shown["escrow"] == escrow_of(self.FILE)
        assert shown["escrow"].startswith(txid_text(derive_payout(CONTRACT, NETWORK).escrow_outpoint.txid))

    def test_every_damaged_character_of_the_contract_is_seen(self) -> None:
        """Whatever is flipped in the file: it is refused, or means the same."""
        raw = dump(self.FILE)
        chance = random.Random(7)
        for _ in range(400):
            at, bit = chance.randrange(len(raw)), 1 << chance.randrange(8)
            bent = raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :]
            try:
                read = parse(bent)
            except BadContractFile:
                continue
            assert (read.contract, read.network, read.signatures) == (CONTRACT, NETWORK, self.FILE.signatures), (
                at,
                bit,
            )

    @pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", b"{" * 10_000, bytes(300_000)])
    def test_other_bytes_are_refused_in_one_line(self, raw: bytes) -> None:
        with pytest.raises(BadContractFile) as told:
            parse(raw)
        assert "\n" not in told.value.detail

    @pytest.mark.parametrize(
        ("field", "value", "why"),
        [
            ("p2pnode-contract", 2, "known version"),
            ("network", "signet", "another network"),
            ("contract_id", "00" * 32, "another id"),
            ("trade_id", "00" * 32, "another trade"),
            ("escrow", "00" * 32 + ":0", "another escrow"),
            ("address", "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080", "another escrow"),
            ("maker_signature", "00" * 64, "signed"),
            ("taker_signature", "00" * 64, "signed"),
            ("contract", "90", "damaged"),
            ("side", "both", "known version"),
            ("more", 1, "known version"),
        ],
    )
    def test_changed_field_is_refused(self, field: str, value: object, why: str) -> None:
        document = json.loads(dump(self.FILE))
        document[field] = value
        with pytest.raises(BadContractFile, match=why):
            parse(json.dumps(document).encode())

    def test_contract_that_nobody_may_sign_is_refused(self) -> None:
        """Its id is right; a key in it is one whose holder never proved to hold it."""
        keys = replace(CONTRACT.seller.keys, main_proof=CONTRACT.buyer.keys.main_proof)
        contract = replace(CONTRACT, seller=replace(CONTRACT.seller, keys=keys))
        with pytest.raises(BadContractFile, match="did not prove"):
            parse(dump(ContractFile(contract, NETWORK, self.FILE.side)))

    def test_signature_that_is_not_valid_for_its_payout_is_refused(self) -> None:
        ours = DEAL.held(Role.SELLER)
        for wrong in (
            HeldSignature(Role.BUYER, ours.outcome, ours.signature),
            HeldSignature(Role.SELLER, cancelled(CONTRACT), ours.signature),
            HeldSignature(Role.SELLER, ReleaseOutcome(5_000), ours.signature),
        ):
            with pytest.raises(BadContractFile):
                parse(dump(DEAL.file(held=(wrong,))))

    def test_contract_of_another_trade_under_this_id_leads_nowhere(self) -> None:
        """Who rewrites the file wholly gets another escrow, which holds nothing; never this one at other scripts."""
        forged = SeededDeal(scripts={"buyer payout": b"\x00\x14" + fixed("thief")[:20]})
        assert escrow_of(forged.file()) != escrow_of(self.FILE)

    def test_missing_file_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(BadContractFile, match="can't be read"):
            load(tmp_path / "none.json")

    def test_file_is_private(self, tmp_path: Path) -> None:
        folder = ContractDirectory(tmp_path / "contracts")
        assert folder.path(bytes(32)).name == "00" * 32 + ".json"


def test_every_pair_that_may_sign_completes_and_no_other_does() -> None:
    """All outcomes, all pairs of people with mnemonics: complete exactly where the contract's rules say so."""
    for outcome in OUTCOMES:
        plan = derive_payout(CONTRACT, NETWORK, outcome)
        for (one, first), (two, second) in itertools.combinations(SEATS, 2):
            complete = None
            try:
                given = recover(CONTRACT, NETWORK, plan, TestPaths.signer(one, first), {}).signatures
                complete = recover(CONTRACT, NETWORK, plan, TestPaths.signer(two, second), given).tx
            except NotOurs:
                pass
            arbiters = [branch for role, branch in ((one, first), (two, second)) if role is Role.ARBITER]
            legal = arbiters == ([] if outcome in OUTCOMES[:3] else [plan.branch])
            assert (complete is not None) == legal, (outcome, one, two)


def test_networks_are_part_of_the_contract() -> None:
    """The same contract on another network has other keys of the arbiter, so another escrow."""
    assert derive_payout(CONTRACT, Network.SIGNET).escrow_outpoint != derive_payout(CONTRACT, NETWORK).escrow_outpoint
