"""Which chain backend a configuration means, and from which block on a light client must know the chain."""

from __future__ import annotations

from pathlib import Path

import pytest

from escrow.chain.cbf import CbfView
from escrow.chain.council import CouncilView
from escrow.chain.driver import Backend
from p2pnode.backends import make_backend
from p2pnode.clock import SystemClock
from p2pnode.config import Config, load
from p2pnode.settings import BadConfig

PIN = "AB:" * 31 + "AB"
BOTH = ("electrum", "esplora")


def read(tmp_path: Path, chain: str = "", *, network: str = "mainnet", wallet: str = "") -> Config:
    file = tmp_path / "given.toml"
    file.write_text(f'network = "{network}"\ndata_dir = "data"\n[chain]\n{chain}\n[wallet]\n{wallet}\n')
    return load(file=file, home=tmp_path)


def made(config: Config) -> Backend:
    class Now(SystemClock):
        def now(self) -> int:
            return 1_795_000_000  # in November 2026

    return make_backend(config, Now())


@pytest.mark.parametrize(
    ("network", "chain", "backends", "name"),
    [
        ("mainnet", "", ("cbf",), "cbf"),
        ("signet", "", ("cbf",), "cbf"),
        ("regtest", "", ("bitcoind",), "bitcoind"),
        ("mainnet", 'url = "http://127.0.0.1:8332"', ("bitcoind",), "bitcoind"),
        ("mainnet", 'peers = ["h:8333"]', ("cbf",), "cbf"),
        ("mainnet", 'electrum = ["ssl://h:50002"]', ("electrum",), "electrum h"),
        ("mainnet", 'electrum = ["ssl://a:1", "tcp://b:2"]', ("electrum",), "electrum a+electrum b"),
        ("signet", 'esplora = ["https://h/api"]', ("esplora",), "esplora h"),
        ("mainnet", f'electrum = ["ssl://a:1#{PIN}"]\nesplora = ["https://b"]', BOTH, "electrum a+esplora b"),
        ("mainnet", 'backends = ["bitcoind", "cbf"]', ("bitcoind", "cbf"), "bitcoind+cbf"),
        ("mainnet", 'url = "http://h:1"\npeers = ["h:2"]', ("bitcoind", "cbf"), "bitcoind+cbf"),
    ],
)
def test_what_is_set_up_is_used_and_nothing_means_the_light_client(
    tmp_path: Path, network: str, chain: str, backends: tuple[str, ...], name: str
) -> None:
    config = read(tmp_path, chain, network=network)
    assert config.chain.backends == backends
    backend = made(config)
    assert backend.status().backend == name
    assert isinstance(backend._view, CouncilView) is ("+" in name)


@pytest.mark.parametrize(
    ("chain", "complaint"),
    [
        ('backends = ["electrum"]', "chain.electrum"),
        ('backends = ["cbf"]\nelectrum = ["tcp://h:1"]', "chain.electrum"),
        ('backends = ["cbf", "cbf"]', "name each kind once"),
        ('backends = ["nonsense"]', "chain.backends"),
        ('electrum = ["h:50002"]', "ssl://host:50002"),
        ('electrum = ["ssl://h"]', "ssl://host:50002"),
        ('backends = ["esplora"]', "chain.esplora"),
        ('esplora = ["h/api"]', "https://blockstream.info/api"),
        ('esplora = ["https://user:word@h/api"]', "https://blockstream.info/api"),
        ('esplora = ["https://h/api#12:34"]', "64 hexadecimal digits"),
        (f'electrum = ["tcp://h:1#{PIN}"]', "ssl:// or https://"),
        ('peers = ["h"]', "chain.peers"),
        ("quorum = 2", "chain.quorum"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, chain: str, complaint: str) -> None:
    with pytest.raises(BadConfig, match=complaint):
        read(tmp_path, chain)


@pytest.mark.parametrize(
    ("chain", "wallet", "first"),
    [
        ("", 'birthday = "2026-11-21"', 910_000),
        ("", 'birthday = "900000"', 880_000),
        ("", "", 0),  # of unknown age: all that can hold its coins
        ("start_height = 850000", 'birthday = "2026-11-21"', 840_000),
    ],
)
def test_a_light_client_knows_the_chain_from_the_wallets_birthday_on(
    tmp_path: Path, chain: str, wallet: str, first: int
) -> None:
    view = made(read(tmp_path, chain, wallet=wallet))._view
    assert isinstance(view, CbfView)
    assert view._store.chain.anchor.height == first


@pytest.mark.parametrize("network", ["mainnet", "signet"])
def test_with_nothing_configured_the_light_client_finds_peers_by_seeds_and_contacts_nobody_before_it_starts(
    tmp_path: Path, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    config = read(tmp_path, network=network)
    view = made(config)._view
    assert isinstance(view, CbfView)
    assert config.chain.peers == ()
    seeds = view.pool._seeds
    assert len(seeds) >= 2
    # x49 asks for nodes with blocks, witnesses and filters: 1 + 8 + 64.
    assert all(seed.startswith("x49.") and ("signet" in seed) == (network == "signet") for seed in seeds)
