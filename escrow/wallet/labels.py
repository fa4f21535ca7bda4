"""Labels as other wallets exchange them: one JSON object per line (BIP329).

Records of every type are kept, those about things that are not ours too, and come out again as they came in. What the
BIP calls optional and this wallet does not use (`height`, `fee`, ...) is dropped. A line that is no record is refused
with its number, and then nothing is imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, cast, get_args

import msgspec

from escrow.coins import OutPoint, txid_bytes
from escrow.wallet.base import Label, LabelKind
from protocol.errors import UserError

KINDS: Final = frozenset(get_args(LabelKind))
MAX_LABEL: Final = 255
"""Characters that the BIP asks every wallet to keep; what is longer is cut."""
MAX_REF: Final = 200
MAX_ORIGIN: Final = 200


class BadLabels(UserError):
    """That is not a list of labels: one JSON object per line, as BIP329 has it."""

    code = 3244


class _Record(msgspec.Struct, omit_defaults=True):
    type: str
    ref: str
    label: str = ""
    origin: str | None = None
    spendable: bool | None = None


def read_labels(text: str) -> tuple[Label, ...]:
    """The labels of a file; empty lines and records of unknown types are passed over. Raises BadLabels."""
    found: list[Label] = []
    # Not `splitlines`: a label may hold what Unicode counts as the end of a line.
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = msgspec.json.decode(line, type=_Record)
        except msgspec.MsgspecError as e:
            raise BadLabels(f"line {number} is not a label ({e}); nothing was imported") from e
        if record.type not in KINDS:
            continue
        label = Label(
            kind=cast("LabelKind", record.type),
            ref=record.ref,
            label=record.label[:MAX_LABEL],
            origin=record.origin,
            spendable=record.spendable,
        )
        try:
            found.append(check_label(label))
        except BadLabels as e:
            raise BadLabels(f"line {number}: {e.detail}; nothing was imported") from e
    return tuple(found)


def write_labels(labels: Iterable[Label]) -> str:
    """The file of labels."""
    lines = (msgspec.json.encode(_Record(x.kind, x.ref, x.label, x.origin, x.spendable)).decode() for x in labels)
    return "".join(f"{line}\n" for line in lines)


def check_label(label: Label) -> Label:
    """That a label can be kept. Raises BadLabels."""
    if not 0 < len(label.ref) <= MAX_REF or len(label.origin or "") > MAX_ORIGIN:
        raise BadLabels("its reference is empty or too long")
    if label.kind in ("output", "input"):
        outpoint_of(label.ref)
    elif label.kind == "tx":
        _txid_of(label.ref)
    return label


def outpoint_of(text: str) -> OutPoint:
    """An outpoint as explorers write it, `txid:vout`. Raises BadLabels."""
    txid, _, vout = text.partition(":")
    if not vout.isdecimal() or len(vout) > 9 or not vout.isascii():
        raise BadLabels(f"“{text[:80]}” is not a coin: write txid:number")
    return OutPoint(_txid_of(txid), int(vout))


def _txid_of(text: str) -> bytes:
    try:
        return txid_bytes(text)
    except ValueError as e:
        raise BadLabels(f"“{text[:80]}” is not a txid") from e
