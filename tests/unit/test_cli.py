"""The grammar of the command line: help that is quick and complete, and usage errors that say what to do."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cli
from p2pnode.client import ApiError
from p2pnode.console import failure, requests
from p2pnode.console.exits import Exit, exit_of
from p2pnode.console.parser import EXIT_CODES, build_parser
from protocol.errors import ChainError, DataCorrupt, IllegalTransition, P2PError, PeerRefusal, PeerViolation, UserError

ROOT = Path(__file__).resolve().parents[2]


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield parser
    for action in below:
        for inner in action.choices.values():
            yield from leaves(inner)


VERBS = list(leaves(build_parser()))


class TestGrammar:
    def test_every_verb_has_its_function(self) -> None:
        assert all(callable(p.get_default("run")) for p in VERBS)

    @pytest.mark.parametrize("parser", VERBS, ids=lambda p: str(p.get_default("verb")))
    def test_every_flag_is_explained_and_help_prints(self, parser: argparse.ArgumentParser) -> None:
        text = parser.format_help()
        for flag in ("--datadir", "--network", "--config", "--json"):
            assert flag in text
        silent = [a.dest for a in parser._actions if not a.help and a.metavar is None and not a.choices]
        assert silent == []

    @pytest.mark.parametrize("parser", VERBS, ids=lambda p: str(p.get_default("verb")))
    def test_every_example_parses(self, parser: argparse.ArgumentParser) -> None:
        lines = re.findall(r"^  p2pnode (.*)$", parser.epilog or "", flags=re.MULTILINE)
        for line in lines:
            words = re.findall(r'"([^"]*)"|(\S+)', re.split(r"\s{3,}", line)[0])
            args = build_parser().parse_args([a or b for a, b in words])
            assert args.verb == parser.get_default("verb")

    def test_the_common_flags_may_stand_before_or_behind_the_verb(self) -> None:
        for line in (["--datadir", "d", "--json", "offer", "list"], ["offer", "list", "--datadir", "d", "--json"]):
            args = build_parser().parse_args(line)
            assert (args.datadir, args.json) == ("d", True)

    def test_settings_flags_become_settings(self) -> None:
        args = build_parser().parse_args(
            [
                "run",
                "--seed",
                "a:1",
                "--seed",
                "b:2",
                "--port",
                "5",
                "--set",
                "trade.max_open=3",
                "--set",
                "node.port=4",
            ]
        )
        assert requests.settings(args) == {"node.seeds": ["a:1", "b:2"], "node.port": "5", "trade.max_open": "3"}

    def test_help_loads_nothing_heavy(self) -> None:
        code = (
            "import sys, cli\n"
            "try: cli.main(['--help'])\n"
            "except SystemExit: pass\n"
            "print(sorted({'aiohttp', 'rich', 'msgspec', 'nacl', 'asyncio', 'bdkpython'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.splitlines()[-1] == "[]"


class TestUsage:
    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("", ["VERB"]),
            ("offer", ["VERB"]),
            ("ofer list", ["ofer", "choose from"]),
            ("offer lits", ["lits", "choose from"]),
            ("offer list --colour red", ["unrecognized arguments: --colour red"]),
            ("offer list --curr EUR", ["unrecognized arguments"]),
            ("offer create hold 0.01", ["hold", "buy"]),
            ("offer create sell 0,01", ["amount", "0,01", "write 0.01"]),
            ("offer create sell 0.05-0.01", ["amount", "smaller one"]),
            ("offer create sell 0.01 --margin 5", ["--margin", "percentage"]),
            ("offer create sell 0.01 --deposit 101%", ["--deposit", "0% to 100%"]),
            ("offer create sell 0.01 --window 0", ["--window", "1 to 65535"]),
            ("offer create sell 0.01 --expires 7", ["--expires", "7d"]),
            ("offer list --currency EURO1", ["--currency", "EUR"]),
            ("offer list --limit 501", ["--limit", "1 to 500"]),
            ("wallet send bcrt1q 1.5sat", ["amount", "no decimals"]),
            ("wallet send bcrt1q 0", ["amount", "more than zero"]),
            ("wallet send bcrt1q 1 --fee-rate 0", ["--fee-rate", "sat"]),
            ("wallet send bcrt1q", ["amount"]),
            ("run --set nonsense", ["--set", "key=value"]),
            ("arbiter announce", ["--fee"]),
        ],
    )
    def test_a_wrong_line_is_one_line_and_exit_code_2(
        self, line: str, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(line.split())
        shown = capsys.readouterr()
        assert ended.value.code == Exit.USAGE
        assert shown.out == ""
        assert len(shown.err.splitlines()) == 1, shown.err
        assert "--help" in shown.err
        for word in words:
            assert word in shown.err, shown.err

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("offer create sell 0.01 --method sepa --detail a=b", ["--price or --margin"]),
            ("offer create sell 0.01 --price 65000 --method sepa --detail a=b", ["65000.00 EUR"]),
            ("offer create sell 0.01 --price 65000.001EUR --method sepa --detail a=b", ["EUR has 2 decimals"]),
            ("offer create sell 0.01 --price 65000EUR --margin=1% --method sepa --detail a=b", ["exactly one"]),
            ("offer create sell 0.01 --margin=1% --method sepa --detail a=b", ["--currency"]),
            ("offer create sell 0.01 --price 65000EUR --limit 5 --method sepa --detail a=b", ["--limit"]),
            ("offer create sell 0.01 --price 65000EUR", ["no payment method"]),
            ("offer create sell 0.01 --price 65000EUR --method sepa", ["details for sepa are missing"]),
            ("offer create sell 0.01 --price 65000EUR --details-file none.toml", ["none.toml", "can't be read"]),
            ("offer create sell 0.01 --price 65000EUR --method sepa --detail a=b --expires 40d", ["lifetime seconds"]),
        ],
    )
    def test_terms_that_do_not_go_together_are_refused_before_anything_is_asked(
        self, line: str, words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        # There is no node in that folder: whoever asked it would fail with another exit code.
        code = cli.main([*line.split(), "--datadir", str(tmp_path)])
        shown = capsys.readouterr()
        assert (code, shown.out) == (1, "")
        assert len(shown.err.splitlines()) == 1
        for word in words:
            assert word in shown.err, shown.err


class TestExitCodes:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (UserError, 1), (IllegalTransition, 4), (PeerRefusal, 4), (PeerViolation, 4), (ChainError, 5),
            (DataCorrupt, 6), (P2PError, 6),
        ],
    )  # fmt: skip
    def test_each_kind_of_error_has_its_own(self, error: type[P2PError], code: int) -> None:
        assert exit_of(error.code) == code

    def test_the_help_explains_every_one(self) -> None:
        explained = {int(n) for n in re.findall(r"^  (\d+) ", EXIT_CODES, flags=re.MULTILINE)}
        assert explained == {int(e) for e in Exit}

    def test_an_unexpected_error_is_one_line_without_secrets(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = "legal winner thank year wave sausage worth useful legal winner thank yellow"
        assert failure.tell(RuntimeError(f"bad\nthing: {words}\x1b[2J"), as_json=False) == 6
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert "winner" not in err
        assert "\x1b" not in err
        assert "RuntimeError" in err

    def test_the_first_error_of_a_group_that_has_something_to_say_is_told(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        group = ExceptionGroup("x", [RuntimeError("a"), ChainError("bitcoind is gone")])
        assert failure.tell(group, as_json=False) == 5
        assert "bitcoind is gone" in capsys.readouterr().err

    def test_an_api_error_is_told_like_the_error_behind_it(self) -> None:
        assert issubclass(ApiError, Exception)
        assert not issubclass(ApiError, P2PError)
