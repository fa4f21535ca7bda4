"""From parsed arguments to what the node is asked: settings, requests, and the questions before what is final."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from p2pnode.api import schema as s
from p2pnode.config import load
from p2pnode.console import inputs
from p2pnode.console.inputs import BadInput
from p2pnode.money import format_minor, format_sats
from protocol.offer import volume

R = TypeVar("R", bound=s.Request)

_SETTING_FLAGS: Final = {
    "datadir": "data_dir",
    "network": "network",
    "role": "roles",
    "port": "node.port",
    "seed": "node.seeds",
    "api_port": "api.port",
    "chain_url": "chain.url",
    "log_level": "log.level",
}


def settings(args: argparse.Namespace) -> dict[str, object]:
    """The flags that are settings, by their dotted key; `--set` gives way to a flag of its own."""
    found: dict[str, object] = dict(getattr(args, "set", None) or [])
    given = {key: getattr(args, flag, None) for flag, key in _SETTING_FLAGS.items()}
    return found | {key: value for key, value in given.items() if value is not None}


def config_file(args: argparse.Namespace) -> Path | None:
    """The file of `--config`."""
    name = getattr(args, "config", None)
    return None if name is None else Path(name)


def data_dir(args: argparse.Namespace) -> Path:
    """The folder of the node that is meant. Raises BadConfig."""
    return load(flags=settings(args), file=config_file(args), environ=os.environ).data_dir


# --- requests ------------------------------------------------------------------------------------------------------


def draft(args: argparse.Namespace) -> s.OfferDraft:
    """What `offer create` asks for. Raises BadInput, BadPrice."""
    price, limit, currency = inputs.price_and_currency(args.price, args.margin, args.limit, args.currency)
    least, most = args.amount
    return _make(
        s.OfferDraft,
        side=args.side,
        amount_min_sats=least,
        amount_max_sats=most,
        currency=currency,
        price=price,
        margin_ppm=args.margin,
        price_limit=limit,
        methods=inputs.details(args.method, args.detail, _path(args.details_file)),
        escrow_types=args.escrow_type,
        **_terms(args),
    )


def edit(args: argparse.Namespace, present: s.OfferView) -> s.OfferEdit:
    """What `offer edit` asks for, given the offer as it is. Raises BadInput, BadPrice."""
    if args.price is not None and args.margin is not None:
        raise BadInput("give --price or --margin, not both")
    methods = None
    if args.method or args.detail or args.details_file is not None:
        named = args.method or ([] if args.details_file is not None else present.methods)
        methods = inputs.details(named, args.detail, _path(args.details_file))
    changes = _make(
        s.OfferEdit,
        amount_min_sats=None if args.amount is None else args.amount[0],
        amount_max_sats=None if args.amount is None else args.amount[1],
        price=None if args.price is None else inputs.price_of(args.price, present.currency),
        margin_ppm=args.margin,
        price_limit=None if args.limit is None else inputs.price_of(args.limit, present.currency),
        methods=methods,
        **_terms(args),
    )
    if changes == s.OfferEdit():
        raise BadInput("nothing to change: give at least one of the terms")
    return changes


def offer_filter(args: argparse.Namespace) -> s.OfferFilter:
    """What `offer list` asks for. Raises BadInput."""
    return _make(
        s.OfferFilter,
        mine=args.mine,
        side=args.side,
        currency=args.currency,
        method=args.method,
        amount_sats=args.amount,
        limit=args.limit,
    )


def take(args: argparse.Namespace, offer: s.OfferView) -> s.TakeRequest:
    """What `offer take` asks for. It is bound to the version of the offer that was shown. Raises BadInput, BadPrice."""
    amount = args.amount
    if amount is None:
        if offer.amount_min_sats != offer.amount_max_sats:
            least, most = format_sats(offer.amount_min_sats), format_sats(offer.amount_max_sats)
            raise BadInput(f"say how much: this offer is for {least} to {most} BTC")
        amount = offer.amount_max_sats
    method = args.method
    file = _path(args.details_file)
    if method is None:
        if len(offer.methods) != 1:
            raise BadInput(f"choose one with --method: this offer accepts {', '.join(offer.methods)}")
        method = offer.methods[0]
    (mine,) = inputs.details([method], args.detail, file)
    return _make(
        s.TakeRequest,
        amount_sats=amount,
        method=mine.method,
        details=mine.details,
        sequence=offer.sequence,
        price=None if args.price is None else inputs.price_of(args.price, offer.currency),
        arbiter=args.arbiter,
        backup=args.backup,
        escrow_type=args.escrow_type,
        fee_rate_sats_per_kvb=args.fee_rate,
        payout_address=args.payout_address,
    )


def send(args: argparse.Namespace) -> s.SendRequest:
    """What `wallet send` asks for. Raises BadInput."""
    return _make(
        s.SendRequest,
        address=args.address,
        fee_rate_sats_per_kvb=args.fee_rate,
        coins=args.coin,
        amount_sats=args.amount,
        keep=("amount_sats",),
    )


def consolidation(args: argparse.Namespace) -> s.ConsolidateRequest:
    """What `wallet consolidate` asks for."""
    return _make(s.ConsolidateRequest, below_sats=args.below, coins=args.coin, fee_rate_sats_per_kvb=args.fee_rate)


def bump(args: argparse.Namespace) -> s.BumpRequest:
    """What `wallet bump` asks for. Raises BadInput."""
    txid = args.txid.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", txid):
        raise BadInput(f"“{args.txid[:80]}” is not a txid: it has 64 hex digits")
    return _make(s.BumpRequest, txid=txid, fee_rate_sats_per_kvb=args.fee_rate)


def label(args: argparse.Namespace) -> s.LabelRecord:
    """What `wallet label` asks for: what is labelled tells its type. Raises BadInput."""
    what = args.of.strip()
    kind = "addr"
    if re.fullmatch(r"[0-9a-fA-F]{64}(:[0-9]{1,9})?", what):
        what = what.lower()
        kind = "output" if ":" in what else "tx"
    return _make(s.LabelRecord, type=kind, ref=what, label=args.label)


def announcement(args: argparse.Namespace) -> s.AnnounceRequest:
    """What `arbiter announce` asks for. Raises BadInput."""
    return _make(
        s.AnnounceRequest,
        fee_ppm=args.fee,
        fee_floor_sats=args.fee_floor,
        fee_cap_sats=args.fee_cap,
        currencies=args.currency,
        methods=args.method,
        languages=args.language or ["en"],
        max_amount_sats=args.max_amount,
        response_blocks=args.response,
        policy=args.policy,
        lifetime_seconds=args.expires,
    )


# --- questions -----------------------------------------------------------------------------------------------------


def take_question(offer: s.OfferView, request: s.TakeRequest) -> str:
    """What the user is asked before a take."""
    amount = request.amount_sats or offer.amount_max_sats
    deal = "Sell" if offer.side == "buy" else "Buy"
    text = f"{deal} {format_sats(amount)} BTC by {request.method}"
    if offer.price_minor_per_btc is not None:
        money = format_minor(volume(amount, offer.price_minor_per_btc), offer.currency)
        text += f" for {money} {offer.currency} (at {offer.price})"
    if request.payout_address is not None:
        text += f", a release paid to {request.payout_address}"
    return f"{text}?"


def release_question(trade: s.TradeView) -> str:
    """What the seller is asked before a release."""
    return (
        f"Has {trade.volume} {trade.currency} arrived on your account by {trade.method}? "
        f"Releasing {format_sats(trade.amount_sats)} BTC can't be undone. Release?"
    )


def send_question(args: argparse.Namespace) -> str:
    """What the user is asked before a payment."""
    everything = f"all of {len(args.coin)} coins" if args.coin else "everything that is spendable"
    amount = everything if args.amount is None else f"{format_sats(args.amount)} BTC"
    return f"Send {amount} to {args.address}?"


def confirm(question: str, *, ask: Callable[[str], str] = input) -> bool:
    """Whether the user says yes; no answer is no."""
    try:
        return ask(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _terms(args: argparse.Namespace) -> dict[str, Any]:
    buyer = args.buyer_deposit if args.buyer_deposit is not None else args.deposit
    seller = args.seller_deposit if args.seller_deposit is not None else args.deposit
    return {
        "payment_window_blocks": args.window,
        "buyer_deposit_ppm": buyer,
        "seller_deposit_ppm": seller,
        "arbiters": args.arbiter,
        "confirmations": args.confirmations,
        "terms": args.terms,
        "min_completed_trades": args.min_trades,
        "lifetime_seconds": args.expires,
        "payout_address": args.payout_address,
    }


def _make(cls: type[R], *, keep: tuple[str, ...] = (), **values: Any) -> R:  # noqa: ANN401  (each its own type)
    """The request with these fields; None is "not given" and leaves the default, but for `keep`. Raises BadInput."""
    given = {name: value for name, value in values.items() if value is not None or name in keep}
    try:
        return msgspec.convert(msgspec.to_builtins(given), cls)
    except msgspec.ValidationError as e:
        text, _, place = str(e).partition(" - at `$.")
        name = place.rstrip("`").replace("_", " ")
        raise BadInput(f"{name or 'the request'}: {text[:1].lower()}{text[1:]}") from None


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)
