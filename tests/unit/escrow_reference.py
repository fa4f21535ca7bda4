"""SPEC section 6 once more, written from its text: plain integers and bytes, none of the code that it judges.

It reads a contract from its MessagePack array by position, as another implementation would.
"""

from __future__ import annotations

from hashlib import blake2b, sha256
from typing import Any

import msgpack

PRIME = 2**256 - 2**32 - 977
ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
BASE = (
    0x79BE667E_F9DCBBAC_55A06295_CE870B07_029BFCDB_2DCE28D9_59F2815B_16F81798,
    0x483ADA77_26A3C465_5DA4FBFC_0E1108A8_FD17B448_A6855419_9C47D08F_FB10D4B8,
)
Point = tuple[int, int]


def digest(tag: bytes, *parts: bytes) -> bytes:
    joined = b"".join(len(part).to_bytes(4, "big") + part for part in (tag, *parts))
    return blake2b(joined, digest_size=32).digest()


def add(a: Point | None, b: Point | None) -> Point | None:
    if a is None or b is None:
        return a or b
    if a[0] == b[0]:
        if (a[1] + b[1]) % PRIME == 0:
            return None
        slope = 3 * a[0] * a[0] * pow(2 * a[1], -1, PRIME) % PRIME
    else:
        slope = (b[1] - a[1]) * pow(b[0] - a[0], -1, PRIME) % PRIME
    x = (slope * slope - a[0] - b[0]) % PRIME
    return x, (slope * (a[0] - x) - a[1]) % PRIME


def times(scalar: int, point: Point) -> Point | None:
    total: Point | None = None
    addend: Point | None = point
    while scalar:
        if scalar & 1:
            total = add(total, addend)
        addend = add(addend, addend)
        scalar >>= 1
    return total


