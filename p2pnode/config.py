"""The node's configuration: one frozen dataclass, read from a TOML file, the environment and flags, in that order.

Theory of operation. Each source is a mapping of dotted keys (`node.port`) to raw values; a later source replaces an
earlier one key by key: the network's defaults, the file, the environment (`P2PNODE_NODE_PORT`), the flags. The
dataclasses below are the schema, and `settings` walks them: a key that they do not have, or a value of another type, is
refused with one line that names where it came from, the key, and what was expected. Nothing is read elsewhere.

`data_dir` is where everything of one node lies, its `config.toml` too. So it is found first: flag, environment, the
file given with `--config`, else `~/.p2pnode/<network>`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from escrow.chain.tls import parse_pin
from p2pnode.birthday import parse_birthday
from p2pnode.settings import BadConfig, Schema, Source, build, suggest, toml_text, value_text, variable
from protocol.errors import UserError
from protocol.identity import parse_node
from protocol.types import FeeRate, Network, PositiveSats

CONFIG_NAME: Final = "config.toml"
MAX_FILE: Final = 100_000
"""Bytes of a configuration file, at most."""
ENVIRONMENT_PREFIX: Final = "P2PNODE_"
NOT_SETTINGS: Final = frozenset(
    {"P2PNODE_BITCOIND", "P2PNODE_DEBUG", "P2PNODE_MNEMONIC_PASSPHRASE", "P2PNODE_PASSPHRASE"}
)
"""Variables with our prefix that are not settings: a program's path, secrets, and the switch for tracebacks."""

