"""The client of the local API: one typed method per route, named like its operation in the OpenAPI document.

    async with Client.open(Path("~/.p2pnode/regtest").expanduser()) as node:
        print(await node.info())

Every write carries a fresh idempotency key, and a write whose answer was lost is asked for once more under the same
key: it is done once. What the node refuses is raised as `ApiError` with the error's stable code; a node that can't be
reached as `NodeUnreachable`.
"""

from __future__ import annotations

import asyncio
import secrets
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiohttp
import msgspec

from p2pnode.api import dispute_schema as d
from p2pnode.api import evidence_schema as e
from p2pnode.api import schema
from p2pnode.api.endpoint import CODE_HEADER, Endpoint, Login, NodeNotRunning, find
from p2pnode.api.errors import NotAuthorized
from p2pnode.clientpersonas import PersonaCalls
from p2pnode.clientpersonas import path_id as _id
from p2pnode.datadir import DataDir
from p2pnode.secondfactor import CodeNeeded
from protocol.errors import P2PError

__all__ = ["ApiError", "Client", "NodeNotRunning", "NodeUnreachable", "P2PError", "schema"]

TIMEOUT: Final = 90.0
"""Seconds for one answer. A lookup in the DHT or a broadcast may take a while."""
WAIT: Final = 25
"""Seconds that one long poll waits."""
_PREFIX: Final = "/api/v1"

A = TypeVar("A", bound=schema.Response)
Code = Callable[[], Awaitable[str]]


