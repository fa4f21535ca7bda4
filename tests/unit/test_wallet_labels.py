"""Labels of other wallets, and the age of a seed: what is read wrongly hides coins or loses a person's notes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from escrow.chain.base import BlockRef
from escrow.wallet.base import Label
from escrow.wallet.birthday import FIRST_SEGWIT, first_block
from escrow.wallet.labels import KINDS, BadLabels, read_labels, write_labels
from p2pnode.birthday import birthday_text, parse_birthday
from protocol.types import Network

TXID = "f91d0a8a78462bc59398f2c5d7a84fcff491c26ba54c4833478b202796c8aafd"
# The test vectors of BIP329, with its unused fields.
BIP329 = f"""\
{{ "type": "tx", "ref": "{TXID}", "label": "Transaction", "origin": "wpkh([d34db33f/84'/0'/0'])" }}
{{ "type": "addr", "ref": "bc1q34aq5drpuwy3wgl9lhup9892qp6svr8ldzyy7c", "label": "Address" }}
{{ "type": "pubkey", "ref": "0283409659355b6d1cc3c32decd5d561abaac86c37a353b52895a5e6c196d6f448", "label": "Public Key" }}
{{ "type": "input", "ref": "{TXID}:0", "label": "Input" }}
{{ "type": "output", "ref": "{TXID}:1", "label": "Output", "spendable": false }}
{{ "type": "xpub", "ref": "xpub661MyMwAqRbcFtXgS5sYJABqqG9YLmC4Q1Rdap9gSE8NqtwybGhePY2gZ29ESFjqJo", "label": "Extended Public Key" }}
{{ "type": "tx", "ref": "{TXID}", "label": "Transaction", "height": 848125, "fee": 3201, "fmv": {{"USD": 233.45}} }}
"""  # noqa: E501

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=255)
LABELS = st.builds(
    Label,
    kind=st.sampled_from(sorted(KINDS - {"tx", "input", "output"})),
    ref=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200),
    label=TEXTS,
    origin=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    spendable=st.none() | st.booleans(),
)


class TestFiles:
    def test_the_bips_own_records_are_read(self) -> None:
        found = read_labels(BIP329)
        assert [x.kind for x in found] == ["tx", "addr", "pubkey", "input", "output", "xpub", "tx"]
        assert found[4] == Label(kind="output", ref=f"{TXID}:1", label="Output", spendable=False)
        assert found[0].origin == "wpkh([d34db33f/84'/0'/0'])"

    @given(st.lists(LABELS, max_size=5))
    def test_what_is_written_is_read_again(self, labels: list[Label]) -> None:
        text = write_labels(labels)
        assert text.count("\n") == len(labels)
        assert list(read_labels(text)) == labels

    def test_unknown_records_and_empty_lines_are_passed_over_and_long_labels_cut(self) -> None:
        long = json.dumps({"type": "addr", "ref": "a", "label": "x" * 300})
        (only,) = read_labels(f'\ufeff\n{{"type": "later", "ref": "x"}}\r\n{long}\n')
        assert only.label == "x" * 255

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("no json", "not a label"),
            ('{"type": "addr"}', "not a label"),
            ('{"type": "tx", "ref": "beef"}', "not a txid"),
            ('{"type": "output", "ref": "beef:1"}', "not a txid"),
            ('{"type": "output", "ref": "' + TXID + '"}', "not a coin"),
            ('{"type": "addr", "ref": ""}', "empty or too long"),
            ('{"type": "addr", "ref": "a", "label": 7}', "not a label"),
        ],
    )
    def test_one_wrong_line_is_named_and_nothing_is_taken(self, line: str, says: str) -> None:
        with pytest.raises(BadLabels, match=f"line 2.*{says}.*nothing was imported"):
            read_labels('{"type": "addr", "ref": "a"}\n' + line)


def tip(height: int, time: int) -> BlockRef:
    return BlockRef(height, bytes(32), time, time)


class TestBirthday:
    def test_a_seed_of_unknown_age_is_searched_from_the_first_possible_coin_on(self) -> None:
        assert first_block(Network.MAINNET, tip(900_000, 10**9), None) == 481_824
        assert first_block(Network.SIGNET, tip(250_000, 10**9), None) == 0

    # (height, time) of blocks of mainnet, and one of today's height: none of them may lie before the height found.
    @pytest.mark.parametrize(
        ("height", "time"),
        [(500_000, 1_513_622_125), (600_000, 1_571_443_461), (700_000, 1_631_333_672), (800_000, 1_690_168_629)],
    )
    def test_no_block_after_the_birthday_is_left_out(self, height: int, time: int) -> None:
        found = first_block(Network.MAINNET, tip(840_000, 1_713_571_767), time)
        assert FIRST_SEGWIT[Network.MAINNET] <= found <= height
        # Nor is much more read than must be.
        assert height - found < 144 + (840_000 - height) // 4

    def test_a_seed_of_today_works_on_a_pruned_node(self) -> None:
        found = first_block(Network.MAINNET, tip(900_000, 2_000_000), 2_000_000)
        assert 900_000 - 288 < found < 900_000

    @pytest.mark.parametrize("network", [Network.REGTEST, Network.TESTNET])
    def test_where_blocks_come_at_will_all_are_searched(self, network: Network) -> None:
        assert first_block(network, tip(900_000, 2_000_000), 2_000_000) == 0

    def test_what_people_write_is_understood(self) -> None:
        assert parse_birthday("") == (None, None)
        assert parse_birthday("840000") == (840_000, None)
        assert parse_birthday("2026-11-21") == (None, 1_795_219_200)
        assert parse_birthday("2026-11-21T08:00:00Z") == (None, 1_795_248_000)
        assert parse_birthday(birthday_text(1_795_248_123)) == (None, 1_795_248_123)
        for wrong in ("soon", "99999999", "2001-01-01", "2026-13-01", "-5", "٣"):
            with pytest.raises(ValueError, match=r"."):
                parse_birthday(wrong)
