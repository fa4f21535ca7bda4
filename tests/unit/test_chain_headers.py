"""Block headers and filters: what a stranger must not be able to pass off on us."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from bitcoin.core import CBlock

from escrow.chain.base import ProofFailed
from escrow.chain.gcs import contains_all, filter_matches
from escrow.chain.headers import (
    ANCHORS,
    RETARGET,
    RULES,
    Anchor,
    BadHeader,
    HeaderChain,
    NotConnected,
    Rules,
    anchor_for,
    bits_of,
    hash256,
    next_bits,
    target_of,
)
from protocol.types import Network

VECTORS = Path(__file__).parents[1] / "vectors" / "bitcoin" / "bip158-testnet-19.json"
"""From BIP158 itself."""
ROWS = json.loads(VECTORS.read_text())[1:]
EASY = 0x207FFFFF
NOW = 2_000_000_000


def mined(previous: bytes, time: int, *, bits: int = EASY, salt: int = 0) -> bytes:
    """A header that meets its own target."""
    head = (4).to_bytes(4, "little") + previous + salt.to_bytes(32, "little") + time.to_bytes(4, "little")
    for nonce in range(1 << 20):
        raw = head + bits.to_bytes(4, "little") + nonce.to_bytes(4, "little")
        if int.from_bytes(hash256(raw), "little") <= target_of(bits):
            return raw
    raise AssertionError("no nonce")


def row(previous: bytes, start: int, count: int, *, spacing: int = 600, salt: int = 0, bits: int = EASY) -> list[bytes]:
    headers: list[bytes] = []
    for n in range(count):
        headers.append(mined(previous, start + n * spacing, salt=salt, bits=bits))
        previous = hash256(headers[-1])
    return headers


def regtest() -> HeaderChain:
    return HeaderChain(Network.REGTEST, ANCHORS[Network.REGTEST][0])


START = 1_600_000_000
REAL = json.loads((Path(__file__).parents[1] / "vectors" / "bitcoin" / "real-blocks.json").read_text())["blocks"]
"""Blocks of the public networks; the file names its source."""
MAINNET_BLOCK_1 = (
    "010000006fe28c0ab6f1b372c1a6a246ae63f74f931e8365e15a089c68d6190000000000982051fd1e4ba744bbbe680e1fee14677ba1a3c3540b"
    "f7b1cdb606e857233e0e61bc6649ffff001d01e36299"
)


class TestAnchors:
    @pytest.mark.parametrize(
        ("network", "name"),
        [
            (Network.MAINNET, "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f"),
            (Network.TESTNET, "00000000da84f2bafbbc53dee25a72ae507ff4914b867c565be350b0da8bf043"),
            (Network.SIGNET, "00000008819873e925422c1ff0f99f7cc9bbb232af63a077a480a3633bee1ef6"),
            (Network.REGTEST, "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206"),
        ],
    )
    def test_the_first_block_of_each_network_is_the_real_one(self, network: Network, name: str) -> None:
        first = ANCHORS[network][0]
        assert first.hash[::-1].hex() == name
        assert HeaderChain(network, first).at(0).hash == first.hash
        assert int.from_bytes(first.hash, "little") <= RULES[network].limit

    def test_an_old_wallet_begins_below_its_birthday(self) -> None:
        assert anchor_for(Network.MAINNET, None).height == 910_000
        assert anchor_for(Network.MAINNET, 900_000).height == 880_000
        assert anchor_for(Network.MAINNET, 840_000).height == 0
        assert anchor_for(Network.REGTEST, 0).height == 0


class TestTargets:
    @pytest.mark.parametrize("bits", [0x1D00FFFF, 0x1B0404CB, 0x207FFFFF, 0x1E0377AE, 0x17034219, 0x1D008000])
    def test_compact_targets_survive_the_way_there_and_back(self, bits: int) -> None:
        assert bits_of(target_of(bits)) == bits

    @pytest.mark.parametrize("bits", [0, 0x01800000, 0x1D80FFFF, 0x23000001 + (2 << 24), 0x04923456])
    def test_impossible_targets_are_refused(self, bits: int) -> None:
        with pytest.raises(BadHeader):
            target_of(bits)

    def test_a_mainnet_branch_of_little_work_is_refused_above_the_anchor(self) -> None:
        anchor = anchor_for(Network.MAINNET, None)
        chain = HeaderChain(Network.MAINNET, anchor)
        with pytest.raises(BadHeader, match="less work"):
            chain.add([mined(anchor.hash, START)], NOW)


class TestChain:
    def test_a_longer_branch_replaces_and_a_shorter_one_does_not(self) -> None:
        chain = regtest()
        genesis = chain.tip_hash
        main = row(genesis, START, 12)
        assert chain.add(main, NOW) == 1
        assert chain.add(main, NOW) is None
        fork = row(hash256(main[7]), START + 8 * 600, 5, salt=1)
        assert chain.add(fork[:4], NOW) is None  # as much work: the first seen stays
        assert chain.tip_hash == hash256(main[-1])
        assert chain.add(fork, NOW) == 9
        assert (chain.height, chain.tip_hash) == (13, hash256(fork[-1]))
        assert chain.height_of(hash256(main[8])) is None
        assert chain.height_of(hash256(main[7])) == 8
        assert chain.hash_at(9) == hash256(fork[0])

    def test_harder_blocks_outweigh_more_blocks(self) -> None:
        chain = regtest()
        easy = row(chain.tip_hash, START, 10)
        chain.add(easy, NOW)
        hard = row(chain.hash_at(0), START, 2, bits=bits_of(target_of(EASY) >> 5))
        assert chain.add(hard, NOW) == 1
        assert chain.height == 2

    def test_headers_out_of_nowhere_are_told_from_lies(self) -> None:
        chain = regtest()
        with pytest.raises(NotConnected):
            chain.add([mined(b"\7" * 32, START)], NOW)

    def test_a_row_with_a_gap_changes_nothing(self) -> None:
        chain = regtest()
        headers = row(chain.tip_hash, START, 5)
        with pytest.raises(BadHeader, match="hang together"):
            chain.add(headers[:2] + headers[3:], NOW)
        assert chain.height == 0

    def test_a_header_without_its_work_is_refused(self) -> None:
        chain = regtest()
        raw = bytearray(mined(chain.tip_hash, START))
        while int.from_bytes(hash256(bytes(raw)), "little") <= target_of(EASY):
            raw[76] = (raw[76] + 1) % 256
        with pytest.raises(BadHeader, match="does not show the work"):
            chain.add([bytes(raw)], NOW)

    def test_times_before_the_median_and_from_the_future_are_refused(self) -> None:
        chain = regtest()
        headers = row(chain.tip_hash, START, 12)
        chain.add(headers, NOW)
        median = chain.at(12).median_time
        assert median == START + 6 * 600
        with pytest.raises(BadHeader, match="older"):
            chain.add([mined(chain.tip_hash, median)], NOW)
        with pytest.raises(BadHeader, match="future"):
            chain.add([mined(chain.tip_hash, NOW + 7_201)], NOW)
        assert chain.add([mined(chain.tip_hash, median + 1)], NOW) == 13

    def test_stored_headers_are_checked_like_strangers_ones(self) -> None:
        chain = regtest()
        chain.add(row(chain.tip_hash, START, 40), NOW)
        stored = chain.export(1)
        again = regtest()
        again.load(stored + b"half a header", NOW)
        assert (again.height, again.tip_hash) == (40, chain.tip_hash)
        with pytest.raises(BadHeader):
            regtest().load(stored[:80] + stored[160:], NOW)

    def test_a_block_below_the_index_is_found_by_its_hash(self) -> None:
        chain = regtest()
        headers = row(chain.tip_hash, START, 30)
        chain.add(headers, NOW)
        wanted = [chain.hash_at(h) for h in range(31)]
        chain._hashes.clear()
        assert [chain.height_of(block) for block in wanted[:-1]] == list(range(30))

    def test_the_locator_ends_at_the_anchor(self) -> None:
        chain = regtest()
        chain.add(row(chain.tip_hash, START, 100), NOW)
        locator = chain.locator()
        assert locator[0] == chain.tip_hash
        assert locator[-1] == chain.anchor.hash
        assert len(locator) < 20


class TestRetargets:
    """The rules of mainnet, at targets that a test can meet."""

    RULES = Rules(target_of(EASY), target_of(EASY), retargets=True)

    def chain(self, spacing: int) -> HeaderChain:
        chain = HeaderChain(Network.REGTEST, ANCHORS[Network.REGTEST][0], self.RULES)
        first = ANCHORS[Network.REGTEST][0].header
        start = int.from_bytes(first[68:72], "little") + spacing
        chain.add(row(chain.tip_hash, start, RETARGET - 1, spacing=spacing), NOW)
        return chain

    def test_the_target_must_follow_from_the_time_that_the_blocks_took(self) -> None:
        chain = self.chain(spacing=300)
        time = chain.at(chain.height).time + 300
        demanded = bits_of(target_of(EASY) * (2015 * 300) // (14 * 24 * 3600))
        with pytest.raises(BadHeader, match="demand"):
            chain.add([mined(chain.tip_hash, time)], NOW)
        with pytest.raises(BadHeader, match="demand"):
            chain.add([mined(chain.tip_hash, time, bits=demanded + 1)], NOW)
        assert chain.add([mined(chain.tip_hash, time, bits=demanded)], NOW) == RETARGET
        with pytest.raises(BadHeader, match="wrong block"):
            chain.add([mined(chain.tip_hash, time + 300)], NOW)

    def test_the_target_falls_by_four_at_most(self) -> None:
        chain = self.chain(spacing=1)
        time = chain.at(chain.height).time + 1
        assert chain.add([mined(chain.tip_hash, time, bits=bits_of(target_of(EASY) // 4))], NOW) == RETARGET

    def test_right_above_an_anchor_the_change_is_bounded(self) -> None:
        anchor = Anchor(RETARGET - 2, b"\1" * 32)
        chain = HeaderChain(Network.REGTEST, anchor, self.RULES)
        chain.add([mined(anchor.hash, START)], NOW)
        with pytest.raises(BadHeader, match="too much"):
            chain.add([mined(chain.tip_hash, START + 600, bits=bits_of(target_of(EASY) // 5))], NOW)
        assert chain.add([mined(chain.tip_hash, START + 600, bits=bits_of(target_of(EASY) // 3))], NOW) == RETARGET


class TestFilters:
    @pytest.mark.parametrize("vector", ROWS, ids=lambda v: f"{v[0]}-{v[7] or 'plain'}"[:40])
    def test_bip158_vectors_match_what_the_block_pays_and_spends(self, vector: list[str]) -> None:
        block, raw = bytes.fromhex(vector[1])[::-1], bytes.fromhex(vector[5])
        assert hash256(hash256(raw) + bytes.fromhex(vector[4])[::-1])[::-1].hex() == vector[6]
        parsed = CBlock.deserialize(bytes.fromhex(vector[2]))
        paid = {bytes(o.scriptPubKey) for tx in parsed.vtx for o in tx.vout}
        paid = {s for s in paid if s and s[0] != 0x6A}
        spent = {bytes.fromhex(s) for s in vector[3]} - {b""}
        for script in paid | spent:
            assert filter_matches(block, raw, [b"\x00\x14" + bytes(20), script])
        if paid | spent:
            assert contains_all(block, raw, paid | spent)
            assert not contains_all(block, raw, [*paid, b"\x00\x20" + b"\5" * 32])
        rng = random.Random(158)
        strangers = [rng.randbytes(22) for _ in range(2_000)]
        assert sum(filter_matches(block, raw, [s]) for s in strangers) <= 1

    def test_filters_that_do_not_parse_are_refused(self) -> None:
        whole = bytes.fromhex(ROWS[-1][5])
        block = bytes(32)
        for broken in (b"", b"\xfd", b"\xfd\xff\xff", whole[: len(whole) // 2], b"\x05" + b"\xff" * 14):
            with pytest.raises(ProofFailed):
                filter_matches(block, broken, [b"x"])


class TestPublicNetworks:
    """What real miners made must be taken, and nothing beside it."""

    def chain(self, block: dict[str, str | int]) -> tuple[HeaderChain, bytes]:
        network = Network[str(block["network"]).upper()]
        anchor = Anchor(int(block["height"]) - 1, bytes.fromhex(str(block["previous"]))[::-1])
        return HeaderChain(network, anchor), bytes.fromhex(str(block["header"]))

    @pytest.mark.parametrize("block", REAL, ids=lambda b: str(b["network"]))
    def test_a_real_header_is_taken(self, block: dict[str, str | int]) -> None:
        chain, raw = self.chain(block)
        assert chain.add([raw], NOW) == block["height"]
        assert chain.tip_hash[::-1].hex() == block["hash"]

    @pytest.mark.parametrize("block", REAL, ids=lambda b: str(b["network"]))
    @pytest.mark.parametrize("at", [0, 4, 36, 68, 72, 76])
    def test_one_changed_bit_in_any_field_and_it_is_not(self, block: dict[str, str | int], at: int) -> None:
        chain, raw = self.chain(block)
        changed = bytearray(raw)
        changed[at] ^= 1
        with pytest.raises(BadHeader):
            chain.add([bytes(changed)], NOW)

    def test_the_first_block_after_the_first_one_of_mainnet(self) -> None:
        chain = HeaderChain(Network.MAINNET, ANCHORS[Network.MAINNET][0])
        assert chain.add([bytes.fromhex(MAINNET_BLOCK_1)], NOW) == 1
        assert chain.tip_hash[::-1].hex() == "00000000839a8e6886ab5951d76f411475428afc90947ee320161bbf18eb6048"

    @pytest.mark.parametrize(
        ("first", "last", "bits", "expected"),
        [
            (1_261_130_161, 1_262_152_739, 0x1D00FFFF, 0x1D00D86A),  # blocks 30,240 to 32,255: the first change ever
            (1_231_006_505, 1_233_061_996, 0x1D00FFFF, 0x1D00FFFF),  # blocks 0 to 2,015: never easier than the limit
            (1_279_008_237, 1_279_297_671, 0x1C05A3F4, 0x1C0168FD),  # blocks 66,528 to 68,543: at most to a quarter
            (1_263_163_443, 1_269_211_443, 0x1C387F6F, 0x1D00E1FD),  # at most fourfold
        ],
    )
    def test_targets_change_as_in_bitcoin_core(self, first: int, last: int, bits: int, expected: int) -> None:
        """Source: Bitcoin Core, src/test/pow_tests.cpp (MIT licence)."""
        assert next_bits(bits, first, last, RULES[Network.MAINNET].limit) == expected

    def test_a_chain_from_a_lower_anchor_must_meet_the_higher_ones(self) -> None:
        low, high = ANCHORS[Network.SIGNET]
        chain = HeaderChain(Network.SIGNET, Anchor(high.height - 1, bytes(32)), Rules(target_of(EASY), 0, False))
        with pytest.raises(BadHeader, match="160,000"):
            chain.add([mined(bytes(32), START)], NOW)
        assert low.height == 0

    def test_above_the_highest_anchor_no_branch_gets_easy_even_if_it_began_lower(self) -> None:
        top = ANCHORS[Network.MAINNET][-1].height
        chain = HeaderChain(Network.MAINNET, Anchor(top, bytes(32)))
        with pytest.raises(BadHeader, match="less work"):
            chain.add([mined(bytes(32), START)], NOW)

    def test_signet_is_harder_than_its_limit_only_by_its_rules(self) -> None:
        chain, _ = self.chain(REAL[1])
        with pytest.raises(BadHeader, match="less work"):
            chain.add([mined(chain.anchor.hash, START)], NOW)


class TestTimesAboveAnAnchor:
    ANCHOR = Anchor(100, bytes(32))

    def test_the_second_block_may_be_older_than_the_first_because_the_nine_before_are_not_known(self) -> None:
        first = mined(bytes(32), START)
        second = mined(hash256(first), START - 600)
        chain = HeaderChain(Network.REGTEST, self.ANCHOR)
        assert chain.add([first, second], NOW) == 101
        assert chain.height == 102

    def test_once_eleven_are_known_their_median_must_be_passed(self) -> None:
        rows = row(bytes(32), START, 11)
        chain = HeaderChain(Network.REGTEST, self.ANCHOR)
        chain.add(rows, NOW)
        with pytest.raises(BadHeader, match="older than those before"):
            chain.add([mined(hash256(rows[-1]), START + 5 * 600)], NOW)
        chain.add([mined(hash256(rows[-1]), START + 5 * 600 + 1)], NOW)


class TestLulls:
    """BIP94, with an easy limit so that blocks can be made: testnet4 has the same rules with a harder one."""

    LIMIT = 0x207FFFFF
    HARD = 0x1F7FFFFF
    RULES = Rules(target_of(LIMIT), target_of(LIMIT), retargets=True, lulls=True)

    def chain(self) -> tuple[HeaderChain, bytes]:
        first = mined(bytes(32), START, bits=self.HARD)
        return HeaderChain(Network.TESTNET, Anchor(0, hash256(first), first), self.RULES), hash256(first)

    def test_after_twenty_minutes_a_block_may_be_easy_and_the_next_may_not(self) -> None:
        chain, parent = self.chain()
        late = mined(parent, START + 1_201, bits=self.LIMIT)
        assert chain.add([late], NOW) == 1
        with pytest.raises(BadHeader, match="wrong block"):
            chain.add([mined(hash256(late), START + 1_300, bits=self.LIMIT)], NOW)
        assert chain.add([mined(hash256(late), START + 1_300, bits=self.HARD)], NOW) == 2

    def test_before_twenty_minutes_it_may_not_and_after_it_must(self) -> None:
        chain, parent = self.chain()
        for time, bits in ((START + 1_200, self.LIMIT), (START + 1_201, self.HARD)):
            with pytest.raises(BadHeader, match="wrong block"):
                chain.add([mined(parent, time, bits=bits)], NOW)
