"""The chain backend and the wallet that a configuration asks for."""

from __future__ import annotations

from escrow.chain.bitcoind import BitcoindBackend, BitcoindConfig
from escrow.chain.rpc import CookieLogin, Login, PasswordLogin
from escrow.wallet.account import Account
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
from p2pnode.settings import BadConfig

WALLET_FILE = "wallet.db"


def make_backend(config: Config) -> BitcoindBackend:
    """The backend, not started. Raises BadConfig."""
    chain = config.chain
    login: Login
    if chain.user:
        login = PasswordLogin(chain.user, chain.password)
    elif chain.cookie_file is not None:
        login = CookieLogin(chain.cookie_file)
    else:
        raise BadConfig("chain: give a cookie_file, or a user and password, to log in to bitcoind")
    return BitcoindBackend(
        BitcoindConfig(
            network=config.network,
            url=chain.url,
            login=login,
            zmq=_topics(chain.zmq),
            poll_seconds=chain.poll_seconds,
            fallback_fee_rate=config.trade.fallback_fee_rate_sats_per_kvb,
        )
    )


def _topics(addresses: tuple[str, ...]) -> dict[str, str] | None:
    """None lets bitcoind tell its own; one address serves both topics, two are hashblock's and sequence's."""
    if not addresses:
        return None
    return {"hashblock": addresses[0], "sequence": addresses[-1]}


def make_wallet(config: Config, keys: Keys, backend: BitcoindBackend, database: Database, clock: Clock) -> HotWallet:
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
