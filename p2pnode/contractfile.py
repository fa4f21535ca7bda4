"""Contract files: what one needs besides the mnemonic to move an escrow without this node (SPEC section 9).

Written before the funding is signed, one small JSON file per trade, and written again when there is more to know: the
block of the funding, and signatures on payouts that the counterparty or an arbiter gave us, with which we can end the
trade alone. It holds no secret that opens coins: the escrow keys come from the mnemonic and the trade id. It does hold
the trade's nonces, so it tells its reader which escrow on the chain is this one.

Everything in it can be checked without asking anybody, and `load` does: the contract against its id, the escrow's
place and address against the contract, each signature against what it signs. A file that was changed to another
contract leads to another escrow, which holds nothing.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from escrow.address import address_of
from escrow.funding import derive_funding
from escrow.payout import check_payout_signature, derive_payout
from escrow.script import Role
from escrow.terms import check_contract
from p2pnode.datadir import DiskError, write_private
from protocol.contract import Contract, contract_id, trade_id, verify_contract
from protocol.errors import LocalError, P2PError, UserError
from protocol.outcome import Outcome, ReleaseOutcome
from protocol.trade_state import TradeState
from protocol.types import Branch, Height, Network, Side
from protocol.wire import Kind, pack, unpack

_MAX_FILE: Final = 200_000
_MAX_SIGNATURES: Final = 64

log = logging.getLogger(__name__)

Hex32 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Hex64 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{128}\Z")]
Hex = Annotated[str, Meta(pattern=r"\A([0-9a-f]{2})+\Z")]


class NotWritable(LocalError):
    """The contract file could not be written: check the disk and the directory's permissions."""

    code = 1301


class BadContractFile(UserError):
    """That is not a contract file, or it is damaged."""

    code = 3236


class HeldSignature(Struct, frozen=True):
    """A signature (DER) on a payout that another role gave."""

    role: Role
    outcome: Outcome
    signature: bytes


class ContractFile(Struct, frozen=True):
    """A contract and what is known of its trade. `side` is that of the node that wrote the file."""

    contract: Contract
    network: Network
    side: Side
    maker_signature: bytes | None = None
    taker_signature: bytes | None = None
    funding_height: Height | None = None
    signatures: tuple[HeldSignature, ...] = ()


class _Held(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    role: Literal["buyer", "seller", "arbiter"]
    outcome: Outcome
    signature: Hex


class _Document(Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1] = msgspec.field(name="p2pnode-contract")
    network: Literal["mainnet", "testnet", "signet", "regtest"]
    side: Literal["buy", "sell"]
    trade_id: Hex32
    contract_id: Hex32
    escrow: str
    address: str
    contract: Hex
    maker_signature: Hex64 | None
    taker_signature: Hex64 | None
    funding_height: Height | None
    signatures: Annotated[tuple[_Held, ...], Meta(max_length=_MAX_SIGNATURES)]


class ContractDirectory:
    """The `contracts` folder of the data directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, trade_id: bytes) -> Path:
        """Where a trade's file is."""
        return self._folder / f"{trade_id.hex()}.json"

    def export(self, state: TradeState) -> Path:
        """Write the trade's contract file and have it on disk before returning. Raises NotWritable."""
        path = self.path(state.trade_id)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, dump(contract_file(state)))
        except OSError as e:
            raise NotWritable(f"the contract file {path} could not be written: {e.strerror}") from e
        except DiskError as e:
            raise NotWritable(f"the contract file could not be written: {e.detail}") from e
        return path

    def add(self, state: TradeState) -> None:
        """Write the file of a trade that was got back from its counterparty; a failure is only logged."""
        try:
            self.export(state)
        except NotWritable as e:
            log.warning("%s", e.detail)

    def keep(self, state: TradeState) -> None:
        """Write a file that is there again if there is more to know; for the engine's listeners, so it never raises.

        What can't be written now is tried again with the trade's next step.
        """
        path = self.path(state.trade_id)
        try:
            if state.contract is not None and path.exists() and path.read_bytes() != dump(contract_file(state)):
                self.export(state)
        except (NotWritable, OSError) as e:
            log.warning("the contract file %s is not up to date: %s", path.name, e)