Port = Annotated[int, Meta(ge=0, le=65_535)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Role = Literal["trader", "arbiter", "bootstrap"]


class LogFormat(Enum):
    """How a log line looks."""

    CONSOLE = "console"
    JSON = "json"


class KdfCost(Enum):
    """How much work a passphrase guess costs (argon2id): 64 MiB and 2 passes, 256 MiB and 3, 1 GiB and 4."""

    INTERACTIVE = "interactive"
    MODERATE = "moderate"
    SENSITIVE = "sensitive"


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """The node among its peers."""

    host: str = "*"
    """Address on which peers reach it: UDP for the DHT, TCP for channels, same port. `*`: all of this machine's, IPv4
    and IPv6; several are separated by commas."""
    port: Port = 0
    """0 takes any free one. In a file's absence: 7352 on mainnet, 17352 testnet, 27352 signet, 28352 regtest."""
    external: tuple[str, ...] = ()
    """`host:port` under which others reach it, to be published. Empty: what peers report, or the listening address."""
    seeds: tuple[str, ...] = ()
    """Nodes to enter the network by: `node1...@host:port`, or `host:port` when the key is not known."""
    reachable: Literal["auto", "yes", "no"] = "auto"
    """Whether others can dial this node. `auto`: peers are asked to dial back. Who is not reached uses relays."""
    relay: bool = True
    """While reachable, carry ciphertext between nodes that can't reach each other, within `limits`."""
    port_mapping: Literal["auto", "yes", "no"] = "auto"
    """Ask the router for a port (UPnP, NAT-PMP). `auto`: unless `host` is a loopback address, and not on regtest."""
    dht_client: bool = False
    """Ask the DHT but do not serve it: for a node behind a firewall that no one can reach."""
    dht_transport: Literal["both", "udp", "channel"] = "both"
    """What carries the DHT's packets: UDP, streams of channels (where no datagram passes: behind a strict firewall, or
    a proxy), or `both`: UDP where it works, else channels."""
    local_addresses: bool = False
    """Talk to loopback and private addresses of peers. Always on on regtest."""
    mdns: str = ""
    """A name that nodes of one local network share to find each other by mDNS. Empty: neither announce nor search."""


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """The local API."""

    host: Literal["127.0.0.1", "::1", "localhost"] = "127.0.0.1"
    """Loopback only; whoever needs more tunnels to it."""
    port: Port = 0
    """0 takes any free one. In a file's absence: 7353 on mainnet, 17353 testnet, 27353 signet, 28353 regtest."""


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """`/metrics` for Prometheus and `/health` for watchdogs: counts and states, without a login."""

    host: Literal["127.0.0.1", "::1", "localhost"] = "127.0.0.1"
    """Loopback only; a collector on another machine reaches it through a tunnel or a proxy with a login."""
    port: Port | None = None
    """None: not at all. 0 takes any free one."""


@dataclass(frozen=True, slots=True)
class ChainConfig:
    """Where the node sees the Bitcoin chain. A bootstrap node needs none."""

    backends: tuple[Literal["bitcoind", "cbf", "electrum", "esplora"], ...] = ()
    """What tells of the chain. Several are compared, and nothing moves on what they do not agree on. Empty: whatever
    is set up below; if nothing is, `cbf`, the built-in light client (on regtest `bitcoind`)."""
    quorum: Annotated[int, Meta(ge=0, le=16)] = 0
    """How many of several must answer and agree, at least a majority of those that answer. 0: all that answer, and two
    at least. 1: a single one will do while the others are dead, but none may contradict it."""
    peers: tuple[str, ...] = ()
    """For `cbf`: `host:port` of the only Bitcoin nodes to use, with peerblockfilters=1. Empty: find some."""
    start_height: Annotated[int, Meta(ge=0, le=10_000_000)] | None = None
    """For `cbf`, `electrum` and `esplora`: the lowest block to know. None: what wallet.birthday asks for."""
    read_relayed: bool | None = None
    """For `cbf`: read every transaction that a peer announces (200 MB a day on mainnet), so that payments are seen
    before a block holds them. None: not on mainnet."""
    electrum: tuple[str, ...] = ()
    """Electrum servers, each `ssl://host:port` or `tcp://host:port`. A server that signs its own certificate is pinned
    by the certificate's SHA-256: `ssl://host:port#3F:0A:...`"""
    esplora: tuple[str, ...] = ()
    """Esplora servers, each like https://blockstream.info/api, pinned in the same way where need be."""
    certificates: Path | None = None
    """For `electrum` and `esplora`: a file of certificates (PEM) to trust besides the system's."""
    url: str = ""
    """bitcoind's RPC, like http://127.0.0.1:8332. By default this machine, on the network's port."""
    user: str = ""
    """RPC user; empty: log in by the cookie file."""
    password: str = field(default="", repr=False)
    """RPC password of that user. Better given as P2PNODE_CHAIN_PASSWORD than in a file."""
    cookie_file: Path | None = None
    """bitcoind's cookie file. By default ~/.bitcoin/.cookie, with the network's folder between."""
    zmq: tuple[str, ...] = ()
    """bitcoind's ZMQ addresses for hashblock and sequence, like tcp://127.0.0.1:28332. Empty: polling."""
    poll_seconds: Annotated[int, Meta(ge=1, le=600)] = 2
    """How often to ask for a new block where nothing tells of it; light clients ask at most every 15 s."""


@dataclass(frozen=True, slots=True)
class WalletConfig:
    """The user's coins."""

    confirmations: Annotated[int, Meta(ge=1, le=100)] = 1
    """Blocks on a coin before it is spent."""
    fee_target_blocks: Annotated[int, Meta(ge=1, le=1008)] = 3
    """Blocks within which payments and escrows shall confirm."""
    engine: Literal["auto", "bdk", "native"] = "auto"
    """What derives and signs: BDK where it is installed, else our own; both do the same."""
    birthday: str = ""
    """When the mnemonic was made, or the height of a block before its first coin: 840000, 2026-11-21 or
    2026-11-21T08:00:00Z. Empty: not known, so a fresh data directory is searched from the first block with segwit."""
    gap_limit: Annotated[int, Meta(ge=20, le=10_000)] = 50
    """Unused addresses in a row after which no more are looked for."""
    watch: str = ""
    """A public descriptor, wpkh([ORIGIN]XPUB/<0;1>/*), or an extended public key: the keys of the coins are in another
    wallet, such as a hardware wallet's. This one watches, and in trades asks for signatures by PSBT."""


@dataclass(frozen=True, slots=True)
class TradeConfig:
    """What this node agrees to without asking."""

    max_open: Annotated[int, Meta(ge=1, le=1000)] = 10
    """Trades that may be open at a time; further takes are declined."""
    max_amount_sats: PositiveSats = 100_000_000
    """The largest amount of one trade."""
    confirmations: Annotated[int, Meta(ge=1, le=100)] = 1
    """Least confirmations of an escrow before money is paid; larger amounts ask for more by themselves."""
    max_fee_rate_sats_per_kvb: FeeRate = 500_000
    """The highest fee rate that a transaction of ours may pay."""
    fallback_fee_rate_sats_per_kvb: FeeRate | None = None
    """Fee rate when the backend has no estimate. None: wait. 2000 on regtest."""
    new_peer_max_amount_sats: PositiveSats | None = None
    """The largest amount of one trade with a persona without history, as taker and as maker. None: as with others."""
    new_peer_max_open: Annotated[int, Meta(ge=0, le=1000)] | None = None
    """Trades with such personas that may be open at a time. None: as with others."""


@dataclass(frozen=True, slots=True)
class ReputationConfig:
    """What others learn of this node's trades."""

    publish: bool = False
    """Consent to the publication of receipts by itself: others then see which escrows were this persona's, and with
    whom. Without it both sides still sign, and keep it to themselves; `trade receipt --publish` consents for one."""


@dataclass(frozen=True, slots=True)
class PriceConfig:
    """Where the market price comes from, which offers with a margin need. By default there is none."""

    feeds: tuple[str, ...] = ()
    """Each `name url path`: a JSON document and the place of the price of one bitcoin in it, keys and list positions
    separated by points. `{currency}` stands for the code, `{lower}` for it in small letters. The median counts."""
    interval_seconds: Annotated[int, Meta(ge=10, le=3_600)] = 60
    """How often the feeds are asked, about."""
    max_age_seconds: Annotated[int, Meta(ge=30, le=86_400)] = 300
    """How long an answer counts."""
    manual: tuple[str, ...] = ()
    """Prices set by hand, each like `EUR 85000.00`; they stand for all feeds of their currency, for as long as they
    are here."""
    file: Path | None = None
    """A file with such prices, one per line. It is read when it changes and counts until it is a day old."""
    tolerance_ppm: Annotated[int, Meta(ge=0, le=1_000_000)] = 10_000
    """How far a taker's price of an own offer at market price may be off our own market price."""


@dataclass(frozen=True, slots=True)
class KeystoreConfig:
    """The encrypted mnemonic."""

    cost: KdfCost = KdfCost.MODERATE
    """What a guess at the passphrase costs; applies when the keystore is written."""
    passphrase_file: Path | None = None
    """A file whose first line is the passphrase. Else the environment (P2PNODE_PASSPHRASE), else a prompt."""


@dataclass(frozen=True, slots=True)
class BackupConfig:
    """Copies that the node makes by itself."""

    folder: Path | None = None
    """Where an encrypted backup is kept up to date after each step of a trade: on another disk, best of all. It opens
    with the mnemonic alone. None: only `p2pnode backup` makes one."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What is told, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severity that is written."""
    format: LogFormat = LogFormat.CONSOLE
    """`console` for people, `json` for machines: one object per line."""
    file: Path | None = None
    """Write there too (10 MB, three older files kept), readable by the owner only."""
    show_addresses: bool = False
    """Show IP and Bitcoin addresses in full. They are shortened otherwise."""


@dataclass(frozen=True, slots=True)
class LimitConfig:
    """How much of this machine others may take."""

    sessions: Count = 200
    """Open channels with peers."""
    sessions_per_address: Count = 8
    """Of these, from one IP address (not counted on regtest)."""
    relay_clients: Count = 128
    """Nodes that may be registered with this one as their relay."""
    relay_circuits: Count = 64
    """Circuits through this node at a time."""
    relay_kilobytes_per_second: Annotated[int, Meta(ge=64, le=1_000_000)] = 1_000
    """What all circuits together may carry, both ways added."""
    book_offers: Count = 20_000
    """Offers kept in the local book."""


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that a node is told before it starts; `load` makes it. Only `chain.password` is secret."""

    network: Network = Network.MAINNET
    """The Bitcoin network that it lives on: mainnet, testnet, signet or regtest."""
    data_dir: Path = Path()
    """Keys, database, lock and logs of this one node."""
    roles: tuple[Role, ...] = ("trader",)
    """What it does: trader and arbiter may go together; bootstrap stands alone."""
    node: NodeConfig = NodeConfig()
    api: ApiConfig = ApiConfig()
    chain: ChainConfig = ChainConfig()
    wallet: WalletConfig = WalletConfig()
    trade: TradeConfig = TradeConfig()
    prices: PriceConfig = PriceConfig()
    reputation: ReputationConfig = ReputationConfig()
    keystore: KeystoreConfig = KeystoreConfig()
    backup: BackupConfig = BackupConfig()
    log: LogConfig = LogConfig()
    limits: LimitConfig = LimitConfig()
    metrics: MetricsConfig = MetricsConfig()

    def has(self, role: Role) -> bool:
        """Whether the node plays this role."""
        return role in self.roles


_SCHEMA: Final = Schema(Config)
_PORTS: Final = {Network.MAINNET: 7352, Network.TESTNET: 17352, Network.SIGNET: 27352, Network.REGTEST: 28352}
_RPC_PORTS: Final = {Network.MAINNET: 8332, Network.TESTNET: 48332, Network.SIGNET: 38332, Network.REGTEST: 18443}
_BITCOIND_FOLDERS: Final = {Network.MAINNET: ".", Network.TESTNET: "testnet4"}


def load(
    *,
    flags: Mapping[str, object] | None = None,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    home: Path | None = None,
) -> Config:
    """The configuration from all sources.

    `flags` are dotted keys to texts, numbers, booleans or sequences of texts, as given on the command line. `file` is
    what `--config` names; without it the data directory's own `config.toml` is read if there is one. `environ` and
    `home` stand for the process's. Raises BadConfig.
    """
    home = home or Path.home()
    from_flags = Source("flag", flags or {}, text=True)
    _SCHEMA.check_known(from_flags)
    if "chain.password" in from_flags.values:
        # Every user of the machine can read the arguments of a process.
        raise BadConfig("flag: chain.password: a password is never an argument: set P2PNODE_CHAIN_PASSWORD")
    from_environment = _environment(environ or {})
    from_file = None if file is None else _read(file)
    given = tuple(source for source in (from_file, from_environment, from_flags) if source is not None)
    data_dir = _winning(given, "data_dir")
    if data_dir is None:
        data_dir = home / ".p2pnode" / (_winning(given, "network") or Network.MAINNET).name.lower()
    data_dir = data_dir.absolute()
    if file is None and (own := data_dir / CONFIG_NAME).is_file():
        given = (_read(own), *given)
        if (named := _winning(given[:1], "data_dir")) is not None and named != data_dir:
            raise BadConfig(f"{own}: data_dir names another folder than the one that this file is in: remove the line")
    network = _winning(given, "network") or Network.MAINNET
    values = _network_defaults(network, home, given)
    for source in given:
        values |= {key: _SCHEMA.value_at(source, key) for key in source.values}
    if not values.get("chain.backends"):
        values["chain.backends"] = _backends(network, values, given)
    config = build(Config, values | {"data_dir": data_dir, "network": network})
    _check(config, given)
    return config


def write_out(config: Config, *, flags: Mapping[str, object], file: Path | None) -> str:
    """The TOML text of what `flags` and `file` set: the `config.toml` of a new node. Defaults stay out of it.

    `data_dir` is left out, since the file will lie in it; the network is always named. Raises BadConfig.
    """
    chosen = {"network"} | set(flags) | (set() if file is None else set(_read(file).values))
    lines = ["# Made by `p2pnode init`. p2pnode/config.py documents every setting; what is absent has its default."]
    section = ""
    for key in _SCHEMA.leaves:
        if key not in chosen or key == "data_dir":
            continue
        head, dot, name = key.rpartition(".")
        if dot and head != section:
            section = head
            lines += ["", f"[{section}]"]
        lines.append(f"{name} = {toml_text(value_of(config, key))}")
    return "\n".join(lines) + "\n"


def value_of(config: Config, key: str) -> Any:  # noqa: ANN401  (the type is the field's)
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def describe(config: Config) -> dict[str, str]:
    """Every dotted key and its value as text, the password hidden."""
    shown: dict[str, str] = {}
    for key in _SCHEMA.leaves:
        value = value_of(config, key)
        shown[key] = "(hidden)" if key == "chain.password" and value else value_text(value)
    return shown


def _read(path: Path) -> Source:
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise BadConfig(f"the configuration file {path} can't be read: {e.strerror or e}") from e
    if len(raw) > MAX_FILE:
        raise BadConfig(f"the configuration file {path} is {len(raw)} bytes long: it should be a few lines of TOML")
    try:
        tree = tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise BadConfig(f"the configuration file {path} is not UTF-8 text") from e
    except tomllib.TOMLDecodeError as e:
        complaint = str(e)
        raise BadConfig(f"the configuration file {path} is not TOML: {complaint[:1].lower()}{complaint[1:]}") from e
    source = Source(str(path), _SCHEMA.flatten(tree, str(path)), base=path.absolute().parent)
    _SCHEMA.check_known(source)
    return source


def _environment(environ: Mapping[str, str]) -> Source:
    by_variable = {variable(ENVIRONMENT_PREFIX, key): key for key in _SCHEMA.leaves}
    found: dict[str, object] = {}
    for name, value in environ.items():
        if name.startswith(ENVIRONMENT_PREFIX) and name not in NOT_SETTINGS:
            if name not in by_variable:
                raise BadConfig(f"environment: {name} is not a setting{suggest(name, by_variable)}")
            found[by_variable[name]] = value
    return Source("environment", found, text=True, prefix=ENVIRONMENT_PREFIX)


def _winning(sources: tuple[Source, ...], key: str) -> Any:  # noqa: ANN401  (the type is the field's)
    """The value of `key` in the last source that has it, or None."""
    return next((_SCHEMA.value_at(source, key) for source in reversed(sources) if key in source.values), None)


def _network_defaults(network: Network, home: Path, given: tuple[Source, ...]) -> dict[str, object]:
    """What a network brings along. A cookie file only where no user is named: the two exclude each other."""
    defaults: dict[str, object] = {
        "node.port": _PORTS[network],
        "api.port": _PORTS[network] + 1,
        "chain.url": f"http://127.0.0.1:{_RPC_PORTS[network]}",
    }
    if not any("chain.user" in source.values for source in given):
        folder = _BITCOIND_FOLDERS.get(network, network.name.lower())
        defaults["chain.cookie_file"] = home / ".bitcoin" / folder / ".cookie"
    if network is Network.REGTEST:
        defaults["trade.fallback_fee_rate_sats_per_kvb"] = 2_000
        defaults["node.local_addresses"] = True
    return defaults


def _backends(network: Network, values: Mapping[str, object], given: tuple[Source, ...]) -> tuple[str, ...]:
    """What is set up; if nothing is, the light client, which needs nothing. On regtest there are no peers to find."""
    named = {key for source in given for key in source.values}
    found = [kind for kind in ("electrum", "esplora") if values.get(f"chain.{kind}")]
    if values.get("chain.peers"):
        found.insert(0, "cbf")
    if named & {"chain.url", "chain.user", "chain.cookie_file", "chain.zmq"}:
        found.insert(0, "bitcoind")
    return tuple(found) or (("bitcoind",) if network is Network.REGTEST else ("cbf",))


# --- what one field alone can't hold -----------------------------------------------------------------------------


def _check(config: Config, given: tuple[Source, ...]) -> None:
    def refuse(key: str, complaint: str) -> BadConfig:
        place = next((source.place(key) for source in reversed(given) if key in source.values), key)
        return BadConfig(f"{place}: {complaint}")

    if not config.roles or len(set(config.roles)) != len(config.roles):
        raise refuse("roles", "expected one or more different roles: trader, arbiter, or bootstrap alone")
    if config.has("bootstrap") and len(config.roles) > 1:
        raise refuse("roles", "a bootstrap node holds no keys worth stealing: it takes no other role")
    for seed in config.node.seeds:
        if complaint := _seed_complaint(seed):
            raise refuse("node.seeds", complaint)
        if config.node.dht_transport == "channel" and "@" not in seed:
            raise refuse("node.seeds", f"without UDP a seed is of use with its key only: node1...@{seed}")
    for address in config.node.external:
        if not _is_address(address):
            raise refuse("node.external", f"expected host:port, got {address!r}")
    _check_mdns(config, refuse)
    _check_chain(config.chain, given, refuse)
    try:
        parse_birthday(config.wallet.birthday)
    except ValueError:
        shown = config.wallet.birthday[:40]
        raise refuse("wallet.birthday", f"expected a height, or a time like 2026-11-21, got {shown!r}") from None
    fallback = config.trade.fallback_fee_rate_sats_per_kvb
    if fallback is not None and fallback > config.trade.max_fee_rate_sats_per_kvb:
        raise refuse("trade.fallback_fee_rate_sats_per_kvb", "it is over trade.max_fee_rate_sats_per_kvb")


def _check_mdns(config: Config, refuse: Callable[[str, str], BadConfig]) -> None:
    name = config.node.mdns
    if not re.fullmatch(r"[a-z0-9-]{0,32}", name):
        raise refuse("node.mdns", f"expected a name of at most 32 of a-z, 0-9 and -, got {name!r}")
    if name and not config.node.local_addresses and config.network is not Network.REGTEST:
        raise refuse("node.mdns", "who is found is at a private address: set node.local_addresses too")


def _check_chain(chain: ChainConfig, given: tuple[Source, ...], refuse: Callable[[str, str], BadConfig]) -> None:
    try:
        url = urlsplit(chain.url)
        sound = (
            url.scheme in ("http", "https") and url.hostname and url.port != 0 and not (url.username or url.password)
        )
    except ValueError:
        sound = False
    if not sound:
        hint = "the login belongs into chain.user and chain.password"
        raise refuse("chain.url", f"expected an address like http://127.0.0.1:8332 ({hint})")
    if chain.user and any("chain.cookie_file" in source.values for source in given):
        raise refuse("chain.user", "give a user and password or a cookie file, not both")
    if chain.user and not chain.password:
        raise refuse("chain.user", "chain.password is missing: set P2PNODE_CHAIN_PASSWORD")
    if chain.password and not chain.user:
        raise refuse("chain.password", "chain.user is missing")
    _check_servers(chain, refuse)
    for endpoint in chain.zmq:
        if not re.fullmatch(r"(tcp|ipc)://\S+", endpoint):
            raise refuse("chain.zmq", f"expected an address like tcp://127.0.0.1:28332, got {endpoint!r}")


def _check_servers(chain: ChainConfig, refuse: Callable[[str, str], BadConfig]) -> None:
    if len(set(chain.backends)) != len(chain.backends):
        raise refuse("chain.backends", "name each kind once; servers are named in chain.electrum and chain.esplora")
    for kind, servers in (("electrum", chain.electrum), ("esplora", chain.esplora)):
        if (kind in chain.backends) != bool(servers):
            raise refuse(f"chain.{kind}", f"name servers here and `{kind}` in chain.backends, or neither")
        for server in servers:
            if complaint := _server_complaint(kind, server):
                raise refuse(f"chain.{kind}", complaint)
    for peer in chain.peers:
        if not _is_address(peer):
            raise refuse("chain.peers", f"expected host:port, got {peer!r}")
    single = sum(kind in ("bitcoind", "cbf") for kind in chain.backends)
    views = single + len(chain.electrum) + len(chain.esplora)
    if chain.quorum > views:
        raise refuse("chain.quorum", f"{chain.quorum} can't agree where {views} are asked")


def _server_complaint(kind: str, server: str) -> str | None:
    where, mark, pin = server.partition("#")
    if mark:
        try:
            tls = where.startswith(("ssl://", "https://")) and parse_pin(pin)
        except ValueError as e:
            return f"{server[:80]!r}: {e}"
        if not tls:
            return f"{server[:80]!r}: a fingerprint belongs to an address of ssl:// or https://"
    if kind == "electrum":
        if re.match("(ssl|tcp)://", where) and _is_address(where.partition("://")[2]):
            return None
        return f"expected an address like ssl://host:50002, got {server!r}"
    try:
        url = urlsplit(where)
        sound = url.scheme in ("http", "https") and url.hostname and url.port != 0 and not (url.query or url.username)
    except ValueError:
        sound = False
    return None if sound else f"expected an address like https://blockstream.info/api, got {server!r}"


def _seed_complaint(seed: str) -> str | None:
    key, mark, address = seed.rpartition("@")
    if not _is_address(address):
        return f"expected host:port or node1...@host:port, got {seed!r}"
    if mark:
        try:
            parse_node(key)
        except UserError as e:
            return f"{seed!r}: {e.detail}"
    return None


def _is_address(text: str) -> bool:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.\-]{1,253}):([0-9]{1,5})", text)
    if match is None or not 0 < int(match.group(2)) < 65_536:
        return False
    host = match.group(1).strip("[]")
    try:
        ip = ip_address(host)
    except ValueError:
        return ":" not in host and all(0 < len(label) < 64 for label in host.removesuffix(".").split("."))
    return not (ip.is_unspecified or ip.is_multicast)
