"""Carries out the verbs of `console.dispute_parser`, through the node's API; `verify` needs no node."""

from __future__ import annotations

import argparse
import sys
from base64 import b64decode
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from escrow.coins import txid_text
from escrow.judge import EscrowChecks
from p2pnode.api import dispute_schema as d
from p2pnode.api import evidence_schema as e
from p2pnode.api.schema import Response
from p2pnode.client import ApiError, Client
from p2pnode.console import evidence
from p2pnode.console.cells import clean
from p2pnode.console.inputs import BadInput
from p2pnode.money import format_percent, format_sats
from p2pnode.services.case_views import finding_views
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


async def _evidence(node: Client, args: argparse.Namespace, _: Sure) -> Response | None:
    """Without words the list; `show N` or `N` one of them; with a text something new for the arbiter."""
    words = list(args.words)
    if args.trade == "show":
        # `evidence show N`: of the only case there is.
        words = ["show", *words]
        args.trade = await _only_case(node)
    if args.save is not None and (not words or words[0] == "show"):
        return await _save_evidence(node, args, words[1:])
    match words:
        case []:
            return await _exhibits(node, args.trade)
        case ["show", number]:
            return await _exhibit(node, args.trade, _number(number))
        case [text]:
            return await node.dispute_evidence(args.trade, text, await _upload(node, args.attach))
        case _:
            raise BadInput("name a case to list its evidence, `show N` to look at one, or one text to show the arbiter")


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 10_000:
        raise BadInput(f"{text[:20]} is no number of an exhibit: see `p2pnode dispute evidence CASE`")
    return int(text[:6])


async def _only_case(node: Client) -> str:
    found = (await node.cases(open_only=True)).cases
    if len(found) != 1:
        raise BadInput(f"there are {len(found)} open cases: `p2pnode dispute evidence CASE show N`")
    return found[0].id


async def _of_case(node: Client, identity: str) -> bool:
    """Whether an id is that of a case of ours; else it is that of a trade."""
    try:
        await node.case_evidence(identity)
    except ApiError as error:
        if error.problem.status in (400, 403, 404, 409):
            return False
        raise
    return True


async def _exhibits(node: Client, identity: str) -> e.EvidenceList:
    return await (node.case_evidence(identity) if await _of_case(node, identity) else node.evidence(identity))


async def _exhibit(node: Client, identity: str, number: int) -> e.EvidenceFile:
    if await _of_case(node, identity):
        return await node.case_evidence_file(identity, number)
    return await node.evidence_file(identity, number)


async def _save_evidence(node: Client, args: argparse.Namespace, chosen: Sequence[str]) -> Response:
    found = await _exhibits(node, args.trade)
    numbers = [_number(text) for text in chosen] or [item.number for item in found.items if item.here]
    files = [await _exhibit(node, args.trade, number) for number in numbers]
    for name in evidence.save(files, Path(args.save)):
        print(clean(name), file=sys.stderr)  # noqa: T201
    return e.EvidenceList(items=tuple(file.item for file in files))


async def _preview(node: Client, args: argparse.Namespace, _: Sure) -> Response:
    """What decisions pay: the one that is named beside what both ask for, or all from nothing to everything."""
    case = await node.case(args.case)
    rows = []
    if args.buyer_share is not None:
        quote = await node.case_quote(args.case, _quoted(args, args.buyer_share, args.forfeit))
        rows.append(d.PreviewRow(label="so", buyer_share_ppm=args.buyer_share, quote=quote))
    else:
        rows += [await _row(node, args, "", tenth * 100_000) for tenth in range(10, -1, -1)]
    for label, party in (("as the buyer asks", case.buyer), ("as the seller asks", case.seller)):
        if party.claim is not None:
            rows.append(await _row(node, args, label, party.claim.buyer_share_ppm))
    return d.Preview(case=case.id, escrow_value_sats=case.escrow_value_sats, rows=tuple(rows))


async def _row(node: Client, args: argparse.Namespace, label: str, share: int) -> d.PreviewRow:
    try:
        quote = await node.case_quote(args.case, _quoted(args, share, 0))
    except ApiError as error:
        return d.PreviewRow(label=label, buyer_share_ppm=share, quote=None, trouble=error.detail)
    return d.PreviewRow(label=label, buyer_share_ppm=share, quote=quote)


def _quoted(args: argparse.Namespace, share: int, forfeit: int) -> d.QuoteRequest:
    return d.QuoteRequest(buyer_share_ppm=share, forfeit_ppm=forfeit, fee_rate_sats_per_kvb=args.fee_rate)


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
        kept = await node.file_upload(Path(name).name, evidence.read(name, MAX_ATTACHMENT))
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

    verdict = verify_bundle(evidence.read(args.file, MAX_BUNDLE), EscrowChecks())
    show(_verified(verdict), as_json=bool(getattr(args, "json", False)))
    return 0


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
    "preview": _preview,
    "rule": _rule,
    "save": _save,
}
