"""The command line: `p2pnode VERB ...`. It starts a node, or talks to a running one through `p2pnode.client`.

Each verb is one function from parsed arguments to an exit code. What a verb needs is imported when it runs, so that
`--help` is quick. Results go to stdout, as a table or with `--json` as one JSON document; progress and errors go to
stderr. An error is one line that says what to do, and an exit code that scripts can rely on; a traceback never shows.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from p2pnode.console.dispute_parser import NAMES as DISPUTE_VERBS
from p2pnode.console.parser import build_parser

if TYPE_CHECKING:
    from p2pnode.client import Client, schema

T = TypeVar("T")

UNHAPPY = frozenset({"declined", "cancelled", "anomalous"})
"""Phases that make `--wait` end with exit code 4."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = build_parser().parse_args(sys.argv[1:] if argv is None else argv)
    try:
        code = VERBS[args.verb](args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:  # noqa: BLE001  (the outermost frame: a person gets one line, whatever it was)
        return _failed(e, as_json=_json(args))
    return code


def _failed(error: Exception, *, as_json: bool) -> int:
    from p2pnode.console.failure import tell

    return tell(error, as_json=as_json)


# --- the node ----------------------------------------------------------------------------------------------------


def init(args: argparse.Namespace) -> int:
    """`p2pnode init`."""
    from p2pnode.console import requests, setup

    made = setup.init(
        requests.settings(args),
        requests.config_file(args),
        restore=args.restore,
        no_passphrase=args.no_passphrase,
        with_extra=args.mnemonic_passphrase,
        birthday=args.birthday,
    )
    setup.show(made, as_json=_json(args))
    return 0


def recover(args: argparse.Namespace) -> int:
    """`p2pnode recover`."""
    from pathlib import Path

    from p2pnode.console import recover as recovery

    view = recovery.recover(args)
    if not _sure(args, recovery.question(view)):
        print("Nothing was done.", file=sys.stderr)
        return 1
    if args.out is not None:
        recovery.write_out(view, Path(args.out))
    recovery.show(view, as_json=_json(args))
    return 0


def run(args: argparse.Namespace) -> int:
    """`p2pnode run`."""
    from p2pnode.console import launch, requests

    launch.run(requests.settings(args), requests.config_file(args))
    return 0


def backup(args: argparse.Namespace) -> int:
    """`p2pnode backup`."""
    from p2pnode.console import requests, safekeeping

    made = safekeeping.make_backup(requests.settings(args), requests.config_file(args), args.file)
    safekeeping.tell_backup(made, as_json=_json(args))
    return 0


def restore(args: argparse.Namespace) -> int:
    """`p2pnode restore`."""
    from p2pnode.console import requests, safekeeping, setup

    made = safekeeping.restore(
        requests.settings(args),
        requests.config_file(args),
        args.file,
        words=args.words,
        no_passphrase=args.no_passphrase,
        with_extra=args.mnemonic_passphrase,
    )
    setup.show(made, as_json=_json(args))
    return 0


def demo(args: argparse.Namespace) -> int:
    """`p2pnode demo`."""
    from p2pnode.demo import main as play

    return play(
        as_json=_json(args),
        keep=args.keep,
        escrow_type=args.escrow_type,
        single=args.single,
        dispute=args.dispute,
    )


def stop(args: argparse.Namespace) -> int:
    """`p2pnode stop`."""

    async def act(node: Client) -> schema.Response:
        from p2pnode.console import requests
        from p2pnode.console.progress import wait_gone

        answer = await node.stop()
        if not args.no_wait:
            await _busy("Waiting for the node to stop", wait_gone(requests.data_dir(args), args.timeout or 60.0))
        return answer

    return _ask(args, act)


# --- offers ------------------------------------------------------------------------------------------------------


def offer_create(args: argparse.Namespace) -> int:
    """`p2pnode offer create`."""
    from p2pnode.console import requests

    draft = requests.draft(args)
    return _ask(args, lambda node: _busy("Publishing the offer", node.offer_create(draft)))


def offer_list(args: argparse.Namespace) -> int:
    """`p2pnode offer list`."""
    from p2pnode.console import requests

    wanted = requests.offer_filter(args)
    return _ask(args, lambda node: _busy("Looking up offers", node.offers(wanted)))


def offer_show(args: argparse.Namespace) -> int:
    """`p2pnode offer show`."""
    return _ask(args, lambda node: _busy("Looking up the offer", node.offer(args.offer)))


def offer_edit(args: argparse.Namespace) -> int:
    """`p2pnode offer edit`."""
    from p2pnode.console import requests

    async def act(node: Client) -> schema.Response:
        present = await node.offer(args.offer)
        return await _busy("Publishing the offer", node.offer_edit(present.id, requests.edit(args, present)))

    return _ask(args, act)


def offer_revoke(args: argparse.Namespace) -> int:
    """`p2pnode offer revoke`."""
    return _ask(args, lambda node: _busy("Withdrawing the offer", node.offer_revoke(args.offer)))


def offer_take(args: argparse.Namespace) -> int:
    """`p2pnode offer take`."""
    from p2pnode.console import requests

    async def act(node: Client) -> schema.Response | None:
        offer = await _busy("Looking up the offer", node.offer(args.offer))
        request = requests.take(args, offer)
        if not _sure(args, requests.take_question(offer, request)):
            return None
        trade = await _busy("Taking the offer", node.offer_take(offer.id, request))
        return await _wait(args, node, trade)

    return _ask(args, act)


# --- trades ------------------------------------------------------------------------------------------------------


def trade_list(args: argparse.Namespace) -> int:
    """`p2pnode trade list`."""
    return _ask(args, lambda node: _busy("Reading trades", node.trades(open_only=args.open)))


def trade_show(args: argparse.Namespace) -> int:
    """`p2pnode trade show`."""

    async def act(node: Client) -> schema.Response:
        return await _wait(args, node, await _busy("Reading the trade", node.trade(args.trade)))

    return _ask(args, act)


def trade_pay(args: argparse.Namespace) -> int:
    """`p2pnode trade pay`."""

    async def act(node: Client) -> schema.Response:
        return await _wait(args, node, await _busy("Telling the seller", node.trade_pay(args.trade, args.note)))

    return _ask(args, act)


def trade_release(args: argparse.Namespace) -> int:
    """`p2pnode trade release`."""

    async def act(node: Client) -> schema.Response | None:
        from p2pnode.console.requests import release_question

        view = await _busy("Reading the trade", node.trade(args.trade))
        if not _sure(args, release_question(view)):
            return None
        return await _wait(args, node, await _busy("Releasing the coins", node.trade_release(view.id)))

    return _ask(args, act)


def trade_cancel(args: argparse.Namespace) -> int:
    """`p2pnode trade cancel`."""
    return _ask(args, lambda node: _busy("Leaving the trade", node.trade_cancel(args.trade, args.reason)))


def trade_psbt(args: argparse.Namespace) -> int:
    """`p2pnode trade psbt`."""
    from pathlib import Path

    from p2pnode.console import psbt, requests

    view = psbt.trade_psbt(args, requests.data_dir(args))
    if args.out is not None:
        psbt.write_out(view, Path(args.out))
    psbt.show(view, as_json=_json(args))
    return 0


def dispute(args: argparse.Namespace) -> int:
    """`p2pnode dispute ...`, `p2pnode trade chat`, `p2pnode trade extend`."""
    from p2pnode.console.disputing import act

    return act(args, _ask, _sure)


# --- wallet, peers, arbiters ---------------------------------------------------------------------------------------


def wallet_send(args: argparse.Namespace) -> int:
    """`p2pnode wallet send`."""
    from p2pnode.console import requests

    async def act(node: Client) -> schema.Response | None:
        if not _sure(args, requests.send_question(args)):
            return None
        return await _busy("Sending", node.send(requests.send(args)))

    return _ask(args, act)


def wallet_balance(args: argparse.Namespace) -> int:
    """`p2pnode wallet balance`."""
    return _ask(args, lambda node: _busy("Reading the wallet", node.balance()))


def wallet_address(args: argparse.Namespace) -> int:
    """`p2pnode wallet address`."""

    async def act(node: Client) -> schema.Response:
        made = await _busy("Making an address", node.address(args.label))
        if args.qr and not _json(args):
            from p2pnode.console.qr import payment_code

            print(payment_code(made.address))
        return made

    return _ask(args, act)


def wallet_consolidate(args: argparse.Namespace) -> int:
    """`p2pnode wallet consolidate`."""
    from p2pnode.console import requests

    async def act(node: Client) -> schema.Response | None:
        if not _sure(args, "Put the coins together? Whoever looks will know that they are one person's."):
            return None
        return await _busy("Sending", node.consolidate(requests.consolidation(args)))

    return _ask(args, act)


def wallet_bump(args: argparse.Namespace) -> int:
    """`p2pnode wallet bump`."""
    from p2pnode.console import requests

    request = requests.bump(args)

    async def act(node: Client) -> schema.Response | None:
        if not _sure(args, f"Raise the fee of {request.txid}?"):
            return None
        return await _busy("Sending", node.bump(request))

    return _ask(args, act)


def wallet_freeze(args: argparse.Namespace) -> int:
    """`p2pnode wallet freeze`."""
    return _ask(args, lambda node: _busy("Setting aside", node.freeze(args.coins)))


def wallet_thaw(args: argparse.Namespace) -> int:
    """`p2pnode wallet thaw`."""
    return _ask(args, lambda node: _busy("Giving back", node.freeze(args.coins, frozen=False)))


def wallet_label(args: argparse.Namespace) -> int:
    """`p2pnode wallet label`."""
    from p2pnode.console import requests

    record = requests.label(args)
    return _ask(args, lambda node: _busy("Keeping the label", node.set_labels([record])))


def wallet_labels(args: argparse.Namespace) -> int:
    """`p2pnode wallet labels`."""
    from p2pnode.console import labelfile

    async def act(node: Client) -> schema.Response | None:
        if args.import_ is not None:
            await _busy("Importing labels", labelfile.import_(node, args.import_))
        found = await _busy("Reading labels", node.labels())
        if args.export is not None:
            labelfile.export(found, args.export)
        return found

    return _ask(args, act, quiet=args.export == "-")


def wallet_descriptors(args: argparse.Namespace) -> int:
    """`p2pnode wallet descriptors`."""
    if not args.private:
        return _ask(args, lambda node: _busy("Reading the wallet", node.descriptors()))
    from p2pnode.console import requests, safekeeping
    from p2pnode.console.tables import show

    show(safekeeping.private_descriptors(requests.settings(args), requests.config_file(args)), as_json=_json(args))
    return 0


def wallet_check_words(args: argparse.Namespace) -> int:
    """`p2pnode wallet check-words`."""
    from p2pnode.console import requests, safekeeping

    safekeeping.check_words(requests.settings(args), requests.config_file(args), args.count)
    return 0


def wallet_history(args: argparse.Namespace) -> int:
    """`p2pnode wallet history`."""
    return _ask(args, lambda node: _busy("Reading the wallet", node.history(args.limit)))


def wallet_utxos(args: argparse.Namespace) -> int:
    """`p2pnode wallet utxos`."""
    return _ask(args, lambda node: _busy("Reading the wallet", node.utxos()))


def info(args: argparse.Namespace) -> int:
    """`p2pnode info`."""
    return _ask(args, lambda node: _busy("Asking the node", node.info()))


def peer_list(args: argparse.Namespace) -> int:
    """`p2pnode peer list`."""
    return _ask(args, lambda node: _busy("Asking the node", node.peers()))


def peer_add(args: argparse.Namespace) -> int:
    """`p2pnode peer add`."""
    return _ask(args, lambda node: _busy("Calling the peer", node.peer_add(args.address)))


def arbiter_announce(args: argparse.Namespace) -> int:
    """`p2pnode arbiter announce`."""
    from p2pnode.console import requests

    request = requests.announcement(args)
    return _ask(args, lambda node: _busy("Publishing the announcement", node.announce(request)))


def arbiter_list(args: argparse.Namespace) -> int:
    """`p2pnode arbiter list`."""
    return _ask(args, lambda node: _busy("Looking up arbiters", node.arbiters(args.currency, args.method)))


# --- how a verb talks to the node and to the user -----------------------------------------------------------------


def _ask(
    args: argparse.Namespace, act: Callable[[Client], Awaitable[schema.Response | None]], *, quiet: bool = False
) -> int:
    """Run `act` with a client of the node, show what comes back unless `quiet`, and return the exit code."""
    import asyncio

    from p2pnode.client import Client
    from p2pnode.console import requests
    from p2pnode.console.tables import show

    async def talk() -> schema.Response | None:
        async with Client.open(requests.data_dir(args)) as node:
            return await act(node)

    view = asyncio.run(talk())
    if view is None:
        print("Nothing was done.", file=sys.stderr)
        return 1
    if not quiet:
        show(view, as_json=_json(args))
    failed = getattr(args, "wait", False) and getattr(view, "phase", "") in UNHAPPY
    return 4 if failed else 0


async def _busy(text: str, work: Awaitable[T]) -> T:
    from p2pnode.console.progress import busy

    return await busy(text, work)


async def _wait(args: argparse.Namespace, node: Client, trade: schema.TradeView) -> schema.TradeView:
    if not args.wait:
        return trade
    from p2pnode.console.progress import follow_trade

    return await follow_trade(node, trade.id, timeout=args.timeout)


def _sure(args: argparse.Namespace, question: str) -> bool:
    """Ask before what can't be undone, if there is a person to ask."""
    if args.yes or _json(args) or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    from p2pnode.console.requests import confirm

    return confirm(question)


def _json(args: argparse.Namespace) -> bool:
    return bool(getattr(args, "json", False))


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "init": init,
    "recover": recover,
    "run": run,
    "info": info,
    "stop": stop,
    "backup": backup,
    "restore": restore,
    "demo": demo,
    "offer create": offer_create,
    "offer list": offer_list,
    "offer show": offer_show,
    "offer take": offer_take,
    "offer edit": offer_edit,
    "offer revoke": offer_revoke,
    "trade list": trade_list,
    "trade show": trade_show,
    "trade pay": trade_pay,
    "trade release": trade_release,
    "trade cancel": trade_cancel,
    "trade psbt": trade_psbt,
    "wallet balance": wallet_balance,
    "wallet address": wallet_address,
    "wallet send": wallet_send,
    "wallet consolidate": wallet_consolidate,
    "wallet bump": wallet_bump,
    "wallet freeze": wallet_freeze,
    "wallet thaw": wallet_thaw,
    "wallet label": wallet_label,
    "wallet labels": wallet_labels,
    "wallet descriptors": wallet_descriptors,
    "wallet check-words": wallet_check_words,
    "wallet history": wallet_history,
    "wallet utxos": wallet_utxos,
    "peer list": peer_list,
    "peer add": peer_add,
    "arbiter announce": arbiter_announce,
    "arbiter list": arbiter_list,
    **dict.fromkeys(DISPUTE_VERBS, dispute),
}

if __name__ == "__main__":
    sys.exit(main())
