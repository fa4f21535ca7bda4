"""The node: setting up, running, keeping safe."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from p2pnode.console.asking import as_json, ask, busy, sure
from p2pnode.console.grammar import Verbs, settings_flags, timeout, typed, yes

if TYPE_CHECKING:
    from p2pnode.client import Client, schema


def add(verbs: Verbs) -> None:
    """Add the family's verbs."""
    init_verb = verbs.add(
        init,
        "init",
        "set up a node: its folder, its configuration, and a new or restored mnemonic",
        "  p2pnode init --network signet\n"
        "  p2pnode init --config configs/arbiter.toml --datadir ~/arbiter\n"
        "  p2pnode init --restore words.txt --birthday 2026-11-21      the words of an earlier node\n"
        "  p2pnode init --network regtest --no-passphrase --json\n\n"
        "The passphrase is asked for, or taken from P2PNODE_PASSPHRASE or keystore.passphrase_file.\n",
    )
    settings_flags(init_verb)
    init_verb.add_argument(
        "--restore", nargs="?", const="-", metavar="FILE", help="take the mnemonic from FILE or standard input"
    )
    init_verb.add_argument(
        "--birthday",
        type=typed("birthday"),
        metavar="HEIGHT|DATE",
        help="with --restore: no coin is older than this (the first block with segwit)",
    )
    init_verb.add_argument(
        "--mnemonic-passphrase",
        action="store_true",
        help="the mnemonic has a passphrase of its own (BIP39): ask for it, or take P2PNODE_MNEMONIC_PASSPHRASE",
    )
    init_verb.add_argument("--no-passphrase", action="store_true", help="leave the mnemonic unencrypted on disk")
    run_verb = verbs.add(
        run,
        "run",
        "start the node and run until Ctrl-C or `p2pnode stop`",
        "  p2pnode run --network signet --seed node1...@seed.example.org:27352\n"
        "  p2pnode run --set chain.zmq=tcp://127.0.0.1:28332 --log-level debug\n\n"
        "Settings: the folder's config.toml, then the environment (P2PNODE_CHAIN_URL=...), then these flags.\n",
    )
    settings_flags(run_verb)
    page_verb = verbs.add(page, "page", "print a link to the node's page, for a browser of this machine")
    page_verb.add_argument("--open", action="store_true", help="open it in the browser")
    verbs.add(info, "info", "who the node is and how it does")
    stop_verb = verbs.add(stop, "stop", "shut the node down in order and wait until it is gone")
    stop_verb.add_argument("--no-wait", action="store_true", help="return at once")
    timeout(stop_verb)
    backup_verb = verbs.add(
        backup,
        "backup",
        "write trades, wallet and settings to one encrypted file; the node may run",
        "  p2pnode backup ~/p2pnode.backup\n\n"
        "Only the mnemonic opens it, so keep the words too, and elsewhere. Make a new one whenever a trade moves on.\n",
    )
    backup_verb.add_argument("file", metavar="FILE", help="where to; a file that is there is replaced")
    restore_verb = verbs.add(
        restore,
        "restore",
        "set a node up from its backup and its mnemonic",
        "  p2pnode restore ~/p2pnode.backup --words words.txt --datadir ~/p2pnode-new\n\n"
        "Never run the old node and the restored one at the same time: they are the same trader.\n",
    )
    settings_flags(restore_verb)
    restore_verb.add_argument("file", metavar="FILE", help="what `p2pnode backup` wrote")
    restore_verb.add_argument("--words", metavar="FILE", default="-", help="the mnemonic (from standard input)")
    restore_verb.add_argument(
        "--mnemonic-passphrase",
        action="store_true",
        help="the mnemonic has a passphrase of its own (BIP39): ask for it, or take P2PNODE_MNEMONIC_PASSPHRASE",
    )
    restore_verb.add_argument("--no-passphrase", action="store_true", help="leave the mnemonic unencrypted on disk")
    demo_verb = verbs.add(
        demo,
        "demo",
        "a whole trade between real nodes on a regtest chain of its own",
        "  p2pnode demo\n  p2pnode demo --keep      leave everything running and say what to try next\n",
    )
    demo_verb.add_argument("--keep", action="store_true", help="leave everything running")
    demo_verb.add_argument(
        "--escrow-type", type=int, choices=(1, 2), default=2, help="1: 2-of-3; 2: with a backup arbiter (2)"
    )
    demo_verb.add_argument("--dispute", action="store_true", help="trades that go wrong, each to its end on the chain")
    demo_verb.add_argument("--single", action="store_true", help="no deposits: the seller funds the escrow alone")
    _recover_verb(verbs)


