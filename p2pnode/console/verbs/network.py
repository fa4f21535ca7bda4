"""`p2pnode peer` and `p2pnode arbiter`."""

from __future__ import annotations

import argparse

from p2pnode.console.asking import ask, busy
from p2pnode.console.grammar import Verbs, typed
from p2pnode.console.verbs import personas


def add(top: Verbs) -> None:
    """Add the family's verbs."""
    peer = top.group("peer", "Other nodes.")
    peer.add(peer_list, "list", "list open sessions and known nodes")
    add = peer.add(peer_add, "add", "get to know a node", "  p2pnode peer add node1...@198.51.100.7:7352\n")
    add.add_argument("address", metavar="[KEY@]HOST:PORT")
    arbiter = top.group("arbiter", "Arbiters, and being one.")
    listing = arbiter.add(arbiter_list, "list", "list the arbiters that this node knows")
    listing.add_argument("--currency", type=typed("currency"), metavar="CODE")
    listing.add_argument("--method", metavar="METHOD")
    listing.add_argument("--language", metavar="CODE", help="like en or de")
    personas.bond_verbs(arbiter)
    announce = arbiter.add(
        arbiter_announce,
        "announce",
        "announce yourself as an arbiter; the node must have the role",
        "  p2pnode arbiter announce --fee 1% --fee-floor 5000sat --max-amount 1btc --currency EUR --language en\n",
    )
    announce.add_argument("--fee", type=typed("share"), required=True, metavar="PERCENT", help="share of the amount")
    announce.add_argument("--fee-floor", type=typed("sats"), default=0, metavar="AMOUNT", help="least fee (0)")
    announce.add_argument(
        "--fee-cap", type=typed("sats"), default=10_000_000, metavar="AMOUNT", help="greatest fee (0.1 BTC)"
    )
    announce.add_argument(
        "--max-amount", type=typed("positive_sats"), default=100_000_000, metavar="AMOUNT", help="up to (1 BTC)"
    )
    announce.add_argument("--currency", type=typed("currency"), action="append", default=[], metavar="CODE")
    announce.add_argument("--method", action="append", default=[], metavar="METHOD")
    announce.add_argument("--language", action="append", default=[], metavar="CODE", help="repeatable (en)")
    announce.add_argument("--response", type=typed("blocks"), default=144, metavar="BLOCKS", help="answer in (144)")
    announce.add_argument("--policy", default="", metavar="TEXT", help="how you judge, for those who choose you")
    announce.add_argument("--expires", type=typed("duration"), default=365 * 86_400, metavar="TIME", help="(365d)")


def peer_list(args: argparse.Namespace) -> int:
    """`p2pnode peer list`."""
    return ask(args, lambda node: busy("Asking the node", node.peers()))


def peer_add(args: argparse.Namespace) -> int:
    """`p2pnode peer add`."""
    return ask(args, lambda node: busy("Calling the peer", node.peer_add(args.address)))


def arbiter_announce(args: argparse.Namespace) -> int:
    """`p2pnode arbiter announce`."""
    from p2pnode.console import requests

    request = requests.announcement(args)
    return ask(args, lambda node: busy("Publishing the announcement", node.announce(request)))


def arbiter_list(args: argparse.Namespace) -> int:
    """`p2pnode arbiter list`."""
    return ask(args, lambda node: busy("Looking up arbiters", node.arbiters(args.currency, args.method, args.language)))
