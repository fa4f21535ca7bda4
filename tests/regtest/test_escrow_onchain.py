"""Escrows that a real bitcoind takes, in every shape, and refuses where it must."""

from __future__ import annotations

from decimal import Decimal

from coincurve import PrivateKey

from escrow.address import address_of
from escrow.coins import OutPoint, TxOut, txid_bytes, txid_text
from escrow.funding import FundingPlan, derive_funding
from escrow.hd import base58check
from escrow.inputs import assemble_funding, check_previous
from escrow.keys import public_key
from escrow.payout import RELEASE, PayoutPlan, assemble_payout, derive_payout
from escrow.script import Role, escrow_script
from escrow.signatures import SIGHASH_ALL, is_strict_der
from escrow.terms import check_contract
from escrow.transactions import Witness, p2wpkh_code, sighash_v0, vsize
from escrow.verify import gate_funding, gate_payout
from p2pnode.regtest import COIN, RegtestNode
from protocol.contract import Contract, FeeTerms
from protocol.outcome import Outcome, ReleaseOutcome
from protocol.types import Branch, EscrowType, Network, Side
from tests.unit.escrow_support import NETWORK, Coin, Deal, cancelled, coin, fixed, p2tr, p2wpkh, ruled, settled

RATE = 1_000
CHEAPEST = FeeTerms(funding=RATE, payout=RATE, payout_max=50_000)
"""Exactly what bitcoind relays by default: one satoshi less would show."""


async def real_coin(node: RegtestNode, value: int, name: object, *, taproot: bool = False) -> Coin:
    """A confirmed coin of `value` satoshis that a fixed secret spends."""
    secret = fixed("real coin", name)
    script = p2tr(secret) if taproot else p2wpkh(secret)
    txid = await node.fund(address_of(script, NETWORK), value)
    raw = await node.rpc("getrawtransaction", txid, 1, await node.rpc("getbestblockhash"))
    vout = next(o["n"] for o in raw["vout"] if o["scriptPubKey"]["hex"] == script.hex())
    return Coin(secret, OutPoint(txid_bytes(txid), vout), TxOut(value, script), bytes.fromhex(raw["hex"]))


async def real_deal(
    node: RegtestNode,
    name: str,
    *,
    deposits: int = 150_000,
    kind: EscrowType = EscrowType.WSH_2OF3_BACKUP,
    delay: int = 1008,
    taproot: bool = False,
) -> tuple[Deal, Contract]:
    """A deal at the lowest fee rate whose coins exist."""
    buyer = (await real_coin(node, deposits + 50_000, (name, "buyer"), taproot=taproot),) if deposits else ()
    seller = (await real_coin(node, 1_050_000 + deposits, (name, "seller")),)
    deal = Deal(
        name=name,
        buyer_deposit=deposits,
        seller_deposit=deposits,
        escrow_type=kind,
        delay=delay,
        fees=CHEAPEST,
        buyer_coins=buyer,
        seller_coins=seller,
    )
    contract = deal.contract()
    check_contract(contract, NETWORK)
    for side in Side:
        check_previous(contract.party(side), [c.previous for c in deal.coins(side)])
    return deal, contract


async def accepted(node: RegtestNode, tx: bytes) -> str | None:
    """None when the mempool would take `tx`, else the reason why not."""
    (answer,) = await node.rpc("testmempoolaccept", [tx.hex()])
    if answer["allowed"]:
        assert answer["vsize"] == vsize(tx)
        return None
    return str(answer["reject-reason"])


async def fund(node: RegtestNode, deal: Deal, contract: Contract) -> tuple[FundingPlan, bytes]:
    """Broadcast and mine the funding."""
    plan = derive_funding(contract, NETWORK)
    tx = assemble_funding(plan, deal.witnesses(plan, Side.BUY), deal.witnesses(plan, Side.SELL))
    gate_funding(contract, NETWORK, tx)
    assert await accepted(node, tx) is None
    assert await node.rpc("sendrawtransaction", tx.hex()) == txid_text(plan.txid)
    await node.mine(1)
    return plan, tx


def paid(deal: Deal, contract: Contract, outcome: Outcome, *signers: Role) -> tuple[PayoutPlan, bytes]:
    plan = derive_payout(contract, NETWORK, outcome)
    tx = assemble_payout(plan, deal.signatures(contract, plan, *signers))
    gate_payout(contract, NETWORK, tx, outcome)
    return plan, tx


