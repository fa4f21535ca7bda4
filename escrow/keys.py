"""The three kinds of key in an escrow (SPEC section 5.2): buyer's, seller's, arbiter's.

A party brings two fresh keys and proves that it holds their secrets with a BIP340 signature over the trade, its
persona and the key's purpose; so nobody can put a key into an escrow that is another's, or made from another's.

An arbiter brings nothing: it announced one base point A, and the key in the escrow is A plus a tweak that commits to
the contract. The contract holds secret nonces of both parties, so the arbiter can't recognise the key on chain; and
the secret that it derives once it is shown the contract signs for that contract only.
"""

from __future__ import annotations

from enum import Enum
from typing import assert_never

from coincurve import PrivateKey, PublicKey

from escrow.errors import BadArbiterKey, BadEscrowKey
from escrow.signatures import is_point, sign_schnorr, verify_schnorr
from protocol.contract import EscrowKeys, Party
from protocol.wire import digest


class KeyPurpose(Enum):
    """Which branch of the escrow a party's key signs in."""

    MAIN = b"main"
    BACKUP = b"backup"


def public_key(secret: bytes) -> bytes:
    """The compressed public key. Raises ValueError for a secret outside the group."""
    return PrivateKey(secret).public_key.format()


def proof_message(trade_id: bytes, persona: bytes, purpose: KeyPurpose) -> bytes:
    """The 32 bytes that a proof of possession signs."""
    return digest(b"p2pnode/escrow-key", trade_id, persona, purpose.value)


def prove(secret: bytes, trade_id: bytes, persona: bytes, purpose: KeyPurpose) -> bytes:
    """The 64-byte proof that whoever is `persona` in this trade holds `secret`."""
    return sign_schnorr(secret, proof_message(trade_id, persona, purpose))


def make_keys(main_secret: bytes, backup_secret: bytes, trade_id: bytes, persona: bytes) -> EscrowKeys:
    """A party's keys with their proofs, as the contract holds them."""
    return EscrowKeys(
        main=public_key(main_secret),
        main_proof=prove(main_secret, trade_id, persona, KeyPurpose.MAIN),
        backup=public_key(backup_secret),
        backup_proof=prove(backup_secret, trade_id, persona, KeyPurpose.BACKUP),
    )


def check_keys(party: Party, trade_id: bytes) -> None:
    """Check both keys of a party: on the curve, different, and proved. Raises BadEscrowKey."""
    keys = party.keys
    if keys.main[1:] == keys.backup[1:]:
        raise BadEscrowKey("the peer's two escrow keys are the same")
    for purpose in KeyPurpose:
        key, proof = _part(keys, purpose)
        name = purpose.value.decode()
        if not is_point(key):
            raise BadEscrowKey(f"the peer's {name} escrow key is not a point of the curve")
        if not verify_schnorr(key[1:], proof_message(trade_id, party.persona, purpose), proof):
            raise BadEscrowKey(f"the peer did not prove that it holds its {name} escrow key")


def _part(keys: EscrowKeys, purpose: KeyPurpose) -> tuple[bytes, bytes]:
    match purpose:
        case KeyPurpose.MAIN:
            return keys.main, keys.main_proof
        case KeyPurpose.BACKUP:
            return keys.backup, keys.backup_proof
        case _:
            assert_never(purpose)


def arbiter_tweak(base_point: bytes, contract_id: bytes) -> bytes:
    """The 32-byte scalar `H("p2pnode/arbiter-key", A ‖ contract_id)`; it is not reduced: see `tweak_public`."""
    return digest(b"p2pnode/arbiter-key", base_point, contract_id)


def arbiter_public(base_point: bytes, contract_id: bytes) -> bytes:
    """The arbiter's key in the escrow of one contract, compressed. Raises BadArbiterKey."""
    return tweak_public(base_point, arbiter_tweak(base_point, contract_id))


def arbiter_secret(base_secret: bytes, contract_id: bytes) -> bytes:
    """The secret of `arbiter_public`, 32 bytes. Raises BadArbiterKey; ValueError for a secret outside the group."""
    return tweak_secret(base_secret, arbiter_tweak(public_key(base_secret), contract_id))


def tweak_public(point: bytes, tweak: bytes) -> bytes:
    """`point + tweak·G`, compressed.

    A tweak of the group's order or more, and a sum at infinity, are refused rather than mapped to another key: each
    has probability 2^-127 for a hash as the tweak. Raises BadArbiterKey.
    """
    if not is_point(point):
        raise BadArbiterKey("the arbiter's base point is not a point of the curve")
    try:
        return PublicKey(point).add(tweak).format()
    except ValueError as e:
        raise BadArbiterKey from e


def tweak_secret(secret: bytes, tweak: bytes) -> bytes:
    """The secret of `tweak_public`, with the same refusals. Raises ValueError for a secret outside the group."""
    key = PrivateKey(secret)
    try:
        return key.add(tweak).secret
    except ValueError as e:
        raise BadArbiterKey from e
