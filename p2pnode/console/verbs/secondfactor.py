"""`p2pnode 2fa`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from p2pnode.console.asking import as_json, ask, busy, sure
from p2pnode.console.grammar import Verbs, yes

if TYPE_CHECKING:
    from p2pnode.client import Client, schema


def add(top: Verbs) -> None:
    """Add the family's verbs."""
    verbs = top.group("2fa", "A second factor: codes of another device for what moves coins.")
    verbs.add(status, "status", "say whether codes are asked for")
    enable = verbs.add(
        enable_,
        "enable",
        "ask for a code of another device before anything moves, locks or signs away coins",
        "  p2pnode 2fa enable              shows a QR code for an authenticator, and asks for its first code\n"
        "  p2pnode 2fa enable --json       only makes the secret; then: p2pnode 2fa confirm 123456\n",
    )
    yes(enable)
    confirm_verb = verbs.add(confirm, "confirm", "switch it on with the first code of the device")
    confirm_verb.add_argument("digits", metavar="CODE", help="the six digits that the device shows")
    verbs.add(disable, "disable", "switch it off; needs a code")
    reset_verb = verbs.add(
        reset,
        "reset",
        "switch it off without a code: the device is lost; the node must not run",
        "  p2pnode 2fa reset      asks for the keystore's passphrase\n",
    )
    yes(reset_verb)


def status(args: argparse.Namespace) -> int:
    """`p2pnode 2fa status`."""
    return ask(args, lambda node: busy("Asking the node", node.second_factor()))


def enable_(args: argparse.Namespace) -> int:
    """`p2pnode 2fa enable`."""
    from p2pnode.console import codes

    async def act(node: Client) -> schema.Response:
        secret = await node.second_factor_begin()
        if as_json(args) or not sys.stdin.isatty():
            return secret
        codes.show_secret(secret)
        return await codes.confirmed(node)

    return ask(args, act)


def confirm(args: argparse.Namespace) -> int:
    """`p2pnode 2fa confirm`."""
    from p2pnode.console import codes

    digits = codes.digits(args.digits)
    return ask(args, lambda node: node.second_factor_confirm(digits))


def disable(args: argparse.Namespace) -> int:
    """`p2pnode 2fa disable`."""
    return ask(args, lambda node: node.second_factor_remove())


def reset(args: argparse.Namespace) -> int:
    """`p2pnode 2fa reset`."""
    from p2pnode.console import codes, requests

    if not sure(args, "Switch the second factor off? Then whoever uses this machine's login can spend."):
        print("Nothing was done.", file=sys.stderr)
        return 1
    codes.reset(requests.settings(args), requests.config_file(args))
    print("The second factor is off.", file=sys.stderr)
    return 0
