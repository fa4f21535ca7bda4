"""Every path of an escrow spent on a real chain by `p2pnode recover` alone: mnemonic and contract file, nothing else.

Each command runs in a process of its own that has no network device but a dead loopback (`unshare --net`, where the
machine allows it), in which opening a socket or a database ends the process at once. Only the test broadcasts.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from escrow.address import address_of
from escrow.script import Role
from p2pnode.contractfile import HeldSignature, dump
from p2pnode.regtest import RegtestNode
from protocol.types import Branch, EscrowType, Network, Side
from tests.regtest.test_escrow_onchain import CHEAPEST, RATE, accepted, fund, real_coin
from tests.unit.escrow_support import NETWORK, fixed, p2wpkh, ruled, settled
from tests.unit.recovery_support import SeededDeal

ROOT = Path(__file__).parents[2]
FEE_TO = p2wpkh(fixed("arbiter's own wallet"))

ALONE = """
import sys
def refuse(event, args):
    if event.startswith("socket.") or event == "sqlite3.connect":
        print("touched", event, file=sys.stderr)
        import os; os._exit(99)
sys.addaudithook(refuse)
import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@cache
def no_network() -> tuple[str, ...]:
    """The command before a command that takes its network away; empty where this machine does not allow it."""
    able = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode == 0
    return ("unshare", "--net") if able else ()


