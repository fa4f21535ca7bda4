"""Escrows on a made-up chain, and the receipts, bonds and proofs that stand on them. All signatures are real."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from msgspec.structs import replace

from escrow.bond import bond_output, prove_bond
from escrow.chain.base import ChainTx
from escrow.coins import OutPoint, TxOut
from escrow.funding import derive_funding
from escrow.inputs import assemble_funding
from escrow.keys import make_keys, public_key
from escrow.payout import assemble_payout, derive_payout
from escrow.receipt import sign_as_key
from escrow.script import Role
from escrow.transactions import REPLACEABLE, build, parse, txid_of
from p2pnode.database import Database
from p2pnode.notices import Notices
from p2pnode.reputation.acquaintances import Acquaintances
from p2pnode.reputation.chainsight import ChainSight
from p2pnode.reputation.exposures import Exposures
from p2pnode.reputation.history import Histories
from p2pnode.reputation.store import TestimonyStore
from p2pnode.tradestore import TradeStore
from protocol.bond import Bond
from protocol.contract import Party
from protocol.equivocation import EQUIVOCATION_WORK_BITS, EquivocationRecord
from protocol.identity import SigningKey
from protocol.rating import Mark, Rating
from protocol.receipt import RECEIPT_WORK_BITS, Ending, Receipt, SignedReceipt, sign_receipt
from protocol.ruling import Equivocation, Reason, Ruling, text_hash
from protocol.types import Branch, Side
from protocol.wire import Envelope, Kind, pack
from protocol.work import find_work
from tests.unit.escrow_support import NETWORK, Deal
from tests.unit.services_support import T0, TestClock, dht_node, keyring_of

DAY = 86_400


def key_of(name: str) -> SigningKey:
    """A persona made of a name."""
    return SigningKey(sha256(f"persona {name}".encode()).digest())


class Ledger:
    """Blocks of made-up transactions, as a backend shows them: by txid and block, and what is unspent."""

    network = NETWORK

    def __init__(self) -> None:
        self.blocks: list[list[bytes]] = [[]]
        self.knows_unspent = True

    @property
    def height(self) -> int:
        return len(self.blocks) - 1

    def hash(self, height: int) -> bytes:
        return sha256(b"block" + height.to_bytes(4, "big")).digest()

    def mine(self, *raws: bytes, empty: int = 0) -> bytes:
        """A block with these, then empty ones; the hash of the first."""
        self.blocks.append(list(raws))
        found = self.hash(self.height)
        self.blocks += [[] for _ in range(empty)]
        return found

    async def transaction(self, txid: bytes, block_hash: bytes | None = None) -> ChainTx | None:
        for height, block in enumerate(self.blocks):
            if block_hash == self.hash(height):
                for raw in block:
                    if txid_of(raw) == txid:
                        return ChainTx(raw, height, block_hash, self.height - height + 1)
        return None

    async def unspent(self, outpoint: OutPoint) -> bool | None:
        if not self.knows_unspent:
            return None
        return not any(
            OutPoint(bytes(i.prevout.hash), int(i.prevout.n)) == outpoint
            for block in self.blocks
            for raw in block
            for i in parse(raw).vin
        )


@dataclass
class OwnDeal(Deal):
    """A deal between two given personas."""

    personas: dict[Side, bytes] = field(default_factory=dict)

    def party(self, side: Side) -> Party:
        role, persona = Role.of(side), self.personas[side]
        keys = make_keys(self.secret(role), self.secret(role, Branch.BACKUP), self.trade_id, persona)
        return replace(super().party(side), persona=persona, keys=keys)


@dataclass(frozen=True)
class Traded:
    """A trade that took place on the ledger."""

    deal: OwnDeal
    receipt: Receipt
    buyer: SigningKey
    seller: SigningKey

    def signed(self, receipt: Receipt | None = None) -> SignedReceipt:
        """All four signatures, on the true receipt or on another that the same keys sign."""
        said = receipt or self.receipt
        return SignedReceipt(
            said,
            sign_as_key(self.deal.secret(Role.BUYER), said, Side.BUY, NETWORK),
            sign_receipt(said, NETWORK, self.buyer.seed),
            sign_as_key(self.deal.secret(Role.SELLER), said, Side.SELL, NETWORK),
            sign_receipt(said, NETWORK, self.seller.seed),
        )


def trade(
    ledger: Ledger, buyer: SigningKey, seller: SigningKey, name: str, *, amount: int = 1_000_000, blocks: int = 3
) -> Traded:
    """Fund an escrow, let it lie for some blocks, release it."""
    deal = OwnDeal(name=name, amount=amount, personas={Side.BUY: buyer.public, Side.SELL: seller.public})
    contract = deal.contract()
    plan = derive_funding(contract, NETWORK)
    funding = assemble_funding(plan, deal.witnesses(plan, Side.BUY), deal.witnesses(plan, Side.SELL))
    release = derive_payout(contract, NETWORK)
    payout = assemble_payout(release, deal.signatures(contract, release, Role.BUYER, Role.SELLER))
    funded = ledger.mine(funding, empty=max(0, blocks - 1))
    paid = ledger.mine(payout)
    receipt = Receipt(
        buyer.public,
        seller.public,
        contract.buyer.keys.main,
        contract.seller.keys.main,
        plan.txid,
        plan.escrow_vout,
        funded,
        release.txid,
        paid,
        Ending.RELEASED,
    )
    return Traded(deal, receipt, buyer, seller)


def rating(
    signed: SignedReceipt, rater: SigningKey, mark: Mark = Mark.GOOD, *, sequence: int = 1, text: str = ""
) -> Envelope:
    """A rating's record."""
    draft = Rating(rater.public, sequence, signed, mark, text, T0, T0 + DAY)
    return rater.seal(Kind.RATING, NETWORK, find_work(Kind.RATING, NETWORK, pack(draft), RECEIPT_WORK_BITS))


