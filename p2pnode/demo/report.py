"""What a demo found out: one document, for `--json` and for the tables alike.

Everything about money is judged here, from the chain and from both wallets; whatever does not add up to the satoshi
raises. The two sides' accounts of the messages are compared as well: what one sent is what the other received.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from p2pnode.api import schema as s
from p2pnode.demo.cast import Cast, Daemon
from p2pnode.demo.onchain import Escrow, NotAsAgreed, Transaction, read_escrow, read_transaction
from p2pnode.demo.play import Bystander, Played, Script
from p2pnode.demo.steps import StepTime

LIMITS: Final = {(2, False): 460, (1, False): 430, (1, True): 300, (2, True): 330}
"""Virtual bytes of a whole trade by (escrow type, funded by the seller alone)."""

_MESSAGES: Final = {
    "take-received": ("Take", "taker"),
    "accept-received": ("Accept", "maker"),
    "seal-received": ("Seal", "taker"),
    "details-received": ("PaymentDetails", "seller"),
    "paid-received": ("Paid", "buyer"),
    "released-received": ("Released", "seller"),
}
"""Recorded event of the receiver -> the message, and who sent it."""


class Sizes(Struct, frozen=True):
    """Virtual bytes; `limit_vb` is what the whole trade may take."""

    funding_vb: int
    payout_vb: int
    total_vb: int
    limit_vb: int


class Fees(Struct, frozen=True):
    """Satoshis to the miners, and who paid them."""

    funding_sats: int
    payout_sats: int
    total_sats: int
    buyer_sats: int
    seller_sats: int


class Purse(Struct, frozen=True):
    """A trader's coins before and after, in satoshis."""

    before_sats: int
    after_sats: int
    change_sats: int


class MessageLine(Struct, frozen=True, rename={"sender": "from", "receiver": "to"}):
    """One application message, as its receiver recorded it."""

    number: int
    name: str
    sender: str
    receiver: str


class Seconds(Struct, frozen=True):
    """Wall time: `mining` waiting for blocks, `ours` the rest; `trade` is from the take to both completed."""

    total: float
    ours: float
    mining: float
    trade: float


class NodeLine(Struct, frozen=True):
    """One process of ours, and how to reach it while it runs."""

    name: str
    roles: tuple[str, ...]
    node: str
    persona: str | None
    listen: str
    api: str
    datadir: str
    log: str
    pid: int


class Rpc(Struct, frozen=True):
    """How to ask the regtest bitcoind."""

    url: str
    host: str
    port: int
    user: str
    password: str
    cookie_file: str
    zmq: str
    datadir: str
    pid: int


class Report(Struct, frozen=True):
    """Everything. Amounts in satoshis, sizes in virtual bytes, times in the unit of their name."""

    network: str
    escrow_type: int
    single_funded: bool
    offer_id: str
    trade_id: str
    contract_id: str | None
    amount_sats: int
    price: str
    currency: str
    volume: str
    buyer_deposit_sats: int
    seller_deposit_sats: int
    escrow_txid: str
    escrow_vout: int
    escrow_value_sats: int
    escrow_address: str
    payout_txid: str
    witness_script: str
    witness: tuple[str, ...]
    script: Escrow
    transactions: dict[str, Transaction]
    sizes: Sizes
    fees: Fees
    balances: dict[str, Purse]
    value_conserved: bool
    messages: tuple[MessageLine, ...]
    arbiters: dict[str, Bystander]
    steps: tuple[StepTime, ...]
    seconds: Seconds
    take_to_mempool_ms: float
    nodes: tuple[NodeLine, ...]
    rpc: Rpc
    folder: str
    kept: bool


async def make_report(cast: Cast, script: Script, played: Played, steps: list[StepTime]) -> Report:
    """Read the chain, judge, and put it all together. Raises NotAsAgreed."""
    funding, payout, escrow = await _on_chain(cast, played)
    trade = played.buyer
    purses = {name: _purse(played, name) for name in (cast.buyer.name, cast.seller.name)}
    fees = _fees(played, funding, payout, purses[cast.buyer.name], purses[cast.seller.name])
    return Report(
        network="regtest",
        escrow_type=script.escrow_type,
        single_funded=script.single,
        offer_id=trade.offer_id,
        trade_id=trade.id,
        contract_id=trade.escrow.contract_id,
        amount_sats=trade.amount_sats,
        price=trade.price,
        currency=trade.currency,
        volume=trade.volume,
        buyer_deposit_sats=trade.buyer_deposit_sats,
        seller_deposit_sats=trade.seller_deposit_sats,
        escrow_txid=escrow.txid,
        escrow_vout=escrow.vout,
        escrow_value_sats=escrow.value_sats,
        escrow_address=escrow.address,
        payout_txid=payout.txid,
        witness_script=escrow.witness_script,
        witness=escrow.witness,
        script=escrow,
        transactions={"funding": funding, "payout": payout},
        sizes=_sizes(script, funding, payout),
        fees=fees,
        balances=purses,
        value_conserved=True,
        messages=_messages(played),
        arbiters=played.arbiters,
        steps=tuple(steps),
        seconds=_seconds(steps),
        take_to_mempool_ms=round(played.take_to_mempool_ms, 1),
        nodes=tuple(_node(daemon) for daemon in cast.daemons),
        rpc=_rpc(cast),
        folder=str(cast.folder),
        kept=cast.keep,
    )


