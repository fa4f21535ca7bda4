"""`p2pnode persona`, `p2pnode arbiter bond`, and what `p2pnode trade` does with receipts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from p2pnode.console.asking import ask, busy, sure
from p2pnode.console.grammar import Verbs, trade_id, typed, yes

if TYPE_CHECKING:
    from p2pnode.api.schema.personas import StandingName
    from p2pnode.client import Client, schema


def add(top: Verbs) -> None:
    """Add the family's verbs."""
    verbs = top.group("persona", "Counterparties: their history, and your own word on them.")
    verbs.add(persona_list, "list", "list those that you have noted, trusted or blocked")
    show = verbs.add(
        persona_show,
        "show",
        "show a persona: receipts, ratings, bond, and what it would cost to forge them",
        "  p2pnode persona show persona1...\n",
    )
    _persona(show)
    note = verbs.add(persona_note, "note", "keep a note on a persona, for yourself")
    _persona(note)
    note.add_argument("text", metavar="TEXT", help='at most 500 characters; "" deletes it')
    for name, about in (
        ("trust", "lift the limits for personas without history from this one"),
        ("untrust", "take that back"),
        ("block", "hide a persona's offers and refuse its takes; as an arbiter it is never named"),
        ("unblock", "take that back"),
    ):
        _persona(verbs.add(persona_stand, name, about))


def trade_verbs(verbs: Verbs) -> None:
    """What `p2pnode trade` has of it."""
    rate = verbs.add(
        trade_rate,
        "rate",
        "rate the counterparty of a completed trade",
        '  p2pnode trade rate 81bd02f7 good --text "paid within the hour"\n',
    )
    trade_id(rate)
    rate.add_argument("mark", choices=("good", "neutral", "bad"))
    rate.add_argument("--text", default="", metavar="TEXT", help="at most 120 characters, for everybody to read")
    receipt = verbs.add(
        trade_receipt, "receipt", "show who has signed a trade's receipt; with --publish, consent to its publication"
    )
    trade_id(receipt)
    receipt.add_argument("--publish", action="store_true", help="let everybody see this trade, if the other agrees too")
    yes(receipt)


def bond_verbs(arbiter: Verbs) -> None:
    """`p2pnode arbiter bond`; a trader's persona may have one as well."""
    verbs = arbiter.group("bond", "Coins locked for a time, so that your name costs something.")
    create = verbs.add(
        bond_create,
        "create",
        "lock coins until a block; nobody, you included, can spend them before it",
        "  p2pnode arbiter bond create --amount 0.05btc --until 985000\n"
        "  p2pnode arbiter bond create --amount 0.05btc --for 26000\n",
    )
    create.add_argument("--amount", type=typed("positive_sats"), required=True, metavar="AMOUNT")
    until = create.add_mutually_exclusive_group(required=True)
    until.add_argument(
        "--until", type=typed("block_height"), metavar="HEIGHT", help="the block that unlocks it, rounded up"
    )
    until.add_argument(
        "--for", dest="blocks", type=typed("block_height"), metavar="BLOCKS", help="so many blocks from now, rounded up"
    )
    create.add_argument("--fee-rate", type=typed("fee_rate"), metavar="SAT/VB")
    yes(create)
    verbs.add(bond_list, "list", "list your bonds and when they unlock")
    spend = verbs.add(bond_spend, "spend", "take a bond back whose block has come")
    spend.add_argument("bond", metavar="TXID", help="its transaction, or the first 8 digits or more")
    spend.add_argument("--to", metavar="ADDRESS", help="where to (a fresh address of the wallet)")
    spend.add_argument("--fee-rate", type=typed("fee_rate"), metavar="SAT/VB")
    restore = verbs.add(bond_restore, "restore", "find your bonds from the mnemonic alone")
    restore.add_argument(
        "--from", dest="height", type=typed("block_height"), default=0, metavar="HEIGHT", help="look from there on (0)"
    )


def _persona(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("persona", metavar="PERSONA", help="persona1...")


def _who(args: argparse.Namespace) -> str:
    """The persona that is meant. Raises BadId."""
    from p2pnode.console import inputs

    return inputs.persona(args.persona)


def persona_list(args: argparse.Namespace) -> int:
    """`p2pnode persona list`."""
    return ask(args, lambda node: busy("Asking the node", node.personas()))


def persona_show(args: argparse.Namespace) -> int:
    """`p2pnode persona show`."""
    return ask(args, lambda node: busy("Looking the persona up", node.persona(_who(args))))


def persona_note(args: argparse.Namespace) -> int:
    """`p2pnode persona note`."""
    return ask(args, lambda node: busy("Keeping the note", node.persona_note(_who(args), args.text)))


def persona_stand(args: argparse.Namespace) -> int:
    """`p2pnode persona trust`, `untrust`, `block` and `unblock`."""
    verb = str(args.verb).rpartition(" ")[2]
    standing: StandingName = "trusted" if verb == "trust" else "blocked" if verb == "block" else ""
    return ask(args, lambda node: busy("Telling the node", node.persona_standing(_who(args), standing)))


def trade_rate(args: argparse.Namespace) -> int:
    """`p2pnode trade rate`."""
    return ask(args, lambda node: busy("Signing the rating", node.trade_rate(args.trade, args.mark, args.text)))


def trade_receipt(args: argparse.Namespace) -> int:
    """`p2pnode trade receipt`."""

    async def act(node: Client) -> schema.Response | None:
        if not args.publish:
            return await busy("Reading the receipt", node.trade_receipt(args.trade))
        if not sure(args, "Let everybody see that this escrow was yours, and with whom? It can't be taken back."):
            return None
        return await busy("Signing the receipt", node.trade_publish(args.trade))

    return ask(args, act)


def bond_create(args: argparse.Namespace) -> int:
    """`p2pnode arbiter bond create`."""
    from p2pnode.api.schema.personas import BondRequest
    from p2pnode.money import format_sats

    request = BondRequest(
        amount_sats=args.amount, until_height=args.until, blocks=args.blocks, fee_rate_sats_per_kvb=args.fee_rate
    )

    async def act(node: Client) -> schema.Response | None:
        until = f"until block {args.until:,}" if args.until is not None else f"for {args.blocks:,} blocks"
        if not sure(args, f"Lock {format_sats(args.amount)} BTC {until}? Nobody can undo it before."):
            return None
        return await busy("Locking the coins", node.bond_create(request))

    return ask(args, act)


def bond_list(args: argparse.Namespace) -> int:
    """`p2pnode arbiter bond list`."""
    return ask(args, lambda node: busy("Looking at the chain", node.bonds()))


def bond_spend(args: argparse.Namespace) -> int:
    """`p2pnode arbiter bond spend`."""
    from p2pnode.api.schema.personas import BondSpend

    request = BondSpend(address=args.to, fee_rate_sats_per_kvb=args.fee_rate)
    return ask(args, lambda node: busy("Taking the bond back", node.bond_spend(args.bond, request)))


def bond_restore(args: argparse.Namespace) -> int:
    """`p2pnode arbiter bond restore`."""
    return ask(args, lambda node: busy("Searching the chain", node.bond_search(args.height)))
