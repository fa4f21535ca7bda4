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
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiohttp
import msgspec

from p2pnode.api import schema as s
from p2pnode.api.endpoint import Endpoint, Login, NodeNotRunning, find
from p2pnode.api.errors import BadRequest, NotAuthorized
from p2pnode.datadir import DataDir
from protocol.errors import P2PError

__all__ = ["ApiError", "Client", "NodeNotRunning", "NodeUnreachable", "P2PError"]

TIMEOUT: Final = 90.0
"""Seconds for one answer. A lookup in the DHT or a broadcast may take a while."""
WAIT: Final = 25
"""Seconds that one long poll waits."""
_PREFIX: Final = "/api/v1"

A = TypeVar("A", bound=s.Response)


class ApiError(Exception):
    """The node answered with a problem document. `code`, `fault` and `action` are those of the P2PError behind it."""

    def __init__(self, problem: s.Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.code = problem.code
        self.detail = problem.detail
        self.fault = problem.fault
        self.action = problem.action


class NodeUnreachable(P2PError):
    """The node does not answer."""

    code = 3151


class Client:
    """A connection to one node's API; an async context manager."""

    def __init__(self, login: Login, *, timeout: float = TIMEOUT) -> None:
        """`timeout`: seconds for one answer."""
        self._login = login
        self._timeout = timeout
        self._http: aiohttp.ClientSession | None = None

    @classmethod
    def open(cls, data_dir: Path, *, timeout: float = TIMEOUT) -> Self:
        """The client of the node of a data directory. Raises DataDirMissing, TooOpen, NodeNotRunning."""
        return cls(find(DataDir(data_dir)), timeout=timeout)

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

    async def info(self) -> s.NodeView:
        """Who the node is and how it does."""
        return await self._get("/info", s.NodeView)

    async def stop(self) -> s.StopView:
        """Begin its shutdown."""
        return await self._write("POST", "/stop", s.StopView, s.Empty())

    async def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        raw = await self._send("GET", "/openapi.json", None, {}, None, self._timeout)
        return msgspec.json.decode(raw, type=dict[str, Any])

    # --- offers ---------------------------------------------------------------------------------------------------

    async def offers(self, wanted: s.OfferFilter | None = None) -> s.OfferPage:
        """A page of the book or of one's own offers."""
        return await self._get("/offers", s.OfferPage, wanted)

    async def offer(self, offer: str) -> s.OfferView:
        """One offer."""
        return await self._get(f"/offers/{_id(offer)}", s.OfferView)

    async def offer_create(self, draft: s.OfferDraft) -> s.OfferView:
        """Publish an offer."""
        return await self._write("POST", "/offers", s.OfferView, draft)

    async def offer_edit(self, offer: str, changes: s.OfferEdit) -> s.OfferView:
        """Publish its next version."""
        return await self._write("PATCH", f"/offers/{_id(offer)}", s.OfferView, changes)

    async def offer_revoke(self, offer: str) -> s.OfferView:
        """Withdraw it."""
        return await self._write("DELETE", f"/offers/{_id(offer)}", s.OfferView)

    async def offer_take(self, offer: str, request: s.TakeRequest) -> s.TradeView:
        """Begin a trade."""
        return await self._write("POST", f"/offers/{_id(offer)}/take", s.TradeView, request)

    # --- trades ---------------------------------------------------------------------------------------------------

    async def trades(self, *, open_only: bool = False) -> s.TradeList:
        """Trades, newest first."""
        return await self._get("/trades", s.TradeList, {"open": "true"} if open_only else None)

    async def trade(self, trade: str) -> s.TradeView:
        """One trade with its steps."""
        return await self._get(f"/trades/{_id(trade)}", s.TradeView)

    async def trade_pay(self, trade: str, note: str = "") -> s.TradeView:
        """Buyer: declare the payment."""
        return await self._write("POST", f"/trades/{_id(trade)}/pay", s.TradeView, s.PayRequest(note=note))

    async def trade_release(self, trade: str) -> s.TradeView:
        """Seller: release the coins."""
        return await self._write("POST", f"/trades/{_id(trade)}/release", s.TradeView, s.Empty())

    async def trade_cancel(self, trade: str, reason: str = "") -> s.TradeView:
        """Leave a trade that is not funded."""
        return await self._write("POST", f"/trades/{_id(trade)}/cancel", s.TradeView, s.CancelRequest(reason=reason))

    # --- wallet, peers, arbiters ----------------------------------------------------------------------------------

    async def balance(self) -> s.BalanceView:
        """The wallet's balance."""
        return await self._get("/wallet/balance", s.BalanceView)

    async def address(self, label: str = "") -> s.AddressView:
        """A fresh address."""
        return await self._write("POST", "/wallet/addresses", s.AddressView, s.AddressRequest(label=label))

    async def utxos(self) -> s.UtxoList:
        """Unspent coins."""
        return await self._get("/wallet/utxos", s.UtxoList)

    async def history(self, limit: int = 50) -> s.HistoryView:
        """Transactions, newest first."""
        return await self._get("/wallet/history", s.HistoryView, {"limit": str(limit)})

    async def send(self, request: s.SendRequest) -> s.SentView:
        """Pay to an address."""
        return await self._write("POST", "/wallet/send", s.SentView, request)

    async def peers(self) -> s.PeerList:
        """Sessions and known nodes."""
        return await self._get("/peers", s.PeerList)

    async def peer_add(self, address: str) -> s.PeerView:
        """Get to know a node."""
        return await self._write("POST", "/peers", s.PeerView, s.PeerAdd(address=address))

    async def arbiters(self, currency: str | None = None, method: str | None = None) -> s.ArbiterList:
        """Arbiters that serve a currency and a method."""
        query = {"currency": currency, "method": method}
        return await self._get("/arbiters", s.ArbiterList, {k: v for k, v in query.items() if v is not None})

    async def announce(self, request: s.AnnounceRequest) -> s.ArbiterView:
        """Announce the node's persona as an arbiter."""
        return await self._write("POST", "/arbiters/announcement", s.ArbiterView, request)

    # --- events ---------------------------------------------------------------------------------------------------

    async def events(self, after: int | None = None, *, wait: int = 0, limit: int = 200) -> s.EventPage:
        """Events after a cursor (None: from now on); `wait` up to 60 seconds for the first."""
        query = {"wait": str(wait), "limit": str(limit)}
        if after is not None:
            query["after"] = str(after)
        return await self._get("/events", s.EventPage, query, timeout=self._timeout + wait)

    async def follow(self, after: int | None = None) -> AsyncIterator[s.EventView]:
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
        query: s.Request | dict[str, str] | None = None,
        *,
        timeout: float | None = None,
    ) -> A:
        parameters = _query(query) if isinstance(query, s.Request) else query or {}
        raw = await self._send("GET", path, None, parameters, None, timeout or self._timeout)
        return _decode(raw, answer)

    async def _write(self, method: str, path: str, answer: type[A], body: s.Request | None = None) -> A:
        key = secrets.token_urlsafe(24)
        try:
            raw = await self._send(method, path, body, {}, key, self._timeout)
        except _AnswerLost:
            # The node may have done it. The key makes asking again safe.
            raw = await self._send(method, path, body, {}, key, self._timeout)
        return _decode(raw, answer)

    async def _send(
        self, method: str, path: str, body: s.Request | None, query: dict[str, str], key: str | None, timeout: float
    ) -> bytes:
        headers = {"Authorization": self._login.authorization}
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

    code = 3152


def _id(text: str) -> str:
    cleaned = text.strip().lower()
    if not 8 <= len(cleaned) <= 64 or cleaned.strip("0123456789abcdef"):
        raise BadRequest(f"“{text[:70]}” is not an id: an id is 8 to 64 hex digits, the whole or its beginning")
    return cleaned


def _query(value: s.Request) -> dict[str, str]:
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
        problem = msgspec.json.decode(raw, type=s.Problem)
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
