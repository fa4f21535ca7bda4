"""Contracts to test the escrow with: whole ones, from fixed secrets, with coins that really exist in transactions."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

from hypothesis import strategies as st

from escrow.coins import OutPoint, TxOut
from escrow.funding import FundingPlan
from escrow.hd import hash160
from escrow.keys import arbiter_secret, make_keys, public_key
from escrow.payout import PayoutPlan, sign_payout
from escrow.script import Role
from escrow.shares import targets
from escrow.signatures import SIGHASH_ALL, sign_ecdsa, sign_schnorr
from escrow.sizes import P2TR_INPUT_WEIGHT, P2WPKH_INPUT_WEIGHT, fee, is_p2wpkh
from escrow.transactions import Witness, build, p2wpkh_code, sighash_v0, sighash_v1, txid_of
from protocol.contract import MAX_INPUTS, ArbiterTerms, Contract, FeeTerms, FundingInput, Party, contract_id
from protocol.offer import OfferRef
from protocol.outcome import RulingOutcome, SettlementOutcome, cancelled_due
from protocol.types import Branch, EscrowType, Network, Side

NETWORK = Network.REGTEST
FEES = FeeTerms(funding=2_000, payout=3_000, payout_max=30_000)


def fixed(*name: object) -> bytes:
    """32 bytes that depend on the name only; as secrets they are in the group but for a chance of 2^-128."""
    return blake2b(repr(name).encode(), digest_size=32).digest()


def settled(due: int, *, rate: int = FEES.payout) -> SettlementOutcome:
    return SettlementOutcome(due, rate)


def cancelled(contract: Contract) -> SettlementOutcome:
    return SettlementOutcome(cancelled_due(contract), contract.fees.payout)


def ruled(
    share: int, forfeit: int = 0, *, branch: Branch = Branch.MAIN, rate: int = FEES.payout, script: bytes | None = None
) -> RulingOutcome:
    return RulingOutcome(branch, share, forfeit, script or p2wpkh(fixed("arbiter's wallet")), rate)


def p2wpkh(secret: bytes) -> bytes:
    return b"\x00\x14" + hash160(public_key(secret))


def p2tr(secret: bytes) -> bytes:
    """An output key used as it is, without BIP341's tweak: what a key path spend is checked against."""
    return b"\x51\x20" + public_key(secret)[1:]


def p2wsh(name: object) -> bytes:
    return b"\x00\x20" + fixed("script", name)


@dataclass(frozen=True)
class Coin:
    """A coin, the secret that spends it and the transaction that made it."""

    secret: bytes
    outpoint: OutPoint
    spent: TxOut
    previous: bytes

    @property
    def claim(self) -> FundingInput:
        return FundingInput(self.outpoint.txid, self.outpoint.vout, self.spent.value, self.spent.script_pubkey)


def coin(value: int, name: object, *, taproot: bool = False, vout: int = 1) -> Coin:
    secret = fixed("coin", name)
    spent = TxOut(value, p2tr(secret) if taproot else p2wpkh(secret))
    outputs = [TxOut(1_000 + i, p2wsh((name, i))) for i in range(vout)] + [spent]
    previous = build([(OutPoint(fixed("source", name), 0), 0xFFFFFFFE)], outputs)
    return Coin(secret, OutPoint(txid_of(previous), vout), spent, previous)


