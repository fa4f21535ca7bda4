"""The grammar of `p2pnode dispute`: for traders, for arbiters, for whoever only verifies. Nothing slow is imported."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final, Protocol

TRADER: Final = ("open", "evidence", "show", "settle", "complete", "export")
ARBITER: Final = ("queue", "case", "accept", "decline", "extend", "write", "preview", "rule")
NAMES: Final = (*(f"dispute {name}" for name in (*TRADER, *ARBITER, "save", "verify")), "trade chat", "trade extend")
"""Every verb that `console.disputing` carries out."""

REASONS: Final = (
    "payment-proved", "payment-not-proved", "payment-late", "wrong-amount", "wrong-payer", "payment-reversed",
    "buyer-silent", "seller-silent", "terms-broken", "agreed-before-me", "other",
)  # fmt: skip

Typed = Callable[[str], Callable[[str], Any]]


class Verbs(Protocol):
    """What adds a verb."""

    def add(self, name: str, about: str, example: str = "") -> argparse.ArgumentParser:
        """A verb."""
        ...


def talk_verbs(verbs: Verbs, typed: Typed) -> None:
    """What belongs to a trade: `trade chat`, `trade extend`."""
    chat = verbs.add(
        "chat", "read what was said in a trade, or say something", '  p2pnode trade chat 81bd02f7 "sent"\n'
    )
    _trade(chat)
    chat.add_argument("text", nargs="?", metavar="TEXT", help="what to say; without it what was said is shown")
    _files(chat)
    chat.add_argument("--arbiter", action="store_true", help="to the arbiter of the open dispute")
    extend = verbs.add("extend", "buyer: ask for more blocks to pay; seller: give them")
    _trade(extend)
    extend.add_argument("blocks", type=typed("blocks"), metavar="BLOCKS")
    extend.add_argument("--reason", default="", metavar="TEXT", help="buyer: why")


def dispute_verbs(verbs: Verbs, typed: Typed, yes: Callable[[argparse.ArgumentParser], None]) -> None:
    """Everything below `p2pnode dispute`."""
    _traders(verbs, typed, yes)
    _arbiters(verbs, typed, yes)
    save = verbs.add("save", "write a file that was shown to disk")
    save.add_argument("content", metavar="CONTENT", help="its content, as `dispute show --json` lists it")
    save.add_argument("file", metavar="FILE", help="where to; it must not exist")
    verify = verbs.add(
        "verify",
        "verify a dispute's bundle; needs no node and trusts nobody",
        "  p2pnode dispute verify case.p2p\n",
    )
    verify.add_argument("file", metavar="FILE", help="the bundle")


def _traders(verbs: Verbs, typed: Typed, yes: Callable[[argparse.ArgumentParser], None]) -> None:
    opening = verbs.add(
        "open",
        "ask the arbiter, or tell it your side when the counterparty has",
        '  p2pnode dispute open 81bd02f7 "I paid on Monday, see the receipt" --buyer-share 100%\n',
    )
    _trade(opening)
    opening.add_argument("text", metavar="TEXT", help="what happened")
    opening.add_argument(
        "--buyer-share", type=typed("share"), required=True, metavar="PERCENT", help="what the buyer should get"
    )
    yes(opening)
    evidence = verbs.add(
        "evidence",
        "the files that were shown in a trade or case; look at one, save them, or show the arbiter more",
        "  p2pnode dispute evidence 81bd02f7                    list, with hash, owner and whether it matches the log\n"
        "  p2pnode dispute evidence 81bd02f7 show 2             look at one here; nothing in it is run or opened\n"
        "  p2pnode dispute evidence 81bd02f7 --save case-81bd   all of them into a folder, with an index\n"
        '  p2pnode dispute evidence 81bd02f7 "my receipt" --attach receipt.png\n',
    )
    evidence.add_argument("trade", metavar="ID", help="of a trade or a case, or its first 8 digits or more")
    evidence.add_argument("words", nargs="*", metavar="show N | TEXT", help="what to look at, or what it shows")
    evidence.add_argument("--save", metavar="FOLDER", help="write the files there")
    _files(evidence)
    _trade(verbs.add("show", "show a trade's dispute, settlements and all that was said"))
    settle = verbs.add(
        "settle",
        "agree with the counterparty: propose a division, to cancel, or accept its proposal",
        "  p2pnode dispute settle 81bd02f7 --cancel            everybody gets its own coins back\n"
        "  p2pnode dispute settle 81bd02f7 --buyer 0.012       of amount and deposits\n"
        "  p2pnode dispute settle 81bd02f7 --accept 5d0c91aa   the beginning of its payout's txid\n",
    )
    _trade(settle)
    how = settle.add_mutually_exclusive_group(required=True)
    how.add_argument("--buyer", type=typed("sats"), metavar="AMOUNT", help="what of amount and deposits is the buyer's")
    how.add_argument("--cancel", action="store_true", help="everybody gets its own coins back")
    how.add_argument("--accept", metavar="TXID", help="complete what the counterparty proposed")
    settle.add_argument("--fee-rate", type=typed("fee_rate"), metavar="SAT/VB", help="of the payout")
    yes(settle)
    complete = verbs.add("complete", "sign and broadcast what the arbiter ruled; the winner's node does so by itself")
    _trade(complete)
    export = verbs.add("export", "write all that was said and signed into one file that anybody can verify")
    export.add_argument("trade", metavar="TRADE", help="the id of a trade, or with --case of a case")
    export.add_argument("file", metavar="FILE", help="where to; it must not exist")
    export.add_argument("--case", action="store_true", help="arbiter: the bundle of a case, with both parties' copies")


def _arbiters(verbs: Verbs, typed: Typed, yes: Callable[[argparse.ArgumentParser], None]) -> None:
    _share = _shares(typed)
    queue = verbs.add("queue", "arbiter: the cases, those first that wait longest")
    queue.add_argument("--open", action="store_true", help="only those that have not ended")
    _case(verbs.add("case", "arbiter: one case, with both claims and all that was said"))
    _case(verbs.add("accept", "arbiter: hear a case"))
    decline = verbs.add("decline", "arbiter: do not decide a case")
    _case(decline)
    decline.add_argument("text", metavar="TEXT", help="why; the parties read it")
    yes(decline)
    extend = verbs.add("extend", "arbiter: take more blocks to decide, once")
    _case(extend)
    extend.add_argument("blocks", type=typed("blocks"), metavar="BLOCKS")
    extend.add_argument("--text", default="", metavar="TEXT", help="why; the parties read it")
    write = verbs.add("write", "arbiter: write to one party")
    _case(write)
    write.add_argument("side", choices=("buyer", "seller"))
    write.add_argument("text", metavar="TEXT")
    preview = verbs.add(
        "preview",
        "arbiter: what everybody would get, to the satoshi, beside what both ask for",
        "  p2pnode dispute preview 81bd02f7 --to-buyer 70%\n  p2pnode dispute preview 81bd02f7   in steps of a tenth\n",
    )
    _case(preview)
    _share(preview, required=False)
    rule = verbs.add(
        "rule",
        "arbiter: decide, once and for all; shows first what everybody gets",
        '  p2pnode dispute rule 81bd02f7 --to-buyer 70% --reason payment-late "two days late, but it came"\n',
    )
    _case(rule)
    rule.add_argument("text", metavar="TEXT", help="why; both parties read it, and whoever verifies")
    _share(rule, required=True)
    rule.add_argument("--reason", choices=REASONS, required=True, metavar="REASON", help=", ".join(REASONS))
    rule.add_argument("--quote", action="store_true", help="only show what everybody would get")
    yes(rule)


def _shares(typed: Typed) -> Callable[..., None]:
    """Adds the flags of a decision."""

    def add(parser: argparse.ArgumentParser, *, required: bool) -> None:
        share = typed("share")
        names = ("--to-buyer", "--buyer-share")
        parser.add_argument(
            *names, dest="buyer_share", type=share, required=required, metavar="PERCENT", help="of the amount"
        )
        parser.add_argument("--forfeit", type=share, default=0, metavar="PERCENT", help="of the loser's deposit (0)")
        parser.add_argument("--fee-rate", type=typed("fee_rate"), metavar="SAT/VB", help="of the payout")

    return add


def _files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--attach", action="append", default=[], metavar="FILE", help="PNG, JPEG, WebP, PDF or text, at most 4 MB"
    )


def _trade(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trade", metavar="TRADE", help="its id, or the first 8 digits or more")


def _case(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", metavar="CASE", help="its id, or the first 8 digits or more")
