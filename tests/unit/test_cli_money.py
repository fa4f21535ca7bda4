"""Amounts and prices as people write them: no float, no rounding, no unit guessed."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import money
from p2pnode.console import inputs
from p2pnode.console.inputs import BadInput
from p2pnode.money import BadAmount, BadPrice
from protocol.errors import UserError
from protocol.types import MAX_MONEY

CURRENCIES = st.sampled_from(["EUR", "USD", "JPY", "KWD", "CLF", "XAF", "XMR", "ISK"])


class TestBitcoin:
    @pytest.mark.parametrize(
        ("text", "sats"),
        [
            ("0.01", 1_000_000),
            ("0.01btc", 1_000_000),
            (" 0.01 BTC ", 1_000_000),
            ("1", 100_000_000),
            ("0.00000001", 1),
            ("1000000sat", 1_000_000),
            ("1_000_000 sats", 1_000_000),
            ("21000000", MAX_MONEY),
            ("0", 0),
            ("0sat", 0),
        ],
    )
    def test_what_is_written_is_what_is_meant(self, text: str, sats: int) -> None:
        assert money.parse_sats(text) == sats

    @pytest.mark.parametrize(
        "text",
        [
            "", " ", ".", "1.", ".5", "-1", "+1", "1e3", "1,5", "1.000.000", "0x10", "nan", "inf", "0.000000001",
            "1.5sat", "1 2", "0.01 EUR", "0.01mbtc", "btc", "sat", "21000000.00000001", "2100000000000001sat",
            "٣", "1" * 30, "0." + "0" * 30, "1btcbtc", "1 b t c",
        ],
    )  # fmt: skip
    def test_everything_else_is_refused(self, text: str) -> None:
        with pytest.raises(BadAmount):
            money.parse_sats(text)

    def test_satoshis_typed_without_their_unit_are_refused_with_the_right_hint(self) -> None:
        with pytest.raises(BadAmount, match="write “sat” behind it"):
            money.parse_sats("50000000")

    @given(st.integers(min_value=0, max_value=MAX_MONEY))
    def test_what_is_shown_can_be_typed_again(self, sats: int) -> None:
        shown = money.format_sats(sats)
        assert money.parse_sats(shown) == sats
        assert Decimal(shown) == Decimal(sats).scaleb(-8)
        assert money.parse_sats(f"{sats}sat") == sats

    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("0.01-0.05", (1_000_000, 5_000_000)),
            ("0.01", (1_000_000, 1_000_000)),
            ("1000-2000sat", (1_000, 2_000)),
            ("1000sat-2000sat", (1_000, 2_000)),
            ("1000sat-0.05btc", (1_000, 5_000_000)),
            ("0.01 - 0.05 btc", (1_000_000, 5_000_000)),
        ],
    )
    def test_a_range_may_name_its_unit_once(self, text: str, wanted: tuple[int, int]) -> None:
        assert money.parse_range(text) == wanted

    @pytest.mark.parametrize("text", ["0.05-0.01", "0-0.01", "-", "0.01-", "-0.01", "0.01-0.02-0.03", "0"])
    def test_a_range_upside_down_or_empty_is_refused(self, text: str) -> None:
        with pytest.raises(BadAmount):
            money.parse_range(text)


class TestPrices:
    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("65000.00 EUR", (6_500_000, "EUR")),
            ("65000 eur", (6_500_000, "EUR")),
            ("65_000.5EUR", (6_500_050, "EUR")),
            ("9700000 JPY", (9_700_000, "JPY")),
            ("20000.123 KWD", (20_000_123, "KWD")),
            ("350.5 XMR", (35_050, "XMR")),
        ],
    )
    def test_the_exponent_of_the_currency_decides(self, text: str, wanted: tuple[int, str]) -> None:
        assert money.parse_price(text) == wanted

    @pytest.mark.parametrize(
        "text",
        ["65000", "EUR", "", "65,000 EUR", "65000.001 EUR", "100.5 JPY", "-1 EUR", "0 EUR", "0.00 EUR", "1e5 EUR",
         "65000 E", "65000 EUROSS", "65000 EUR EUR", "9" * 19 + " EUR", "1. EUR", "65000 €"],
    )  # fmt: skip
    def test_a_price_that_would_be_rounded_or_guessed_is_refused(self, text: str) -> None:
        with pytest.raises(BadPrice):
            money.parse_price(text)

    @given(st.integers(min_value=1, max_value=10**18), CURRENCIES)
    def test_what_is_shown_can_be_typed_again(self, minor: int, currency: str) -> None:
        shown = money.format_minor(minor, currency)
        assert money.parse_minor(shown, currency) == minor
        assert Decimal(shown) == Decimal(minor).scaleb(-money.exponent(currency))

    @given(st.text(max_size=30))
    def test_any_text_is_an_amount_or_a_refusal_in_one_line(self, text: str) -> None:
        for parse in (money.parse_sats, money.parse_range, money.parse_price, money.parse_percent):
            try:
                parse(text)
            except UserError as e:
                assert len(e.detail) < 200  # noqa: PT017


class TestPercent:
    @pytest.mark.parametrize(
        ("text", "ppm"),
        [("15%", 150_000), ("1.5 %", 15_000), ("-0.25%", -2_500), ("+2%", 20_000), ("0.0001%", 1), ("1500ppm", 1_500)],
    )
    def test_percent_becomes_parts_per_million(self, text: str, ppm: int) -> None:
        assert money.parse_percent(text) == ppm

    @pytest.mark.parametrize("text", ["15", "", "%", "1.00001%", "x%", "--1%", "1%%", "1.5ppm", "1%ppm"])
    def test_a_share_without_its_unit_is_refused(self, text: str) -> None:
        with pytest.raises(BadAmount):
            money.parse_percent(text)

    @given(st.integers(min_value=-1_000_000, max_value=1_000_000))
    def test_what_is_shown_can_be_typed_again(self, ppm: int) -> None:
        assert money.parse_percent(money.format_percent(ppm)) == ppm


class TestInputs:
    @pytest.mark.parametrize(("text", "rate"), [("1", 1_000), ("2.5", 2_500), ("0.1", 100), ("3.125 sat/vB", 3_125)])
    def test_a_fee_rate_is_kept_to_the_thousandth(self, text: str, rate: int) -> None:
        assert inputs.fee_rate(text) == rate

    @pytest.mark.parametrize("text", ["0", "0.05", "0.0001", "10001", "-1", "x", "1e3", ""])
    def test_a_fee_rate_that_makes_no_sense_is_refused(self, text: str) -> None:
        with pytest.raises(BadInput):
            inputs.fee_rate(text)

    @pytest.mark.parametrize(
        ("text", "seconds"), [("90s", 90), ("30m", 1_800), ("12h", 43_200), ("7d", 604_800), ("2W", 1_209_600)]
    )
    def test_durations(self, text: str, seconds: int) -> None:
        assert inputs.duration(text) == seconds

    @pytest.mark.parametrize("text", ["7", "d", "-1d", "1.5h", "1y", ""])
    def test_a_duration_without_its_unit_is_refused(self, text: str) -> None:
        with pytest.raises(BadInput):
            inputs.duration(text)

    def test_details_go_to_their_method_or_to_all(self) -> None:
        found = inputs.details(["sepa", "wise"], ["name=Ann: A=B", "sepa:iban=DE02", "wise:email=a@b.c"], None)
        assert {m.method: m.details for m in found} == {
            "sepa": {"name": "Ann: A=B", "iban": "DE02"},
            "wise": {"name": "Ann: A=B", "email": "a@b.c"},
        }

    @pytest.mark.parametrize(
        ("methods", "pairs"),
        [([], []), ([], ["a=b"]), (["sepa"], []), (["sepa"], ["a"]), (["sepa"], ["=b"]), (["sepa"], ["a="]),
         (["sepa"], ["wise:a=b"]), (["SEPA"], ["a=b"]), (["sepa", "wise"], ["sepa:a=b"])],
    )  # fmt: skip
    def test_details_that_are_missing_or_misplaced_are_refused(self, methods: list[str], pairs: list[str]) -> None:
        with pytest.raises(BadInput):
            inputs.details(methods, pairs, None)

    @pytest.mark.parametrize("text", ["x = 1", "[sepa]\niban = 5", "[sepa]\niban = ''", "[sepa", "[sepa]\n", "\x00"])
    def test_a_details_file_of_another_form_is_refused(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "pay.toml"
        file.write_text(text)
        with pytest.raises(BadInput):
            inputs.details([], [], file)
        with pytest.raises(BadInput):
            inputs.details([], [], tmp_path / "none")
