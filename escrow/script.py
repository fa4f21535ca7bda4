"""The escrow's script, its witnesses, and its descriptor (SPEC section 6.1).

Type 1 is `multi(2,B,S,A)`: any two of buyer, seller, arbiter. Type 2 adds a branch that opens after `delay` blocks, in
which a backup arbiter stands for the first one: `or_i(multi(2,B,S,A),and_v(v:older(T),multi(2,B2,S2,A2)))`. Keys stand
in the order of `Role`, and CHECKMULTISIG wants signatures in the order of the keys. Both are miniscript: any
wallet that knows it can watch and, with the keys, spend an escrow from its descriptor.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from hashlib import sha256
from typing import Final, Self, assert_never

from bitcoin.core.script import (
    OP_CHECKMULTISIG,
    OP_CHECKSEQUENCEVERIFY,
    OP_ELSE,
    OP_ENDIF,
    OP_IF,
    OP_PUSHDATA4,
    OP_VERIFY,
    CScript,
    CScriptOp,
)
from msgspec import Struct

from escrow.errors import BadEscrowTerms
from escrow.keys import arbiter_public
from escrow.signatures import SIGHASH_ALL, is_point
from escrow.sizes import MAX_SIGNATURE
from escrow.transactions import Witness
from protocol.contract import Contract, contract_id
from protocol.types import Branch, EscrowType, Network, Side

Keys = tuple[bytes, bytes, bytes]
"""Buyer's, seller's and arbiter's compressed keys."""
_MAX_DELAY: Final = 0xFFFF


class Role(IntEnum):
    """Who holds a key of the escrow, or owns an output. The numbers are the places of the keys in the script."""

    BUYER = 0
    SELLER = 1
    ARBITER = 2

    @classmethod
    def of(cls, side: Side) -> Self:
        """The role of a party."""
        return cls.BUYER if side is Side.BUY else cls.SELLER


class EscrowScript(Struct, frozen=True):
    """An escrow's script and the keys in it. `backup` is None and `delay` 0 for type 1."""

    main: Keys
    backup: Keys | None
    delay: int
    witness_script: bytes
    script_pubkey: bytes

    @property
    def escrow_type(self) -> EscrowType:
        """Which of the escrow types this is."""
        return EscrowType.WSH_2OF3 if self.backup is None else EscrowType.WSH_2OF3_BACKUP

    @property
    def descriptor(self) -> str:
        """The output descriptor (BIP380, miniscript), without checksum."""
        main = _multi_text(self.main)
        if self.backup is None:
            return f"wsh({main})"
        return f"wsh(or_i({main},and_v(v:older({self.delay}),{_multi_text(self.backup)})))"

    @property
    def asm(self) -> tuple[str, ...]:
        """The script's operations as Bitcoin Core writes them: keys in hexadecimal, numbers in decimal."""
        return tuple(
            str(CScriptOp(op)) if op > OP_PUSHDATA4 or not data else data.hex() if len(data) > 4 else _decimal(data)
            for op, data, _ in CScript(self.witness_script).raw_iter()
        )

    def keys(self, branch: Branch) -> Keys:
        """The keys that sign in `branch`. Raises ValueError when the escrow has no such branch."""
        match branch:
            case Branch.MAIN:
                return self.main
            case Branch.BACKUP:
                if self.backup is None:
                    raise ValueError("this escrow has no backup branch")
                return self.backup
            case _:
                assert_never(branch)

    def witness(self, branch: Branch, signatures: Mapping[Role, bytes]) -> Witness:
        """The witness of two DER signatures. Raises ValueError unless exactly two roles sign."""
        if len(signatures) != 2:
            raise ValueError("an escrow is spent with exactly two signatures")
        self.keys(branch)
        stack = [signatures[role] + bytes([SIGHASH_ALL]) for role in sorted(signatures)]
        # CHECKMULTISIG takes one item too many off the stack; it must be empty (BIP147).
        return (b"", *stack, *self._selector(branch), self.witness_script)

    def _selector(self, branch: Branch) -> tuple[bytes, ...]:
        """The argument of OP_IF: exactly 1 or empty, else nodes do not relay it (MINIMALIF)."""
        if self.backup is None:
            return ()
        return (b"\x01",) if branch is Branch.MAIN else (b"",)


