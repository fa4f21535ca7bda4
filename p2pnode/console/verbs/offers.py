"""`p2pnode offer`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from p2pnode.console.asking import ask, busy, sure, wait
from p2pnode.console.grammar import Verbs, details, offer_id, typed, waits, yes

if TYPE_CHECKING:
    from p2pnode.client import Client, schema


def add(top: Verbs) -> None:
    """Add the family's verbs."""
    verbs = top.group("offer", "Publish, find and take offers.")
    create = verbs.add(
        offer_create,
        "create",
        "sign an offer and publish it",
        '  p2pnode offer create sell 0.01-0.05 --price "65000.00 EUR" --method sepa --detail iban=DE02...\n'
        "  p2pnode offer create buy 2000000sat --margin=-1.5% --limit 66000 --currency EUR --details-file pay.toml\n\n"
        "A details file keeps your account out of the shell's history; it is TOML:\n"
        '  [sepa]\n  iban = "DE02..."\n  holder = "Ann Example"\n',
    )
    create.add_argument("side", choices=("buy", "sell"), help="whether you buy or sell bitcoin")
    create.add_argument("amount", type=typed("amount_range"), help="0.01, 0.01-0.05, or 1000000sat")
    _terms(create, editing=False)
    listing = verbs.add(
        offer_list,
        "list",
        "list the book, best price first, or your own offers",
        "  p2pnode offer list --side sell --currency EUR --amount 0.02\n  p2pnode offer list --mine --json\n",
    )
    listing.add_argument("--mine", action="store_true", help="your own offers, ended ones too")
    listing.add_argument("--side", choices=("buy", "sell"), help="what the maker does: list sell offers to buy from")
    listing.add_argument("--currency", type=typed("currency"), metavar="CODE")
    listing.add_argument("--method", metavar="METHOD")
    listing.add_argument("--amount", type=typed("positive_sats"), help="only offers whose range holds it")
    listing.add_argument("--limit", type=typed("page_limit"), default=50, metavar="N", help="at most this many (50)")
    offer_id(verbs.add(offer_show, "show", "show one offer in full"))
    take = verbs.add(
        offer_take,
        "take",
        "take an offer: begin a trade",
        "  p2pnode offer take 3f2a9c01d4 0.02 --detail iban=DE02... --detail holder=Bob --wait\n"
        "  p2pnode offer take 3f2a9c01d4 --details-file pay.toml --price 65000 --yes\n",
    )
    offer_id(take)
    take.add_argument("amount", nargs="?", type=typed("positive_sats"), help="0.02 or 2000000sat, where you can choose")
    take.add_argument("--method", metavar="METHOD", help="the payment method, where the offer has several")
    details(take)
    take.add_argument("--price", help="refuse if the offer's price is no longer this")
    take.add_argument("--arbiter", metavar="PERSONA", help="one of the offer's arbiters (its first)")
    take.add_argument("--backup", metavar="PERSONA", help="the backup arbiter (the offer's next)")
    take.add_argument("--escrow-type", type=int, choices=(1, 2), help="1: 2-of-3; 2: with a backup arbiter")
    take.add_argument("--fee-rate", type=typed("fee_rate"), metavar="SAT/VB", help="fee rate of the escrow")
    _payout(take)
    waits(take)
    yes(take)
    edit = verbs.add(
        offer_edit,
        "edit",
        "change an offer of yours and publish it again",
        '  p2pnode offer edit 3f2a9c01d4 --price "66000.00 EUR" --expires 7d\n',
    )
    offer_id(edit)
    edit.add_argument("--amount", type=typed("amount_range"), help="0.01, 0.01-0.05, or 1000000sat")
    _terms(edit, editing=True)
    offer_id(verbs.add(offer_revoke, "revoke", "withdraw an offer of yours"))


def _terms(parser: argparse.ArgumentParser, *, editing: bool) -> None:
    group = parser.add_argument_group("terms")
    group.add_argument("--price", help='a fixed price: "65000.00 EUR"')
    group.add_argument("--margin", type=typed("margin"), metavar="PERCENT", help="or a margin on the market price")
    group.add_argument("--limit", help="with --margin: the worst price that you accept")
    if not editing:
        group.add_argument("--currency", type=typed("currency"), metavar="CODE", help="with --margin: EUR")
    group.add_argument("--method", action="append", default=[], metavar="METHOD", help="a payment method; repeatable")
    details(group)
    group.add_argument("--window", type=typed("blocks"), metavar="BLOCKS", help="blocks within which to pay (144)")
    group.add_argument("--deposit", type=typed("share"), metavar="PERCENT", help="deposit of both sides (15%%)")
    group.add_argument("--buyer-deposit", type=typed("share"), metavar="PERCENT")
    group.add_argument("--seller-deposit", type=typed("share"), metavar="PERCENT")
    group.add_argument("--arbiter", action="append", metavar="PERSONA", help="an arbiter that you accept; repeatable")
    group.add_argument("--confirmations", type=typed("confirmations"), metavar="N", help="least confirmations (1)")
    group.add_argument("--terms", metavar="TEXT", help="text for the counterparty")
    group.add_argument("--min-trades", type=typed("count"), metavar="N", help="completed trades asked of a taker (0)")
    _payout(group)
    group.add_argument("--expires", type=typed("duration"), metavar="TIME", help="how long it lives: 12h, 7d (7d)")
    if not editing:
        group.add_argument("--escrow-type", type=int, action="append", choices=(1, 2), help="1: 2-of-3; 2: with backup")


def _payout(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--payout-address",
        metavar="ADDRESS",
        help="where a release pays your coins to (the wallet); settlements and rulings always pay to the wallet",
    )


def offer_create(args: argparse.Namespace) -> int:
    """`p2pnode offer create`."""
    from p2pnode.console import requests

    draft = requests.draft(args)
    return ask(args, lambda node: busy("Publishing the offer", node.offer_create(draft)))


def offer_list(args: argparse.Namespace) -> int:
    """`p2pnode offer list`."""
    from p2pnode.console import requests

    wanted = requests.offer_filter(args)
    return ask(args, lambda node: busy("Looking up offers", node.offers(wanted)))


def offer_show(args: argparse.Namespace) -> int:
    """`p2pnode offer show`."""
    return ask(args, lambda node: busy("Looking up the offer", node.offer(args.offer)))


def offer_take(args: argparse.Namespace) -> int:
    """`p2pnode offer take`."""
    from p2pnode.console import requests

    async def act(node: Client) -> schema.Response | None:
        offer = await busy("Looking up the offer", node.offer(args.offer))
        request = requests.take(args, offer)
        if not sure(args, requests.take_question(offer, request)):
            return None
        trade = await busy("Taking the offer", node.offer_take(offer.id, request))
        return await wait(args, node, trade)

    return ask(args, act)


def offer_edit(args: argparse.Namespace) -> int:
    """`p2pnode offer edit`."""
    from p2pnode.console import requests

    async def act(node: Client) -> schema.Response:
        present = await node.offer(args.offer)
        return await busy("Publishing the offer", node.offer_edit(present.id, requests.edit(args, present)))

    return ask(args, act)


def offer_revoke(args: argparse.Namespace) -> int:
    """`p2pnode offer revoke`."""
    return ask(args, lambda node: busy("Withdrawing the offer", node.offer_revoke(args.offer)))
