"""Fidelity bonds on chain: `<height> OP_CHECKLOCKTIMEVERIFY OP_DROP <key> OP_CHECKSIG` as P2WSH (SPEC section 14.1).

The form that JoinMarket's bonds have. Lock heights are multiples of a step, so that the mnemonic alone finds a bond
again: there is one key for each persona and lock height, and few heights to try.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from bitcoin.core import COutPoint, CTransaction, CTxIn, CTxOut
from bitcoin.core.script import OP_CHECKLOCKTIMEVERIFY, OP_CHECKSIG, OP_DROP, CScript
from msgspec.structs import replace

from escrow.coins import OutPoint
from escrow.keys import public_key
from escrow.signatures import SIGHASH_ALL, is_point, sign_ecdsa, sign_schnorr, verify_schnorr
from escrow.transactions import VERSION, sighash_v0, vsize, with_witnesses
from protocol.bond import BadBond, Bond, bond_message
from protocol.types import Network

MAX_LOCK: Final = 210_000
"""Blocks that a bond may be locked for: four years. A typing error must not lock coins for life."""
NO_RBF_LOCK: Final = 0xFFFF_FFFD
"""A sequence number that leaves the lock time in force and signals replacement."""


def lock_step(network: Network) -> int:
    """Lock heights are multiples of this: two weeks; on regtest, where nobody waits, ten blocks."""
    return 10 if network is Network.REGTEST else 2_016


def lock_at_least(height: int, network: Network) -> int:
    """The first lock height from `height` on."""
    step = lock_step(network)
    return -(-height // step) * step


def bond_script(lock_height: int, key: bytes) -> bytes:
    """The witness script. Raises ValueError for a key that is no point or a height that would be a time."""
    if not is_point(key) or not 0 < lock_height < 500_000_000:
        raise ValueError("a bond needs a valid key and a lock height")
    return bytes(CScript([lock_height, OP_CHECKLOCKTIMEVERIFY, OP_DROP, key, OP_CHECKSIG]))


def bond_output(lock_height: int, key: bytes) -> bytes:
    """The output script that locks coins so."""
    return b"\x00\x20" + sha256(bond_script(lock_height, key)).digest()


def prove_bond(secret: bytes, network: Network, persona: bytes, bond: Bond) -> Bond:
    """The bond with its key's signature that it stands for `persona`. Raises ValueError for another key's secret."""
    if public_key(secret) != bond.key:
        raise ValueError("that is not the bond's key")
    return replace(bond, proof=sign_schnorr(secret, bond_message(network, persona, bond)))


def check_bond(bond: Bond, network: Network, persona: bytes) -> None:
    """All of a bond that can be checked without the chain. Raises BadBond."""
    if not is_point(bond.key):
        raise BadBond("the bond's key is not a point of the curve")
    if not verify_schnorr(bond.key[1:], bond_message(network, persona, bond), bond.proof):
        raise BadBond


def spend_bond(
    coin: OutPoint, value: int, lock_height: int, secret: bytes, script_pubkey: bytes, fee_rate: int
) -> tuple[bytes, int]:
    """The signed transaction that pays an unlocked bond to `script_pubkey`, and its fee; `fee_rate` in sat/kvB.

    It is valid in blocks after `lock_height`. Raises ValueError when the fee would leave nothing worth having.
    """
    witness_script = bond_script(lock_height, public_key(secret))

    def made(payee: int) -> bytes:
        tx = CTransaction(
            [CTxIn(COutPoint(coin.txid, coin.vout), nSequence=NO_RBF_LOCK)],
            [CTxOut(payee, CScript(script_pubkey))],
            nLockTime=lock_height,
            nVersion=VERSION,
        )
        return bytes(tx.serialize())

    def signed(unsigned: bytes) -> bytes:
        signature = sign_ecdsa(secret, sighash_v0(unsigned, 0, witness_script, value)) + bytes([SIGHASH_ALL])
        return with_witnesses(unsigned, [(signature, witness_script)])

    # One vbyte of room: a signature may be a byte longer than this one.
    fee = -(-(vsize(signed(made(value))) + 1) * fee_rate // 1_000)
    if value - fee < 1_000:
        raise ValueError("the fee would eat the bond")
    return signed(made(value - fee)), fee
