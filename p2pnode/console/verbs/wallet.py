"""`p2pnode wallet`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from p2pnode.console.asking import as_json, ask, busy, sure
from p2pnode.console.grammar import Verbs, typed, yes

if TYPE_CHECKING:
    from p2pnode.client import Client, schema


def add(top: Verbs) -> None:
    """Add the family's verbs."""
    verbs = top.group("wallet", "The node's own coins.")
    verbs.add(wallet_balance, "balance", "show the balance")
    address = verbs.add(wallet_address, "address", "make a fresh receiving address")
    address.add_argument("--label", default="", metavar="TEXT", help="a note for yourself")
    address.add_argument("--qr", action="store_true", help="draw it as a QR code as well")
    send = verbs.add(
        wallet_send,
        "send",
        "pay to an address",
        "  p2pnode wallet send bc1q... 0.01\n  p2pnode wallet send bc1q... all --fee-rate 3.5\n",
    )
    send.add_argument("address", help="where to")
    send.add_argument("amount", type=typed("send_amount"), help="0.01, 1000000sat, or all")
    _rate(send)
    _coins(send, "pay with exactly this coin; repeatable")
    yes(send)
    merge = verbs.add(
        wallet_consolidate,
        "consolidate",
        "make one coin of many, while fees are low",
        "  p2pnode wallet consolidate --below 0.001 --fee-rate 1\n",
    )
    merge.add_argument("--below", type=typed("positive_sats"), metavar="AMOUNT", help="only coins smaller than this")
    _coins(merge, "only this coin; repeatable")
    _rate(merge)
    yes(merge)
    bump = verbs.add(
        wallet_bump,
        "bump",
        "raise the fee of a transaction that waits: yours, a trade's funding or payout, or one that pays you",
        f"  p2pnode wallet bump {'1f' * 32} --fee-rate 12\n",
    )
    bump.add_argument("txid", metavar="TXID", help="the transaction")
    _rate(bump)
    yes(bump)
    history = verbs.add(wallet_history, "history", "list transactions, newest first")
    history.add_argument("--limit", type=typed("history_limit"), default=50, metavar="N", help="at most (50)")
    verbs.add(wallet_utxos, "utxos", "list unspent coins, largest first")
    freeze = verbs.add(wallet_freeze, "freeze", "set coins aside: nothing spends them until they are thawed")
    freeze.add_argument("coins", type=typed("coin"), nargs="+", metavar="COIN", help="txid:number, as `utxos` lists it")
    thaw = verbs.add(wallet_thaw, "thaw", "give frozen coins back")
    thaw.add_argument("coins", type=typed("coin"), nargs="+", metavar="COIN", help="txid:number, as `utxos` lists it")
    label = verbs.add(
        wallet_label, "label", "put a label on an address, a coin or a transaction; an empty one takes it away"
    )
    label.add_argument("of", metavar="WHAT", help="an address, a coin (txid:number) or a txid")
    label.add_argument("label", metavar="TEXT", help="what you want to be reminded of")
    export = verbs.add(
        wallet_labels, "labels", "list all labels, or export or import them as other wallets do (BIP329)"
    )
    export.add_argument("--export", metavar="FILE", help="write them to FILE, one JSON object per line; -: to stdout")
    export.add_argument(
        "--import", dest="import_", metavar="FILE", help="add those of FILE; nothing if a line is wrong"
    )
    descriptors = verbs.add(
        wallet_descriptors, "descriptors", "show the wallet's descriptors, to watch it with another program"
    )
    descriptors.add_argument(
        "--private",
        action="store_true",
        help="with the private key: whoever sees it can spend all; asks for passphrase",
    )
    words = verbs.add(
        wallet_check_words,
        "check-words",
        "check that you wrote the mnemonic down: asks for some of its words",
        "  p2pnode wallet check-words --count 6\n",
    )
    words.add_argument("--count", type=typed("word_count"), default=4, metavar="N", help="how many words (4)")