def _recover_verb(top: Verbs) -> None:
    recover_verb = top.add(
        recover,
        "recover",
        "spend an escrow with the mnemonic and the contract file alone: no node, no network",
        "  p2pnode recover 81bd02f7.json release --words words.txt\n"
        "  p2pnode recover 81bd02f7.json refund --fee-rate 12 --out refund.psbt\n"
        "  p2pnode recover 81bd02f7.json sign --psbt refund.psbt\n"
        "  p2pnode recover 81bd02f7.json ruling --buyer-share 70% --fee-to bc1q...    as its arbiter\n\n"
        "Contract files are in the folder's `contracts`. Nothing is broadcast: it prints the transaction, or a PSBT\n"
        "where the other side has to sign yet.\n",
    )
    recover_verb.add_argument("file", metavar="FILE", help="the trade's contract file")
    recover_verb.add_argument(
        "path",
        choices=("release", "refund", "settle", "ruling", "sign"),
        help="release: as the trade went; refund: everybody's own coins back; settle: another division that both agree "
        "on; ruling: what an arbiter decided; sign: what a PSBT of the other side says",
    )
    recover_verb.add_argument("--words", metavar="FILE", default="-", help="the mnemonic (from standard input)")
    recover_verb.add_argument(
        "--mnemonic-passphrase",
        action="store_true",
        help="the mnemonic has a passphrase of its own (BIP39): ask for it, or take P2PNODE_MNEMONIC_PASSPHRASE",
    )
    recover_verb.add_argument(
        "--psbt", action="append", default=[], metavar="FILE", help="a PSBT that others have signed"
    )
    recover_verb.add_argument(
        "--signature", action="append", default=[], metavar="HEX", help="a signature of the other side"
    )
    recover_verb.add_argument("--fee-rate", type=typed("fee_rate"), metavar="SAT/VB", help="within the contract's band")
    recover_verb.add_argument(
        "--buyer-gets", type=typed("sats"), metavar="AMOUNT", help="settle: of amount and deposits"
    )
    recover_verb.add_argument("--buyer-share", type=typed("share"), metavar="PERCENT", help="ruling: of the amount")
    recover_verb.add_argument(
        "--forfeit", type=typed("share"), default=0, metavar="PERCENT", help="ruling: of the loser's deposit (0%%)"
    )
    recover_verb.add_argument("--fee-to", metavar="ADDRESS", help="ruling: where the arbiter's fee is paid to")
    recover_verb.add_argument("--backup", action="store_true", help="ruling: the backup arbiter's")
    recover_verb.add_argument("--funded", type=typed("block_height"), metavar="HEIGHT", help="the block of the funding")
    recover_verb.add_argument("--tip", type=typed("block_height"), metavar="HEIGHT", help="the present block")
    recover_verb.add_argument("--out", metavar="FILE", help="write the transaction or PSBT there as well")
    yes(recover_verb)


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
    setup.show(made, as_json=as_json(args))
    return 0


def run(args: argparse.Namespace) -> int:
    """`p2pnode run`."""
    from p2pnode.console import launch, requests

    launch.run(requests.settings(args), requests.config_file(args))
    return 0


def info(args: argparse.Namespace) -> int:
    """`p2pnode info`."""
    return ask(args, lambda node: busy("Asking the node", node.info()))


def stop(args: argparse.Namespace) -> int:
    """`p2pnode stop`."""

    async def act(node: Client) -> schema.Response:
        from p2pnode.console import requests
        from p2pnode.console.progress import wait_gone

        answer = await node.stop()
        if not args.no_wait:
            await busy("Waiting for the node to stop", wait_gone(requests.data_dir(args), args.timeout or 60.0))
        return answer

    return ask(args, act)


def backup(args: argparse.Namespace) -> int:
    """`p2pnode backup`."""
    from p2pnode.console import requests, safekeeping

    made = safekeeping.make_backup(requests.settings(args), requests.config_file(args), args.file)
    safekeeping.tell_backup(made, as_json=as_json(args))
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
    setup.show(made, as_json=as_json(args))
    return 0


def demo(args: argparse.Namespace) -> int:
    """`p2pnode demo`."""
    from p2pnode.demo import main as play

    return play(
        as_json=as_json(args),
        keep=args.keep,
        escrow_type=args.escrow_type,
        single=args.single,
        dispute=args.dispute,
    )


def recover(args: argparse.Namespace) -> int:
    """`p2pnode recover`."""
    from pathlib import Path

    from p2pnode.console import recover as recovery

    view = recovery.recover(args)
    if not sure(args, recovery.question(view)):
        print("Nothing was done.", file=sys.stderr)
        return 1
    if args.out is not None:
        recovery.write_out(view, Path(args.out))
    recovery.show(view, as_json=as_json(args))
    return 0


def page(args: argparse.Namespace) -> int:
    """`p2pnode page`."""

    async def act(node: Client) -> schema.Response:
        link = await node.page()
        if args.open:
            import webbrowser

            webbrowser.open(link.url)
        return link

    return ask(args, act)
