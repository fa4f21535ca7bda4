"""Logs: nothing secret gets into a line, and no stranger's text can forge one."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode import log
from p2pnode.config import LogConfig, LogFormat
from p2pnode.datadir import DiskError
from p2pnode.keystore import new_mnemonic
from p2pnode.redact import MASK, Redactor
from protocol.errors import ChainError, LocalError, PeerViolation
from protocol.messages import OpenedDetails
from protocol.wire import digest

WORDS = "legal winner thank year wave sausage worth useful legal winner thank yellow"
WORDS_24 = "abandon " * 23 + "art"
IBAN = "DE89370400440532013000"


class TestRedaction:
    @pytest.mark.parametrize(
        ("text", "secret"),
        [
            (f"restored from {WORDS}!", "winner"),
            (f"restored from {WORDS_24}", "abandon"),
            (f"words: {WORDS.upper()}", "WINNER"),
            (f"words: {', '.join(WORDS.split())}", "winner"),
            (f"{WORDS.split()!r}", "winner"),
            ("\n".join(f"{i}. {w}" for i, w in enumerate(WORDS.split(), 1)), "winner"),
            (" ".join(WORDS.split()[:6]) + " was typed", "winner"),
            (f'{{"mnemonic": "{WORDS}"}}', "winner"),
            ("passphrase=hunter2 network=regtest", "hunter2"),
            ("passphrase: correct horse, battery", "battery"),
            ("Passphrase = 'a b c'", "a b c"),
            ('{"passphrase":"hun\'ter2"}', "ter2"),
            ("password=hunter2", "hunter2"),
            ("token=abcdef secret: abcdef", "abcdef"),
            ("Authorization: Basic X19jb29raWVfXzphYmM=", "X19jb29r"),
            ("sent Basic X19jb29raWVfXzphYmM= to it", "X19jb29r"),
            ("cookie __cookie__:deadbeefdeadbeef was read", "deadbeef"),
            ("http://user:hunter2@127.0.0.1:8332/", "hunter2"),
            (
                "xprv9s21ZrQH143K3QTDL4LXw2F7HEK3wJUD2nW2nRk4stbPy6cq3jPPqjiChkVvvNKmPGJxWUtg6LnF5kejMRNNU3TGtRBeJgk33yuGBxrMPHi",
                "9s21ZrQH",
            ),
            (
                "tprv8ZgxMBicQKsPd7Uf69XL1XwhmjHopUGep8GuEiJDZmbQz6o58LninorQAfcKZWARbtRtfnLcJ5MQ2AtHcQJCCRUcMRvmDUjyEmNU",
                "8ZgxMBic",
            ),
            ("wif L4rK1yDtCWekvXuE6oXD9jCYfFNV2cWRpVuPLBcCU2z8TrisoyY1 found", "rK1yDtCW"),
            (f"pay to {IBAN} now", IBAN),
            ("pay to DE89 3704 0044 0532 0130 00 now", "0532"),
            ("write to ann.example@mail.example.org", "ann.example"),
            ("call +49 170 1234567", "1234567"),
            ("details={'iban': 'X', 'holder': 'Ann (b)'} network=1", "Ann"),
            ("own_details: OpenedDetails(salt=b'12', details=(('iban', 'X'), ('holder', 'Ann')))", "Ann"),
            ("holder=Ann note='from Ann'", "Ann"),
            ("note: paid (by Ann) from Bob", "Bob"),
            ("note='never closed, by Ann", "Ann"),
            ("MethodDetails(method='sepa', details={'name': '@ann'})", "@ann"),
        ],
    )  # fmt: skip
    def test_what_looks_or_is_named_like_a_secret_is_masked(self, text: str, secret: str) -> None:
        cleaned = Redactor(show_addresses=True).text(text)
        assert secret not in cleaned
        assert MASK in cleaned

    def test_any_new_mnemonic_is_masked(self) -> None:
        redactor = Redactor()
        for _ in range(50):
            words = new_mnemonic()
            assert redactor.text(f"x {words} y") == f"x {MASK} y"

    def test_opened_payment_details_do_not_survive_a_repr(self) -> None:
        opened = OpenedDetails(bytes(range(32)), (("iban", "DE02 not valid"), ("holder", "Ann Example")))
        cleaned = Redactor().text(f"the peer sent {opened!r} in time")
        assert "Ann" not in cleaned
        assert "DE02" not in cleaned
        assert cleaned.endswith(" in time")

    @pytest.mark.parametrize(
        "text",
        [
            "trade 3f2a9c01d4 is funded at height 812345, 3 of 6 confirmations",
            f"envelope {digest(b'x').hex()} of kind 18",
            "persona14g235k03d97kutckw26fjqjalgwtass4xdsc5t5kjlhaac2vggdsuj2x40 took the offer",
            "node1a9mdlacrcqn9dgeups0ztcupkhjju3c8rk9tf8rfp0hdyxwh6kfshq4ltm@seed.example.org:7352",
            "the local API answers at http://127.0.0.1:28353",
            "DE12345678901234567890 is not one, by its check digits",
            "the maker answers within the window of the offer and you pay then",
            "12:30:01 took 4.5 ms",
            "tcp://127.0.0.1:28332 and [::1]:9 and 0.0.0.0:7352",
        ],
    )
    def test_what_is_needed_to_understand_a_log_stays(self, text: str) -> None:
        assert Redactor().text(text) == text

    @pytest.mark.parametrize(
        ("text", "short"),
        [
            ("from 203.0.113.7:9735", "from 203.0.x.x:9735"),
            ("from [2001:db8:1:2::3]:9735", "from [2001:0db8:x]:9735"),
            ("to bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080", "to bcrt1q…t080"),
            ("to BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4", "to BC1QW5…F3T4"),
            ("to 1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2", "to 1BvBMS…NVN2"),
        ],
    )
    def test_addresses_are_shortened_unless_asked_for(self, text: str, short: str) -> None:
        assert Redactor().text(text) == short
        assert Redactor(show_addresses=True).text(text) == text

    def test_known_values_are_masked_wherever_they_turn_up(self) -> None:
        redactor = Redactor()
        redactor.protect("hunter2", "hunter2-long", "abc")
        assert redactor.text("x=hunter2; hunter2-long, hunter23 abc") == f"x={MASK}; {MASK}, hunter23 abc"
        redactor.protect("a.b*c")
        assert redactor.text("a.b*c axbxc") == f"{MASK} axbxc"

    @given(st.text(max_size=300))
    def test_any_text_passes_and_cleaning_twice_changes_nothing_more(self, text: str) -> None:
        redactor = Redactor()
        once = redactor.text(text)
        assert isinstance(once, str)
        redactor.text(once)

    @pytest.mark.parametrize(
        "hostile",
        ["a" * 50_000, "a@" * 20_000, "abandon " * 10_000, ":" * 50_000, "details=" + "(" * 50_000, "1." * 30_000,
         "+4" + " 1" * 30_000, "DE89" + " 3704" * 10_000, "x:y@" * 20_000, "a." * 30_000 + "@"],
    )  # fmt: skip
    def test_a_strangers_long_text_costs_no_more_than_its_length(self, hostile: str) -> None:
        Redactor().text(hostile)


class Captured:
    """The process's log, in memory."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def setup(self, config: LogConfig) -> None:
        log.setup(config, stream=self.stream)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    @property
    def documents(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def captured() -> Iterator[Captured]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield Captured()
    for handler in root.handlers:
        handler.close()
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def as_json(captured: Captured) -> Captured:
    captured.setup(LogConfig(format=LogFormat.JSON, level="debug"))
    return captured


logger = logging.getLogger("p2pnode.test")


class TestLines:
    def test_a_json_line_has_its_fields_and_no_secret(self, as_json: Captured) -> None:
        with log.bound(trade="3f2a", passphrase="hunter2"):
            logger.info("took %s", "it", extra={"fields": {"amount": 5, "raw": b"\x01", "iban": IBAN, "ok": True}})
        (line,) = as_json.documents
        assert line["message"] == "took it"
        assert (line["level"], line["logger"]) == ("info", "p2pnode.test")
        assert (line["trade"], line["amount"], line["raw"], line["ok"]) == ("3f2a", 5, "01", True)
        assert (line["passphrase"], line["iban"]) == (MASK, MASK)
        assert str(line["time"]).endswith("Z")

    def test_a_field_can_not_replace_what_the_line_says(self, as_json: Captured) -> None:
        logger.info("true", extra={"fields": {"message": "false", "level": "error"}})
        (line,) = as_json.documents
        assert (line["message"], line["level"]) == ("true", "info")
        assert (line["message_"], line["level_"]) == ("false", "error")

    @pytest.mark.parametrize("form", list(LogFormat))
    def test_an_exceptions_text_is_redacted_too(self, captured: Captured, form: LogFormat) -> None:
        captured.setup(LogConfig(format=form))
        try:
            raise ValueError(f"could not use {WORDS}")
        except ValueError:
            logger.exception("failed with %s", WORDS)
        text = captured.stream.getvalue()
        assert "winner" not in text
        assert "ValueError" in text

    @pytest.mark.parametrize("form", list(LogFormat))
    def test_a_stranger_can_not_forge_a_line_or_paint(self, captured: Captured, form: LogFormat) -> None:
        captured.setup(LogConfig(format=form))
        evil = "x\n12:00:00.000 info    p2pnode: all is well\r\x1b[2J\u202e\u2028"
        logger.info("peer says %s", evil, extra={"fields": {"name": evil}})
        assert len(captured.lines) == 1
        assert "\x1b" not in captured.lines[0]

    def test_fields_follow_into_tasks_and_end_with_their_block(self, as_json: Captured) -> None:
        async def work() -> None:
            logger.info("inside")

        async def main() -> None:
            with log.bound(trade="a"):
                task = asyncio.ensure_future(work())
            await task
            logger.info("outside")

        asyncio.run(main())
        inside, outside = (d for d in as_json.documents if d["logger"] == "p2pnode.test")
        assert inside["trade"] == "a"
        assert "trade" not in outside

    def test_a_protected_value_never_shows(self, as_json: Captured) -> None:
        log.protect("very-own-token")
        logger.info("got very-own-token", extra={"fields": {"x": "very-own-token"}})
        assert "very-own-token" not in as_json.stream.getvalue()

    @pytest.mark.parametrize(
        ("error", "level"),
        [(PeerViolation(), "info"), (ChainError(), "warning"), (LocalError(), "error")],
    )
    def test_a_peers_fault_is_no_error_of_ours(self, as_json: Captured, error: LocalError, level: str) -> None:
        log.report(logger, error, "could not")
        (line,) = as_json.documents
        assert (line["level"], line["code"]) == (level, error.code)

    def test_the_level_is_kept(self, captured: Captured) -> None:
        captured.setup(LogConfig(level="warning"))
        logger.info("quiet")
        logger.warning("loud")
        assert len(captured.lines) == 1


class TestFile:
    def test_it_is_private_and_so_are_those_that_follow_it(
        self, captured: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(log, "FILE_BYTES", 500)
        path = tmp_path / "node.log"
        captured.setup(LogConfig(file=path))
        for i in range(60):
            logger.info("line %d with some length to it", i)
        files = sorted(p.name for p in tmp_path.iterdir())
        assert files == ["node.log", "node.log.1", "node.log.2", "node.log.3"]
        assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o600}

    def test_one_that_was_open_to_others_is_closed_to_them(self, captured: Captured, tmp_path: Path) -> None:
        path = tmp_path / "node.log"
        path.write_text("")
        path.chmod(0o644)
        captured.setup(LogConfig(file=path))
        assert path.stat().st_mode & 0o777 == 0o600

    def test_one_that_can_not_be_written_is_one_line(self, captured: Captured, tmp_path: Path) -> None:
        with pytest.raises(DiskError, match="log file"):
            captured.setup(LogConfig(file=tmp_path))
