"""PSBTs of funding and payout that Bitcoin Core and BDK read, sign, combine and finalise as we do."""

from __future__ import annotations

from typing import Any

import bdkpython as bdk
import pytest

from escrow.coins import OutPoint, TxOut, txid_bytes, txid_text
from escrow.funding import derive_funding
from escrow.hd import base58check
from escrow.inputs import assemble_funding
from escrow.payout import RELEASE, assemble_payout, derive_payout
from escrow.psbt import (
    IN_FINAL_WITNESS,
    IN_PARTIAL,
    BadPsbt,
    KeyOrigin,
    StalePsbt,
    UnsignedPsbt,
    decode,
    encode,
    field,
    keyed,
    read,
    text,
)
from escrow.psbtplan import funding_psbt, payout_of, payout_psbt, previous_by_txid, read_funding, read_payout
from escrow.script import Role
from escrow.signatures import SIGHASH_ALL
from escrow.transactions import vsize
from p2pnode.regtest import COIN, RegtestNode
from protocol.contract import Contract
from protocol.outcome import Outcome
from protocol.types import Branch, EscrowType, Side
from tests.regtest.test_escrow_onchain import CHEAPEST, RATE, accepted, check_paid, fund, real_coin, real_deal
from tests.unit.escrow_support import NETWORK, Coin, Deal, cancelled, ruled, settled

HARD = 0x8000_0000


class HardwareWallet:
    """A signing device: a wallet of Bitcoin Core whose keys nobody else has, spoken to by PSBT alone.

    The trading node knows of it what a watch-only wallet knows: coins, their transactions, where their keys come from.
    """

    def __init__(self, node: RegtestNode, name: str) -> None:
        self.node = node
        self.name = name

    async def call(self, method: str, *params: object) -> Any:  # noqa: ANN401 - JSON
        return await self.node.rpc(method, *params, wallet=self.name)

    async def coin(self, value: int, *, kind: str = "bech32") -> tuple[Coin, KeyOrigin]:
        """A confirmed coin, without its secret."""
        address = await self.call("getnewaddress", "", kind)
        info = await self.call("getaddressinfo", address)
        txid = await self.node.fund(address, value)
        raw = await self.node.rpc("getrawtransaction", txid, 1, await self.node.rpc("getbestblockhash"))
        script = bytes.fromhex(info["scriptPubKey"])
        vout = next(o["n"] for o in raw["vout"] if o["scriptPubKey"]["hex"] == script.hex())
        spent = TxOut(value, script)
        return Coin(b"", OutPoint(txid_bytes(txid), vout), spent, bytes.fromhex(raw["hex"])), origin_of(info)

    async def change(self, kind: str = "bech32") -> tuple[bytes, KeyOrigin]:
        info = await self.call("getaddressinfo", await self.call("getrawchangeaddress", kind))
        return bytes.fromhex(info["scriptPubKey"]), origin_of(info)

    async def sign(self, psbt: str, *, finalize: bool = True) -> str:
        return str((await self.call("walletprocesspsbt", psbt, True, None, True, finalize))["psbt"])


def origin_of(info: dict[str, Any]) -> KeyOrigin:
    """From what Core tells: `tr([fingerprint/86h/...]x-only)` or `wpkh([...]key)`."""
    inside = info["desc"].partition("([")[2].partition(")")[0]
    place, _, key = inside.partition("]")
    fingerprint, *steps = place.split("/")
    path = tuple(int(s.rstrip("h'")) + (HARD if s[-1] in "h'" else 0) for s in steps)
    public = bytes.fromhex(key)
    return KeyOrigin(public if len(public) == 33 else b"\x02" + public, bytes.fromhex(fingerprint), path)


async def hardware(node: RegtestNode, name: str) -> HardwareWallet:
    await node.rpc("createwallet", name)
    return HardwareWallet(node, name)


@pytest.fixture
async def device(bitcoind: RegtestNode, request: pytest.FixtureRequest) -> HardwareWallet:
    return await hardware(bitcoind, f"device {request.node.name}")


async def device_deal(
    node: RegtestNode, device: HardwareWallet, *, kind: str = "bech32", name: str
) -> tuple[Deal, Contract, dict[bytes, KeyOrigin]]:
    """A deal whose buyer's two coins and change are on a hardware wallet."""
    coins = [await device.coin(value, kind=kind) for value in (120_000, 110_000)]
    change, change_origin = await device.change(kind)
    origins = {coin.spent.script_pubkey: origin for coin, origin in coins} | {change: change_origin}
    deal = Deal(
        name=name,
        fees=CHEAPEST,
        buyer_coins=tuple(coin for coin, _ in coins),
        seller_coins=(await real_coin(node, 1_200_000, (name, "seller")),),
        scripts={"buyer change": change},
    )
    return deal, deal.contract(), origins