async def check_paid(node: RegtestNode, plan: PayoutPlan, tx: bytes) -> None:
    """Broadcast, mine, and find every output of the plan unspent on the chain."""
    assert await accepted(node, tx) is None
    txid = await node.rpc("sendrawtransaction", tx.hex())
    await node.mine(1)
    assert txid == txid_text(plan.txid)
    total = 0
    for index, planned in enumerate(plan.outputs):
        found = await node.rpc("gettxout", txid, index)
        assert found["value"] * COIN == planned.value
        assert found["scriptPubKey"]["hex"] == planned.output.script_pubkey.hex()
        total += planned.value
    assert total + plan.fee == plan.escrow_value


async def test_release_from_one_arbiter_escrow(bitcoind: RegtestNode) -> None:
    deal, contract = await real_deal(bitcoind, "type 1", kind=EscrowType.WSH_2OF3)
    _, funded = await fund(bitcoind, deal, contract)
    plan, tx = paid(deal, contract, RELEASE, Role.BUYER, Role.SELLER)
    assert vsize(funded) + vsize(tx) <= 430
    await check_paid(bitcoind, plan, tx)
    assert (plan.value(Role.BUYER), plan.value(Role.SELLER)) == (1_150_000, 150_000)


async def test_release_from_escrow_with_backup(bitcoind: RegtestNode) -> None:
    deal, contract = await real_deal(bitcoind, "type 2")
    _, funded = await fund(bitcoind, deal, contract)
    plan, tx = paid(deal, contract, RELEASE, Role.BUYER, Role.SELLER)
    assert vsize(funded) + vsize(tx) <= 460
    await check_paid(bitcoind, plan, tx)


async def test_release_of_a_trade_that_the_seller_funded_alone(bitcoind: RegtestNode) -> None:
    deal, contract = await real_deal(bitcoind, "alone", deposits=0, kind=EscrowType.WSH_2OF3)
    _, funded = await fund(bitcoind, deal, contract)
    plan, tx = paid(deal, contract, RELEASE, Role.SELLER, Role.BUYER)
    assert vsize(funded) + vsize(tx) <= 300
    await check_paid(bitcoind, plan, tx)
    assert [o.value for o in plan.outputs] == [1_000_000]


async def test_refund_by_both_and_taproot_coins(bitcoind: RegtestNode) -> None:
    deal, contract = await real_deal(bitcoind, "refund", taproot=True)
    await fund(bitcoind, deal, contract)
    plan, tx = paid(deal, contract, cancelled(contract), Role.BUYER, Role.SELLER)
    await check_paid(bitcoind, plan, tx)
    assert (plan.value(Role.BUYER), plan.value(Role.SELLER)) == (150_000, 1_150_000)


async def test_ruling_pays_both_parties_and_the_arbiter(bitcoind: RegtestNode) -> None:
    deal, contract = await real_deal(bitcoind, "ruling")
    await fund(bitcoind, deal, contract)
    plan, tx = paid(deal, contract, ruled(700_000, 200_000, rate=RATE), Role.BUYER, Role.ARBITER)
    assert len(plan.outputs) == 3
    assert vsize(tx) <= 240
    await check_paid(bitcoind, plan, tx)
    assert plan.value(Role.ARBITER) == deal.arbiter_fee


async def test_backup_arbiter_is_refused_before_the_delay_and_pays_after_it(bitcoind: RegtestNode) -> None:
    deal, contract = await real_deal(bitcoind, "backup", delay=6)
    await fund(bitcoind, deal, contract)
    ruling = ruled(1_000_000, branch=Branch.BACKUP, rate=RATE)
    plan, tx = paid(deal, contract, ruling, Role.SELLER, Role.ARBITER)
    # With one confirmation the next block is one above it; the delay is over in the block that makes six.
    for _ in range(5):
        assert await accepted(bitcoind, tx) == "non-BIP68-final"
        await bitcoind.mine(1)
    assert vsize(tx) <= 240
    await check_paid(bitcoind, plan, tx)
    assert plan.value(Role.ARBITER) == deal.backup_fee


async def test_main_branch_stays_open_after_the_delay(bitcoind: RegtestNode) -> None:
    deal, contract = await real_deal(bitcoind, "late", delay=2)
    await fund(bitcoind, deal, contract)
    await bitcoind.mine(3)
    await check_paid(bitcoind, *paid(deal, contract, settled(500_000, rate=RATE), Role.BUYER, Role.SELLER))


