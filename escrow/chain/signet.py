"""Whether a signet block was signed by whoever may make blocks there (BIP325, sans-IO).

Work alone protects little on signet: its blocks are signed, and the signature lies in the coinbase, which no header
shows. So it can be checked of blocks that are read whole, and those are all blocks in which something of ours is.

Source: BIP325; the challenge is the public signet's (Bitcoin Core, kernel/chainparams.cpp): one signature of either of
two keys, as a bare multisig script. Signets of one's own have other challenges and are not supported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from escrow.chain.base import ProofFailed
from escrow.chain.blocks import ParsedTx, block_txids, first_tx
from escrow.chain.headers import hash256
from escrow.chain.merkle import check_block, root_of
from escrow.signatures import SIGHASH_ALL, verify_ecdsa
from protocol.types import Hash32, Network

CHALLENGE: Final = bytes.fromhex(
    "512103ad5e0edad18cb1f0fc0d28a3d4f1f3e445640337489abb10404f2d1e086be430"
    "210359ef5021964fe22d6f8e05b2463c9540ce96883fe3b278760f048f5189f2e6c452ae"
)
KEYS: Final = (CHALLENGE[2:35], CHALLENGE[36:69])
_COMMITMENT: Final = bytes.fromhex("6a24aa21a9ed")
"""How the coinbase's output begins that commits to witnesses (BIP141)."""
_COMMITMENT_SIZE: Final = 38
_MARK: Final = bytes.fromhex("ecc7daa2")
_UNSIGNED: Final = "a signet block is not signed by those who may make blocks there"


def check_whole(raw: bytes, block: Hash32, network: Network) -> None:
    """As `check_block`, and on signet the block's signature. Raises ProofFailed, BackendError."""
    check_block(raw, block)
    if network is Network.SIGNET:
        check_signed(raw)


def check_signed(block: bytes) -> None:
    """That a whole block carries the public signet's signature. Raises ProofFailed, BackendError."""
    coinbase = first_tx(block)
    script, solution = _solution(coinbase)
    # The signed block lacks the signature itself.
    plain = _without_witness(coinbase)
    old, new = _sized(script), _sized(_cleared(script))
    at = plain.rfind(old)
    cleared = plain[:at] + new + plain[at + len(old) :]
    root = root_of([hash256(cleared), *block_txids(block)[1:]])
    digest = _digest(block[:36] + root + block[68:72])
    # One signature, after the empty item that OP_CHECKMULTISIG takes besides.
    if len(solution) < 10 or solution[0] != 0 or solution[1] != len(solution) - 2 or solution[-1] != SIGHASH_ALL:
        raise ProofFailed(_UNSIGNED)
    signature = solution[2:-1]
    if not any(verify_ecdsa(key, digest, signature) for key in KEYS):
        raise ProofFailed(_UNSIGNED)


def _solution(coinbase: ParsedTx) -> tuple[bytes, bytes]:
    """The script that holds the solution, and the solution's script (its witness must be empty)."""
    scripts = [o.script_pubkey for o in coinbase.outputs]
    committing = [s for s in scripts if s.startswith(_COMMITMENT) and len(s) >= _COMMITMENT_SIZE]
    for item in _pushes(committing[-1]) if committing else ():
        if item.startswith(_MARK) and len(item) > len(_MARK):
            data = item[len(_MARK) :]
            size = data[0]
            if size >= 0xFD or data[1 + size :] not in (b"", b"\0"):
                raise ProofFailed(_UNSIGNED)
            return committing[-1], data[1 : 1 + size]
    raise ProofFailed(_UNSIGNED)


def _pushes(script: bytes) -> Iterator[bytes]:
    """What the script pushes, one after the other."""
    at = 1
    while at < len(script):
        width = {0x4C: 1, 0x4D: 2}.get(script[at], 0)
        size = int.from_bytes(script[at + 1 : at + 1 + width], "little") if width else script[at]
        if size > 75 and not width:
            return
        at += 1 + width
        yield script[at : at + size]
        at += size


def _cleared(script: bytes) -> bytes:
    """The script with nothing but its mark left of the solution."""
    out = script[:1]
    found = False
    for item in _pushes(script):
        kept = _MARK if item.startswith(_MARK) and len(item) > len(_MARK) and not found else item
        found = found or kept is not item
        out += _pushed(kept)
    return out


def _digest(data: bytes) -> bytes:
    """What is signed: the spend of an output that exists nowhere, whose own transaction names the block."""
    script = b"\0" + _pushed(data)
    source = bytes(4) + b"\1" + bytes(32) + b"\xff" * 4 + _sized(script) + bytes(4)
    source += b"\1" + bytes(8) + _sized(CHALLENGE) + bytes(4)
    spend = bytes(4) + b"\1" + hash256(source) + bytes(4) + _sized(CHALLENGE) + bytes(4)
    spend += b"\1" + bytes(8) + _sized(b"\x6a") + bytes(4)
    return hash256(spend + SIGHASH_ALL.to_bytes(4, "little"))


def _without_witness(tx: ParsedTx) -> bytes:
    """A coinbase as its name is made of: one input, then the outputs."""
    raw = tx.raw
    at = 6 if raw[4:6] == b"\0\1" else 4
    end = at + 1 + 36 + 1 + raw[at + 37] + 4  # its script has at most 100 bytes
    outputs = b"".join(o.value.to_bytes(8, "little") + _sized(o.script_pubkey) for o in tx.outputs)
    return raw[:4] + raw[at:end] + _size(len(tx.outputs)) + outputs + raw[-4:]


def _pushed(data: bytes) -> bytes:
    size = len(data)
    if size <= 75:
        return bytes([size]) + data
    return (b"\x4c" + bytes([size]) if size < 0x100 else b"\x4d" + size.to_bytes(2, "little")) + data


def _size(value: int) -> bytes:
    return bytes([value]) if value < 0xFD else b"\xfd" + value.to_bytes(2, "little")


def _sized(data: bytes) -> bytes:
    return _size(len(data)) + data