@dataclass
class Deal:
    """What a test wants of a contract, and after `contract` the secrets of everybody in it."""

    amount: int = 1_000_000
    buyer_deposit: int = 150_000
    seller_deposit: int = 150_000
    escrow_type: EscrowType = EscrowType.WSH_2OF3_BACKUP
    delay: int = 1008
    fees: FeeTerms = FEES
    arbiter_fee: int = 10_000
    backup_fee: int = 12_000
    buyer_coins: tuple[Coin, ...] = ()
    seller_coins: tuple[Coin, ...] = ()
    scripts: dict[str, bytes] = field(default_factory=dict)
    name: str = "deal"

    def __post_init__(self) -> None:
        if not self.buyer_coins and self.buyer_deposit:
            self.buyer_coins = (coin(self.buyer_deposit + 200_000, (self.name, "buyer")),)
        if not self.seller_coins:
            self.seller_coins = (coin(self.amount + self.seller_deposit + 200_000, (self.name, "seller")),)

    @property
    def trade_id(self) -> bytes:
        return fixed("trade", self.name)

    def coins(self, side: Side) -> tuple[Coin, ...]:
        return self.buyer_coins if side is Side.BUY else self.seller_coins

    def secret(self, role: Role, branch: Branch = Branch.MAIN) -> bytes:
        """A party's escrow secret, or an arbiter's base secret."""
        return fixed("escrow", self.name, role.name, branch.name)

    def signer(self, contract: Contract, role: Role, branch: Branch = Branch.MAIN) -> bytes:
        """The secret that signs in the escrow."""
        base = self.secret(role, branch)
        return arbiter_secret(base, contract_id(contract, NETWORK)) if role is Role.ARBITER else base

    def party(self, side: Side) -> Party:
        role = Role.of(side)
        persona = fixed("persona", role.name)
        coins = self.coins(side)
        keys = make_keys(self.secret(role), self.secret(role, Branch.BACKUP), self.trade_id, persona)

        def script(purpose: str) -> bytes:
            chosen = self.scripts.get(f"{role.name.lower()} {purpose}")
            return chosen if chosen is not None else p2wpkh(fixed(role.name, purpose))

        return Party(
            persona=persona,
            keys=keys,
            payout_script=script("payout"),
            refund_script=script("refund"),
            change_script=script("change") if coins else None,
            inputs=tuple(c.claim for c in coins),
            details_hash=fixed("details", role.name),
            nonce=fixed("nonce", role.name),
        )

    def arbiter(self, branch: Branch) -> ArbiterTerms:
        return ArbiterTerms(
            persona=fixed("arbiter", branch.name),
            announcement=fixed("announcement", branch.name),
            base_point=public_key(self.secret(Role.ARBITER, branch)),
            fee=self.arbiter_fee if branch is Branch.MAIN else self.backup_fee,
            response_blocks=288,
        )

    def contract(self) -> Contract:
        with_backup = self.escrow_type is EscrowType.WSH_2OF3_BACKUP
        return Contract(
            trade_id=self.trade_id,
            offer=OfferRef(fixed("persona", "SELLER"), fixed("offer"), 1, fixed("offer envelope")),
            maker_side=Side.SELL,
            amount=self.amount,
            price=6_500_000,
            currency="EUR",
            volume=65_000,
            method="sepa-instant",
            buyer_deposit=self.buyer_deposit,
            seller_deposit=self.seller_deposit,
            arbiter=self.arbiter(Branch.MAIN),
            backup=self.arbiter(Branch.BACKUP) if with_backup else None,
            escrow_type=self.escrow_type,
            backup_delay=self.delay,
            confirmations=1,
            payment_window=144,
            fees=self.fees,
            buyer=self.party(Side.BUY),
            seller=self.party(Side.SELL),
        )

    def witnesses(self, plan: FundingPlan, side: Side) -> tuple[Witness, ...]:
        """A party's witnesses, in the order of its own list."""
        return tuple(
            sign_input(plan, index, c.secret) for index, c in zip(plan.indices(side), self.coins(side), strict=True)
        )

    def signatures(self, contract: Contract, plan: PayoutPlan, *roles: Role) -> dict[Role, bytes]:
        return {role: sign_payout(plan, self.signer(contract, role, plan.branch)) for role in roles}


def sign_input(plan: FundingPlan, index: int, secret: bytes) -> Witness:
    spent = plan.inputs[index].spent
    if is_p2wpkh(spent.script_pubkey):
        sighash = sighash_v0(plan.unsigned, index, p2wpkh_code(spent.script_pubkey), spent.value)
        return (sign_ecdsa(secret, sighash) + bytes([SIGHASH_ALL]), public_key(secret))
    # An x-only key stands for the point with even y; libsecp256k1 negates the secret where it has to.
    return (sign_schnorr(secret, sighash_v1(plan.unsigned, index, plan.spent)),)


SCRIPTS = {"wpkh": p2wpkh, "tr": p2tr, "wsh": p2wsh}


@st.composite
def deals(draw: st.DrawFn) -> Deal:
    """Any deal that a contract allows, with coins that cover it by a little or by a lot."""
    amount = draw(st.integers(20_000, 100_000) | st.integers(20_000, 20_000_000_000))
    highest = draw(st.integers(100, min(10_000_000, amount)))
    fees = FeeTerms(draw(st.integers(100, 500_000)), draw(st.integers(100, highest)), highest)
    both = draw(st.booleans())
    part = st.integers(1, amount) | st.integers(1, 1_000)
    kinds = st.sampled_from(sorted(SCRIPTS))
    names = [f"{who} {what}" for who in ("buyer", "seller") for what in ("payout", "refund", "change")]
    deal = Deal(
        amount=amount,
        buyer_deposit=draw(part) if both else 0,
        seller_deposit=draw(st.just(0) | part),
        escrow_type=draw(st.sampled_from(EscrowType)),
        delay=draw(st.sampled_from((1, 16, 17, 127, 144, 1008, 32_768, 65_535))),
        fees=fees,
        arbiter_fee=draw(st.integers(0, amount // 10)),
        backup_fee=draw(st.integers(0, amount // 10)),
        scripts={name: SCRIPTS[draw(kinds)](fixed(name)) for name in names},
    )
    due = targets(deal.contract())
    if both:
        deal.buyer_coins = draw(_coins(due[Side.BUY], fees.funding, "buyer"))
    deal.seller_coins = draw(_coins(due[Side.SELL], fees.funding, "seller"))
    return deal


@st.composite
def _coins(draw: st.DrawFn, target: int, rate: int, who: str) -> tuple[Coin, ...]:
    taproot = draw(st.lists(st.booleans(), min_size=1, max_size=MAX_INPUTS))
    weight = sum(P2TR_INPUT_WEIGHT if t else P2WPKH_INPUT_WEIGHT for t in taproot)
    # Around the point from which on a change output is worth its while, at it, and far beyond.
    edge = fee(4 * 43, rate) + 330
    slack = draw(st.integers(0, 2 * edge) | st.sampled_from((0, edge - 1, edge, edge + 1)) | st.integers(0, 10**9))
    total = target + fee(weight, rate) + slack
    first = total - (len(taproot) - 1)
    return tuple(
        coin(first if i == 0 else 1, (who, i), taproot=t, vout=draw(st.integers(0, 2))) for i, t in enumerate(taproot)
    )
