"""What a node needs to trade, and to judge: everything around the engine, started once the node can meet others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from dht.node import DhtNode
from escrow.address import address_of
from escrow.chain.follow import FollowedChain
from escrow.script import escrow_script
from escrow.wallet.base import Wallet
from p2pnode.arbiters import ArbiterDirectory
from p2pnode.attachments import AttachmentStore, Fetcher, ask_for_file
from p2pnode.blocktime import BlockTimes
from p2pnode.cases.desk import CaseDesk
from p2pnode.chainwatch import ChainWatch
from p2pnode.channels import Channels
from p2pnode.clock import Clock
from p2pnode.config import Config
from p2pnode.contacts import Contacts
from p2pnode.contractfile import ContractDirectory
from p2pnode.contribution import Contributor
from p2pnode.delivery import Delivery, Refusal
from p2pnode.engine import Engine, correspondents
from p2pnode.executor import Executor
from p2pnode.intake import Intake
from p2pnode.keyring import Keyring
from p2pnode.mailbox import Mailbox
from p2pnode.notices import Notices
from p2pnode.ownoffers import OwnOffers
from p2pnode.policy import TradePolicy
from p2pnode.post import ChannelPost
from p2pnode.prices import PriceFeeds
from p2pnode.publisher import OwnContact
from p2pnode.rebroadcast import Rebroadcaster
from p2pnode.recall import Recall, reserve_in
from p2pnode.reconcile import Pace, Reconciler
from p2pnode.reputation.exchange import is_half
from p2pnode.services.cases import CaseService
from p2pnode.services.disputes import DisputeService
from p2pnode.services.trades import TradeService
from p2pnode.services.views import TradeViews
from p2pnode.services.wallet import CoinService, TradeEscrows
from p2pnode.signing import PSBT_FOLDER, PsbtFolder, PsbtSigner
from p2pnode.taking import Taking
from p2pnode.tradestore import OutgoingMessage, TradeStore
from protocol.contact import NodeContact
from protocol.contract import Contract
from protocol.types import Network


@dataclass(frozen=True)
class Ground:
    """What trading stands on: the node's own things, its coins, and its ways to others."""

    config: Config
    keyring: Keyring
    clock: Clock
    notices: Notices
    trades: TradeStore
    backend: FollowedChain
    wallet: Wallet
    files: AttachmentStore
    channels: Channels
    dht: DhtNode
    contacts: Contacts
    own_contact: OwnContact
    own: OwnOffers
    prices: PriceFeeds
    directory: ArbiterDirectory


