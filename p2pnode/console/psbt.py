"""`p2pnode trade psbt`: PSBTs of a trade, for wallets that hold the keys elsewhere.

It works on the node's folder, not through the API: the running node leaves what is to be signed there and looks there
for what comes back, and judges it again itself. So it also works while the node is down.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from msgspec import Struct

from escrow.coins import txid_text
from escrow.funding import derive_funding
from escrow.payout import derive_payout
from escrow.psbt import MAX_PSBT, BadPsbt, Psbt, read, text
from escrow.psbtplan import payout_psbt
from escrow.transactions import txid_of
from p2pnode.console.inputs import BadInput
from p2pnode.contractfile import ContractFile, load
from p2pnode.idprefix import id_range
from p2pnode.money import format_sats
from p2pnode.signing import PSBT_FOLDER, PsbtFolder
from protocol.errors import NotFound
from protocol.outcome import ReleaseOutcome


class PsbtView(Struct, frozen=True):
    """A PSBT of a trade. `what`: funding, reclaim, payout, or imported; `psbt` is Base64 (None: it was taken over)."""

    trade_id: str
    what: str
    txid: str
    note: str
    psbt: str | None


def trade_psbt(args: argparse.Namespace, data_dir: Path) -> PsbtView:
    """Do what was asked. Raises NotFound, BadInput, BadContractFile, BadPsbt, StalePsbt, UnsignedPsbt."""
    file = _find(args.trade, data_dir / "contracts")
    folder = PsbtFolder(data_dir / PSBT_FOLDER)
    if args.payout:
        if args.import_file is not None:
            raise BadInput("a signed payout is completed by `p2pnode recover FILE sign --psbt ...`, not imported here")
        return _payout(file)
    trade_id = file.contract.trade_id
    plan = derive_funding(file.contract, file.network)
    if args.import_file is None and folder.wanted(trade_id) == "reclaim":
        return _reclaim(trade_id, folder)
    if args.import_file is None:
        psbt = folder.read_exported(trade_id)
        own = sum(plan.inputs[i].spent.value for i in plan.indices(file.side))
        note = (
            f"Sign it with the wallet that holds the coins: {format_sats(own)} BTC go in, "
            f"{format_sats(plan.change(file.side))} BTC come back to you, {format_sats(plan.escrow_value)} BTC are "
            f"locked. Then: p2pnode trade psbt {trade_id.hex()[:16]} --import FILE"
        )
        return PsbtView(trade_id.hex(), "funding", txid_text(plan.txid), note, text(psbt))
    signed = _read(Path(args.import_file))
    purpose = folder.take_over(trade_id, plan, file.side, signed)
    goes_on = "goes on with the trade" if purpose == "funding" else "takes your coins back"
    note = f"The signatures are right and were taken over. A running node {goes_on} within seconds."
    return PsbtView(trade_id.hex(), "imported", txid_text(txid_of(signed.unsigned)), note, None)


def show(view: PsbtView, *, as_json: bool) -> None:
    """Print it: the PSBT alone on a line of its own."""
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(view), indent=2).decode())  # noqa: T201
        return
    lines = [f"Trade {view.trade_id[:16]}, transaction {view.txid}", *([view.psbt] if view.psbt else []), view.note]
    print("\n".join(lines))  # noqa: T201


def write_out(view: PsbtView, path: Path) -> None:
    """Write the PSBT (Base64) to a file. Raises BadInput."""
    try:
        path.write_text(f"{view.psbt or ''}\n")
    except OSError as e:
        raise BadInput(f"{path} can't be written: {e.strerror or e}") from e


def _reclaim(trade_id: bytes, folder: PsbtFolder) -> PsbtView:
    """What takes the coins of a funding back that the counterparty withholds."""
    psbt = folder.read_exported(trade_id, "reclaim")
    note = (
        "The counterparty did not fund the escrow in time: this takes your coins back to your own wallet. Sign it with "
        f"the wallet that holds them. Then: p2pnode trade psbt {trade_id.hex()[:16]} --import FILE"
    )
    return PsbtView(trade_id.hex(), "reclaim", txid_text(txid_of(psbt.unsigned)), note, text(psbt))


def _payout(file: ContractFile) -> PsbtView:
    """The release, with the signatures that others gave."""
    plan = derive_payout(file.contract, file.network)
    given = {h.role: h.signature for h in file.signatures if h.outcome == ReleaseOutcome()}
    psbt = payout_psbt(file.contract, file.network, plan, given)
    trade_id = file.contract.trade_id.hex()
    note = (
        "This is the release. Its keys follow from your mnemonic, not from a wallet's: sign it with "
        "`p2pnode recover FILE sign --psbt ...`."
    )
    return PsbtView(trade_id, "payout", txid_text(plan.txid), note, text(psbt))


def _find(prefix: str, folder: Path) -> ContractFile:
    """The contract file of the trade whose id begins so. Raises BadIdPrefix, NotFound, BadInput, BadContractFile."""
    low, high = id_range(prefix)
    wanted = prefix.strip().lower()
    found = sorted(path for path in folder.glob("*.json") if low.hex() <= path.stem <= high.hex())
    if len(found) > 1:
        raise BadInput(f"several trades begin with {wanted}: give more digits")
    if not found:
        raise NotFound(f"no contract file of a trade {wanted} is in {folder}: it is written when its funding is signed")
    return load(found[0])


def _read(path: Path) -> Psbt:
    try:
        with path.open("rb") as file:
            return read(file.read(2 * MAX_PSBT))
    except OSError as e:
        raise BadInput(f"the PSBT {path} can't be read: {e.strerror or e}") from e
    except BadPsbt as e:
        raise BadPsbt(f"{path}: {e.detail}") from e