def contract_file(state: TradeState) -> ContractFile:
    """What a trade's contract file holds now. Raises NotWritable for a trade without a contract."""
    if state.contract is None:
        raise NotWritable("a trade without a contract has no contract file")
    peer = Role.of(state.side.other)
    held = [
        HeldSignature(peer, option.outcome, option.peer_signature)
        for option in state.settlement.options
        if option.peer_signature is not None
    ]
    if state.payout.peer_signature is not None:
        held.append(HeldSignature(peer, ReleaseOutcome(), state.payout.peer_signature))
    if state.dispute is not None:
        rulings = (state.dispute.arbiter(branch).ruling for branch in Branch)
        held += [HeldSignature(Role.ARBITER, r.outcome, r.arbiter_signature) for r in rulings if r is not None]
    return ContractFile(
        contract=state.contract,
        network=state.network,
        side=state.side,
        maker_signature=state.maker_signature,
        taker_signature=state.taker_signature,
        funding_height=state.funding.height,
        signatures=tuple(held[:_MAX_SIGNATURES]),
    )


def dump(file: ContractFile) -> bytes:
    """The bytes of a contract file."""
    contract, network = file.contract, file.network
    funding = derive_funding(contract, network)
    document = _Document(
        version=1,
        network=network.name.lower(),  # type: ignore[arg-type]  # mypy does not know an enum's names
        side=file.side.name.lower(),  # type: ignore[arg-type]
        trade_id=contract.trade_id.hex(),
        contract_id=funding.contract_id.hex(),
        escrow=str(funding.escrow_outpoint),
        address=address_of(funding.escrow.script_pubkey, network),
        contract=pack(contract).hex(),
        maker_signature=None if file.maker_signature is None else file.maker_signature.hex(),
        taker_signature=None if file.taker_signature is None else file.taker_signature.hex(),
        funding_height=file.funding_height,
        signatures=tuple(
            _Held(h.role.name.lower(), h.outcome, h.signature.hex())  # type: ignore[arg-type]
            for h in file.signatures
        ),
    )
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def load(path: Path) -> ContractFile:
    """Read and check a contract file. Raises BadContractFile."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE + 1)
    except OSError as e:
        raise BadContractFile(f"the contract file {path} can't be read: {e.strerror or e}") from e
    try:
        return parse(raw)
    except BadContractFile as e:
        raise BadContractFile(f"{path}: {e.detail}") from e


def parse(raw: bytes) -> ContractFile:
    """The content of a contract file, checked. Raises BadContractFile."""
    if len(raw) > _MAX_FILE:
        raise BadContractFile("that is not a contract file: it is too large")
    try:
        document = msgspec.json.decode(raw, type=_Document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise BadContractFile(f"that is not a contract file of a known version, or it is damaged: {e}") from e
    try:
        return _checked(document)
    except BadContractFile:
        raise
    except P2PError as e:
        raise BadContractFile(f"the contract file is damaged: {e.detail}") from e


def _checked(document: _Document) -> ContractFile:
    network, side = Network[document.network.upper()], Side[document.side.upper()]
    contract = unpack(bytes.fromhex(document.contract), Contract, limit=Kind.CONTRACT.limit)
    if contract_id(contract, network).hex() != document.contract_id:
        raise BadContractFile("the contract file is damaged: its contract has another id, or is of another network")
    named = trade_id(contract.offer, contract.taker.persona, contract.taker.nonce)
    if not named == contract.trade_id == bytes.fromhex(document.trade_id):
        raise BadContractFile("the contract file is damaged: its contract is of another trade")
    check_contract(contract, network)
    funding = derive_funding(contract, network)
    address = address_of(funding.escrow.script_pubkey, network)
    if (str(funding.escrow_outpoint), address) != (document.escrow, document.address):
        raise BadContractFile("the contract file is damaged: it names another escrow than its contract")
    agreed = (
        (contract.maker.persona, document.maker_signature),
        (contract.taker.persona, document.taker_signature),
    )
    for persona, signature in agreed:
        if signature is not None:
            verify_contract(contract, network, persona, bytes.fromhex(signature))
    held = tuple(
        HeldSignature(Role[h.role.upper()], h.outcome, bytes.fromhex(h.signature)) for h in document.signatures
    )
    for one in held:
        plan = derive_payout(contract, network, one.outcome)
        check_payout_signature(plan, one.role, one.signature)
    return ContractFile(
        contract=contract,
        network=network,
        side=side,
        maker_signature=None if document.maker_signature is None else bytes.fromhex(document.maker_signature),
        taker_signature=None if document.taker_signature is None else bytes.fromhex(document.taker_signature),
        funding_height=document.funding_height,
        signatures=held,
    )
