"""What the chain itself says about a trade: asked of bitcoind, not of the nodes that traded.

The two transactions are read back from their blocks and judged anew. bitcoind accepted them, so they are valid; what
is left to show is that they are *ours*: the escrow output is locked by the very script that the payout opens, exactly
two of that script's keys signed, each satoshi that went in came out or was paid as a fee.
"""

from __future__ import annotations

from decimal import Decimal
from hashlib import sha256

from msgspec import Struct

from escrow.address import address_of
from escrow.script import EscrowScript, Role, decode_script
from escrow.signatures import SIGHASH_ALL, verify_ecdsa
from escrow.transactions import parse, sighash_v0, witness_of
from p2pnode.regtest import COIN, RegtestNode
from protocol.errors import ChainError
from protocol.types import Branch, Network

_DUMMY = b""


class NotAsAgreed(ChainError):
    """The chain does not hold what the trade was to leave there."""

    code = 4910


class Transaction(Struct, frozen=True):
    """A confirmed transaction; values in satoshis, `spent` as (txid, vout, value) of what the inputs spend."""

    txid: str
    raw: str
    vsize: int
    fee_sats: int
    height: int
    spent: tuple[tuple[str, int, int], ...]
    outputs: tuple[int, ...]


class Escrow(Struct, frozen=True):
    """The escrow as its spending showed it. `keys` name the holder of each key in the script, in its order."""

    txid: str
    vout: int
    value_sats: int
    address: str
    witness_script: str
    asm: tuple[str, ...]
    descriptor: str
    keys: tuple[tuple[str, str], ...]
    delay_blocks: int
    branch: str
    signed_by: tuple[str, ...]
    witness: tuple[str, ...]


async def read_transaction(bitcoind: RegtestNode, txid: str) -> Transaction:
    """The transaction from its block. bitcoind needs its transaction index. Raises NotAsAgreed, RegtestError."""
    found = await bitcoind.rpc("getrawtransaction", txid, 2)
    if "blockhash" not in found:
        raise NotAsAgreed(f"transaction {txid} is not in a block")
    header = await bitcoind.rpc("getblockheader", found["blockhash"])
    spent = tuple((i["txid"], i["vout"], sats(i["prevout"]["value"])) for i in found["vin"])
    outputs = tuple(sats(o["value"]) for o in found["vout"])
    fee = sats(found["fee"])
    if sum(value for *_, value in spent) != sum(outputs) + fee:
        raise NotAsAgreed(f"transaction {txid} does not conserve value")
    return Transaction(txid, found["hex"], found["vsize"], fee, header["height"], spent, outputs)


def read_escrow(funding: Transaction, vout: int, payout: Transaction) -> Escrow:
    """Judge how `payout` spends the escrow that `funding` made in output `vout`. Raises NotAsAgreed."""
    tx = parse(bytes.fromhex(payout.raw))
    if [spent[:2] for spent in payout.spent] != [(funding.txid, vout)]:
        raise NotAsAgreed("the payout does not spend the escrow, and the escrow alone")
    dummy, *stack, witness_script = witness_of(tx, 0)
    signatures, selector = stack[:2], tuple(stack[2:])
    output = parse(bytes.fromhex(funding.raw)).vout[vout]
    if bytes(output.scriptPubKey) != b"\x00\x20" + sha256(witness_script).digest() or dummy != _DUMMY:
        raise NotAsAgreed("the payout opens another script than the one that locks the escrow")
    script = decode_script(witness_script)
    if selector not in ((), (b"\x01",), (b"",)) or (selector == ()) != (script.backup is None):
        raise NotAsAgreed("the payout's witness does not choose a branch of its script")
    branch = Branch.BACKUP if selector == (b"",) else Branch.MAIN
    # Witnesses are not part of what is signed, so the transaction may stay as it is.
    sighash = sighash_v0(bytes.fromhex(payout.raw), 0, witness_script, output.nValue)
    signers = tuple(_signer(signature, script.keys(branch), sighash) for signature in signatures)
    if len(set(signers)) != 2:
        raise NotAsAgreed("one key signed twice")
    return Escrow(
        txid=funding.txid,
        vout=vout,
        value_sats=funding.outputs[vout],
        address=address_of(script.script_pubkey, Network.REGTEST),
        witness_script=witness_script.hex(),
        asm=script.asm,
        descriptor=script.descriptor,
        keys=_named(script),
        delay_blocks=script.delay,
        branch=branch.name.lower(),
        signed_by=tuple(role.name.lower() for role in signers),
        witness=tuple(item.hex() for item in witness_of(tx, 0)),
    )


def sats(coins: Decimal | int) -> int:
    """Satoshis of bitcoind's decimal coins. Raises ValueError where they are no whole number."""
    exact = Decimal(coins) * COIN
    if exact != int(exact):
        raise ValueError(f"{coins} coins are no whole number of satoshis")
    return int(exact)


def _signer(signature: bytes, keys: tuple[bytes, bytes, bytes], sighash: bytes) -> Role:
    for role in Role:
        if signature[-1:] == bytes([SIGHASH_ALL]) and verify_ecdsa(keys[role], sighash, signature[:-1]):
            return role
    raise NotAsAgreed("a signature in the payout is none of the script's keys'")


def _named(script: EscrowScript) -> tuple[tuple[str, str], ...]:
    names = [role.name.lower() for role in Role]
    if script.backup is not None:
        names += ["buyer, backup branch", "seller, backup branch", "backup arbiter"]
    return tuple(zip(names, (key.hex() for key in (*script.main, *(script.backup or ()))), strict=True))
