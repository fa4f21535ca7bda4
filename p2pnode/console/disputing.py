"""Carries out the verbs of `console.dispute_parser`, through the node's API; `verify` needs no node."""

from __future__ import annotations

import argparse
from base64 import b64decode
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from escrow.coins import txid_text
from escrow.judge import EscrowChecks
from p2pnode.api import dispute_schema as d
from p2pnode.api.schema import Response
from p2pnode.client import Client
from p2pnode.console.inputs import BadInput
from p2pnode.money import format_percent, format_sats
from p2pnode.services.cases import finding_views
from p2pnode.services.dispute_views import REASONS, attachment_view, claim_text
from protocol.attachment import MAX_ATTACHMENT
from protocol.bundle import MAX_BUNDLE, Verdict, verify_bundle
from protocol.case_messages import CaseOpening
from protocol.identity import persona_text

T = TypeVar("T")


class Ask(Protocol):
    """Run something with a client of the node, show what comes back, and return the exit code."""

    def __call__(
        self, args: argparse.Namespace, act: Callable[[Client], Awaitable[Response | None]], *, quiet: bool = False
    ) -> int:
        """As `console.asking.ask`."""
        ...


Sure = Callable[[argparse.Namespace, str], bool]


def act(args: argparse.Namespace, ask: Ask, sure: Sure) -> int:
    """One verb."""
    name = str(args.verb).rpartition(" ")[2]
    if args.verb == "dispute verify":
        return _verify(args)
    if args.verb == "trade extend":
        return ask(args, lambda node: node.trade_extend(args.trade, args.blocks, args.reason))

    async def talk(node: Client) -> Response | None:
        return await _VERBS[name](node, args, sure)

    return ask(args, talk)


# --- traders -----------------------------------------------------------------------------------------------------


async def _open(node: Client, args: argparse.Namespace, sure: Sure) -> Response | None:
    if not sure(args, "Ask the arbiter? It will see the whole trade, payment details too."):
        return None
    return await node.dispute_open(args.trade, args.text, args.buyer_share)


async def _evidence(node: Client, args: argparse.Namespace, _: Sure) -> Response:
    return await node.dispute_evidence(args.trade, args.text, await _upload(node, args.attach))


async def _show(node: Client, args: argparse.Namespace, _: Sure) -> Response:
    return await node.dispute(args.trade)


async def _chat(node: Client, args: argparse.Namespace, _: Sure) -> Response:
    if args.text is None:
        return await node.dispute(args.trade)
    files = await _upload(node, args.attach)
    return await node.trade_chat(args.trade, args.text, arbiter=args.arbiter, files=files)


async def _upload(node: Client, names: Sequence[str]) -> list[d.FileRef]:
    found = []
    for name in names:
        kept = await node.file_upload(Path(name).name, _read(name, MAX_ATTACHMENT))
        found.append(d.FileRef(content=kept.content, name=kept.name))
    return found


async def _save(node: Client, args: argparse.Namespace, _: Sure) -> Response:
    view = await node.file(args.content)
    _write_new(Path(args.file), b64decode(view.data))
    return view


async def _settle(node: Client, args: argparse.Namespace, sure: Sure) -> Response | None:
    if args.accept is not None:
        view = await node.dispute(args.trade)
        found = [p for p in view.proposals if p.txid.startswith(args.accept.lower()) and p.by != "you"]
        if len(found) != 1:
            raise BadInput("no proposal of the counterparty, or more than one, begins like that")
        (proposal,) = found
        shares = f"{format_sats(proposal.buyer_sats)} BTC for the buyer, {format_sats(proposal.seller_sats)} BTC for"
        if not sure(args, f"End the trade with {shares} the seller? This can't be undone."):
            return None
        return await node.trade_accept(view.trade, proposal.txid)
    what = "to cancel the trade" if args.cancel else f"{format_sats(args.buyer)} BTC for the buyer"
    if not sure(args, f"Sign a proposal: {what}? It can't be taken back: the counterparty may use it at any time."):
        return None
    request = d.SettleRequest(buyer_due_sats=args.buyer, fee_rate_sats_per_kvb=args.fee_rate)
    return await node.trade_settle(args.trade, request)


async def _complete(node: Client, args: argparse.Namespace, _: Sure) -> Response:
    return await node.dispute_complete(args.trade)


async def _export(node: Client, args: argparse.Namespace, _: Sure) -> Response:
    view = await (node.case_bundle(args.trade) if args.case else node.dispute_bundle(args.trade))
    _write_new(Path(args.file), b64decode(view.bundle))
    return view