class Person:
    """Somebody with a mnemonic and a copy of the contract file, on a machine with nothing else."""

    def __init__(self, folder: Path, deal: SeededDeal, role: Role, branch: Branch = Branch.MAIN) -> None:
        self.home = folder / f"{role.name}-{branch.name}"
        self.home.mkdir()
        self.words = deal.words(role, branch)

    def file(self, content: bytes, name: str = "contract.json") -> Path:
        path = self.home / name
        path.write_bytes(content)
        return path

    async def run(self, *arguments: str, words: str | None = None) -> tuple[int, str, str]:
        command = [*no_network(), sys.executable, "-c", ALONE, "recover", *arguments]
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            input=words or self.words,
            cwd=self.home,
            env={"HOME": str(self.home), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 99, done.stderr
        assert "Traceback" not in done.stderr + done.stdout
        assert self.words not in done.stderr + done.stdout
        return done.returncode, done.stdout, done.stderr.strip()

    async def recover(self, *arguments: str) -> dict[str, Any]:
        """What `p2pnode recover ARGUMENTS --json` answers."""
        code, out, err = await self.run(*arguments, "--json")
        assert code == 0, err
        answer: dict[str, Any] = json.loads(out)
        return answer


async def seeded(
    node: RegtestNode,
    name: str,
    *,
    deposits: int = 150_000,
    escrow_type: EscrowType = EscrowType.WSH_2OF3_BACKUP,
    delay: int = 1008,
) -> SeededDeal:
    """A deal of people with mnemonics whose coins exist, at the lowest fee rate."""
    buyer = (await real_coin(node, deposits + 50_000, (name, "buyer")),) if deposits else ()
    seller = (await real_coin(node, 1_050_000 + deposits, (name, "seller")),)
    return SeededDeal(
        name=name,
        buyer_deposit=deposits,
        seller_deposit=deposits,
        fees=CHEAPEST,
        buyer_coins=buyer,
        seller_coins=seller,
        escrow_type=escrow_type,
        delay=delay,
    )


async def spent(node: RegtestNode, answer: dict[str, Any]) -> None:
    """Broadcast what `recover` made, mine it, and find on chain what it said."""
    raw = bytes.fromhex(answer["transaction"])
    assert await accepted(node, raw) is None
    assert await node.rpc("sendrawtransaction", raw.hex()) == answer["txid"]
    (block,) = await node.mine(1)
    mined = await node.rpc("getrawtransaction", answer["txid"], 1, block)
    paid = {(o["scriptPubKey"]["address"], int(o["value"] * 100_000_000)) for o in mined["vout"]}
    assert paid == {(out["address"], out["sats"]) for out in answer["pays"]}
    assert answer["escrow_sats"] == answer["fee_sats"] + sum(out["sats"] for out in answer["pays"])
    assert mined["vin"][0]["txid"] + ":" + str(mined["vin"][0]["vout"]) == answer["escrow"]


def pays(answer: dict[str, Any]) -> dict[str, int]:
    return {out["role"].removeprefix("the "): out["sats"] for out in answer["pays"]}


async def test_release_with_the_peers_signature_in_the_file(bitcoind: RegtestNode, tmp_path: Path) -> None:
    """The node wrote the buyer's signature into the file when it declared payment: the seller needs nobody."""
    deal = await seeded(bitcoind, "recover held")
    await fund(bitcoind, deal, deal.contract())
    seller = Person(tmp_path, deal, Role.SELLER)
    seller.file(dump(deal.file(Side.SELL, held=(deal.held(Role.BUYER),))))
    answer = await seller.recover("contract.json", "release")
    assert pays(answer) == {"buyer": 1_150_000, "seller": 150_000}
    assert [out["you"] for out in answer["pays"] if out["role"] == "the seller"] == [True]
    await spent(bitcoind, answer)


async def test_release_by_psbt_at_a_higher_rate(bitcoind: RegtestNode, tmp_path: Path) -> None:
    deal = await seeded(bitcoind, "recover psbt")
    await fund(bitcoind, deal, deal.contract())
    buyer, seller = (Person(tmp_path, deal, role) for role in (Role.BUYER, Role.SELLER))
    for person in (buyer, seller):
        person.file(dump(deal.file()))
    half = await buyer.recover("contract.json", "release", "--fee-rate", "7.5", "--out", "half.psbt")
    assert half["transaction"] is None
    assert half["missing"] == ["the seller"]
    seller.file((buyer.home / "half.psbt").read_bytes(), "half.psbt")
    answer = await seller.recover("contract.json", "sign", "--psbt", "half.psbt")
    assert answer["fee_rate_sats_per_kvb"] == 7_500
    await spent(bitcoind, answer)


async def test_release_with_a_signature_that_was_read_out_over_the_phone(bitcoind: RegtestNode, tmp_path: Path) -> None:
    deal = await seeded(bitcoind, "recover hex", escrow_type=EscrowType.WSH_2OF3)
    await fund(bitcoind, deal, deal.contract())
    buyer = Person(tmp_path, deal, Role.BUYER)
    buyer.file(dump(deal.file()))
    answer = await buyer.recover("contract.json", "release", "--signature", deal.held(Role.SELLER).signature.hex())
    await spent(bitcoind, answer)


async def test_refund_of_a_single_funded_trade(bitcoind: RegtestNode, tmp_path: Path) -> None:
    deal = await seeded(bitcoind, "recover refund", deposits=0)
    await fund(bitcoind, deal, deal.contract())
    buyer, seller = (Person(tmp_path, deal, role) for role in (Role.BUYER, Role.SELLER))
    half = await self_signed(buyer, deal, "refund")
    seller.file(dump(deal.file(Side.SELL)))
    seller.file(half.encode(), "half.psbt")
    # Named in words as well as by the PSBT: both must mean the same payout.
    answer = await seller.recover("contract.json", "refund", "--psbt", "half.psbt")
    assert set(pays(answer)) == {"seller"}
    await spent(bitcoind, answer)


async def self_signed(person: Person, deal: SeededDeal, *path: str) -> str:
    """The PSBT of somebody who signs first."""
    person.file(dump(deal.file()))
    answer = await person.recover("contract.json", *path)
    assert answer["transaction"] is None
    return str(answer["psbt"])


async def test_settlement_that_the_peer_has_proposed(bitcoind: RegtestNode, tmp_path: Path) -> None:
    deal = await seeded(bitcoind, "recover settle")
    await fund(bitcoind, deal, deal.contract())
    buyer = Person(tmp_path, deal, Role.BUYER)
    buyer.file(dump(deal.file(held=(deal.held(Role.SELLER, settled(650_000, rate=RATE)),))))
    answer = await buyer.recover("contract.json", "settle")
    assert answer["path"].startswith("settlement, 0.00650000 BTC")
    assert set(pays(answer)) == {"buyer", "seller"}
    await spent(bitcoind, answer)


async def test_ruling_signed_by_the_arbiter_from_its_words_and_completed_by_the_winner(
    bitcoind: RegtestNode, tmp_path: Path
) -> None:
    deal = await seeded(bitcoind, "recover ruling")
    await fund(bitcoind, deal, deal.contract())
    arbiter, seller = Person(tmp_path, deal, Role.ARBITER), Person(tmp_path, deal, Role.SELLER)
    fee_to = address_of(FEE_TO, NETWORK)
    split = ("--buyer-share", "30%", "--forfeit", "20%", "--fee-to", fee_to, "--fee-rate", "2")
    psbt = await self_signed(arbiter, deal, "ruling", *split)
    seller.file(dump(deal.file(Side.SELL)))
    seller.file(psbt.encode(), "ruling.psbt")
    answer = await seller.recover("contract.json", "sign", "--psbt", "ruling.psbt")
    assert pays(answer)["arbiter"] == deal.arbiter_fee
    assert answer["signed_by"] == ["the seller", "the arbiter"]
    await spent(bitcoind, answer)


async def test_ruling_that_the_node_wrote_into_the_file(bitcoind: RegtestNode, tmp_path: Path) -> None:
    deal = await seeded(bitcoind, "recover held ruling", escrow_type=EscrowType.WSH_2OF3)
    await fund(bitcoind, deal, deal.contract())
    buyer = Person(tmp_path, deal, Role.BUYER)
    buyer.file(dump(deal.file(held=(deal.held(Role.ARBITER, ruled(1_000_000, rate=RATE, script=FEE_TO)),))))
    await spent(bitcoind, await buyer.recover("contract.json", "ruling"))


async def test_backup_ruling_is_refused_before_the_delay_by_us_and_by_the_node_and_pays_after(
    bitcoind: RegtestNode, tmp_path: Path
) -> None:
    deal = await seeded(bitcoind, "recover backup", delay=6)
    await fund(bitcoind, deal, deal.contract())
    funded = await bitcoind.height()
    backup = Person(tmp_path, deal, Role.ARBITER, Branch.BACKUP)
    buyer = Person(tmp_path, deal, Role.BUYER)
    split = ("--backup", "--buyer-share", "100%", "--fee-to", address_of(FEE_TO, NETWORK))
    psbt = await self_signed(backup, deal, "ruling", *split)
    buyer.file(dump(deal.file(height=funded)))
    buyer.file(psbt.encode(), "ruling.psbt")
    signing = ("contract.json", "sign", "--psbt", "ruling.psbt")
    for _ in range(5):
        tip = await bitcoind.height()
        code, out, err = await buyer.run(*signing, "--tip", str(tip))
        assert (code, out) == (1, "")
        assert f"the backup branch opens with block {funded + 6:,}" in err
        # Without a height it can't know, and tells from when on it holds.
        early = await buyer.recover(*signing)
        assert early["legal_from"] == funded + 6
        assert await accepted(bitcoind, bytes.fromhex(early["transaction"])) == "non-BIP68-final"
        await bitcoind.mine(1)
    answer = await buyer.recover(*signing, "--tip", str(await bitcoind.height()))
    assert pays(answer)["arbiter"] == deal.backup_fee
    await spent(bitcoind, answer)


class TestOneClearLine:
    """Everything that can be wrong ends with one line on stderr, nothing on stdout, and the exit code of its kind."""

    @pytest.fixture
    def deal(self) -> SeededDeal:
        return SeededDeal(fees=CHEAPEST)

    @pytest.fixture
    def buyer(self, deal: SeededDeal, tmp_path: Path) -> Person:
        person = Person(tmp_path, deal, Role.BUYER)
        person.file(dump(deal.file()))
        return person

    async def refused(self, person: Person, *arguments: str, words: str | None = None, code: int = 1) -> str:
        got, out, err = await person.run("contract.json", *arguments, words=words)
        assert (got, out) == (code, ""), err
        assert len(err.splitlines()) == 1, err
        return err

    async def test_wrong_mnemonic(self, buyer: Person) -> None:
        stranger = SeededDeal(name="stranger").words(Role.BUYER)
        assert "None of this mnemonic's keys is in the contract" in await self.refused(buyer, "release", words=stranger)
        assert "word 3" in await self.refused(buyer, "release", words="abandon " * 2 + "bitcon " + "abandon " * 9)
        assert "12, 15, 18, 21 or 24 words" in await self.refused(buyer, "release", words="abandon")

    async def test_other_network(self, buyer: Person) -> None:
        assert "is for regtest, and signet was asked for" in await self.refused(buyer, "release", "--network", "signet")

    async def test_damaged_file(self, buyer: Person, deal: SeededDeal) -> None:
        whole = dump(deal.file())
        for bad in (whole[:-20], whole.replace(b'"contract": "dc', b'"contract": "de'), b"", b"\xff\xfe"):
            buyer.file(bad)
            assert "contract.json: " in await self.refused(buyer, "release")

    async def test_fee_rate_outside_the_band(self, buyer: Person) -> None:
        assert "outside the band" in await self.refused(buyer, "release", "--fee-rate", "50.001")
        assert "outside the band" in await self.refused(buyer, "refund", "--fee-rate", "0.999")

    async def test_path_that_the_contract_does_not_have(self, buyer: Person, deal: SeededDeal) -> None:
        buyer.file(dump(SeededDeal(fees=CHEAPEST, escrow_type=EscrowType.WSH_2OF3).file()))
        split = ("--backup", "--buyer-share", "0%", "--fee-to", address_of(FEE_TO, NETWORK))
        assert "no branch for a backup arbiter" in await self.refused(buyer, "ruling", *split)
        assert "holds no ruling" in await self.refused(buyer, "ruling")
        assert "holds no proposal" in await self.refused(buyer, "settle")
        assert "more than amount and deposits" in await self.refused(buyer, "settle", "--buyer-gets", "1btc")

    async def test_fee_to_an_address_of_another_network(self, buyer: Person) -> None:
        split = ("--buyer-share", "0%", "--fee-to", address_of(FEE_TO, Network.MAINNET))
        assert "mainnet" in await self.refused(buyer, "ruling", *split)

    async def test_stale_foreign_and_damaged_psbts(self, buyer: Person, deal: SeededDeal) -> None:
        other = SeededDeal(fees=CHEAPEST, name="other")
        from escrow.payout import derive_payout
        from escrow.psbt import encode
        from escrow.psbtplan import payout_psbt

        def psbt(of: SeededDeal) -> bytes:
            plan = derive_payout(of.contract(), NETWORK)
            return encode(payout_psbt(of.contract(), NETWORK, plan, of.signatures(of.contract(), plan, Role.SELLER)))

        buyer.file(psbt(other), "other.psbt")
        assert "Stale PSBT" in await self.refused(buyer, "release", "--psbt", "other.psbt")
        assert "Stale PSBT" in await self.refused(buyer, "sign", "--psbt", "other.psbt")
        buyer.file(psbt(deal), "right.psbt")
        assert "Stale PSBT" in await self.refused(buyer, "refund", "--psbt", "right.psbt")
        buyer.file(psbt(deal)[:-3], "short.psbt")
        assert "damaged" in await self.refused(buyer, "sign", "--psbt", "short.psbt")
        buyer.file(b"not a psbt", "text.psbt")
        assert "that is not a PSBT" in await self.refused(buyer, "sign", "--psbt", "text.psbt")
        assert "can't be read" in await self.refused(buyer, "sign", "--psbt", "none.psbt")

    async def test_signature_of_another_payout(self, buyer: Person, deal: SeededDeal) -> None:
        wrong: HeldSignature = deal.held(Role.SELLER, settled(650_000, rate=RATE))
        typed = ("--signature", wrong.signature.hex())
        assert "is nobody's on this payout" in await self.refused(buyer, "release", *typed)

    async def test_a_person_reads_what_is_paid_to_whom(self, buyer: Person, deal: SeededDeal) -> None:
        code, out, err = await buyer.run("contract.json", "release", "--yes")
        assert (code, err) == (0, "")
        assert "0.01150000 BTC to the buyer (you)" in out
        assert "lacks the signature of the seller" in out