class Trading:
    """The engine and what serves it. Nothing runs before `start`."""

    def __init__(self, ground: Ground) -> None:
        self._ground = g = ground
        config, clock, keyring, network = g.config, g.clock, g.keyring, g.config.network
        self.engine = engine = Engine(
            g.trades,
            g.notices,
            keyring,
            clock,
            lambda: self.watch.height,
            network=network,
            contact=g.own_contact.envelope,
        )
        engine.files = g.files
        engine.subscribe(g.own.follow)
        self.watch = ChainWatch(g.backend, engine, clock)
        contributor = Contributor(keyring, g.wallet, clock)
        contracts = ContractDirectory(config.data_dir / "contracts")
        engine.subscribe(contracts.keep)
        self.executor = Executor(engine, g.wallet, g.backend, self.watch, keyring, contributor, g.own, contracts, clock)
        if not g.wallet.signs:
            self.executor.signer = PsbtSigner(PsbtFolder(config.data_dir / PSBT_FOLDER), g.wallet)
        self.rebroadcaster = Rebroadcaster(engine, g.wallet, g.backend)
        self.watch.on_tip(self.rebroadcaster.new_tip)
        post = ChannelPost(g.channels)
        self.delivery = Delivery(
            g.trades, g.contacts, post, clock, on_refusal=self._refused, hints=partial(_hints, g.trades)
        )
        engine.subscribe(lambda state: self.delivery.kick_all(correspondents(state)))
        self.reconciler = Reconciler(
            engine,
            self.delivery,
            g.contacts,
            post,
            keyring,
            g.notices,
            network,
            clock,
            height=lambda: self.watch.height,
            watch=self.watch.watch,
            # On regtest blocks come within a second, and so should a trade that was lost.
            pace=Pace(held=1.0, open=5.0) if network is Network.REGTEST else Pace(),
        )
        self.delivery.on_unknown = self.reconciler.ask
        policy = _policy(config)
        self.intake = Intake(
            engine,
            g.own,
            g.contacts,
            policy,
            network,
            clock,
            on_sync=self.reconciler.received,
            unspent=g.backend.unspent,
            prices=g.prices,
        )
        self._recall = Recall(
            engine,
            self.intake,
            keyring,
            g.contacts,
            network,
            clock,
            reserve=reserve_in(g.trades.database),
            export=contracts.add,
        )
        self.intake.on_returned = self._recall.returned
        self.taking = Taking(
            engine, keyring, contributor, g.wallet, g.backend, policy, network, clock, contact=g.own_contact.envelope
        )
        self.mailbox = Mailbox(
            g.trades, self.delivery, self.intake.deliver, g.dht, (keyring.persona,), clock, random.SystemRandom()
        )
        self._fetcher = Fetcher(
            g.files, g.contacts, partial(ask_for_file, g.channels), keyring.persona_key, g.notices, network, clock
        )
        engine.subscribe(lambda _state: self._fetcher.kick())
        self.desk = self._desk() if config.has("arbiter") else None
        self.blocks = BlockTimes(lambda: self.watch.height, clock)
        self.watch.on_tip(lambda _height: self.blocks.observe(g.backend.status().tip))
        self.views = TradeViews(g.trades, network, _describe_escrow, self.blocks)
        g.channels.subscribe(self.delivery.appeared)
        g.channels.subscribe(self.reconciler.appeared)
        g.channels.subscribe(lambda _peer: self._fetcher.kick())
        g.channels.subscribe(lambda _peer: self.mailbox.kick())

    def _desk(self) -> CaseDesk:
        g = self._ground
        desk = CaseDesk(
            g.trades,
            self.engine.conversations,
            g.notices,
            g.keyring,
            g.contacts,
            g.backend,
            g.directory.own,
            g.config.network,
            g.clock,
        )
        desk.kick_on(self.delivery.kick)
        desk.intake.files = g.files
        desk.engine.subscribe(lambda _state: self._fetcher.kick())
        self.intake.cases = desk.intake
        self._recall.cases = desk.recall
        return desk

    def _refused(self, refusal: Refusal) -> None:
        if is_half(refusal.message.raw, self._ground.config.network):
            # A receipt is a courtesy: that the other does without is no event of the trade.
            return
        self.engine.refused(refusal.message.trade_id, refusal.code, refusal.text)

    # --- what the API asks ---------------------------------------------------------------------------------------

    def trade_service(self) -> TradeService:
        """Trades and what the user does in them."""
        g = self._ground
        fee_rate = partial(g.backend.fee_rate, g.config.wallet.fee_target_blocks)
        return TradeService(self.engine, self.views, fee_rate)

    def dispute_service(self) -> DisputeService:
        """Settlements and disputes, for a party."""
        g = self._ground
        return DisputeService(self.engine, self.views, g.files)

    def case_service(self) -> CaseService | None:
        """Cases, for an arbiter."""
        g = self._ground
        if self.desk is None:
            return None
        engine = self.engine
        return CaseService(self.desk, engine.conversations, engine.divergences, g.wallet, self.blocks, g.files)

    def coin_service(self) -> CoinService:
        """The wallet."""
        g = self._ground
        return CoinService(
            g.wallet,
            g.backend,
            TradeEscrows(g.trades),
            max_fee_rate=g.config.trade.max_fee_rate_sats_per_kvb,
            fee_target_blocks=g.config.wallet.fee_target_blocks,
        )

    # --- running ---------------------------------------------------------------------------------------------------

    async def start(self, parts: AsyncExitStack) -> None:
        """Go on where an earlier run stopped. What is started is closed with `parts`."""
        g = self._ground
        await _release_orphans(g.wallet, g.trades)
        g.own.reconcile()
        for part in (self.watch, self.executor, self.rebroadcaster, self.delivery, self.reconciler, self.mailbox):
            parts.push_async_callback(part.close)
        await self.watch.start()
        self.executor.start()
        self.rebroadcaster.start()
        self.delivery.start()
        self.reconciler.start()
        self.mailbox.start()
        parts.push_async_callback(self._fetcher.close)
        self._fetcher.start()
        if self.desk is not None:
            parts.push_async_callback(self.desk.close)
            await self.desk.start()


def _policy(config: Config) -> TradePolicy:
    return TradePolicy(
        greatest_fee_rate=config.trade.max_fee_rate_sats_per_kvb,
        max_open_trades=config.trade.max_open,
        max_amount=config.trade.max_amount_sats,
        confirmations=config.trade.confirmations,
        price_tolerance=config.prices.tolerance_ppm,
    )


def _describe_escrow(contract: Contract, network: Network) -> tuple[bytes, str]:
    script = escrow_script(contract, network)
    return script.witness_script, address_of(script.script_pubkey, network)


async def _release_orphans(wallet: Wallet, trades: TradeStore) -> None:
    """A crash between reserving coins and recording the take leaves coins that no trade knows."""
    for reservation in await wallet.reservations():
        if trades.get(reservation.holder) is None:
            await wallet.release(reservation.holder)


def _hints(trades: TradeStore, message: OutgoingMessage) -> Sequence[NodeContact]:
    """Where the offer of a trade says that its maker is; nothing for other recipients."""
    stored = trades.get(message.trade_id)
    if stored is None or stored.state.made or stored.state.offer.maker != message.recipient:
        return ()
    return stored.state.offer.contacts