def _write_new(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(data)
    except OSError as e:
        raise BadInput(f"{path} can't be written: {e.strerror}") from e


# --- arbiters ----------------------------------------------------------------------------------------------------


async def _queue(node: Client, args: argparse.Namespace, _: Sure) -> Response:
    return await node.cases(open_only=args.open)


async def _case(node: Client, args: argparse.Namespace, _: Sure) -> Response:
    return await node.case(args.case)


async def _accept(node: Client, args: argparse.Namespace, _: Sure) -> Response:
    return await node.case_accept(args.case)


async def _decline(node: Client, args: argparse.Namespace, sure: Sure) -> Response | None:
    if not sure(args, "Decline the case? You can't decide it any more."):
        return None
    return await node.case_decline(args.case, args.text)


async def _extend(node: Client, args: argparse.Namespace, _: Sure) -> Response:
    return await node.case_extend(args.case, args.blocks, args.text)


async def _write(node: Client, args: argparse.Namespace, _: Sure) -> Response:
    return await node.case_write(args.case, "buy" if args.side == "buyer" else "sell", args.text)


async def _rule(node: Client, args: argparse.Namespace, sure: Sure) -> Response | None:
    """A decision is looked at twice: first as exact amounts, then they are part of the request."""
    shares = {"buyer_share_ppm": args.buyer_share, "forfeit_ppm": args.forfeit, "fee_rate_sats_per_kvb": args.fee_rate}
    quote = await node.case_quote(args.case, d.QuoteRequest(**shares))
    if args.quote:
        return quote
    gets = (
        f"{quote.buyer_sats:,} sat for the buyer, {quote.seller_sats:,} sat for the seller, "
        f"{quote.arbiter_sats:,} sat for you"
    )
    if not sure(args, f"Rule so: {gets}? You rule once, and it can't be taken back."):
        return None
    request = d.RuleRequest(
        **shares, reason=args.reason, text=args.text, buyer_sats=quote.buyer_sats, seller_sats=quote.seller_sats
    )
    return await node.case_rule(args.case, request)


# --- anybody -----------------------------------------------------------------------------------------------------


def _verify(args: argparse.Namespace) -> int:
    """Exit code 0 for a bundle that holds, whomever it shows to be in the wrong."""
    from p2pnode.console.tables import show  # noqa: PLC0415  (tables show what this module makes)

    verdict = verify_bundle(_read(args.file, MAX_BUNDLE), EscrowChecks())
    show(_verified(verdict), as_json=bool(getattr(args, "json", False)))
    return 0


def _read(name: str, most: int) -> bytes:
    path = Path(name)
    try:
        if path.stat().st_size > most:
            raise BadInput(f"{name} has more than {most:,} bytes")
        return path.read_bytes()
    except OSError as e:
        raise BadInput(f"{name} can't be read: {e.strerror}") from e


def _verified(verdict: Verdict) -> d.Verified:
    case = verdict.case
    names = {case.contract.buyer.persona: "buyer", case.contract.seller.persona: "seller"}
    claims = [
        f"{names[m.envelope.signer]}: {claim_text(m.payload.claim)}"
        for conversation in verdict.conversations
        for m in conversation.messages
        if isinstance(m.payload, CaseOpening)
    ]
    rulings = [
        f"{format_percent(r.ruling.buyer_share)} of the amount to the buyer ({REASONS[r.ruling.reason]}: {r.text}), "
        f"payout {txid_text(r.payout_txid)}"
        for r in verdict.rulings
    ]
    return d.Verified(
        network=verdict.network.name.lower(),
        contract_id=case.contract_id.hex(),
        buyer=persona_text(case.contract.buyer.persona),
        seller=persona_text(case.contract.seller.persona),
        messages=len(case.transcript.messages),
        left_out=case.transcript.omitted,
        buyer_phase=verdict.buyer_phase or "",
        seller_phase=verdict.seller_phase or "",
        claims=tuple(claims),
        rulings=tuple(rulings),
        attachments=tuple(attachment_view(a, {a.content: present}.__getitem__) for a, present in verdict.attachments),
        findings=finding_views(verdict),
    )


_VERBS: dict[str, Callable[[Client, argparse.Namespace, Sure], Awaitable[Response | None]]] = {
    "open": _open,
    "evidence": _evidence,
    "show": _show,
    "chat": _chat,
    "settle": _settle,
    "complete": _complete,
    "export": _export,
    "queue": _queue,
    "case": _case,
    "accept": _accept,
    "decline": _decline,
    "extend": _extend,
    "write": _write,
    "rule": _rule,
    "save": _save,
}
