"""The whole grammar of the command line, with help texts and examples. It imports next to nothing: help is quick.

Parsed arguments carry the verb's full name as `verb` (`offer take`) and what carries it out as `run`.
"""

from __future__ import annotations

import argparse
from typing import Final

from p2pnode.console.grammar import Parser, Verbs, common
from p2pnode.console.verbs import network, node, offers, personas, secondfactor, trades, wallet

EXIT_CODES: Final = """\
exit codes:
  0    done
  1    it can't be done as asked (insufficient funds, no such offer, wrong passphrase, ...)
  2    wrong usage: a flag, an argument or the configuration
  3    the node is not running, not reachable, or not set up
  4    refused by the peer or by the trade's rules
  5    the Bitcoin backend failed
  6    this node failed: its log says why
  7    --timeout passed; what was waited for may still happen
  130  interrupted (Ctrl-C)
"""

EXAMPLES: Final = """\
examples:
  p2pnode init --network signet        set up a node and show its mnemonic, once
  p2pnode run                          start it; stop it with Ctrl-C or `p2pnode stop`
  p2pnode offer list --currency EUR    what others offer
  p2pnode demo                         a whole trade between real nodes on regtest

Ids may be cut to their first 8 digits or more. Every verb takes --datadir, --network, --config and --json, and has its
own help: p2pnode offer take --help
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole grammar."""
    top = Parser(
        prog="p2pnode",
        description="A decentralised peer-to-peer bitcoin exchange: one node, and the commands to use it.",
        epilog=f"{EXAMPLES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    common(top)
    top.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = Verbs(top)
    for family in (node, offers, trades, wallet, personas, network, secondfactor):
        family.add(verbs)
    return top


class _Version(argparse.Action):
    """Looks the version up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print it and exit."""
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  (slow to load)

        try:
            number = version("p2pnode")
        except PackageNotFoundError:
            number = "(not installed)"
        parser.exit(0, f"p2pnode {number}\n")