def _rate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fee-rate", type=typed("fee_rate"), metavar="SAT/VB", help="by default what the chain asks")


def _coins(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--coin", type=typed("coin"), action="append", default=[], metavar="TXID:NUMBER", help=about)


def wallet_balance(args: argparse.Namespace) -> int:
    """`p2pnode wallet balance`."""
    return ask(args, lambda node: busy("Reading the wallet", node.balance()))


def wallet_address(args: argparse.Namespace) -> int:
    """`p2pnode wallet address`."""

    async def act(node: Client) -> schema.Response:
        made = await busy("Making an address", node.address(args.label))
        if args.qr and not as_json(args):
            from p2pnode.console.qr import payment_code

            print(payment_code(made.address))
        return made

    return ask(args, act)


def wallet_send(args: argparse.Namespace) -> int:
    """`p2pnode wallet send`."""
    from p2pnode.console import requests

    async def act(node: Client) -> schema.Response | None:
        if not sure(args, requests.send_question(args)):
            return None
        return await busy("Sending", node.send(requests.send(args)))

    return ask(args, act)


def wallet_consolidate(args: argparse.Namespace) -> int:
    """`p2pnode wallet consolidate`."""
    from p2pnode.console import requests

    async def act(node: Client) -> schema.Response | None:
        if not sure(args, "Put the coins together? Whoever looks will know that they are one person's."):
            return None
        return await busy("Sending", node.consolidate(requests.consolidation(args)))

    return ask(args, act)


def wallet_bump(args: argparse.Namespace) -> int:
    """`p2pnode wallet bump`."""
    from p2pnode.console import requests

    request = requests.bump(args)

    async def act(node: Client) -> schema.Response | None:
        if not sure(args, f"Raise the fee of {request.txid}?"):
            return None
        return await busy("Sending", node.bump(request))

    return ask(args, act)


def wallet_freeze(args: argparse.Namespace) -> int:
    """`p2pnode wallet freeze`."""
    return ask(args, lambda node: busy("Setting aside", node.freeze(args.coins)))


def wallet_thaw(args: argparse.Namespace) -> int:
    """`p2pnode wallet thaw`."""
    return ask(args, lambda node: busy("Giving back", node.freeze(args.coins, frozen=False)))


def wallet_label(args: argparse.Namespace) -> int:
    """`p2pnode wallet label`."""
    from p2pnode.console import requests

    record = requests.label(args)
    return ask(args, lambda node: busy("Keeping the label", node.set_labels([record])))


def wallet_labels(args: argparse.Namespace) -> int:
    """`p2pnode wallet labels`."""
    from p2pnode.console import labelfile

    async def act(node: Client) -> schema.Response | None:
        if args.import_ is not None:
            await busy("Importing labels", labelfile.import_(node, args.import_))
        found = await busy("Reading labels", node.labels())
        if args.export is not None:
            labelfile.export(found, args.export)
        return found

    return ask(args, act, quiet=args.export == "-")


def wallet_descriptors(args: argparse.Namespace) -> int:
    """`p2pnode wallet descriptors`."""
    if not args.private:
        return ask(args, lambda node: busy("Reading the wallet", node.descriptors()))
    from p2pnode.console import requests, safekeeping
    from p2pnode.console.tables import show

    show(safekeeping.private_descriptors(requests.settings(args), requests.config_file(args)), as_json=as_json(args))
    return 0


def wallet_check_words(args: argparse.Namespace) -> int:
    """`p2pnode wallet check-words`."""
    from p2pnode.console import requests, safekeeping

    safekeeping.check_words(requests.settings(args), requests.config_file(args), args.count)
    return 0


def wallet_history(args: argparse.Namespace) -> int:
    """`p2pnode wallet history`."""
    return ask(args, lambda node: busy("Reading the wallet", node.history(args.limit)))


def wallet_utxos(args: argparse.Namespace) -> int:
    """`p2pnode wallet utxos`."""
    return ask(args, lambda node: busy("Reading the wallet", node.utxos()))