def funding_of(deal: Deal, contract: Contract, side: Side, origins: dict[bytes, KeyOrigin]) -> str:
    """The exported PSBT, with both parties' previous transactions."""
    known = previous_by_txid(*(c.previous for c in (*deal.buyer_coins, *deal.seller_coins)))
    return text(funding_psbt(derive_funding(contract, NETWORK), side, previous=known, origins=origins))


@pytest.mark.parametrize("kind", ["bech32", "bech32m"])
@pytest.mark.parametrize("finalize", [True, False])
async def test_trader_funds_from_a_hardware_wallet(
    bitcoind: RegtestNode, device: HardwareWallet, kind: str, finalize: bool
) -> None:
    """Export, sign elsewhere, import: the seller completes it, and the chain takes it."""
    deal, contract, origins = await device_deal(bitcoind, device, kind=kind, name=f"device {kind} {finalize}")
    plan = derive_funding(contract, NETWORK)
    exported = funding_of(deal, contract, Side.BUY, origins)
    with pytest.raises(UnsignedPsbt):
        read_funding(plan, Side.BUY, read(exported.encode()))
    signed = await device.sign(exported, finalize=finalize)
    witnesses = read_funding(plan, Side.BUY, read(signed.encode()))
    tx = assemble_funding(plan, witnesses, deal.witnesses(plan, Side.SELL))
    assert await accepted(bitcoind, tx) is None
    assert vsize(tx) * RATE <= plan.fee * 1000
    assert await bitcoind.rpc("sendrawtransaction", tx.hex()) == txid_text(plan.txid)
    await bitcoind.mine(1)


async def test_core_finds_nothing_missing_in_the_funding(bitcoind: RegtestNode, device: HardwareWallet) -> None:
    deal, contract, origins = await device_deal(bitcoind, device, name="complete")
    exported = funding_of(deal, contract, Side.BUY, origins)
    plan = derive_funding(contract, NETWORK)
    decoded = await bitcoind.rpc("decodepsbt", exported)
    assert decoded["tx"]["txid"] == txid_text(plan.txid)
    # Every amount is there, so a device can show the fee; every own key has its path, change too.
    assert decoded["fee"] * COIN == plan.fee
    for index, shown in enumerate(decoded["inputs"]):
        planned = plan.inputs[index]
        assert shown["non_witness_utxo"]["txid"] == txid_text(planned.outpoint.txid)
        assert shown["witness_utxo"]["amount"] * COIN == planned.spent.value
        assert ("bip32_derivs" in shown) == (planned.side is Side.BUY)
        assert shown.get("sighash", "ALL") == "ALL"
    paths = [o["bip32_derivs"][0]["path"] for o in decoded["outputs"] if "bip32_derivs" in o]
    assert len(paths) == 1
    analysed = await bitcoind.rpc("analyzepsbt", exported)
    assert analysed["fee"] * COIN == plan.fee
    assert {i["next"] for i in analysed["inputs"]} <= {"signer", "updater"}
    for index in plan.indices(Side.BUY):
        assert analysed["inputs"][index] == {
            "has_utxo": True,
            "is_final": False,
            "missing": {"signatures": [plan.inputs[index].spent.script_pubkey[2:].hex()]},
            "next": "signer",
        }


async def test_both_parties_psbts_combine_to_our_transaction(bitcoind: RegtestNode) -> None:
    """Two devices, Core as combiner and finaliser, BDK as another: all three make the same bytes."""
    buyer, seller = await hardware(bitcoind, "combine buyer"), await hardware(bitcoind, "combine seller")
    (his, his_origin), (hers, her_origin) = await buyer.coin(350_000), await seller.coin(1_300_000)
    deal = Deal(name="combine", fees=CHEAPEST, buyer_coins=(his,), seller_coins=(hers,))
    contract = deal.contract()
    plan = derive_funding(contract, NETWORK)
    exports = [
        funding_of(deal, contract, side, {coin.spent.script_pubkey: origin})
        for side, coin, origin in ((Side.BUY, his, his_origin), (Side.SELL, hers, her_origin))
    ]
    signed = [await device.sign(psbt, finalize=False) for device, psbt in zip((buyer, seller), exports, strict=True)]
    ours = assemble_funding(
        plan,
        read_funding(plan, Side.BUY, read(signed[0].encode())),
        read_funding(plan, Side.SELL, read(signed[1].encode())),
    )
    combined = await bitcoind.rpc("combinepsbt", signed)
    finished = await bitcoind.rpc("finalizepsbt", combined)
    assert finished == {"hex": ours.hex(), "complete": True}
    finalised = bdk.Psbt(signed[0]).combine(bdk.Psbt(signed[1])).finalize()
    assert finalised.could_finalize
    assert bytes(finalised.psbt.extract_tx().serialize()) == ours


