"""`p2pnode trade psbt` on a node's folder: what goes out, what is taken back, and what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cli
from escrow.funding import derive_funding
from escrow.payout import derive_payout
from escrow.psbt import IN_FINAL_WITNESS, Psbt, encode, field, pack_witness, read, text
from escrow.psbtplan import funding_psbt, read_funding, read_payout
from escrow.script import Role
from p2pnode.contractfile import dump
from p2pnode.signing import PsbtFolder
from protocol.types import Side
from tests.unit.escrow_support import NETWORK
from tests.unit.recovery_support import SeededDeal

DEAL = SeededDeal()
CONTRACT = DEAL.contract()
PLAN = derive_funding(CONTRACT, NETWORK)
TRADE = CONTRACT.trade_id.hex()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of a buyer whose funding waits for a signature."""
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts" / f"{TRADE}.json").write_bytes(dump(DEAL.file(held=(DEAL.held(Role.SELLER),))))
    PsbtFolder(tmp_path / "psbts").export(CONTRACT.trade_id, funding_psbt(PLAN, Side.BUY))
    return tmp_path


def signed(deal: SeededDeal = DEAL) -> Psbt:
    plan = derive_funding(deal.contract(), NETWORK)
    psbt = funding_psbt(plan, Side.BUY)
    inputs = [dict(fields) for fields in psbt.inputs]
    for index, witness in zip(plan.indices(Side.BUY), deal.witnesses(plan, Side.BUY), strict=True):
        inputs[index][field(IN_FINAL_WITNESS)] = pack_witness(witness)
    return Psbt(psbt.unsigned, tuple(inputs), psbt.outputs)


def run(data: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["trade", "psbt", TRADE[:12], "--datadir", str(data), "--network", "regtest", *arguments])
    shown = capsys.readouterr()
    assert len(shown.err.strip().splitlines()) <= 1
    return code, shown.out, shown.err


def test_what_waits_goes_out_as_base64_and_says_what_it_does(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(data, capsys, "--out", str(data / "out.psbt"))
    assert code == 0
    assert text(funding_psbt(PLAN, Side.BUY)) in out.splitlines()
    assert "0.00350000 BTC go in" in out
    assert encode(read((data / "out.psbt").read_bytes())) == encode(funding_psbt(PLAN, Side.BUY))


@pytest.mark.parametrize("binary", [True, False])
def test_signed_funding_is_taken_over(data: Path, capsys: pytest.CaptureFixture[str], binary: bool) -> None:
    (data / "signed.psbt").write_bytes(encode(signed()) if binary else text(signed()).encode())
    code, out, _ = run(data, capsys, "--import", str(data / "signed.psbt"), "--json")
    assert (code, json.loads(out)["what"]) == (0, "imported")
    kept = PsbtFolder(data / "psbts").read_signed(CONTRACT.trade_id)
    assert kept is not None
    assert read_funding(PLAN, Side.BUY, kept) == DEAL.witnesses(PLAN, Side.BUY)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (encode(signed(SeededDeal(name="other"))), "Stale PSBT"),
        (encode(funding_psbt(PLAN, Side.BUY)), "holds no signature for the coin"),
        (encode(signed())[:-1], "damaged"),
        (b"", "not a PSBT"),
    ],
    ids=["stale", "unsigned", "damaged", "empty"],
)
def test_what_is_not_the_signed_funding_is_refused_in_one_line(
    data: Path, capsys: pytest.CaptureFixture[str], content: bytes, line: str
) -> None:
    (data / "signed.psbt").write_bytes(content)
    code, out, err = run(data, capsys, "--import", str(data / "signed.psbt"))
    assert (code, out) == (1, "")
    assert line in err
    assert PsbtFolder(data / "psbts").read_signed(CONTRACT.trade_id) is None


def test_release_goes_out_with_the_signature_that_the_peer_gave(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(data, capsys, "--payout", "--json")
    assert code == 0
    signatures = read_payout(derive_payout(CONTRACT, NETWORK), read(json.loads(out)["psbt"].encode()))
    assert set(signatures) == {Role.SELLER}


def test_trade_that_is_not_there_or_waits_for_nothing_is_one_line(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "psbts" / f"{TRADE}-funding.psbt").unlink()
    code, _, err = run(data, capsys)
    assert code == 1
    assert "nothing of this trade waits" in err
    (data / "contracts" / f"{TRADE}.json").unlink()
    code, _, err = run(data, capsys)
    assert code == 1
    assert "no contract file" in err
