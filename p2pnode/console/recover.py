"""`p2pnode recover`: spend an escrow with a mnemonic and its contract file, without a node, a network or a database.

It reads the file and asks for the words, finds out who of the contract's people they belong to, derives the payout that
was asked for, signs it, and prints the transaction, or a PSBT where a signature is missing. Nothing is broadcast.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final, assert_never

import msgspec
from msgspec import Struct

from escrow import recovery
from escrow.address import address_of, script_of
from escrow.coins import txid_text
from escrow.errors import BadPayoutSignature
from escrow.payout import PayoutPlan, check_payout_signature, derive_payout, rate_of
from escrow.psbt import MAX_PSBT, BadPsbt, Psbt, read, text
from escrow.psbtplan import payout_of, read_payout
from escrow.recovery import Recovered, Signer
from escrow.script import Role
from escrow.seed import Seed
from p2pnode.console import setup
from p2pnode.console.inputs import BadInput
from p2pnode.contractfile import ContractFile, load
from p2pnode.money import format_percent, format_sats
from protocol.errors import UserError
from protocol.outcome import Outcome, ReleaseOutcome, RulingOutcome, SettlementOutcome, cancelled_due
from protocol.types import Branch, FeeRate, Height

_NAMES: Final = {Role.BUYER: "the buyer", Role.SELLER: "the seller", Role.ARBITER: "the arbiter"}


class OtherNetwork(UserError):
    """The contract file is for another Bitcoin network than the one that was named."""

    code = 3238


class NothingHeld(UserError):
    """The contract file holds no such proposal or ruling: give its numbers, or a PSBT that is signed already."""

    code = 3239


class PaidOut(Struct, frozen=True):
    """One output of a payout."""

    role: str
    you: bool
    sats: int
    address: str


class RecoverView(Struct, frozen=True):
    """What `recover` made. `transaction` is hex, None while a signature is missing; then `psbt` is to be signed."""

    trade_id: str
    network: str
    you: str
    path: str
    escrow: str
    escrow_address: str
    escrow_sats: int
    pays: tuple[PaidOut, ...]
    fee_sats: int
    fee_rate_sats_per_kvb: int
    txid: str
    signed_by: tuple[str, ...]
    missing: tuple[str, ...]
    legal_from: Height | None
    transaction: str | None
    psbt: str
    next: str


class _Path(Struct, frozen=True):
    """A payout that was chosen."""

    name: str
    plan: PayoutPlan


def recover(args: argparse.Namespace) -> RecoverView:
    """Do what was asked. Raises UserError and its kin for everything that does not fit."""
    file = load(Path(args.file))
    network = file.network.name.lower()
    named = getattr(args, "network", None)
    if named is not None and named.strip().lower() != network:
        raise OtherNetwork(f"the contract file is for {network}, and {named} was asked for")
    psbts = [_read_psbt(name) for name in args.psbt]
    chosen = _choose(args, file, psbts)
    height = args.funded if args.funded is not None else file.funding_height
    if args.tip is not None and height is not None:
        recovery.check_open(file.contract, chosen.plan, height, args.tip)
    signer = _signer(args, file)
    given = _given(args, file, chosen, psbts)
    done = recovery.recover(file.contract, file.network, chosen.plan, signer, given)
    return _view(file, chosen, signer, done, height)


def show(view: RecoverView, *, as_json: bool) -> None:
    """Print what was made: for a person, or as one JSON document."""
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(view), indent=2).decode())  # noqa: T201
        return
    lines = [
        f"Trade {view.trade_id[:16]} on {view.network}; your words are {view.you}'s.",
        f"  escrow   {format_sats(view.escrow_sats)} BTC in {view.escrow}",
        f"           {view.escrow_address}",
        f"  path     {view.path}",
    ]
    for out in view.pays:
        mine = " (you)" if out.you else ""
        lines.append(f"  pays     {format_sats(out.sats)} BTC to {out.role}{mine}, {out.address}")
    rate = f"{view.fee_rate_sats_per_kvb / 1000:.3f}".rstrip("0").rstrip(".")
    lines += [
        f"  fee      {view.fee_sats:,} sat ({rate} sat/vB)",
        f"  txid     {view.txid}",
        f"  signed   by {' and '.join(view.signed_by)}",
        "",
        view.transaction if view.transaction is not None else view.psbt,
        "",
        view.next,
    ]
    print("\n".join(lines))  # noqa: T201


def question(view: RecoverView) -> str:
    """What the user is asked before a signature is shown."""
    parts = [f"{format_sats(out.sats)} BTC to {out.role}{' (you)' if out.you else ''}" for out in view.pays]
    return f"Sign that the escrow pays {', '.join(parts)} ({view.path})? Once given away it can't be taken back."


def write_out(view: RecoverView, path: Path) -> None:
    """Write the transaction (hex) or the PSBT (Base64) to a file. Raises BadInput."""
    try:
        path.write_text((view.transaction or view.psbt) + "\n")
    except OSError as e:
        raise BadInput(f"{path} can't be written: {e.strerror or e}") from e


# --- which payout ------------------------------------------------------------------------------------------------


def _choose(args: argparse.Namespace, file: ContractFile, psbts: list[Psbt]) -> _Path:
    """The payout that was asked for, derived from the contract. Raises BadInput, NothingHeld, BadPayout, BadPsbt."""
    contract, network = file.contract, file.network
    if args.path == "sign":
        if len(psbts) != 1:
            raise BadInput("`sign` needs one PSBT of the payout: give it with --psbt FILE")
        plan = payout_of(contract, network, psbts[0])
        return _Path(_describe(plan.outcome), plan)
    rate = args.fee_rate if args.fee_rate is not None else contract.fees.payout
    match args.path:
        case "release":
            outcome: Outcome = ReleaseOutcome(None if rate == contract.fees.payout else rate)
        case "refund":
            outcome = SettlementOutcome(cancelled_due(contract), rate)
        case "settle":
            outcome = _settlement(args, file, rate)
        case _:
            outcome = _ruling(args, file, rate)
    return _Path(_describe(outcome), derive_payout(contract, network, outcome))


def _settlement(args: argparse.Namespace, file: ContractFile, rate: FeeRate) -> SettlementOutcome:
    """The division that was named, or the one that the counterparty has proposed."""
    due = args.buyer_gets
    held = [
        o
        for o in (h.outcome for h in file.signatures)
        if isinstance(o, SettlementOutcome) and due in (None, o.buyer_due) and args.fee_rate in (None, o.rate)
    ]
    if len(held) == 1:
        return held[0]
    if due is not None:
        return SettlementOutcome(due, rate)
    if not held:
        raise NothingHeld("the contract file holds no proposal of the counterparty: say --buyer-gets AMOUNT")
    sums = ", ".join(format_sats(o.buyer_due) for o in held)
    raise NothingHeld(f"the contract file holds several proposals: choose one by --buyer-gets, of {sums} BTC")


def _ruling(args: argparse.Namespace, file: ContractFile, rate: FeeRate) -> RulingOutcome:
    """The ruling that was named, or the one that the contract file holds."""
    branch = Branch.BACKUP if args.backup else Branch.MAIN
    if args.buyer_share is not None:
        if args.fee_to is None:
            raise BadInput("a ruling needs --fee-to ADDRESS: where the arbiter's fee is paid to")
        script = script_of(args.fee_to, file.network)
        return RulingOutcome(branch, args.buyer_share, args.forfeit, script, rate)
    found = (h.outcome for h in file.signatures)
    held = next((o for o in found if isinstance(o, RulingOutcome) and o.branch is branch), None)
    if held is None:
        which = "backup arbiter" if args.backup else "arbiter"
        raise NothingHeld(
            f"the contract file holds no ruling of the {which}: give the arbiter's PSBT to `sign --psbt FILE`, or the "
            "ruling by --buyer-share, --forfeit and --fee-to"
        )
    return held


def _describe(outcome: Outcome) -> str:
    match outcome:
        case ReleaseOutcome():
            return "release"
        case SettlementOutcome(due, _):
            return f"settlement, {format_sats(due)} BTC of amount and deposits to the buyer, before the fee"
        case RulingOutcome():
            which = "backup arbiter's ruling" if outcome.branch is Branch.BACKUP else "arbiter's ruling"
            lost = f", {format_percent(outcome.forfeit)} of the loser's deposit lost" if outcome.forfeit else ""
            return f"{which}, {format_percent(outcome.buyer_share)} of the amount to the buyer{lost}"
        case _:
            assert_never(outcome)


# --- who signs ---------------------------------------------------------------------------------------------------


def _signer(args: argparse.Namespace, file: ContractFile) -> Signer:
    words = setup.read_words(args.words)
    extra = setup.extra_passphrase(confirm=False) if args.mnemonic_passphrase else ""
    return recovery.find_signer(Seed.from_mnemonic(words, extra), file.contract, file.network)


def _given(args: argparse.Namespace, file: ContractFile, chosen: _Path, psbts: Sequence[Psbt]) -> dict[Role, bytes]:
    """What others have signed: in the file, in PSBTs, and as it was typed."""
    plan = chosen.plan
    given = {h.role: h.signature for h in file.signatures if h.outcome == plan.outcome}
    for psbt in psbts:
        given.update(read_payout(plan, psbt))
    for typed in args.signature:
        given[_role_of(plan, typed)] = bytes.fromhex(typed)
    return given


def _role_of(plan: PayoutPlan, typed: str) -> Role:
    """Whose a signature is. Raises BadInput."""
    try:
        signature = bytes.fromhex(typed)
    except ValueError:
        raise BadInput("a signature is given as hexadecimal digits of its DER form") from None
    for role in Role:
        try:
            check_payout_signature(plan, role, signature)
        except BadPayoutSignature:
            continue
        return role
    raise BadInput("the signature is nobody's on this payout: both sides must name the same path and the same numbers")


def _read_psbt(name: str) -> Psbt:
    try:
        with Path(name).open("rb") as file:
            return read(file.read(2 * MAX_PSBT))
    except OSError as e:
        raise BadInput(f"the PSBT {name} can't be read: {e.strerror or e}") from e
    except BadPsbt as e:
        raise BadPsbt(f"{name}: {e.detail}") from e


# --- what is shown -----------------------------------------------------------------------------------------------


def _view(file: ContractFile, chosen: _Path, signer: Signer, done: Recovered, height: Height | None) -> RecoverView:
    plan, network = chosen.plan, file.network
    legal_from = None if height is None else recovery.opens_at(file.contract, plan, height)
    return RecoverView(
        trade_id=file.contract.trade_id.hex(),
        network=network.name.lower(),
        you=_NAMES[signer.role],
        path=chosen.name,
        escrow=str(plan.escrow_outpoint),
        escrow_address=address_of(plan.escrow.script_pubkey, network),
        escrow_sats=plan.escrow_value,
        pays=tuple(
            PaidOut(_NAMES[o.owner], o.owner is signer.role, o.value, address_of(o.output.script_pubkey, network))
            for o in plan.outputs
            if o.owner is not None
        ),
        fee_sats=plan.fee,
        fee_rate_sats_per_kvb=rate_of(file.contract, plan.outcome),
        txid=txid_text(plan.txid),
        signed_by=tuple(_NAMES[role] for role in sorted(done.signatures)),
        missing=tuple(_NAMES[role] for role in done.missing),
        legal_from=legal_from,
        transaction=None if done.tx is None else done.tx.hex(),
        psbt=text(done.psbt),
        next=_next(file, plan, done, legal_from),
    )


def _next(file: ContractFile, plan: PayoutPlan, done: Recovered, legal_from: Height | None) -> str:
    if done.missing:
        who = " or ".join(_NAMES[role] for role in done.missing)
        return (
            f"This PSBT lacks the signature of {who}. They complete it with `p2pnode recover FILE sign --psbt THIS` "
            "and can then broadcast it at any time: it can't be taken back."
        )
    how = "`bitcoin-cli sendrawtransaction HEX`, or the broadcast page of any block explorer"
    if plan.branch is Branch.MAIN:
        return f"The transaction is complete. Broadcast it with {how}."
    when = f"block {legal_from:,}" if legal_from is not None else f"{file.contract.backup_delay:,} blocks"
    since = "" if legal_from is not None else " after the funding's"
    return f"The transaction is complete. Nodes take it for {when}{since} and later. Broadcast it then with {how}."