async def test_psbt_of_an_earlier_contract_or_a_changed_one_is_refused(
    bitcoind: RegtestNode, device: HardwareWallet
) -> None:
    deal, contract, origins = await device_deal(bitcoind, device, name="stale")
    plan = derive_funding(contract, NETWORK)
    earlier = Deal(
        name="stale, before the price was agreed on",
        fees=CHEAPEST,
        buyer_coins=deal.buyer_coins,
        seller_coins=deal.seller_coins,
        scripts=deal.scripts,
    )
    stale = await device.sign(funding_of(earlier, earlier.contract(), Side.BUY, origins))
    with pytest.raises(StalePsbt, match="Stale PSBT"):
        read_funding(plan, Side.BUY, read(stale.encode()))
    # The right transaction with the stale signatures.
    mixed = decode(encode(read(stale.encode())))
    bent = encode(mixed).replace(mixed.unsigned, plan.unsigned)
    with pytest.raises(BadPsbt):
        read_funding(plan, Side.BUY, decode(bent))
    # Signed for another hash type than ALL.
    loose = (await device.call("walletprocesspsbt", funding_without_type(deal, contract, origins), True, "NONE"))[
        "psbt"
    ]
    with pytest.raises(BadPsbt):
        read_funding(plan, Side.BUY, read(loose.encode()))


def funding_without_type(deal: Deal, contract: Contract, origins: dict[bytes, KeyOrigin]) -> str:
    psbt = read(funding_of(deal, contract, Side.BUY, origins).encode())
    inputs = tuple({k: v for k, v in fields.items() if k[0] != 0x03} for fields in psbt.inputs)
    return text(type(psbt)(psbt.unsigned, inputs, psbt.outputs))


# --- payouts -----------------------------------------------------------------------------------------------------

OUTCOMES = ["release", "refund", "settlement", "ruling", "backup"]


def outcome_of(name: str, contract: Contract) -> Outcome:
    outcomes: dict[str, Outcome] = {
        "release": RELEASE,
        "refund": cancelled(contract),
        "settlement": settled(650_000, rate=RATE),
        "ruling": ruled(700_000, rate=RATE),
        "backup": ruled(700_000, rate=RATE, branch=Branch.BACKUP),
    }
    return outcomes[name]


@pytest.mark.parametrize("name", OUTCOMES)
@pytest.mark.parametrize("kind", EscrowType)
async def test_core_and_bdk_finalise_every_payout_to_our_bytes(
    bitcoind: RegtestNode, name: str, kind: EscrowType
) -> None:
    if name == "backup" and kind is EscrowType.WSH_2OF3:
        return
    deal, contract = await real_deal(bitcoind, f"psbt {name} {kind}", kind=kind, delay=2)
    await fund(bitcoind, deal, contract)
    await bitcoind.mine(2)
    plan = derive_payout(contract, NETWORK, outcome_of(name, contract))
    roles = (Role.BUYER, Role.SELLER) if name in OUTCOMES[:3] else (Role.SELLER, Role.ARBITER)
    signatures = deal.signatures(contract, plan, *roles)
    halves = [text(payout_psbt(contract, NETWORK, plan, {role: der})) for role, der in signatures.items()]
    ours = assemble_payout(plan, signatures)

    decoded = await bitcoind.rpc("decodepsbt", halves[0])
    (shown,) = decoded["inputs"]
    assert decoded["fee"] * COIN == plan.fee
    assert shown["witness_script"]["hex"] == plan.escrow.witness_script.hex()
    assert shown["non_witness_utxo"]["txid"] == txid_text(plan.escrow_outpoint.txid)
    assert len(shown["partial_signatures"]) == 1
    assert {d["pubkey"] for d in shown["bip32_derivs"]} == {key.hex() for key in plan.keys}
    assert (await bitcoind.rpc("analyzepsbt", halves[0]))["inputs"][0]["is_final"] is False

    combined = await bitcoind.rpc("combinepsbt", halves)
    assert (await bitcoind.rpc("analyzepsbt", combined))["next"] in ("finalizer", "extractor")
    assert await bitcoind.rpc("finalizepsbt", combined) == {"hex": ours.hex(), "complete": True}
    finalised = bdk.Psbt(halves[0]).combine(bdk.Psbt(halves[1])).finalize()
    assert finalised.could_finalize
    assert bytes(finalised.psbt.extract_tx().serialize()) == ours
    # What came through other programs still says what it is, and is what it says.
    for back in (combined, bdk.Psbt(halves[0]).combine(bdk.Psbt(halves[1])).serialize()):
        psbt = read(back.encode())
        again = payout_of(contract, NETWORK, psbt)
        assert again == plan
        assert read_payout(again, psbt) == signatures
    await check_paid(bitcoind, plan, ours)