def bond_of(ledger: Ledger, persona: SigningKey, secret: bytes, value: int, lock_height: int) -> Bond:
    """Coins locked on the ledger, and the proof that they stand for a persona."""
    salt = OutPoint(sha256(secret + value.to_bytes(8, "big")).digest(), 0)
    raw = build([(salt, REPLACEABLE)], [TxOut(value, bond_output(lock_height, public_key(secret)))])
    block = ledger.mine(raw)
    bond = Bond(txid_of(raw), 0, value, lock_height, public_key(secret), block, ledger.height, bytes(64))
    return prove_bond(secret, NETWORK, persona.public, bond)


def contradiction(arbiter: SigningKey, contract: bytes = bytes(32)) -> Envelope:
    """A proof that an arbiter gave two rulings in one contract, by somebody."""
    raws = []
    for share in (0, 1_000_000):
        ruling = Ruling(
            arbiter=arbiter.public,
            contract_id=contract,
            branch=Branch.MAIN,
            buyer_share=share,
            forfeit=0,
            fee=1_000,
            fee_script=b"\x00\x14" + bytes(20),
            rate=2_000,
            reason=Reason.OTHER,
            text_hash=text_hash(str(share)),
            buyer_head=bytes(32),
            seller_head=bytes(32),
            payout_signature=b"0" * 71,
        )
        raws.append(arbiter.seal(Kind.RULING, NETWORK, pack(ruling)).raw)
    draft = EquivocationRecord(Equivocation(arbiter.public, *raws), T0, T0 + DAY)
    body = find_work(Kind.EQUIVOCATION, NETWORK, pack(draft), EQUIVOCATION_WORK_BITS)
    return key_of("anybody").seal(Kind.EQUIVOCATION, NETWORK, body)


class Observer:
    """A third node: what it believes of others."""

    def __init__(self, folder: Path, ledger: Ledger, name: str = "observer") -> None:
        self.clock = TestClock(name)
        self.database = Database(folder / f"{name}.db")
        self.trades = TradeStore(self.database)
        self.notices = Notices(self.database)
        self.store = TestimonyStore(self.database, NETWORK)
        self.acquaintances = Acquaintances(self.database)
        self.exposures = Exposures(self.database, self.trades, self.notices, NETWORK, self.clock)
        self.dht = dht_node(keyring_of(name), self.clock, 1)
        sight = ChainSight(ledger, NETWORK, lambda: ledger.height)  # type: ignore[arg-type]
        self.sight = sight
        self.histories = Histories(self.store, sight, self.exposures, self.dht, NETWORK, self.clock, random.Random(1))

    async def hear(self, *envelopes: Envelope) -> None:
        """Records come in, and are held against the chain."""
        found = [self.store.remember(envelope, self.clock.now()) for envelope in envelopes]
        await self.histories.check([testimony for testimony in found if testimony is not None])

    def close(self) -> None:
        self.database.close()