class ApiError(Exception):
    """The node answered with a problem document. `code`, `fault` and `action` are those of the P2PError behind it."""

    def __init__(self, problem: schema.Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.code = problem.code
        self.detail = problem.detail
        self.fault = problem.fault
        self.action = problem.action


class NodeUnreachable(P2PError):
    """The node does not answer."""

    code = 1450


class Client(PersonaCalls):
    """A connection to one node's API; an async context manager."""

    def __init__(self, login: Login, *, timeout: float = TIMEOUT, code: Code | None = None) -> None:
        """`timeout`: seconds for one answer; `code`: gives a code of the second factor when one is asked for."""
        self._login = login
        self._code = code
        self._timeout = timeout
        self._http: aiohttp.ClientSession | None = None

    @classmethod
    def open(cls, data_dir: Path, *, timeout: float = TIMEOUT, code: Code | None = None) -> Self:
        """The client of the node of a data directory. Raises DataDirMissing, TooOpen, NodeNotRunning."""
        return cls(find(DataDir(data_dir)), timeout=timeout, code=code)

    @property
    def endpoint(self) -> Endpoint:
        """Where the node answers, and which it is."""
        return self._login.endpoint

    async def __aenter__(self) -> Self:
        """Nothing is sent yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Close the connection. Twice is fine."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    # --- the node -------------------------------------------------------------------------------------------------

    async def info(self) -> schema.NodeView:
        """Who the node is and how it does."""
        return await self._get("/info", schema.NodeView)

    async def stop(self) -> schema.StopView:
        """Begin its shutdown."""
        return await self._write("POST", "/stop", schema.StopView, schema.Empty())

    async def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        raw = await self._send("GET", "/openapi.json", None, {}, None, self._timeout)
        return msgspec.json.decode(raw, type=dict[str, Any])

    # --- offers ---------------------------------------------------------------------------------------------------

    async def offers(self, wanted: schema.OfferFilter | None = None) -> schema.OfferPage:
        """A page of the book or of one's own offers."""
        return await self._get("/offers", schema.OfferPage, wanted)

    async def offer(self, offer: str) -> schema.OfferView:
        """One offer."""
        return await self._get(f"/offers/{_id(offer)}", schema.OfferView)

    async def offer_create(self, draft: schema.OfferDraft) -> schema.OfferView:
        """Publish an offer."""
        return await self._write("POST", "/offers", schema.OfferView, draft)

    async def offer_edit(self, offer: str, changes: schema.OfferEdit) -> schema.OfferView:
        """Publish its next version."""
        return await self._write("PATCH", f"/offers/{_id(offer)}", schema.OfferView, changes)

    async def offer_revoke(self, offer: str) -> schema.OfferView:
        """Withdraw it."""
        return await self._write("DELETE", f"/offers/{_id(offer)}", schema.OfferView)

    async def offer_take(self, offer: str, request: schema.TakeRequest) -> schema.TradeView:
        """Begin a trade."""
        return await self._write("POST", f"/offers/{_id(offer)}/take", schema.TradeView, request)

    # --- trades ---------------------------------------------------------------------------------------------------

    async def trades(self, *, open_only: bool = False) -> schema.TradeList:
        """Trades, newest first."""
        return await self._get("/trades", schema.TradeList, {"open": "true"} if open_only else None)

    async def trade(self, trade: str) -> schema.TradeView:
        """One trade with its steps."""
        return await self._get(f"/trades/{_id(trade)}", schema.TradeView)

    async def trade_pay(self, trade: str, note: str = "") -> schema.TradeView:
        """Buyer: declare the payment."""
        return await self._write("POST", f"/trades/{_id(trade)}/pay", schema.TradeView, schema.PayRequest(note=note))

    async def trade_release(self, trade: str) -> schema.TradeView:
        """Seller: release the coins."""
        return await self._write("POST", f"/trades/{_id(trade)}/release", schema.TradeView, schema.Empty())

    async def trade_raise_fee(self, trade: str, fee_rate: int | None = None) -> schema.TradeView:
        """Propose a higher fee rate (satoshis per 1,000 vB; None: what the chain asks) for the payout that waits."""
        request = schema.RaiseFeeRequest(fee_rate_sats_per_kvb=fee_rate)
        return await self._write("POST", f"/trades/{_id(trade)}/fee", schema.TradeView, request)

    async def trade_cancel(self, trade: str, reason: str = "") -> schema.TradeView:
        """Leave a trade that is not funded."""
        return await self._write(
            "POST", f"/trades/{_id(trade)}/cancel", schema.TradeView, schema.CancelRequest(reason=reason)
        )

    # --- settlements, disputes, cases -------------------------------------------------------------------------------

    async def dispute(self, trade: str) -> d.DisputeView:
        """A trade's settlements, dispute and chat."""
        return await self._get(f"/trades/{_id(trade)}/dispute", d.DisputeView)

    async def dispute_open(self, trade: str, text: str, buyer_share_ppm: int) -> d.DisputeView:
        """Open a dispute, or answer one."""
        request = d.DisputeRequest(text=text, buyer_share_ppm=buyer_share_ppm)
        return await self._write("POST", f"/trades/{_id(trade)}/dispute", d.DisputeView, request)

    async def dispute_evidence(self, trade: str, text: str, files: Sequence[d.FileRef] = ()) -> d.DisputeView:
        """Show something to the arbiter."""
        path = f"/trades/{_id(trade)}/dispute/evidence"
        request = d.EvidenceRequest(text=text, attachments=tuple(files))
        return await self._write("POST", path, d.DisputeView, request)

    async def file_upload(self, name: str, data: bytes) -> d.AttachmentView:
        """Keep a file, to be shown."""
        request = d.FileUpload(name=name, data=b64encode(data).decode())
        return await self._write("POST", "/files", d.AttachmentView, request)

    async def file(self, content: str) -> d.FileData:
        """The bytes of a file that was shown."""
        return await self._get(f"/files/{_id(content)}", d.FileData)

    async def evidence(self, trade: str) -> e.EvidenceList:
        """The files that were shown in a trade."""
        return await self._get(f"/trades/{_id(trade)}/evidence", e.EvidenceList)

    async def evidence_file(self, trade: str, number: int) -> e.EvidenceFile:
        """One of them."""
        return await self._get(f"/trades/{_id(trade)}/evidence/file", e.EvidenceFile, {"number": str(number)})

    async def dispute_complete(self, trade: str) -> d.DisputeView:
        """Complete what the arbiter ruled."""
        return await self._write("POST", f"/trades/{_id(trade)}/dispute/complete", d.DisputeView, schema.Empty())

    async def dispute_bundle(self, trade: str) -> d.BundleView:
        """All that was said and signed."""
        return await self._get(f"/trades/{_id(trade)}/dispute/bundle", d.BundleView)

    async def trade_chat(
        self, trade: str, text: str, *, arbiter: bool = False, files: Sequence[d.FileRef] = ()
    ) -> d.DisputeView:
        """Write to the counterparty, or to the arbiter."""
        request = d.ChatRequest(text=text, arbiter=arbiter, attachments=tuple(files))
        return await self._write("POST", f"/trades/{_id(trade)}/chat", d.DisputeView, request)

    async def trade_settle(self, trade: str, request: d.SettleRequest) -> d.DisputeView:
        """Propose a settlement, or to cancel the trade."""
        return await self._write("POST", f"/trades/{_id(trade)}/settle", d.DisputeView, request)

    async def trade_accept(self, trade: str, txid: str) -> d.DisputeView:
        """Accept a settlement that was proposed."""
        path = f"/trades/{_id(trade)}/settle/accept"
        return await self._write("POST", path, d.DisputeView, d.AcceptRequest(txid=txid))

    async def trade_extend(self, trade: str, blocks: int, reason: str = "") -> d.DisputeView:
        """Buyer: ask for more time to pay; seller: give it."""
        request = d.ExtendRequest(blocks=blocks, reason=reason)
        return await self._write("POST", f"/trades/{_id(trade)}/extend", d.DisputeView, request)

    async def cases(self, *, open_only: bool = False) -> d.CaseList:
        """The arbiter's queue."""
        return await self._get("/cases", d.CaseList, {"open": "true"} if open_only else None)

    async def case(self, case: str) -> d.CaseView:
        """A case with all that was said."""
        return await self._get(f"/cases/{_id(case)}", d.CaseView)

    async def case_evidence(self, case: str) -> e.EvidenceList:
        """The files that were shown in a case."""
        return await self._get(f"/cases/{_id(case)}/evidence", e.EvidenceList)

    async def case_evidence_file(self, case: str, number: int) -> e.EvidenceFile:
        """One of them."""
        return await self._get(f"/cases/{_id(case)}/evidence/file", e.EvidenceFile, {"number": str(number)})

    async def case_quote(self, case: str, request: d.QuoteRequest) -> d.QuoteView:
        """What a decision would pay to whom."""
        return await self._get(f"/cases/{_id(case)}/quote", d.QuoteView, request)

    async def case_bundle(self, case: str) -> d.BundleView:
        """All that was said and signed."""
        return await self._get(f"/cases/{_id(case)}/bundle", d.BundleView)

    async def case_accept(self, case: str) -> d.CaseView:
        """Hear the case."""
        return await self._write("POST", f"/cases/{_id(case)}/accept", d.CaseView, schema.Empty())

    async def case_decline(self, case: str, text: str) -> d.CaseView:
        """Do not decide the case."""
        return await self._write("POST", f"/cases/{_id(case)}/decline", d.CaseView, d.CaseText(text=text))

    async def case_extend(self, case: str, blocks: int, text: str = "") -> d.CaseView:
        """Take more time, once."""
        request = d.CaseExtension(blocks=blocks, text=text)
        return await self._write("POST", f"/cases/{_id(case)}/extend", d.CaseView, request)

    async def case_write(self, case: str, side: schema.SideName, text: str) -> d.CaseView:
        """Write to one party."""
        request = d.CaseLine(side=side, text=text)
        return await self._write("POST", f"/cases/{_id(case)}/write", d.CaseView, request)

    async def case_rule(self, case: str, request: d.RuleRequest) -> d.CaseView:
        """Decide, once and for all."""
        return await self._write("POST", f"/cases/{_id(case)}/rule", d.CaseView, request)

    # --- wallet, peers, arbiters ----------------------------------------------------------------------------------

    async def balance(self) -> schema.BalanceView:
        """The wallet's balance."""
        return await self._get("/wallet/balance", schema.BalanceView)

    async def address(self, label: str = "") -> schema.AddressView:
        """A fresh address."""
        return await self._write("POST", "/wallet/addresses", schema.AddressView, schema.AddressRequest(label=label))

    async def utxos(self) -> schema.UtxoList:
        """Unspent coins."""
        return await self._get("/wallet/utxos", schema.UtxoList)

    async def history(self, limit: int = 50) -> schema.HistoryView:
        """Transactions, newest first."""
        return await self._get("/wallet/history", schema.HistoryView, {"limit": str(limit)})

    async def send(self, request: schema.SendRequest) -> schema.SentView:
        """Pay to an address."""
        return await self._write("POST", "/wallet/send", schema.SentView, request)

    async def consolidate(self, request: schema.ConsolidateRequest) -> schema.SentView:
        """Make one coin of many."""
        return await self._write("POST", "/wallet/consolidate", schema.SentView, request)

    async def bump(self, request: schema.BumpRequest) -> schema.BumpView:
        """Raise the fee of a transaction that waits."""
        return await self._write("POST", "/wallet/bump", schema.BumpView, request)

    async def freeze(self, coins: Sequence[str], *, frozen: bool = True) -> schema.UtxoList:
        """Set coins aside, or give them back."""
        request = schema.FreezeRequest(coins=tuple(coins), frozen=frozen)
        return await self._write("POST", "/wallet/freeze", schema.UtxoList, request)

    async def labels(self) -> schema.LabelList:
        """All labels."""
        return await self._get("/wallet/labels", schema.LabelList)

    async def set_labels(self, labels: Sequence[schema.LabelRecord]) -> schema.LabelList:
        """Keep labels."""
        return await self._write("POST", "/wallet/labels", schema.LabelList, schema.LabelImport(labels=tuple(labels)))

    async def descriptors(self) -> schema.DescriptorsView:
        """The public descriptors."""
        return await self._get("/wallet/descriptors", schema.DescriptorsView)

    async def peers(self) -> schema.PeerList:
        """Sessions and known nodes."""
        return await self._get("/peers", schema.PeerList)

    async def peer_add(self, address: str) -> schema.PeerView:
        """Get to know a node."""
        return await self._write("POST", "/peers", schema.PeerView, schema.PeerAdd(address=address))

    async def arbiters(
        self, currency: str | None = None, method: str | None = None, language: str | None = None
    ) -> schema.ArbiterList:
        """Arbiters that serve a currency and a method, and speak a language; the best first."""
        query = {"currency": currency, "method": method, "language": language}
        return await self._get("/arbiters", schema.ArbiterList, {k: v for k, v in query.items() if v is not None})

    async def announce(self, request: schema.AnnounceRequest) -> schema.ArbiterView:
        """Announce the node's persona as an arbiter."""
        return await self._write("POST", "/arbiters/announcement", schema.ArbiterView, request)

    async def page(self) -> schema.PageLink:
        """A link that logs a browser of this machine in, once."""
        return await self._write("POST", "/page", schema.PageLink, schema.Empty())

    # --- the second factor ----------------------------------------------------------------------------------------

    async def second_factor(self) -> schema.FactorView:
        """Whether codes are asked for."""
        return await self._get("/second-factor", schema.FactorView)

    async def second_factor_begin(self) -> schema.FactorSecret:
        """Make a secret for a device."""
        return await self._write("POST", "/second-factor", schema.FactorSecret, schema.Empty())

    async def second_factor_confirm(self, code: str) -> schema.RecoveryCodes:
        """Switch it on with a first code of the device."""
        return await self._write(
            "POST", "/second-factor/confirm", schema.RecoveryCodes, schema.FactorConfirm(code=code)
        )

    async def second_factor_remove(self) -> schema.FactorView:
        """Switch it off."""
        return await self._write("DELETE", "/second-factor", schema.FactorView)

    # --- events ---------------------------------------------------------------------------------------------------

    async def events(self, after: int | None = None, *, wait: int = 0, limit: int = 200) -> schema.EventPage:
        """Events after a cursor (None: from now on); `wait` up to 60 seconds for the first."""
        query = {"wait": str(wait), "limit": str(limit)}
        if after is not None:
            query["after"] = str(after)
        return await self._get("/events", schema.EventPage, query, timeout=self._timeout + wait)

    async def follow(self, after: int | None = None) -> AsyncIterator[schema.EventView]:
        """Every event from the cursor on, for as long as one asks for more."""
        while True:
            page = await self.events(after, wait=0 if after is None else WAIT)
            for event in page.events:
                yield event
            after = page.next

    # --- HTTP -----------------------------------------------------------------------------------------------------

    async def _get(
        self,
        path: str,
        answer: type[A],
        query: schema.Request | dict[str, str] | None = None,
        *,
        timeout: float | None = None,
    ) -> A:
        parameters = _query(query) if isinstance(query, schema.Request) else query or {}
        raw = await self._send("GET", path, None, parameters, None, timeout or self._timeout)
        return _decode(raw, answer)

    async def _write(self, method: str, path: str, answer: type[A], body: schema.Request | None = None) -> A:
        key = secrets.token_urlsafe(24)
        try:
            raw = await self._insist(method, path, body, key)
        except ApiError as e:
            if e.code != CodeNeeded.code or self._code is None:
                raise
            raw = await self._insist(method, path, body, key, await self._code())
        return _decode(raw, answer)

    async def _insist(self, method: str, path: str, body: schema.Request | None, key: str, code: str = "") -> bytes:
        try:
            return await self._send(method, path, body, {}, key, self._timeout, code)
        except _AnswerLost:
            # The node may have done it. The key makes asking again safe.
            return await self._send(method, path, body, {}, key, self._timeout, code)

    async def _send(
        self,
        method: str,
        path: str,
        body: schema.Request | None,
        query: dict[str, str],
        key: str | None,
        timeout: float,
        code: str = "",
    ) -> bytes:
        headers = {"Authorization": self._login.authorization}
        if code:
            headers[CODE_HEADER] = code
        if body is not None:
            headers["Content-Type"] = "application/json"
        if key is not None:
            headers["Idempotency-Key"] = key
        url = self.endpoint.url + _PREFIX + path
        try:
            async with self._session().request(
                method,
                url,
                params=query,
                data=None if body is None else msgspec.json.encode(body),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout),
                allow_redirects=False,
            ) as response:
                raw = await response.read()
                if response.status >= 300:
                    raise _refusal(response.status, raw)
                return raw
        except (aiohttp.ClientConnectorError, ConnectionRefusedError) as e:
            raise NodeUnreachable(
                f"the node does not answer at {self.endpoint.url}: start it again with `p2pnode run`"
            ) from e
        except TimeoutError as e:
            raise NodeUnreachable(f"the node at {self.endpoint.url} did not answer in {timeout:.0f} seconds") from e
        except aiohttp.ClientError as e:
            raise _AnswerLost(f"the node at {self.endpoint.url} closed the connection before it answered") from e

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            # A proxy of the environment has no business between us and our own machine: trust_env stays off.
            self._http = aiohttp.ClientSession(auto_decompress=False)
        return self._http


