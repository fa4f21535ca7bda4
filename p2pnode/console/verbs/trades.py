"""`p2pnode trade` and `p2pnode dispute`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from p2pnode.console.asking import as_json, ask, busy, sure, wait
from p2pnode.console.dispute_parser import dispute_verbs, talk_verbs
from p2pnode.console.grammar import Verbs, trade_id, typed, waits, yes
from p2pnode.console.verbs import personas

if TYPE_CHECKING:
    from p2pnode.client import Client, schema


def add(top: Verbs) -> None:
    """Add the family's verbs."""
    verbs = top.group("trade", "Follow trades and move them on.")
    listing = verbs.add(trade_list, "list", "list trades, newest first")
    listing.add_argument("--open", action="store_true", help="only those that have not ended")
    show = verbs.add(
        trade_show,
        "show",
        "show one trade: terms, payment details, chain, steps",
        "  p2pnode trade show 81bd02f7 --wait      follow it until it needs you or has ended\n",
    )
    trade_id(show)
    waits(show)
    pay = verbs.add(
        trade_pay,
        "pay",
        "buyer: say that you have paid, and sign the payout",
        '  p2pnode trade pay 81bd02f7 --note "from account ending 4711"\n',
    )
    trade_id(pay)
    pay.add_argument("--note", default="", metavar="TEXT", help="a line for the seller, at most 140 characters")
    waits(pay)
    release = verbs.add(
        trade_release, "release", "seller: the money has arrived, release the coins; this can't be undone"
    )
    trade_id(release)
    waits(release)
    yes(release)
    bump = verbs.add(
        trade_bump,
        "bump",
        "raise the fee of a payout that waits: both sides sign it again, the other by itself",
        "  p2pnode trade bump 81bd02f7\n  p2pnode trade bump 81bd02f7 --fee-rate 25\n",
    )
    trade_id(bump)
    bump.add_argument("--fee-rate", type=typed("fee_rate"), metavar="SAT/VB", help="by default what the chain asks")
    cancel = verbs.add(trade_cancel, "cancel", "leave a trade that is not funded")
    trade_id(cancel)
    cancel.add_argument("--reason", default="", metavar="TEXT", help="a line for the counterparty")
    _psbt_verb(verbs)
    personas.trade_verbs(verbs)
    talk_verbs(verbs.all_run(dispute), typed)
    disputes = top.group("dispute", "Settle, or ask an arbiter; decide as one; verify.")
    dispute_verbs(disputes.all_run(dispute), typed, yes)


def _psbt_verb(verbs: Verbs) -> None:
    psbt = verbs.add(
        trade_psbt,
        "psbt",
        "PSBTs of a trade, for coins whose keys are in another wallet",
        "  p2pnode trade psbt 81bd02f7 --out funding.psbt          what is to be signed\n"
        "  p2pnode trade psbt 81bd02f7 --import signed.psbt        what the other wallet made of it\n"
        "  p2pnode trade psbt 81bd02f7 --payout                    the release\n",
    )
    trade_id(psbt)
    psbt.add_argument("--import", dest="import_file", metavar="FILE", help="give the signed funding back")
    psbt.add_argument("--payout", action="store_true", help="the release instead of the funding")
    psbt.add_argument("--out", metavar="FILE", help="write the PSBT there as well")


def trade_list(args: argparse.Namespace) -> int:
    """`p2pnode trade list`."""
    return ask(args, lambda node: busy("Reading trades", node.trades(open_only=args.open)))


def trade_show(args: argparse.Namespace) -> int:
    """`p2pnode trade show`."""

    async def act(node: Client) -> schema.Response:
        return await wait(args, node, await busy("Reading the trade", node.trade(args.trade)))

    return ask(args, act)


def trade_pay(args: argparse.Namespace) -> int:
    """`p2pnode trade pay`."""

    async def act(node: Client) -> schema.Response:
        return await wait(args, node, await busy("Telling the seller", node.trade_pay(args.trade, args.note)))

    return ask(args, act)


def trade_release(args: argparse.Namespace) -> int:
    """`p2pnode trade release`."""

    async def act(node: Client) -> schema.Response | None:
        from p2pnode.console.requests import release_question

        view = await busy("Reading the trade", node.trade(args.trade))
        if not sure(args, release_question(view)):
            return None
        return await wait(args, node, await busy("Releasing the coins", node.trade_release(view.id)))

    return ask(args, act)


def trade_bump(args: argparse.Namespace) -> int:
    """`p2pnode trade bump`."""
    return ask(args, lambda node: busy("Signing the payout again", node.trade_raise_fee(args.trade, args.fee_rate)))


def trade_cancel(args: argparse.Namespace) -> int:
    """`p2pnode trade cancel`."""
    return ask(args, lambda node: busy("Leaving the trade", node.trade_cancel(args.trade, args.reason)))


def trade_psbt(args: argparse.Namespace) -> int:
    """`p2pnode trade psbt`."""
    from pathlib import Path

    from p2pnode.console import psbt, requests

    view = psbt.trade_psbt(args, requests.data_dir(args))
    if args.out is not None:
        psbt.write_out(view, Path(args.out))
    psbt.show(view, as_json=as_json(args))
    return 0


def dispute(args: argparse.Namespace) -> int:
    """`p2pnode dispute ...`, `p2pnode trade chat`, `p2pnode trade extend`."""
    from p2pnode.console.disputing import act

    return act(args, ask, sure)
