"""What a receipt says, held against the transactions that it names (SPEC sections 14.2 and 14.3). Nothing asks here.

The payout's witness reveals the escrow's script. It must hold the keys that signed the receipt, in their places, and be
what the funding's output paid to; the payout must spend that output and nothing else.
"""

from __future__ import annotations

from hashlib import sha256

from bitcoin.core import CTransaction
from msgspec import Struct

from escrow.keys import arbiter_public, public_key
from escrow.script import EscrowScript, Role, decode_script
from escrow.signatures import SIGHASH_ALL, sign_schnorr, verify_ecdsa, verify_schnorr
from escrow.transactions import NotATransaction, parse, sighash_v0, stripped, txid_of, witness_of
from protocol.errors import P2PError
from protocol.receipt import (
    BadReceipt,
    Receipt,
    RulingReceipt,
    SignedReceipt,
    receipt_message,
    ruling_receipt_message,
)
from protocol.types import Branch, Network, Side


class SeenEscrow(Struct, frozen=True):
    """An escrow's life as its two transactions show it: what it held, and the fee of what spent it, in satoshis."""

    value: int
    fee: int
    script: EscrowScript
    signers: tuple[Role, ...]
    """Which two keys signed the payout."""
    branch: Branch


def sign_as_key(secret: bytes, receipt: Receipt, side: Side, network: Network) -> bytes:
    """The escrow key's signature of one side, 64 bytes. Raises ValueError for another key's secret."""
    if public_key(secret) != receipt.key(side):
        raise ValueError("that is not the receipt's key")
    return sign_schnorr(secret, receipt_message(receipt, network))


def check_key_signature(receipt: Receipt, side: Side, signature: bytes, network: Network) -> None:
    """One escrow key's signature. Raises BadReceipt."""
    if not verify_schnorr(receipt.key(side)[1:], receipt_message(receipt, network), signature):
        raise BadReceipt("the receipt is not signed by the escrow's key")


def check_keys(signed: SignedReceipt, network: Network) -> None:
    """Both escrow keys' signatures. Raises BadReceipt."""
    for side in Side:
        check_key_signature(signed.receipt, side, signed.key_signature(side), network)


def check_ruling_key(value: RulingReceipt, network: Network) -> None:
    """The signature of the arbiter's key in that escrow. Raises BadReceipt."""
    try:
        key = arbiter_public(value.base_point, value.contract_id)
    except P2PError as e:
        raise BadReceipt(e.detail) from e
    if not verify_schnorr(key[1:], ruling_receipt_message(value, network), value.key_signature):
        raise BadReceipt("the ruling receipt is not signed by the arbiter's key in that escrow")


def seen_escrow(funding_txid: bytes, vout: int, funding: bytes, payout_txid: bytes, payout: bytes) -> SeenEscrow:
    """The escrow between two raw transactions. Raises BadReceipt for anything that is not an escrow and its payout."""
    try:
        if txid_of(funding) != funding_txid or txid_of(payout) != payout_txid:
            raise BadReceipt("the transaction is another than the receipt names")
        made, spent = parse(funding), parse(payout)
    except NotATransaction as e:
        raise BadReceipt("not a transaction") from e
    if vout >= len(made.vout):
        raise BadReceipt("the funding has no such output")
    if len(spent.vin) != 1 or (bytes(spent.vin[0].prevout.hash), int(spent.vin[0].prevout.n)) != (funding_txid, vout):
        raise BadReceipt("the payout does not spend the escrow, or not it alone")
    output = made.vout[vout]
    witness = witness_of(spent, 0)
    try:
        script = decode_script(witness[-1] if witness else b"")
    except ValueError as e:
        raise BadReceipt("the output was no escrow") from e
    if bytes(output.scriptPubKey) != b"\x00\x20" + sha256(script.witness_script).digest():
        raise BadReceipt("the escrow's script is not the funding's")
    if len(witness) != (4 if script.backup is None else 5):
        raise BadReceipt("the payout has another witness than an escrow's")
    value = int(output.nValue)
    branch = Branch.BACKUP if script.backup is not None and witness[3] == b"" else Branch.MAIN
    fee = value - sum(int(o.nValue) for o in spent.vout)
    return SeenEscrow(value, fee, script, _signers(spent, script, branch, value), branch)


def check_parties(receipt: Receipt, seen: SeenEscrow) -> None:
    """The receipt's keys are the escrow's. Raises BadReceipt."""
    if (receipt.buyer_key, receipt.seller_key) != seen.script.main[:2]:
        raise BadReceipt("the escrow has other keys than the receipt")


def check_arbiter(value: RulingReceipt, seen: SeenEscrow) -> None:
    """The ruling receipt's key is the arbiter's in that escrow, and signed its payout. Raises BadReceipt."""
    key = arbiter_public(value.base_point, value.contract_id)
    if seen.branch is not value.branch or seen.script.keys(value.branch)[Role.ARBITER] != key:
        raise BadReceipt("the escrow's arbiter is another")
    if Role.ARBITER not in seen.signers:
        raise BadReceipt("the arbiter did not sign that payout")


def _signers(spent: CTransaction, script: EscrowScript, branch: Branch, value: int) -> tuple[Role, ...]:
    sighash = sighash_v0(stripped(spent), 0, script.witness_script, value)
    signatures = [item[:-1] for item in witness_of(spent, 0)[1:3] if item[-1:] == bytes([SIGHASH_ALL])]
    keys = script.keys(branch)
    return tuple(role for role in Role if any(verify_ecdsa(keys[role], sighash, s) for s in signatures))