class _AnswerLost(NodeUnreachable):
    """The connection broke before the answer."""

    code = 1451


def _query(value: schema.Request) -> dict[str, str]:
    found = msgspec.to_builtins(value)
    texts = {True: "true", False: "false"}
    return {k: texts[v] if isinstance(v, bool) else str(v) for k, v in found.items() if v is not None}


def _decode(raw: bytes, cls: type[A]) -> A:
    try:
        return msgspec.json.decode(raw, type=cls)
    except msgspec.MsgspecError as e:
        raise NodeUnreachable(
            f"the node's answer is not what this version expects ({e}): are both the same version?"
        ) from e


def _refusal(status: int, raw: bytes) -> ApiError | NodeUnreachable:
    try:
        problem = msgspec.json.decode(raw, type=schema.Problem)
    except msgspec.MsgspecError:
        return NodeUnreachable(f"what answers there is not this node (HTTP status {status})")
    return ApiError(problem)


async def wait_until_up(data_dir: Path, seconds: float) -> Client:
    """A client of a node that is starting. Raises NodeNotRunning, NodeUnreachable or ApiError if it does not come up.

    The files of an earlier run may still lie there: they lead nowhere, or to a login that is no longer good.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        client = None
        try:
            client = Client.open(data_dir)
            await client.info()
        except (NodeNotRunning, NodeUnreachable, ApiError) as e:
            if client is not None:
                await client.close()
            if loop.time() > deadline or (isinstance(e, ApiError) and e.code != NotAuthorized.code):
                raise
        else:
            return client
        await asyncio.sleep(0.05)