@pytest.mark.parametrize("branch", Branch)
async def test_escrow_key_exported_to_bitcoin_core_signs_our_payout_psbt(bitcoind: RegtestNode, branch: Branch) -> None:
    """BIP85 keys have no path that others can follow; as a single key in the escrow's descriptor Core signs with it."""
    deal, contract = await real_deal(bitcoind, f"wif {branch}", delay=2)
    await fund(bitcoind, deal, contract)
    await bitcoind.mine(2)
    outcome = RELEASE if branch is Branch.MAIN else ruled(0, rate=RATE, branch=branch)
    plan = derive_payout(contract, NETWORK, outcome)
    wallet = await hardware(bitcoind, f"key of the seller {branch}")
    wif = base58check(b"\xef" + deal.secret(Role.SELLER, branch) + b"\x01")
    descriptor = plan.escrow.descriptor.replace(plan.keys[Role.SELLER].hex(), wif)
    info = await bitcoind.rpc("getdescriptorinfo", descriptor)
    # The checksum of the private form is told apart from that of the public one.
    (imported,) = await wallet.call(
        "importdescriptors", [{"desc": f"{descriptor}#{info['checksum']}", "timestamp": "now"}]
    )
    assert imported["success"], imported
    other = Role.BUYER if branch is Branch.MAIN else Role.ARBITER
    half = payout_psbt(contract, NETWORK, plan, deal.signatures(contract, plan, other))
    signed = await wallet.sign(text(half), finalize=False)
    signatures = read_payout(plan, read(signed.encode()))
    assert set(signatures) == {Role.SELLER, other}
    await check_paid(bitcoind, plan, assemble_payout(plan, signatures))


async def test_what_core_refuses_to_parse_we_refuse_too(bitcoind: RegtestNode) -> None:
    """Bent PSBTs: whatever our reader takes, Core's takes as well and sees the same transaction in."""
    import random

    from p2pnode.regtest import RpcFailed

    deal = Deal()
    contract = deal.contract()
    plan = derive_payout(contract, NETWORK)
    whole = encode(payout_psbt(contract, NETWORK, plan, deal.signatures(contract, plan, Role.BUYER)))
    chance = random.Random(174)
    taken = 0
    for _ in range(250):
        at = chance.randrange(len(whole))
        bent = bytearray(whole)
        bent[at] = chance.randrange(256)
        try:
            psbt = decode(bytes(bent))
            read_payout(plan, psbt)
        except (BadPsbt, StalePsbt):
            continue
        taken += 1
        try:
            decoded = await bitcoind.rpc("decodepsbt", text(psbt))
        except RpcFailed as e:
            raise AssertionError(f"Core refuses what we take, byte {at}: {e.detail}") from e
        assert decoded["tx"]["txid"] == txid_text(plan.txid)
    assert taken


async def test_psbt_asks_for_all_and_signature_for_less_is_refused() -> None:
    deal = Deal()
    contract = deal.contract()
    plan = derive_payout(contract, NETWORK)
    psbt = payout_psbt(contract, NETWORK, plan, deal.signatures(contract, plan, Role.BUYER))
    (key,) = (field(IN_PARTIAL, k) for k in keyed(psbt.inputs[0], IN_PARTIAL))
    fields = dict(psbt.inputs[0])
    assert fields[key][-1] == SIGHASH_ALL
    fields[key] = fields[key][:-1] + b"\x02"
    with pytest.raises(BadPsbt, match="SIGHASH_ALL"):
        read_payout(plan, type(psbt)(psbt.unsigned, (fields,), psbt.outputs, psbt.extra))
    assert field(IN_FINAL_WITNESS) not in fields