async def _on_chain(cast: Cast, played: Played) -> tuple[Transaction, Transaction, Escrow]:
    seen, other = played.buyer.escrow, played.seller.escrow
    if (seen.funding_txid, seen.vout, seen.script, seen.payout_txid) != (
        other.funding_txid,
        other.vout,
        other.script,
        other.payout_txid,
    ):
        raise NotAsAgreed("the two traders tell of different escrows")
    if seen.funding_txid is None or seen.vout is None or seen.payout_txid is None:
        raise NotAsAgreed("the traders know no escrow")
    funding = await read_transaction(cast.bitcoind, seen.funding_txid)
    payout = await read_transaction(cast.bitcoind, seen.payout_txid)
    escrow = read_escrow(funding, seen.vout, payout)
    if escrow.witness_script != seen.script:
        raise NotAsAgreed("the escrow on the chain has another script than the traders'")
    return funding, payout, escrow


def _purse(played: Played, name: str) -> Purse:
    before, after = (_coins(view) for view in (played.before[name], played.after[name]))
    return Purse(before, after, after - before)


def _coins(view: s.BalanceView) -> int:
    return view.confirmed_sats + view.pending_sats


def _fees(played: Played, funding: Transaction, payout: Transaction, buyer: Purse, seller: Purse) -> Fees:
    amount = played.buyer.amount_sats
    paid = Fees(
        funding_sats=funding.fee_sats,
        payout_sats=payout.fee_sats,
        total_sats=funding.fee_sats + payout.fee_sats,
        buyer_sats=amount - buyer.change_sats,
        seller_sats=-amount - seller.change_sats,
    )
    # Deposits went in and came back; so the traded amount changed hands and the rest went to the miners.
    if paid.buyer_sats + paid.seller_sats != paid.total_sats:
        raise NotAsAgreed(
            f"the traders lost {paid.buyer_sats + paid.seller_sats} sat beyond the amount, "
            f"and the miners got {paid.total_sats}"
        )
    if min(paid.buyer_sats, paid.seller_sats) < 0:
        raise NotAsAgreed("a trader got more than it is due")
    return paid


def _sizes(script: Script, funding: Transaction, payout: Transaction) -> Sizes:
    limit = LIMITS[script.escrow_type, script.single]
    sizes = Sizes(funding.vsize, payout.vsize, funding.vsize + payout.vsize, limit)
    if sizes.total_vb > limit:
        raise NotAsAgreed(f"the trade took {sizes.total_vb} vB on the chain; the limit is {limit}")
    return sizes


def _messages(played: Played) -> tuple[MessageLine, ...]:
    """The messages in order, from what each side recorded to have received."""
    views = {"seller": played.seller, "buyer": played.buyer}
    lines = []
    for receiver, view in views.items():
        sender = "buyer" if receiver == "seller" else "seller"
        found = [_MESSAGES[step.event] for step in view.steps if step.event in _MESSAGES]
        if any(who not in (sender, views[sender].seat) for _, who in found):
            raise NotAsAgreed(f"the {receiver} recorded a message that the {sender} can't have sent")
        if len(found) != view.messages_received or view.messages_received != views[sender].messages_sent:
            raise NotAsAgreed(
                f"the {sender} sent {views[sender].messages_sent} messages, "
                f"and the {receiver} recorded {len(found)} of {view.messages_received}"
            )
        lines += [(name, sender, receiver) for name, _ in found]
    order = [name for name, _ in _MESSAGES.values()]
    lines.sort(key=lambda line: order.index(line[0]))
    return tuple(MessageLine(number, *line) for number, line in enumerate(lines, 1))


def _seconds(steps: list[StepTime]) -> Seconds:
    total, mining = sum(step.ms for step in steps), sum(step.mining_ms for step in steps)
    first = next(i for i, step in enumerate(steps) if step.name.startswith("buyer takes"))
    trade = sum(step.ms for step in steps[first:])
    return Seconds(*(round(ms / 1000, 3) for ms in (total, total - mining, mining, trade)))


def _node(daemon: Daemon) -> NodeLine:
    info = daemon.info
    return NodeLine(
        name=daemon.name,
        roles=info.roles,
        node=info.node,
        persona=info.persona,
        listen=info.listen[0],
        api=info.api,
        datadir=str(daemon.data.path),
        log=str(daemon.log),
        pid=daemon.pid,
    )


def _rpc(cast: Cast) -> Rpc:
    bitcoind = cast.bitcoind
    user, _, password = bitcoind.cookie_path.read_text().strip().partition(":")
    return Rpc(
        url=bitcoind.rpc_url,
        host="127.0.0.1",
        port=bitcoind.rpc_port,
        user=user,
        password=password,
        cookie_file=str(bitcoind.cookie_path.absolute()),
        zmq=bitcoind.zmq_url,
        datadir=str(bitcoind.datadir.absolute()),
        pid=bitcoind.pid or 0,
    )
