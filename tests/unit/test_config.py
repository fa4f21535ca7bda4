"""Configuration: which source wins, and one clear line for whatever is wrong."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import config as module
from p2pnode.config import Config, KdfCost, LogFormat, describe, load, write_out
from p2pnode.settings import BadConfig
from protocol.identity import node_text
from protocol.types import Network

ROOT = Path(__file__).resolve().parents[2]
HOME = Path("/home/somebody")
NODE = node_text(b"\x07" * 32)


def read(
    text: str | None = None,
    folder: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Config:
    file = None
    if text is not None:
        assert folder is not None
        file = folder / "given.toml"
        file.write_text(text)
    return load(flags=flags, file=file, environ=environ, home=HOME)


def refusal(
    text: str | None = None,
    folder: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> str:
    with pytest.raises(BadConfig) as refused:
        read(text, folder, environ=environ, flags=flags)
    assert "\n" not in refused.value.detail
    return refused.value.detail


class TestDefaults:
    def test_nothing_given_is_a_trader_on_mainnet_with_its_own_bitcoind(self) -> None:
        config = read()
        assert config.network is Network.MAINNET
        assert config.data_dir == HOME / ".p2pnode" / "mainnet"
        assert config.roles == ("trader",)
        assert config.chain.url == "http://127.0.0.1:8332"
        assert config.chain.cookie_file == HOME / ".bitcoin" / ".cookie"
        assert (config.node.port, config.api.port, config.api.host) == (7352, 7353, "127.0.0.1")
        assert not config.node.local_addresses
        assert config.trade.fallback_fee_rate_sats_per_kvb is None

    def test_networks_never_share_a_port_or_a_folder(self) -> None:
        configs = [read(flags={"network": n.name.lower()}) for n in Network]
        ports = [p for c in configs for p in (c.node.port, c.api.port)]
        assert len(set(ports)) == len(ports)
        assert len({c.data_dir for c in configs}) == len(configs)
        assert len({c.chain.url for c in configs}) == len(configs)
        assert len({c.chain.cookie_file for c in configs}) == len(configs)
        # Below the range that systems hand out to connections that go out (Linux: 32768 and up).
        assert max(ports) < 32_768

    def test_regtest_works_without_fee_estimates_and_on_loopback(self) -> None:
        config = read(flags={"network": "regtest"})
        assert config.trade.fallback_fee_rate_sats_per_kvb == 2_000
        assert config.node.local_addresses

    def test_every_setting_is_documented_where_it_is_defined(self) -> None:
        tree = ast.parse(Path(str(module.__file__)).read_text())
        for cls in (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name.endswith("Config")):
            body = cls.body
            for here, after in zip(body, [*body[1:], None], strict=True):
                if isinstance(here, ast.AnnAssign) and cls.name != "Config":
                    documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    assert documented, f"{cls.name}.{ast.unparse(here.target)}"

    def test_sections_do_not_nest_and_are_frozen(self) -> None:
        hints = get_type_hints(Config)
        for f in fields(Config):
            if is_dataclass(hints[f.name]):
                inner = get_type_hints(hints[f.name])
                assert not any(is_dataclass(t) for t in inner.values())
                assert hints[f.name].__dataclass_params__.frozen


class TestPrecedence:
    def test_file_then_environment_then_flags(self, tmp_path: Path) -> None:
        text = "[trade]\nmax_open = 1\n[node]\nport = 1\n[api]\nport = 1\n"
        config = read(
            text,
            tmp_path,
            environ={"P2PNODE_NODE_PORT": "2", "P2PNODE_API_PORT": "2"},
            flags={"api.port": "3"},
        )
        assert (config.trade.max_open, config.node.port, config.api.port) == (1, 2, 3)

    def test_the_folders_own_file_is_read_unless_another_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "config.toml").write_text('network = "signet"\n[trade]\nmax_open = 5\n')
        own = load(flags={"data_dir": str(tmp_path)}, home=HOME)
        assert (own.network, own.trade.max_open, own.node.port) == (Network.SIGNET, 5, 27352)
        other = tmp_path / "other.toml"
        other.write_text('network = "regtest"\n')
        named = load(flags={"data_dir": str(tmp_path)}, file=other, home=HOME)
        assert (named.network, named.trade.max_open) == (Network.REGTEST, 10)

    def test_a_network_from_the_environment_chooses_folder_and_ports(self) -> None:
        config = read(environ={"P2PNODE_NETWORK": "signet"})
        assert (config.data_dir.name, config.node.port) == ("signet", 27352)

    def test_other_variables_of_ours_are_no_settings(self) -> None:
        read(environ={"P2PNODE_BITCOIND": "/bin/x", "P2PNODE_PASSPHRASE": "secret", "PATH": "/bin"})

    def test_texts_become_what_the_setting_is(self) -> None:
        config = read(
            environ={
                "P2PNODE_NODE_DHT_CLIENT": "yes",
                "P2PNODE_NODE_SEEDS": f"{NODE}@h:1, [2001:db8::1]:2",
                "P2PNODE_TRADE_FALLBACK_FEE_RATE_SATS_PER_KVB": "none",
                "P2PNODE_TRADE_MAX_AMOUNT_SATS": "1_000_000",
                "P2PNODE_LOG_FORMAT": "json",
                "P2PNODE_KEYSTORE_COST": "interactive",
                "P2PNODE_KEYSTORE_PASSPHRASE_FILE": "~/pass",
                "P2PNODE_NETWORK": "regtest",
            }
        )
        assert config.node.dht_client is True
        assert config.node.seeds == (f"{NODE}@h:1", "[2001:db8::1]:2")
        assert config.trade.fallback_fee_rate_sats_per_kvb is None
        assert config.trade.max_amount_sats == 1_000_000
        assert (config.log.format, config.keystore.cost) == (LogFormat.JSON, KdfCost.INTERACTIVE)
        assert config.keystore.passphrase_file == Path("~/pass").expanduser()

    def test_a_path_in_a_file_starts_at_the_file(self, tmp_path: Path) -> None:
        config = read('[keystore]\npassphrase_file = "pass"\n[log]\nfile = "/var/log/x"\n', tmp_path)
        assert config.keystore.passphrase_file == tmp_path / "pass"
        assert config.log.file == Path("/var/log/x")

    def test_a_user_for_the_rpc_replaces_the_default_cookie(self) -> None:
        config = read(environ={"P2PNODE_CHAIN_USER": "u", "P2PNODE_CHAIN_PASSWORD": "p"})
        assert (config.chain.user, config.chain.password, config.chain.cookie_file) == ("u", "p", None)


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("network = 5", ["given.toml: network", "mainnet, testnet, signet or regtest", "got 5"]),
            ('network = "main"', ["given.toml: network", "'main'"]),
            ('network = "REGTEST"', ["given.toml: network"]),
            ('roles = "trader"', ["given.toml: roles", "a list, each trader, arbiter or bootstrap"]),
            ('roles = ["miner"]', ["given.toml: roles"]),
            ("roles = []", ["given.toml: roles", "one or more"]),
            ('roles = ["trader", "trader"]', ["given.toml: roles"]),
            ('roles = ["trader", "bootstrap"]', ["given.toml: roles", "bootstrap"]),
            ("networks = 5", ["given.toml: networks is not a setting", "did you mean network?"]),
            ("[node]\nport = true", ["given.toml: node.port", "a whole number from 0 to 65535", "True"]),
            ("[node]\nport = 1.0", ["given.toml: node.port"]),
            ("[node]\nport = 65536", ["given.toml: node.port"]),
            ("[node]\nport = -1", ["given.toml: node.port"]),
            ('[node]\nport = "7352"', ["given.toml: node.port"]),
            ('[node]\ndht_client = "yes"', ["given.toml: node.dht_client", "true or false"]),
            ("[node]\ndht_client = 1", ["given.toml: node.dht_client", "true or false"]),
            ("[node]\nhost = 5", ["given.toml: node.host", "a text"]),
            ("node = 5", ["node is a section", "[node]"]),
            ("[nodes]\nport = 1", ["[nodes] is not a section", "did you mean node?"]),
            ("[node.deep]\nport = 1", ["node.deep is not a setting"]),
            ("[[node]]\nport = 1", ["node is a section"]),
            ('[node]\nseeds = ["nobody"]', ["given.toml: node.seeds", "host:port", "nobody"]),
            ('[node]\nseeds = ["h:0"]', ["node.seeds"]),
            ('[node]\nseeds = ["a..b:7"]', ["node.seeds", "a..b:7"]),
            ('[node]\nseeds = ["0.0.0.0:7"]', ["node.seeds", "0.0.0.0:7"]),
            ('[node]\nexternal = ["[ff02::1]:7"]', ["node.external", "ff02::1"]),
            ('[node]\ndht_transport = "channel"\nseeds = ["h:7"]', ["node.seeds", "its key", "node1...@h:7"]),
            ('[node]\ndht_transport = "pigeon"', ["node.dht_transport", "both, udp or channel"]),
            ('[node]\nseeds = ["node1qqq@h:1"]', ["node.seeds", "node1qqq@h:1"]),
            ('[node]\nexternal = ["h"]', ["given.toml: node.external", "host:port"]),
            ('[api]\nhost = "0.0.0.0"', ["given.toml: api.host", "127.0.0.1, ::1 or localhost"]),
            ('[chain]\nurl = "127.0.0.1:8332"', ["given.toml: chain.url", "http://127.0.0.1:8332"]),
            ('[chain]\nurl = "http://u:p@h:1"', ["given.toml: chain.url", "chain.user"]),
            ('[chain]\nurl = "http://h:99999"', ["given.toml: chain.url"]),
            ('[chain]\nuser = "u"', ["given.toml: chain.user", "P2PNODE_CHAIN_PASSWORD"]),
            ('[chain]\npassword = "p"', ["given.toml: chain.password", "chain.user is missing"]),
            ('[chain]\nuser = "u"\npassword = "p"\ncookie_file = "c"', ["chain.user", "not both"]),
            ('[chain]\nzmq = ["28332"]', ["given.toml: chain.zmq", "tcp://"]),
            ("[trade]\nmax_open = 0", ["given.toml: trade.max_open", "from 1 to 1000"]),
            ("[trade]\nmax_amount_sats = 0.01", ["given.toml: trade.max_amount_sats"]),
            (
                "[trade]\nmax_fee_rate_sats_per_kvb = 1000\nfallback_fee_rate_sats_per_kvb = 2000",
                ["fallback_fee_rate_sats_per_kvb", "over trade.max_fee_rate_sats_per_kvb"],
            ),
            ('[log]\nlevel = "loud"', ["given.toml: log.level", "debug, info, warning or error"]),
            ('data_dir = "a\\u0000b"', ["given.toml: data_dir", "a path"]),
            ('[log]\nfile = ""', ["given.toml: log.file", "a path"]),
            ("network = regtest", ["given.toml is not TOML", "line 1"]),
            ("x = 1\nx = 2", ["given.toml is not TOML"]),
        ],
    )
    def test_what_is_wrong_is_named_with_its_place_and_what_was_expected(
        self, tmp_path: Path, text: str, words: list[str]
    ) -> None:
        detail = refusal(text, tmp_path)
        for word in words:
            assert word in detail, detail

    @pytest.mark.parametrize(
        ("environ", "words"),
        [
            ({"P2PNODE_NODE_PORT": "x"}, ["environment: P2PNODE_NODE_PORT", "'x'"]),
            ({"P2PNODE_NODE_PORT": ""}, ["environment: P2PNODE_NODE_PORT"]),
            ({"P2PNODE_NODE_PORT": "٣"}, ["environment: P2PNODE_NODE_PORT"]),
            ({"P2PNODE_PORT": "5"}, ["P2PNODE_PORT is not a setting"]),
            ({"P2PNODE_NODE_DHT_CLIENT": "maybe"}, ["P2PNODE_NODE_DHT_CLIENT", "true or false"]),
            ({"P2PNODE_ROLES": "trader,miner"}, ["P2PNODE_ROLES"]),
        ],
    )
    def test_the_environment_is_checked_as_strictly(self, environ: dict[str, str], words: list[str]) -> None:
        detail = refusal(environ=environ)
        for word in words:
            assert word in detail, detail

    def test_a_password_is_never_shown_and_never_an_argument(self, tmp_path: Path) -> None:
        assert "hunter2" not in refusal('[chain]\npassword = ["hunter2"]', tmp_path)
        assert "hunter2" not in refusal(flags={"chain.password": "hunter2", "chain.user": "u"})
        config = read('[chain]\nuser = "u"\npassword = "hunter2"', tmp_path)
        assert "hunter2" not in repr(config)
        assert "hunter2" not in str(describe(config))

    def test_a_file_that_is_missing_large_or_no_text_is_one_line(self, tmp_path: Path) -> None:
        for name, data in (("large", b"#" * 200_000), ("binary", b"\xff\xfe\x00")):
            file = tmp_path / name
            file.write_bytes(data)
            with pytest.raises(BadConfig, match=name):
                load(file=file, home=HOME)
        with pytest.raises(BadConfig, match="No such file"):
            load(file=tmp_path / "none", home=HOME)
        with pytest.raises(BadConfig, match="can't be read"):
            load(file=tmp_path, home=HOME)

    def test_a_copied_config_can_not_send_a_node_into_anothers_folder(self, tmp_path: Path) -> None:
        (tmp_path / "config.toml").write_text('data_dir = "/somewhere/else"\n')
        with pytest.raises(BadConfig, match="another folder"):
            load(flags={"data_dir": str(tmp_path)}, home=HOME)

    @given(key=st.sampled_from(sorted(describe(Config()))), value=st.text(max_size=40))
    def test_any_text_for_any_setting_is_taken_or_refused_in_one_line(self, key: str, value: str) -> None:
        with suppress(BadConfig):
            load(environ={"P2PNODE_" + key.replace(".", "_").upper(): value}, home=HOME)
        with suppress(BadConfig):
            load(flags={key: value}, home=HOME)


class TestShippedFiles:
    @pytest.mark.parametrize("name", ["trader", "arbiter", "bootstrap"])
    def test_they_load_as_they_are(self, name: str) -> None:
        config = load(file=ROOT / "configs" / f"{name}.toml", environ={}, home=HOME)
        assert name in config.roles

    @pytest.mark.parametrize("name", ["trader", "arbiter", "bootstrap"])
    def test_what_they_suggest_in_comments_loads_too(self, name: str, tmp_path: Path) -> None:
        lines = (ROOT / "configs" / f"{name}.toml").read_text().splitlines()
        opened = [line[2:] if line.startswith("# ") and " = " in line else line for line in lines]
        assert opened != lines or name == "arbiter"
        read("\n".join(opened), tmp_path)

    def test_what_init_writes_reads_back_the_same(self, tmp_path: Path) -> None:
        flags = {
            "network": "regtest",
            "node.seeds": [f"{NODE}@h:1"],
            "log.file": 'odd "name"\\\t\x7f',
            "trade.max_open": "3",
            "keystore.cost": "interactive",
            "node.dht_client": "true",
        }
        file = ROOT / "configs" / "arbiter.toml"
        wanted = load(flags=flags, file=file, home=HOME)
        (tmp_path / "config.toml").write_text(write_out(wanted, flags=flags, file=file))
        again = load(flags={"data_dir": str(tmp_path)}, home=HOME)
        left, right = describe(wanted), describe(again)
        left["data_dir"] = right["data_dir"]
        left["log.file"] = str(tmp_path / left["log.file"])
        assert left == right


class TestLocalNetwork:
    def test_a_node_announces_itself_to_its_neighbours_only_when_asked_to(self) -> None:
        assert load(home=Path("/nowhere")).node.mdns == ""

    @pytest.mark.parametrize("name", ["Home", "two words", "x" * 33, "über"])
    def test_a_name_that_dns_could_not_carry_is_refused(self, name: str) -> None:
        with pytest.raises(BadConfig, match=r"node\.mdns"):
            load(flags={"node.mdns": name, "network": "regtest"}, home=Path("/nowhere"))

    def test_who_would_find_nodes_that_he_may_not_talk_to_is_told(self) -> None:
        """It would look switched on and find nobody."""
        with pytest.raises(BadConfig, match=r"local_addresses"):
            load(flags={"node.mdns": "home"}, home=Path("/nowhere"))
        flags = {"node.mdns": "home", "node.local_addresses": "true"}
        assert load(flags=flags, home=Path("/nowhere")).node.mdns == "home"
