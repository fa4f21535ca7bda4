"""The grammar of the command line: verbs, flags, help texts and examples. It imports next to nothing: help is quick.

The parsed `verb` is the full name (`offer take`); `cli.VERBS` has its function. The flags that every verb takes may
stand before or after it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final, NoReturn

from p2pnode.console.dispute_parser import dispute_verbs, talk_verbs

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


class _Parser(argparse.ArgumentParser):
    """Refuses in one line, with the way to the help."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message} (try `{self.prog} --help`)\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole grammar."""
    top = _Parser(
        prog="p2pnode",
        description="A decentralised peer-to-peer bitcoin exchange: one node, and the commands to use it.",
        epilog=f"{EXAMPLES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _common(top)
    top.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = _Verbs(top)
    _node_verbs(verbs)
    _offer_verbs(verbs)
    _trade_verbs(verbs)
    _recover_verb(verbs)
    _wallet_verbs(verbs)
    _other_verbs(verbs)
    return top


class _Verbs:
    """Adds verbs below a parser; those of a group (`offer`) below the group."""

    def __init__(self, parser: argparse.ArgumentParser, group: str = "") -> None:
        self._group = group
        self._below = parser.add_subparsers(
            dest="group_verb" if group else "top_verb", required=True, metavar="VERB", parser_class=_Parser
        )

    def add(self, name: str, about: str, example: str = "") -> argparse.ArgumentParser:
        """A verb."""
        parser: argparse.ArgumentParser = self._below.add_parser(
            name,
            help=about,
            description=about[:1].upper() + about[1:] + ".",
            epilog=f"examples:\n{example}" if example else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.set_defaults(verb=f"{self._group} {name}".strip())
        _common(parser)
        return parser

    def group(self, name: str, about: str) -> _Verbs:
        """A group of verbs."""
        parser = self._below.add_parser(name, help=about, description=about, allow_abbrev=False)
        return _Verbs(parser, name)


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


def _common(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: a flag given before the verb is not overwritten by the verb's own default.
    group = parser.add_argument_group("everywhere")
    none = argparse.SUPPRESS
    group.add_argument("--datadir", metavar="DIR", default=none, help="the node's folder (~/.p2pnode/NETWORK)")
    group.add_argument("--network", metavar="NAME", default=none, help="mainnet, testnet, signet or regtest")
    group.add_argument("--config", metavar="FILE", default=none, help="a configuration file, not the folder's own")
    group.add_argument("--json", action="store_true", default=none, help="print one JSON document")


def _typed(name: str) -> Callable[[str], Any]:
    """The parser of an argument, by its name in `console.inputs`; loaded when there is something to parse."""

    def parse(text: str) -> Any:  # noqa: ANN401  (what it parses to is the argument's)
        from p2pnode.console import inputs  # noqa: PLC0415  (loads msgspec; help must not)

        return inputs.argument(getattr(inputs, name), text)

    return parse


def _node_verbs(verbs: _Verbs) -> None:
    init = verbs.add(
        "init",
        "set up a node: its folder, its configuration, and a new or restored mnemonic",
        "  p2pnode init --network signet\n"
        "  p2pnode init --config configs/arbiter.toml --datadir ~/arbiter\n"
        "  p2pnode init --restore words.txt --birthday 2026-11-21      the words of an earlier node\n"
        "  p2pnode init --network regtest --no-passphrase --json\n\n"
        "The passphrase is asked for, or taken from P2PNODE_PASSPHRASE or keystore.passphrase_file.\n",
    )
    _settings(init)
    init.add_argument(
        "--restore", nargs="?", const="-", metavar="FILE", help="take the mnemonic from FILE or standard input"
    )
    init.add_argument(
        "--birthday",
        type=_typed("birthday"),
        metavar="HEIGHT|DATE",
        help="with --restore: no coin is older than this (the first block with segwit)",
    )
    init.add_argument(
        "--mnemonic-passphrase",
        action="store_true",
        help="the mnemonic has a passphrase of its own (BIP39): ask for it, or take P2PNODE_MNEMONIC_PASSPHRASE",
    )
    init.add_argument("--no-passphrase", action="store_true", help="leave the mnemonic unencrypted on disk")
    run = verbs.add(
        "run",
        "start the node and run until Ctrl-C or `p2pnode stop`",
        "  p2pnode run --network signet --seed node1...@seed.example.org:27352\n"
        "  p2pnode run --set chain.zmq=tcp://127.0.0.1:28332 --log-level debug\n\n"
        "Settings: the folder's config.toml, then the environment (P2PNODE_CHAIN_URL=...), then these flags.\n",
    )
    _settings(run)
    verbs.add("info", "who the node is and how it does")
    stop = verbs.add("stop", "shut the node down in order and wait until it is gone")
    stop.add_argument("--no-wait", action="store_true", help="return at once")
    _timeout(stop)
    backup = verbs.add(
        "backup",
        "write trades, wallet and settings to one encrypted file; the node may run",
        "  p2pnode backup ~/p2pnode.backup\n\n"
        "Only the mnemonic opens it, so keep the words too, and elsewhere. Make a new one whenever a trade moves on.\n",
    )
    backup.add_argument("file", metavar="FILE", help="where to; a file that is there is replaced")
    restore = verbs.add(
        "restore",
        "set a node up from its backup and its mnemonic",
        "  p2pnode restore ~/p2pnode.backup --words words.txt --datadir ~/p2pnode-new\n\n"
        "Never run the old node and the restored one at the same time: they are the same trader.\n",
    )
    _settings(restore)
    restore.add_argument("file", metavar="FILE", help="what `p2pnode backup` wrote")
    restore.add_argument("--words", metavar="FILE", default="-", help="the mnemonic (from standard input)")
    restore.add_argument(
        "--mnemonic-passphrase",
        action="store_true",
        help="the mnemonic has a passphrase of its own (BIP39): ask for it, or take P2PNODE_MNEMONIC_PASSPHRASE",
    )
    restore.add_argument("--no-passphrase", action="store_true", help="leave the mnemonic unencrypted on disk")
    demo = verbs.add(
        "demo",
        "a whole trade between real nodes on a regtest chain of its own",
        "  p2pnode demo\n  p2pnode demo --keep      leave everything running and say what to try next\n",
    )
    demo.add_argument("--keep", action="store_true", help="leave everything running")
    demo.add_argument(
        "--escrow-type", type=int, choices=(1, 2), default=2, help="1: 2-of-3; 2: with a backup arbiter (2)"
    )
    demo.add_argument("--dispute", action="store_true", help="trades that go wrong, each to its end on the chain")
    demo.add_argument("--single", action="store_true", help="no deposits: the seller funds the escrow alone")


def _settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("settings")
    group.add_argument("--role", action="append", metavar="ROLE", help="trader, arbiter or bootstrap; may be repeated")
    group.add_argument("--port", metavar="N", help="port for peers, TCP and UDP; 0: any free one")
    group.add_argument("--seed", action="append", metavar="[KEY@]HOST:PORT", help="a node to enter by; may be repeated")
    group.add_argument("--api-port", metavar="N", help="port of the local API; 0: any free one")
    group.add_argument("--chain-url", metavar="URL", help="bitcoind's RPC, like http://127.0.0.1:8332")
    group.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    group.add_argument(
        "--set", action="append", type=_typed("setting"), metavar="KEY=VALUE", help="any setting, like trade.max_open=3"
    )


def _offer_verbs(top: _Verbs) -> None:
    verbs = top.group("offer", "Publish, find and take offers.")
    create = verbs.add(
        "create",
        "sign an offer and publish it",
        '  p2pnode offer create sell 0.01-0.05 --price "65000.00 EUR" --method sepa --detail iban=DE02...\n'
        "  p2pnode offer create buy 2000000sat --margin=-1.5% --limit 66000 --currency EUR --details-file pay.toml\n\n"
        "A details file keeps your account out of the shell's history; it is TOML:\n"
        '  [sepa]\n  iban = "DE02..."\n  holder = "Ann Example"\n',
    )
    create.add_argument("side", choices=("buy", "sell"), help="whether you buy or sell bitcoin")
    create.add_argument("amount", type=_typed("amount_range"), help="0.01, 0.01-0.05, or 1000000sat")
    _terms(create, editing=False)
    listing = verbs.add(
        "list",
        "list the book, best price first, or your own offers",
        "  p2pnode offer list --side sell --currency EUR --amount 0.02\n  p2pnode offer list --mine --json\n",
    )
    listing.add_argument("--mine", action="store_true", help="your own offers, ended ones too")
    listing.add_argument("--side", choices=("buy", "sell"), help="what the maker does: list sell offers to buy from")
    listing.add_argument("--currency", type=_typed("currency"), metavar="CODE")
    listing.add_argument("--method", metavar="METHOD")
    listing.add_argument("--amount", type=_typed("positive_sats"), help="only offers whose range holds it")
    listing.add_argument("--limit", type=_typed("page_limit"), default=50, metavar="N", help="at most this many (50)")
    _offer_id(verbs.add("show", "show one offer in full"))
    take = verbs.add(
        "take",
        "take an offer: begin a trade",
        "  p2pnode offer take 3f2a9c01d4 0.02 --detail iban=DE02... --detail holder=Bob --wait\n"
        "  p2pnode offer take 3f2a9c01d4 --details-file pay.toml --price 65000 --yes\n",
    )
    _offer_id(take)
    take.add_argument(
        "amount", nargs="?", type=_typed("positive_sats"), help="0.02 or 2000000sat, where you can choose"
    )
    take.add_argument("--method", metavar="METHOD", help="the payment method, where the offer has several")
    _details(take)
    take.add_argument("--price", help="refuse if the offer's price is no longer this")
    take.add_argument("--arbiter", metavar="PERSONA", help="one of the offer's arbiters (its first)")
    take.add_argument("--backup", metavar="PERSONA", help="the backup arbiter (the offer's next)")
    take.add_argument("--escrow-type", type=int, choices=(1, 2), help="1: 2-of-3; 2: with a backup arbiter")
    take.add_argument("--fee-rate", type=_typed("fee_rate"), metavar="SAT/VB", help="fee rate of the escrow")
    _waits(take)
    _yes(take)
    edit = verbs.add(
        "edit",
        "change an offer of yours and publish it again",
        '  p2pnode offer edit 3f2a9c01d4 --price "66000.00 EUR" --expires 7d\n',
    )
    _offer_id(edit)
    edit.add_argument("--amount", type=_typed("amount_range"), help="0.01, 0.01-0.05, or 1000000sat")
    _terms(edit, editing=True)
    _offer_id(verbs.add("revoke", "withdraw an offer of yours"))


def _terms(parser: argparse.ArgumentParser, *, editing: bool) -> None:
    group = parser.add_argument_group("terms")
    group.add_argument("--price", help='a fixed price: "65000.00 EUR"')
    group.add_argument("--margin", type=_typed("margin"), metavar="PERCENT", help="or a margin on the market price")
    group.add_argument("--limit", help="with --margin: the worst price that you accept")
    if not editing:
        group.add_argument("--currency", type=_typed("currency"), metavar="CODE", help="with --margin: EUR")
    group.add_argument("--method", action="append", default=[], metavar="METHOD", help="a payment method; repeatable")
    _details(group)
    group.add_argument("--window", type=_typed("blocks"), metavar="BLOCKS", help="blocks within which to pay (144)")
    group.add_argument("--deposit", type=_typed("share"), metavar="PERCENT", help="deposit of both sides (15%%)")
    group.add_argument("--buyer-deposit", type=_typed("share"), metavar="PERCENT")
    group.add_argument("--seller-deposit", type=_typed("share"), metavar="PERCENT")
    group.add_argument("--arbiter", action="append", metavar="PERSONA", help="an arbiter that you accept; repeatable")
    group.add_argument("--confirmations", type=_typed("confirmations"), metavar="N", help="least confirmations (1)")
    group.add_argument("--terms", metavar="TEXT", help="text for the counterparty")
    group.add_argument("--min-trades", type=_typed("count"), metavar="N", help="completed trades asked of a taker (0)")
    group.add_argument("--expires", type=_typed("duration"), metavar="TIME", help="how long it lives: 12h, 7d (7d)")
    if not editing:
        group.add_argument("--escrow-type", type=int, action="append", choices=(1, 2), help="1: 2-of-3; 2: with backup")


def _trade_verbs(top: _Verbs) -> None:
    verbs = top.group("trade", "Follow trades and move them on.")
    listing = verbs.add("list", "list trades, newest first")
    listing.add_argument("--open", action="store_true", help="only those that have not ended")
    show = verbs.add(
        "show",
        "show one trade: terms, payment details, chain, steps",
        "  p2pnode trade show 81bd02f7 --wait      follow it until it needs you or has ended\n",
    )
    _trade_id(show)
    _waits(show)
    pay = verbs.add(
        "pay",
        "buyer: say that you have paid, and sign the payout",
        '  p2pnode trade pay 81bd02f7 --note "from account ending 4711"\n',
    )
    _trade_id(pay)
    pay.add_argument("--note", default="", metavar="TEXT", help="a line for the seller, at most 140 characters")
    _waits(pay)
    release = verbs.add("release", "seller: the money has arrived, release the coins; this can't be undone")
    _trade_id(release)
    _waits(release)
    _yes(release)
    cancel = verbs.add("cancel", "leave a trade that is not funded")
    _trade_id(cancel)
    cancel.add_argument("--reason", default="", metavar="TEXT", help="a line for the counterparty")
    _psbt_verb(verbs)
    talk_verbs(verbs, _typed)
    dispute_verbs(top.group("dispute", "Settle, or ask an arbiter; decide as one; verify."), _typed, _yes)


def _psbt_verb(verbs: _Verbs) -> None:
    psbt = verbs.add(
        "psbt",
        "PSBTs of a trade, for coins whose keys are in another wallet",
        "  p2pnode trade psbt 81bd02f7 --out funding.psbt          what is to be signed\n"
        "  p2pnode trade psbt 81bd02f7 --import signed.psbt        what the other wallet made of it\n"
        "  p2pnode trade psbt 81bd02f7 --payout                    the release\n",
    )
    _trade_id(psbt)
    psbt.add_argument("--import", dest="import_file", metavar="FILE", help="give the signed funding back")
    psbt.add_argument("--payout", action="store_true", help="the release instead of the funding")
    psbt.add_argument("--out", metavar="FILE", help="write the PSBT there as well")


def _recover_verb(top: _Verbs) -> None:
    recover = top.add(
        "recover",
        "spend an escrow with the mnemonic and the contract file alone: no node, no network",
        "  p2pnode recover 81bd02f7.json release --words words.txt\n"
        "  p2pnode recover 81bd02f7.json refund --fee-rate 12 --out refund.psbt\n"
        "  p2pnode recover 81bd02f7.json sign --psbt refund.psbt\n"
        "  p2pnode recover 81bd02f7.json ruling --buyer-share 70% --fee-to bc1q...    as its arbiter\n\n"
        "Contract files are in the folder's `contracts`. Nothing is broadcast: it prints the transaction, or a PSBT\n"
        "where the other side has to sign yet.\n",
    )
    recover.add_argument("file", metavar="FILE", help="the trade's contract file")
    recover.add_argument(
        "path",
        choices=("release", "refund", "settle", "ruling", "sign"),
        help="release: as the trade went; refund: everybody's own coins back; settle: another division that both agree "
        "on; ruling: what an arbiter decided; sign: what a PSBT of the other side says",
    )
    recover.add_argument("--words", metavar="FILE", default="-", help="the mnemonic (from standard input)")
    recover.add_argument(
        "--mnemonic-passphrase",
        action="store_true",
        help="the mnemonic has a passphrase of its own (BIP39): ask for it, or take P2PNODE_MNEMONIC_PASSPHRASE",
    )
    recover.add_argument("--psbt", action="append", default=[], metavar="FILE", help="a PSBT that others have signed")
    recover.add_argument(
        "--signature", action="append", default=[], metavar="HEX", help="a signature of the other side"
    )
    recover.add_argument("--fee-rate", type=_typed("fee_rate"), metavar="SAT/VB", help="within the contract's band")
    recover.add_argument("--buyer-gets", type=_typed("sats"), metavar="AMOUNT", help="settle: of amount and deposits")
    recover.add_argument("--buyer-share", type=_typed("share"), metavar="PERCENT", help="ruling: of the amount")
    recover.add_argument(
        "--forfeit", type=_typed("share"), default=0, metavar="PERCENT", help="ruling: of the loser's deposit (0%%)"
    )
    recover.add_argument("--fee-to", metavar="ADDRESS", help="ruling: where the arbiter's fee is paid to")
    recover.add_argument("--backup", action="store_true", help="ruling: the backup arbiter's")
    recover.add_argument("--funded", type=_typed("block_height"), metavar="HEIGHT", help="the block of the funding")
    recover.add_argument("--tip", type=_typed("block_height"), metavar="HEIGHT", help="the present block")
    recover.add_argument("--out", metavar="FILE", help="write the transaction or PSBT there as well")
    _yes(recover)


def _wallet_verbs(top: _Verbs) -> None:
    verbs = top.group("wallet", "The node's own coins.")
    verbs.add("balance", "show the balance")
    address = verbs.add("address", "make a fresh receiving address")
    address.add_argument("--label", default="", metavar="TEXT", help="a note for yourself")
    address.add_argument("--qr", action="store_true", help="draw it as a QR code as well")
    send = verbs.add(
        "send",
        "pay to an address",
        "  p2pnode wallet send bc1q... 0.01\n  p2pnode wallet send bc1q... all --fee-rate 3.5\n",
    )
    send.add_argument("address", help="where to")
    send.add_argument("amount", type=_typed("send_amount"), help="0.01, 1000000sat, or all")
    _rate(send)
    _coins(send, "pay with exactly this coin; repeatable")
    _yes(send)
    merge = verbs.add(
        "consolidate",
        "make one coin of many, while fees are low",
        "  p2pnode wallet consolidate --below 0.001 --fee-rate 1\n",
    )
    merge.add_argument("--below", type=_typed("positive_sats"), metavar="AMOUNT", help="only coins smaller than this")
    _coins(merge, "only this coin; repeatable")
    _rate(merge)
    _yes(merge)
    bump = verbs.add(
        "bump",
        "raise the fee of a transaction that waits: yours, a trade's funding or payout, or one that pays you",
        f"  p2pnode wallet bump {'1f' * 32} --fee-rate 12\n",
    )
    bump.add_argument("txid", metavar="TXID", help="the transaction")
    _rate(bump)
    _yes(bump)
    history = verbs.add("history", "list transactions, newest first")
    history.add_argument("--limit", type=_typed("history_limit"), default=50, metavar="N", help="at most (50)")
    verbs.add("utxos", "list unspent coins, largest first")
    freeze = verbs.add("freeze", "set coins aside: nothing spends them until they are thawed")
    freeze.add_argument(
        "coins", type=_typed("coin"), nargs="+", metavar="COIN", help="txid:number, as `utxos` lists it"
    )
    thaw = verbs.add("thaw", "give frozen coins back")
    thaw.add_argument("coins", type=_typed("coin"), nargs="+", metavar="COIN", help="txid:number, as `utxos` lists it")
    label = verbs.add("label", "put a label on an address, a coin or a transaction; an empty one takes it away")
    label.add_argument("of", metavar="WHAT", help="an address, a coin (txid:number) or a txid")
    label.add_argument("label", metavar="TEXT", help="what you want to be reminded of")
    export = verbs.add("labels", "list all labels, or export or import them as other wallets do (BIP329)")
    export.add_argument("--export", metavar="FILE", help="write them to FILE, one JSON object per line; -: to stdout")
    export.add_argument(
        "--import", dest="import_", metavar="FILE", help="add those of FILE; nothing if a line is wrong"
    )
    descriptors = verbs.add("descriptors", "show the wallet's descriptors, to watch it with another program")
    descriptors.add_argument(
        "--private",
        action="store_true",
        help="with the private key: whoever sees it can spend all; asks for passphrase",
    )
    words = verbs.add(
        "check-words",
        "check that you wrote the mnemonic down: asks for some of its words",
        "  p2pnode wallet check-words --count 6\n",
    )
    words.add_argument("--count", type=_typed("word_count"), default=4, metavar="N", help="how many words (4)")


def _rate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fee-rate", type=_typed("fee_rate"), metavar="SAT/VB", help="by default what the chain asks")


def _coins(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--coin", type=_typed("coin"), action="append", default=[], metavar="TXID:NUMBER", help=about)


def _other_verbs(top: _Verbs) -> None:
    peer = top.group("peer", "Other nodes.")
    peer.add("list", "list open sessions and known nodes")
    add = peer.add("add", "get to know a node", "  p2pnode peer add node1...@198.51.100.7:7352\n")
    add.add_argument("address", metavar="[KEY@]HOST:PORT")
    arbiter = top.group("arbiter", "Arbiters, and being one.")
    listing = arbiter.add("list", "list the arbiters that this node knows")
    listing.add_argument("--currency", type=_typed("currency"), metavar="CODE")
    listing.add_argument("--method", metavar="METHOD")
    announce = arbiter.add(
        "announce",
        "announce yourself as an arbiter; the node must have the role",
        "  p2pnode arbiter announce --fee 1% --fee-floor 5000sat --max-amount 1btc --currency EUR --language en\n",
    )
    announce.add_argument("--fee", type=_typed("share"), required=True, metavar="PERCENT", help="share of the amount")
    announce.add_argument("--fee-floor", type=_typed("sats"), default=0, metavar="AMOUNT", help="least fee (0)")
    announce.add_argument(
        "--fee-cap", type=_typed("sats"), default=10_000_000, metavar="AMOUNT", help="greatest fee (0.1 BTC)"
    )
    announce.add_argument(
        "--max-amount", type=_typed("positive_sats"), default=100_000_000, metavar="AMOUNT", help="up to (1 BTC)"
    )
    announce.add_argument("--currency", type=_typed("currency"), action="append", default=[], metavar="CODE")
    announce.add_argument("--method", action="append", default=[], metavar="METHOD")
    announce.add_argument("--language", action="append", default=[], metavar="CODE", help="repeatable (en)")
    announce.add_argument("--response", type=_typed("blocks"), default=144, metavar="BLOCKS", help="answer in (144)")
    announce.add_argument("--policy", default="", metavar="TEXT", help="how you judge, for those who choose you")
    announce.add_argument("--expires", type=_typed("duration"), default=365 * 86_400, metavar="TIME", help="(365d)")


def _offer_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("offer", metavar="OFFER", help="its id, or the first 8 digits or more")


def _trade_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trade", metavar="TRADE", help="its id, or the first 8 digits or more")


def _details(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--detail", action="append", default=[], metavar="[METHOD:]FIELD=VALUE", help="one of your payment details"
    )
    parser.add_argument("--details-file", metavar="FILE", help="your payment details as TOML, a table per method")


def _waits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="follow the trade until it needs you or has ended")
    _timeout(parser)


def _timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", type=_typed("seconds"), metavar="TIME", help="wait no longer than this: 90s, 30m")


def _yes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask before doing it")