def lift(key: bytes) -> Point:
    x = int.from_bytes(key[1:], "big")
    y = pow(x**3 + 7, (PRIME + 1) // 4, PRIME)
    return x, y if y % 2 == key[0] % 2 else PRIME - y


def compress(point: Point | None) -> bytes:
    assert point is not None
    return bytes([2 + point[1] % 2]) + point[0].to_bytes(32, "big")


def fee(weight: int, rate: int) -> int:
    return (weight * rate + 3999) // 4000


def output(size: int) -> int:
    return 4 * (9 + size)


def dust(script: bytes) -> int:
    return 3 * (76 + len(script))


def push(number: int) -> bytes:
    if number <= 16:
        return bytes([0x50 + number])
    raw = number.to_bytes(number.bit_length() // 8 + 1, "little")
    return bytes([len(raw)]) + raw


def multi(keys: list[bytes]) -> bytes:
    return b"\x52" + b"".join(b"\x21" + key for key in keys) + b"\x53\xae"


def serialise(inputs: list[tuple[bytes, int]], outputs: list[bytes]) -> bytes:
    ins = b"".join(outpoint + b"\0" + sequence.to_bytes(4, "little") for outpoint, sequence in inputs)
    head = b"\2\0\0\0" + bytes([len(inputs)]) + ins
    return head + bytes([len(outputs)]) + b"".join(outputs) + bytes(4)


def txout(value: int, script: bytes) -> bytes:
    return value.to_bytes(8, "little") + bytes([len(script)]) + script


def txid(raw: bytes) -> bytes:
    return sha256(sha256(raw).digest()).digest()


class Contract:
    """The parts of a contract that matter on chain, and what follows from them."""

    def __init__(self, body: bytes, network: int) -> None:
        self.id = blake2b(b"p2pnode/1" + b"\0\x10" + bytes([network]) + body, digest_size=32).digest()
        fields: list[Any] = msgpack.unpackb(body)
        self.amount = fields[3]
        self.deposits = (fields[8], fields[9])
        self.arbiters = (fields[10], fields[11])
        self.type = fields[12]
        self.delay = fields[13]
        self.funding_rate, self.payout_rate, self.payout_max = fields[16]
        self.parties = (fields[17], fields[18])
        self.script = self._script()
        self.script_pubkey = b"\x00\x20" + sha256(self.script).digest()
        self.frame = 42 + 3
        self.escrow_input = 418 if self.type == 1 else 530 + len(push(self.delay))
        payees = [self.parties[0][2]] + ([self.parties[1][2]] if self.deposits[1] else [])
        self.carried = fee(self.payout_weight(payees), self.payout_rate)
        self.value = self.amount + sum(self.deposits) + self.carried
        self.funding = self._funding()

    def arbiter_key(self, which: int) -> bytes:
        base: bytes = self.arbiters[which][2]
        tweak = int.from_bytes(digest(b"p2pnode/arbiter-key", base, self.id), "big")
        assert tweak < ORDER
        return compress(add(lift(base), times(tweak, BASE)))

    def _script(self) -> bytes:
        keys = [party[1] for party in self.parties]
        main = multi([keys[0][0], keys[1][0], self.arbiter_key(0)])
        if self.type == 1:
            return main
        second = multi([keys[0][2], keys[1][2], self.arbiter_key(1)])
        return b"\x63" + main + b"\x67" + push(self.delay) + b"\xb2\x69" + second + b"\x68"

    def payout_weight(self, scripts: list[bytes]) -> int:
        return self.frame + self.escrow_input + sum(output(len(script)) for script in scripts)

    def ordered(self, items: list[bytes]) -> list[bytes]:
        return sorted(items, key=lambda item: digest(b"p2pnode/order", self.id, item))

    def _funding(self) -> bytes:
        shared = fee(self.frame + output(34), self.funding_rate) + self.carried
        half = shared // 2 if self.deposits[0] else 0
        targets = (self.deposits[0] + half, self.amount + self.deposits[1] + shared - half)
        inputs, outputs = [], [txout(self.value, self.script_pubkey)]
        for party, target in zip(self.parties, targets, strict=True):
            if not party[5]:
                continue
            weight = sum(272 if len(script) == 22 else 230 for _, _, _, script in party[5])
            brought = sum(value for _, _, value, _ in party[5])
            change = brought - target - fee(weight + output(len(party[4])), self.funding_rate)
            inputs += [previous + vout.to_bytes(4, "little") for previous, vout, _, _ in party[5]]
            if change >= dust(party[4]):
                outputs.append(txout(change, party[4]))
        ordered = [(outpoint, 0xFFFFFFFD) for outpoint in self.ordered(inputs)]
        return serialise(ordered, self.ordered(outputs))

    def payout(self, outcome: dict[str, Any]) -> bytes:
        """The payout of `outcome`, a case of the vectors."""
        dues = self._dues(outcome)
        which = 2 if outcome["kind"] == "release" else 3
        scripts = {
            0: self.parties[0][which],
            1: self.parties[1][which],
            2: bytes.fromhex(outcome.get("fee_script", "")),
        }
        rate = outcome.get("rate", self.payout_rate)
        weight = self.payout_weight([scripts[owner] for owner, due in dues.items() if due])
        extra = max(0, fee(weight, rate) - self.carried)
        half = extra // 2 if self.deposits[0] else 0
        take(dues, 0, half)
        take(dues, 1, extra - half)
        outputs = [txout(due, scripts[owner]) for owner, due in dues.items() if due >= dust(scripts[owner])]
        escrow = txout(self.value, self.script_pubkey)
        place = self.ordered(self._outputs()).index(escrow)
        outpoint = txid(self.funding) + place.to_bytes(4, "little")
        sequence = self.delay if outcome.get("branch", 1) == 2 else 0xFFFFFFFD
        return serialise([(outpoint, sequence)], self.ordered(outputs))

    def _outputs(self) -> list[bytes]:
        """The outputs of the funding, cut out of its bytes."""
        at = 5 + 41 * self.funding[4]
        count, at, found = self.funding[at], at + 1, []
        for _ in range(count):
            end = at + 9 + self.funding[at + 8]
            found.append(self.funding[at:end])
            at = end
        return found

    def _dues(self, outcome: dict[str, Any]) -> dict[int, int]:
        buyer, seller = self.deposits
        whole = self.amount + buyer + seller
        if outcome["kind"] == "release":
            return {0: self.amount + buyer, 1: seller}
        if outcome["kind"] == "settlement":
            return {0: outcome["buyer_due"], 1: whole - outcome["buyer_due"]}
        share, arbiter = outcome["buyer_share"], self.arbiters[outcome["branch"] - 1][3]
        part = self.amount * share // 1_000_000
        dues = {0: part + buyer, 1: self.amount - part + seller}
        if share == 500_000:
            take(dues, 0, arbiter // 2)
            take(dues, 1, arbiter - arbiter // 2)
        else:
            loser = 0 if share < 500_000 else 1
            lost = self.deposits[loser] * outcome["forfeit"] // 1_000_000
            dues[loser] -= lost
            dues[1 - loser] += lost
            take(dues, loser, arbiter)
        return {**dues, 2: arbiter}


def take(dues: dict[int, int], owner: int, cost: int) -> None:
    own = min(cost, dues[owner])
    dues[owner] -= own
    dues[1 - owner] -= cost - own
    assert dues[1 - owner] >= 0
