"""What the grammar of the command line is made of: verbs, the flags that many share. It imports next to nothing.

A verb is added with the function that carries it out, from parsed arguments to an exit code.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

Run = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Refuses in one line, with the way to the help."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message} (try `{self.prog} --help`)\n")


class Verbs:
    """Adds verbs below a parser; those of a group (`offer`) below the group."""

    def __init__(self, parser: argparse.ArgumentParser, group: str = "") -> None:
        self._group = group
        self._below = parser.add_subparsers(
            dest="group_verb" if group else "top_verb", required=True, metavar="VERB", parser_class=Parser
        )

    def add(self, run: Run, name: str, about: str, example: str = "") -> argparse.ArgumentParser:
        """A verb, and what carries it out."""
        parser: argparse.ArgumentParser = self._below.add_parser(
            name,
            help=about,
            description=about[:1].upper() + about[1:] + ".",
            epilog=f"examples:\n{example}" if example else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.set_defaults(verb=f"{self._group} {name}".strip(), run=run)
        common(parser)
        return parser

    def group(self, name: str, about: str) -> Verbs:
        """A group of verbs."""
        parser = self._below.add_parser(name, help=about, description=about, allow_abbrev=False)
        return Verbs(parser, f"{self._group} {name}".strip())

    def all_run(self, run: Run) -> Bound:
        """As these, for verbs that one function carries out."""
        return Bound(self, run)


class Bound:
    """Adds verbs that one function carries out."""

    def __init__(self, verbs: Verbs, run: Run) -> None:
        self._verbs = verbs
        self._run = run

    def add(self, name: str, about: str, example: str = "") -> argparse.ArgumentParser:
        """A verb."""
        return self._verbs.add(self._run, name, about, example)


def common(parser: argparse.ArgumentParser) -> None:
    """The flags of every verb; they may stand before it or after it."""
    # SUPPRESS: a flag given before the verb is not overwritten by the verb's own default.
    group = parser.add_argument_group("everywhere")
    none = argparse.SUPPRESS
    group.add_argument("--datadir", metavar="DIR", default=none, help="the node's folder (~/.p2pnode/NETWORK)")
    group.add_argument("--network", metavar="NAME", default=none, help="mainnet, testnet, signet or regtest")
    group.add_argument("--config", metavar="FILE", default=none, help="a configuration file, not the folder's own")
    group.add_argument("--json", action="store_true", default=none, help="print one JSON document")


def typed(name: str) -> Callable[[str], Any]:
    """The parser of an argument, by its name in `console.inputs`; loaded when there is something to parse."""

    def parse(text: str) -> Any:  # noqa: ANN401  (what it parses to is the argument's)
        from p2pnode.console import inputs  # noqa: PLC0415  (loads msgspec; help must not)

        return inputs.argument(getattr(inputs, name), text)

    return parse


def offer_id(parser: argparse.ArgumentParser) -> None:
    """Which offer."""
    parser.add_argument("offer", metavar="OFFER", help="its id, or the first 8 digits or more")


def trade_id(parser: argparse.ArgumentParser) -> None:
    """Which trade."""
    parser.add_argument("trade", metavar="TRADE", help="its id, or the first 8 digits or more")


def details(parser: argparse._ActionsContainer) -> None:
    """Payment details."""
    parser.add_argument(
        "--detail", action="append", default=[], metavar="[METHOD:]FIELD=VALUE", help="one of your payment details"
    )
    parser.add_argument("--details-file", metavar="FILE", help="your payment details as TOML, a table per method")


def waits(parser: argparse.ArgumentParser) -> None:
    """Whether to follow the trade."""
    parser.add_argument("--wait", action="store_true", help="follow the trade until it needs you or has ended")
    timeout(parser)


def timeout(parser: argparse.ArgumentParser) -> None:
    """How long to wait."""
    parser.add_argument("--timeout", type=typed("seconds"), metavar="TIME", help="wait no longer than this: 90s, 30m")


def yes(parser: argparse.ArgumentParser) -> None:
    """Whether to ask first."""
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask before doing it")


def settings_flags(parser: argparse.ArgumentParser) -> None:
    """Settings of the node, as flags."""
    group = parser.add_argument_group("settings")
    group.add_argument("--role", action="append", metavar="ROLE", help="trader, arbiter or bootstrap; may be repeated")
    group.add_argument("--port", metavar="N", help="port for peers, TCP and UDP; 0: any free one")
    group.add_argument("--seed", action="append", metavar="[KEY@]HOST:PORT", help="a node to enter by; may be repeated")
    group.add_argument("--api-port", metavar="N", help="port of the local API; 0: any free one")
    group.add_argument("--chain-url", metavar="URL", help="bitcoind's RPC, like http://127.0.0.1:8332")
    group.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    group.add_argument(
        "--set", action="append", type=typed("setting"), metavar="KEY=VALUE", help="any setting, like trade.max_open=3"
    )