def build_script(main: Keys, backup: Keys | None, delay: int) -> EscrowScript:
    """The escrow of these keys. Raises ValueError for keys that are no points or not all different, or a bad delay."""
    keys = (*main, *(backup or ()))
    if len({key[1:] for key in keys}) != len(keys) or not all(map(is_point, keys)):
        raise ValueError("an escrow needs different valid keys")
    if not (0 < delay <= _MAX_DELAY if backup else delay == 0):
        raise ValueError("the delay is for a backup branch, 1 to 65535 blocks")
    script = _multi(main)
    if backup:
        older = (delay, OP_CHECKSEQUENCEVERIFY, OP_VERIFY)
        script = [OP_IF, *script, OP_ELSE, *older, *_multi(backup), OP_ENDIF]
    raw = bytes(CScript(script))
    return EscrowScript(main, backup, delay, raw, b"\x00\x20" + sha256(raw).digest())


def escrow_script(contract: Contract, network: Network) -> EscrowScript:
    """The escrow of a contract. Raises BadArbiterKey, BadEscrowTerms."""
    commitment = contract_id(contract, network)
    buyer, seller, backup = contract.buyer.keys, contract.seller.keys, contract.backup
    main = (buyer.main, seller.main, arbiter_public(contract.arbiter.base_point, commitment))
    second = None
    if backup is not None:
        second = (buyer.backup, seller.backup, arbiter_public(backup.base_point, commitment))
    if (second is None) != (contract.escrow_type is EscrowType.WSH_2OF3):
        raise BadEscrowTerms("exactly an escrow with a backup branch has a backup arbiter")
    try:
        return build_script(main, second, contract.backup_delay if second else 0)
    except ValueError as e:
        raise BadEscrowTerms(str(e)) from e


def script_size(escrow_type: EscrowType, delay: int) -> int:
    """Bytes of the witness script, from what an offer tells."""
    one = 1 + 3 * 34 + 1 + 1
    match escrow_type:
        case EscrowType.WSH_2OF3:
            return one
        case EscrowType.WSH_2OF3_BACKUP:
            return 3 + 2 * one + len(_number(delay)) + 2
        case _:
            assert_never(escrow_type)


def spend_weight(escrow_type: EscrowType, delay: int) -> int:
    """Weight units of the input that spends an escrow by its main branch, with the largest signatures.

    The backup branch has one unit less; it is counted alike.
    """
    selector = [] if escrow_type is EscrowType.WSH_2OF3 else [1]
    items = [0, MAX_SIGNATURE, MAX_SIGNATURE, *selector, script_size(escrow_type, delay)]
    # Every length fits one byte: the largest script has 219 bytes.
    return 4 * 41 + 1 + sum(1 + size for size in items)


def decode_script(witness_script: bytes) -> EscrowScript:
    """The escrow that a witness script is, for display and recovery. Raises ValueError for any other script."""
    found = _decode(witness_script)
    if found is None or found.witness_script != witness_script:
        raise ValueError("not an escrow's script")
    return found


def _decode(script: bytes) -> EscrowScript | None:
    one = script_size(EscrowType.WSH_2OF3, 0)
    if len(script) == one:
        return build_script(_keys_at(script, 0), None, 0)
    # OP_IF, first multi, OP_ELSE, the delay, OP_CHECKSEQUENCEVERIFY OP_VERIFY, second multi, OP_ENDIF.
    push = script[one + 2 : -(one + 3)]
    if not 2 * one + 6 <= len(script) <= 2 * one + 9:
        return None
    delay = push[0] - 0x50 if len(push) == 1 else int.from_bytes(push[1:], "little")
    return build_script(_keys_at(script, 1), _keys_at(script, len(script) - one - 1), delay)


def _keys_at(script: bytes, start: int) -> Keys:
    """The keys of the `multi` that begins at `start`: each stands behind one byte that tells its length."""
    first, second, third = (script[start + 2 + 34 * i : start + 35 + 34 * i] for i in range(3))
    return first, second, third


def _number(value: int) -> bytes:
    """The shortest push of a number (BIP62, rules 3 and 4)."""
    return bytes(CScript([value]))


def _decimal(number: bytes) -> str:
    return str(int.from_bytes(number, "little"))


def _multi(keys: Keys) -> list[object]:
    return [2, *keys, 3, OP_CHECKMULTISIG]


def _multi_text(keys: Keys) -> str:
    return f"multi(2,{','.join(key.hex() for key in keys)})"
