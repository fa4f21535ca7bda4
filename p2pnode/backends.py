"""The chain backend and the wallet that a configuration asks for."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Final, assert_never

from escrow.chain.base import BlockRef, Report
from escrow.chain.bitcoind import BitcoindConfig, BitcoindView
from escrow.chain.cbf import CbfConfig, CbfView
from escrow.chain.council import CouncilView
from escrow.chain.driver import Backend
from escrow.chain.electrum import ElectrumConfig, ElectrumView
from escrow.chain.esplora import EsploraConfig, EsploraView
from escrow.chain.follow import FollowedChain
from escrow.chain.rpc import CookieLogin, Login, PasswordLogin
from escrow.chain.tls import Trust, split_pin
from escrow.chain.view import ChainView
from escrow.wallet.account import Account
from escrow.wallet.birthday import first_block
from escrow.wallet.engines import make_engine
from escrow.wallet.hot import HotWallet, WalletOptions
from escrow.wallet.native import WatchEngine
from escrow.wallet.reservations import SqliteReservations
from p2pnode.birthday import parse_birthday
from p2pnode.clock import Clock
from p2pnode.config import Config
from p2pnode.database import Database
from p2pnode.datadir import DataDir
from p2pnode.keystore import Keys
from p2pnode.notices import Notices
from p2pnode.settings import BadConfig
from protocol.types import Height, Network, UnixTime

WALLET_FILE: Final = "wallet.db"
CHAIN_FOLDER: Final = "chain"
"""Headers and peers of the light client."""
LIGHT_POLL: Final = 15
"""Seconds between looks at what others run."""
FIRST_BLOCK: Final = {Network.MAINNET: 1_231_006_505, Network.SIGNET: 1_598_918_400}
"""When the chain began, where its blocks keep a rhythm."""


def make_backend(config: Config, clock: Clock) -> Backend:
    """The backend, not started: one view, or several that are compared. Raises BadConfig."""
    chain = config.chain
    views: list[ChainView] = []
    for kind in chain.backends:
        match kind:
            case "bitcoind":
                views.append(BitcoindView(_bitcoind(config)))
            case "cbf":
                views.append(CbfView(_cbf(config, clock), clock.now, random.SystemRandom()))
            case "electrum":
                views += [ElectrumView(_electrum(config, url, clock), clock.now) for url in chain.electrum]
            case "esplora":
                views += [EsploraView(_esplora(config, url, clock), clock.now) for url in chain.esplora]
            case _:
                assert_never(kind)
    # What tells of blocks by itself need not be asked often; on regtest blocks come at any time.
    light = chain.backends != ("bitcoind",) and config.network is not Network.REGTEST
    poll = max(chain.poll_seconds, LIGHT_POLL) if light else chain.poll_seconds
    view = views[0] if len(views) == 1 else CouncilView(views, chain.quorum)
    return Backend(view, poll_seconds=poll, safety_poll_seconds=30.0)


def report_to(notices: Notices, clock: Clock) -> Callable[[Report], None]:
    """What makes events of a backend's reports."""

    def report(found: Report) -> None:
        notices.add(found.value, clock.now())
        notices.wake()

    return report


def _bitcoind(config: Config) -> BitcoindConfig:
    chain = config.chain
    login: Login
    if chain.user:
        login = PasswordLogin(chain.user, chain.password)
    elif chain.cookie_file is not None:
        login = CookieLogin(chain.cookie_file)
    else:
        raise BadConfig("chain: give a cookie_file, or a user and password, to log in to bitcoind")
    return BitcoindConfig(
        network=config.network,
        url=chain.url,
        login=login,
        zmq=_topics(chain.zmq),
        fallback_fee_rate=config.trade.fallback_fee_rate_sats_per_kvb,
    )


def _cbf(config: Config, clock: Clock) -> CbfConfig:
    chain = config.chain
    relay = chain.read_relayed
    return CbfConfig(
        network=config.network,
        peers=chain.peers,
        folder=DataDir(config.data_dir).path / CHAIN_FOLDER,
        from_height=_first_height(config, clock.now()),
        relay=config.network is not Network.MAINNET if relay is None else relay,
        fallback_fee_rate=config.trade.fallback_fee_rate_sats_per_kvb,
    )


def _electrum(config: Config, address: str, clock: Clock) -> ElectrumConfig:
    url, pin = split_pin(address)
    return ElectrumConfig(
        network=config.network,
        url=url,
        trust=Trust(config.chain.certificates, pin),
        folder=DataDir(config.data_dir).path / CHAIN_FOLDER / _folder_name(url),
        from_height=_first_height(config, clock.now()),
        fallback_fee_rate=config.trade.fallback_fee_rate_sats_per_kvb,
    )


def _esplora(config: Config, address: str, clock: Clock) -> EsploraConfig:
    url, pin = split_pin(address)
    return EsploraConfig(
        network=config.network,
        url=url,
        trust=Trust(config.chain.certificates, pin),
        folder=DataDir(config.data_dir).path / CHAIN_FOLDER / _folder_name(url),
        from_height=_first_height(config, clock.now()),
        fallback_fee_rate=config.trade.fallback_fee_rate_sats_per_kvb,
    )


def _folder_name(url: str) -> str:
    """A server's address as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", url)


def _first_height(config: Config, now: UnixTime) -> Height | None:
    """From where on a light client must know the chain: where the wallet begins to look, or lower.

    Real blocks come a little faster than every ten minutes, so the height for a time is rather too low than too high.
    """
    if config.chain.start_height is not None:
        return config.chain.start_height
    height, born = parse_birthday(config.wallet.birthday)
    if height is not None or config.network not in FIRST_BLOCK:
        return height
    tip = BlockRef((now - FIRST_BLOCK[config.network]) // 600, bytes(32), now, now)
    return min(first_block(config.network, tip, born), tip.height)


def _topics(addresses: tuple[str, ...]) -> dict[str, str] | None:
    """None lets bitcoind tell its own; one address serves all topics, of two the second serves transactions'."""
    if not addresses:
        return None
    return {"hashblock": addresses[0], "rawtx": addresses[-1], "sequence": addresses[-1]}


def make_wallet(config: Config, keys: Keys, backend: FollowedChain, database: Database, clock: Clock) -> HotWallet:
    """The wallet over a started backend, not started itself. Raises NoBdk, BadDescriptor."""
    watched = config.wallet.watch
    height, born = parse_birthday(config.wallet.birthday)
    return HotWallet(
        WatchEngine(Account.parse(watched, config.network))
        if watched
        else make_engine(keys.seed.master, config.network, config.wallet.engine),
        backend,
        SqliteReservations(database.connection),
        DataDir(config.data_dir).path / WALLET_FILE,
        clock.now,
        WalletOptions(
            max_fee_rate=config.trade.max_fee_rate_sats_per_kvb,
            birthday=height,
            born=born,
            gap_limit=config.wallet.gap_limit,
        ),
    )
