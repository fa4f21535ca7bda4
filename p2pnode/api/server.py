"""The HTTP server of the local API: who may ask, what may be asked, and answers in one form.

A request passes, in this order: the limit on its size; the Host (a page of another site must not reach us under a name
that it controls); the Origin (a browser must have got its page from us); the login. Only then is it parsed. Default
deny: nothing answers without a login. Answers are JSON, errors problem documents. Outside the API's paths lies the
page (`p2pnode.web`), with logins of its own.

The server holds no state of trades. It ends open waits when it stops and lets running writes end.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import WSCloseCode, web
from yarl import URL

from p2pnode import log, ports
from p2pnode.api import endpoint, openapi
from p2pnode.api.errors import (
    BadRequest,
    BodyTooLarge,
    Busy,
    ForeignOrigin,
    InternalError,
    KeyMissing,
    NoSuchRoute,
    NotAuthorized,
    problem_of,
    status_of,
)
from p2pnode.api.idempotent import Answer, Once
from p2pnode.api.routes import BODY_LIMIT, PREFIX, ROUTES, Ask, EventQuery, Route, check_id
from p2pnode.api.schema import Empty, OfferDraft, OfferEdit, Request, TakeRequest
from p2pnode.api.services import Services
from p2pnode.config import ApiConfig
from p2pnode.datadir import DataDir
from p2pnode.web.page import Page
from protocol.errors import P2PError

MAX_STREAMS: Final = 16
"""WebSockets at a time."""
WRITE_SECONDS: Final = 5.0
"""How long a stopping server waits for the writes that run."""
_HEARTBEAT: Final = 20.0
_STREAM_BATCH: Final = 200

_LOCAL_NAMES: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_KEY: Final = re.compile(r"[A-Za-z0-9_\-]{8,128}")
_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Server": "p2pnode"}
_JSON: Final = "application/json"
_PROBLEM: Final = "application/problem+json"

R = TypeVar("R", bound=Request)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

logger = logging.getLogger(__name__)


class ApiServer:
    """The API of one node, on one loopback port."""

    def __init__(self, services: Services, config: ApiConfig, folder: DataDir) -> None:
        """Take what `start` needs: the services, where to listen, and the folder that gets the login."""
        self._services = services
        self._config = config
        self._folder = folder
        self._once = Once(services.idempotency)
        self._token = endpoint.new_token()
        self._expected = endpoint.basic(self._token).encode()
        self._page = Page(services, self._write, self._until)
        self._openapi = b""
        self._stopping = asyncio.Event()
        self._sockets: set[web.WebSocketResponse] = set()
        self._runner: web.AppRunner | None = None
        self.url = ""
        """Where it answers, once started: `http://127.0.0.1:port`."""
        log.protect(self._token)

    async def start(self) -> None:
        """Listen, then publish where. Raises AddressUnavailable, DiskError and what `Node.info` raises."""
        host, port = self._config.host, self._config.port
        node = await self._services.node.info()
        self._openapi = msgspec.json.encode(openapi.document(node.version))
        runner = web.AppRunner(self.application(), access_log=None, handle_signals=False, shutdown_timeout=2.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as e:
            await runner.cleanup()
            raise ports.unavailable(e, host, port, "api.port") from e
        self._runner = runner
        bound_host, bound_port = runner.addresses[0][:2]
        self.url = f"http://[{bound_host}]:{bound_port}" if ":" in bound_host else f"http://{bound_host}:{bound_port}"
        here = endpoint.Endpoint(self.url, os.getpid(), node.network, node.version)
        try:
            endpoint.publish(self._folder, here, self._token)
        except BaseException:
            await self.close()
            raise
        logger.info("the local API answers at %s", self.url)

    async def close(self) -> None:
        """Withdraw the login, end waits and streams, let writes end, close. Twice is fine."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        endpoint.withdraw(self._folder)
        self._stopping.set()
        for socket in list(self._sockets):
            await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the node is shutting down")
        await self._once.settle(WRITE_SECONDS)
        await runner.cleanup()

    def application(self) -> web.Application:
        """The aiohttp application, for one event loop."""
        app = web.Application(middlewares=[self._guard], client_max_size=BODY_LIMIT)
        for route in ROUTES:
            app.router.add_route(route.method, PREFIX + route.path, self._handler(route))
        app.router.add_get(f"{PREFIX}/events/stream", self._stream)
        app.router.add_get(f"{PREFIX}/openapi.json", self._document)
        self._page.add_to(app)
        return app

    # --- who may ask ----------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let it pass, or answer why not. Every error leaves here as a problem document."""
        try:
            check_site(request)
            if not request.path.startswith(PREFIX):
                return await self._page.answer(request, handler)
            self._admit(request)
            return await handler(request)
        except P2PError as e:
            error = e
        except web.HTTPRequestEntityTooLarge:
            error = BodyTooLarge(f"a request's body has at most {BODY_LIMIT} bytes")
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
            error = NoSuchRoute(f"there is no {request.method} {request.path} in this API: see {PREFIX}/openapi.json")
        except web.HTTPException as e:
            error = BadRequest(e.reason)
        except Exception:
            # The last line of defence: whatever it was, the asker learns no more than that, and the log all of it.
            logger.exception("%s %s failed", request.method, request.path)
            error = InternalError()
        headers = {"WWW-Authenticate": "Basic"} if isinstance(error, NotAuthorized) else {}
        body = msgspec.json.encode(problem_of(error, request.path))
        return _respond(int(status_of(error)), body, _PROBLEM, headers)

    def _admit(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._expected):
            raise NotAuthorized

    # --- what is asked ------------------------------------------------------------------------------------------

    def _handler(self, route: Route) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            query = parse_query(request, route.query)
            item = _parse_id(request.match_info.get("id", ""))
            raw = await request.clone(client_max_size=route.limit).read()
            body = _parse_body(request, raw, route.body)
            _protect(body)
            ask: Ask[Any, Any] = Ask(self._services, item, query, body, until=self._until, url=self.url)
            if not route.writes:
                return _respond(route.status, msgspec.json.encode(await route.call(ask)))
            key, code = request.headers.get("Idempotency-Key", ""), request.headers.get(endpoint.CODE_HEADER, "")
            answer = await self._write(route, ask, key, code)
            replayed = {"Idempotency-Replayed": "true"} if answer.replayed else {}
            return _respond(answer.status, answer.body, headers=replayed)

        return handle

    async def _write(self, route: Route, ask: Ask[Any, Any], key: str, code: str) -> Answer:
        """Carry a write out, once. Raises KeyMissing and what the route raises."""

        async def act() -> Answer:
            # Here and not before: an answer that is only told again needs no further code.
            if route.guarded:
                await self._services.guard.check(code)
            return Answer(route.status, msgspec.json.encode(await route.call(ask)))

        if not _KEY.fullmatch(key):
            raise KeyMissing
        path = route.path.replace("{id}", ask.item)
        asked = f"{route.method} {PREFIX}{path}\n".encode() + msgspec.json.encode(ask.body)
        return await self._once.run(key, asked, act)

    async def _document(self, _: web.Request) -> web.Response:
        return _respond(200, self._openapi)

    # --- events -------------------------------------------------------------------------------------------------

    async def _until(self, wait: Coroutine[Any, Any, None], seconds: float) -> None:
        """Await `wait`, at most `seconds` and no longer than this server lives."""
        tasks = [asyncio.ensure_future(wait), asyncio.ensure_future(self._stopping.wait())]
        try:
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Every event after the cursor, one text message each, until either side leaves."""
        query = parse_query(request, EventQuery)
        if len(self._sockets) >= MAX_STREAMS:
            raise Busy
        feed = self._services.events
        after = await feed.last() if query.after is None else query.after
        socket = web.WebSocketResponse(heartbeat=_HEARTBEAT, max_msg_size=1024)
        if not socket.can_prepare(request).ok:
            raise BadRequest("this resource speaks WebSocket: for plain HTTP ask /api/v1/events with wait")
        await socket.prepare(request)
        self._sockets.add(socket)
        sender = asyncio.ensure_future(self._send_events(socket, after))
        try:
            # The asker has nothing to say here; reading notices that it left.
            async for _ in socket:
                pass
        finally:
            sender.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await sender
            self._sockets.discard(socket)
        return socket

    async def _send_events(self, socket: web.WebSocketResponse, after: int) -> None:
        feed = self._services.events
        while not socket.closed:
            for event in await feed.since(after, _STREAM_BATCH):
                await socket.send_str(msgspec.json.encode(event).decode())
                after = event.number
            await feed.wait(after)


def check_site(request: web.Request) -> None:
    """That no other site is behind the request. Raises ForeignOrigin."""
    host = _name(f"http://{request.headers.get('Host', '')}")
    if host is None or host.host not in _LOCAL_NAMES:
        raise ForeignOrigin("the request names another host than this machine")
    origin = request.headers.get("Origin")
    if origin is not None:
        page = _name(origin)
        if page is None or (page.host, page.port) != (host.host, host.port):
            raise ForeignOrigin("the request comes from a page of another site")
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        raise ForeignOrigin("the request comes from a page of another site")


def parse_query(request: web.Request, cls: type[R]) -> R:
    """The query string as `cls`. Raises BadRequest."""
    if len(set(request.query)) != len(request.query):
        raise BadRequest("a query parameter is given twice")
    try:
        return msgspec.convert(dict(request.query), cls, strict=False)
    except msgspec.ValidationError as e:
        raise BadRequest(f"query: {_complaint(e)}") from None


def _parse_body(request: web.Request, raw: bytes, cls: type[Request] | None) -> Request:
    if cls is None:
        if raw:
            raise BadRequest("this request takes no body")
        return Empty()
    # A form of a foreign page can't have this content type without the browser asking us first, and we say no.
    if request.content_type != _JSON:
        raise BadRequest(f"the request's body is sent as Content-Type: {_JSON}")
    try:
        return msgspec.json.decode(raw, type=cls)
    except msgspec.ValidationError as e:
        raise BadRequest(f"body: {_complaint(e)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise BadRequest(f"the request's body is not JSON: {e}") from None


def _protect(body: Request) -> None:
    """Keep the payment details that the user hands in out of the log."""
    match body:
        case OfferDraft(methods=methods) | OfferEdit(methods=methods) if methods is not None:
            log.protect(*(value for method in methods for value in method.details.values()))
        case TakeRequest(details=details):
            log.protect(*details.values())
        case _:
            pass


def _parse_id(text: str) -> str:
    if not text:
        return ""
    try:
        return check_id(text)
    except msgspec.ValidationError:
        raise BadRequest("an id is 8 to 64 hex digits: the whole id, or its beginning") from None


def _complaint(error: msgspec.ValidationError) -> str:
    text, _, where = str(error).partition(" - at `$")
    place = where.rstrip("`").lstrip(".")
    return f"{place}: {text[:1].lower()}{text[1:]}" if place else f"{text[:1].lower()}{text[1:]}"


def _name(address: str) -> URL | None:
    try:
        url = URL(address)
    except ValueError:
        return None
    return url if url.scheme == "http" and url.host else None


def _respond(
    status: int, body: bytes, content_type: str = _JSON, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(status=status, body=body, content_type=content_type, headers={**_HEADERS, **(headers or {})})