async def test_higher_rate_replaces_a_payout_that_waits(bitcoind: RegtestNode) -> None:
    deal, contract = await real_deal(bitcoind, "bump")
    await fund(bitcoind, deal, contract)
    first, cheap = paid(deal, contract, RELEASE, Role.BUYER, Role.SELLER)
    await bitcoind.rpc("sendrawtransaction", cheap.hex())
    second, dear = paid(deal, contract, ReleaseOutcome(5_000), Role.BUYER, Role.SELLER)
    await check_paid(bitcoind, second, dear)
    assert txid_text(first.txid) not in await bitcoind.rpc("getrawmempool")


async def test_smallest_output_that_is_kept_is_relayed(bitcoind: RegtestNode) -> None:
    deal, contract = await real_deal(bitcoind, "dust")
    await fund(bitcoind, deal, contract)
    plan, tx = paid(deal, contract, settled(294, rate=RATE), Role.BUYER, Role.SELLER)
    assert plan.value(Role.BUYER) == 294
    await check_paid(bitcoind, plan, tx)


async def test_signers_that_can_not_grind_do_not_push_the_fee_under_the_minimum(bitcoind: RegtestNode) -> None:
    """Hardware wallets make 72-byte signatures half of the time; the fee is counted for them."""
    deal, contract = await real_deal(bitcoind, "high R")
    plan = derive_funding(contract, NETWORK)

    def high_r(side: Side) -> tuple[Witness, ...]:
        (index,), (own,) = plan.indices(side), deal.coins(side)
        sighash = sighash_v0(plan.unsigned, index, p2wpkh_code(own.spent.script_pubkey), own.spent.value)
        while True:
            signature = _another_signature(own.secret, sighash)
            if len(signature) == 71:
                return ((signature + bytes([SIGHASH_ALL]), public_key(own.secret)),)

    tx = assemble_funding(plan, high_r(Side.BUY), high_r(Side.SELL))
    assert len(tx) == len(assemble_funding(plan, deal.witnesses(plan, Side.BUY), deal.witnesses(plan, Side.SELL))) + 2
    assert await accepted(bitcoind, tx) is None


_nonces = iter(range(1, 1_000))


def _another_signature(secret: bytes, sighash: bytes) -> bytes:
    """A valid signature that is not the one of RFC 6979."""
    from coincurve._libsecp256k1 import ffi

    extra = ffi.new("unsigned char[32]", fixed(next(_nonces)))
    signature = PrivateKey(secret).sign(sighash, hasher=None, custom_nonce=(ffi.NULL, extra))
    assert is_strict_der(signature)
    return signature


async def test_our_signatures_are_byte_for_byte_those_of_bitcoin_core(bitcoind: RegtestNode) -> None:
    """RFC 6979 with the same grinding: so the low R, and with it the size, is no accident."""
    deal = Deal(
        buyer_coins=tuple(coin(50_000, ("buyer", i)) for i in range(8)),
        seller_coins=tuple(coin(200_000, ("seller", i)) for i in range(8)),
    )
    plan = derive_funding(deal.contract(), NETWORK)
    ours = assemble_funding(plan, deal.witnesses(plan, Side.BUY), deal.witnesses(plan, Side.SELL))
    coins = (*deal.buyer_coins, *deal.seller_coins)
    previous = [
        {
            "txid": txid_text(c.outpoint.txid),
            "vout": c.outpoint.vout,
            "scriptPubKey": c.spent.script_pubkey.hex(),
            "amount": Decimal(c.spent.value) / COIN,
        }
        for c in coins
    ]
    wifs = [base58check(b"\xef" + c.secret + b"\x01") for c in coins]
    signed = await bitcoind.rpc("signrawtransactionwithkey", plan.unsigned.hex(), wifs, previous)
    assert signed["complete"]
    assert signed["hex"] == ours.hex()


async def test_bitcoind_reads_our_descriptors_as_the_same_addresses(bitcoind: RegtestNode) -> None:
    for kind, delay in ((EscrowType.WSH_2OF3, 1), *((EscrowType.WSH_2OF3_BACKUP, d) for d in (1, 16, 17, 144, 65_535))):
        script = escrow_script(Deal(escrow_type=kind, delay=delay).contract(), NETWORK)
        info = await bitcoind.rpc("getdescriptorinfo", script.descriptor)
        assert info["issolvable"]
        assert await bitcoind.rpc("deriveaddresses", info["descriptor"]) == [address_of(script.script_pubkey, NETWORK)]
        decoded = await bitcoind.rpc("decodescript", script.witness_script.hex())
        assert decoded["segwit"]["address"] == address_of(script.script_pubkey, Network.REGTEST)
