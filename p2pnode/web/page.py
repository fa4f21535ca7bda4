"""The page's routes: what is shown, and one way in for every form.

A form is posted to `/do/<operation>`, where the operation is a write of the API by its name: it runs under the key that
the form was made with, asks for a code of the second factor where the API would, and leads back to where it came from.
So the page can do what the API can, by the same rules, and nothing else. It needs no script; the one that it has keeps
a page up to date and moves the slider.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web

from p2pnode.api import dispute_schema as d
from p2pnode.api import schema as s
from p2pnode.api.errors import BadRequest, InternalError, NoSuchRoute, status_of
from p2pnode.api.idempotent import Answer
from p2pnode.api.routes import FILE_LIMIT, PREFIX, ROUTES, Ask, NoQuery, Route, check_id
from p2pnode.api.services import RoleMissing, Services
from p2pnode.secondfactor import CodeNeeded
from p2pnode.web import forms, views
from p2pnode.web.render import render
from p2pnode.web.sessions import COOKIE, IDLE_SECONDS, NoSession, Session
from protocol.errors import P2PError

Write = Callable[[Route, Ask[Any, Any], str, str], Awaitable[Answer]]
Until = Callable[[Coroutine[Any, Any, None], float], Awaitable[None]]
log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STATIC: Final = Path(__file__).parent / "static"
POLL_SECONDS: Final = 25.0
REFRESH: Final = "X-Refresh"
"""Marks what the script asks for: it shows the same page again, and takes no news away from it."""
MOST_FILES: Final = 4

_WRITES: Final = {route.name: route for route in ROUTES if route.writes}
_SHOWN: Final = {
    "second_factor_begin": "secret.html",
    "second_factor_confirm": "recovery.html",
    "address": "address.html",
}
"""Writes whose answer is told once: it is shown, where others lead back."""
_INLINE: Final = {"image/png", "image/jpeg", "image/webp", "text/plain"}
"""What is shown inside the page; anything else is only ever saved."""
_SESSION: Final = web.RequestKey("session", Session)
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: browsers would then hide the origin of our own forms from us.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "p2pnode",
}
_POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_FILE_POLICY: Final = "default-src 'none'; sandbox"


class Page:
    """The page of one node."""

    def __init__(self, services: Services, write: Write, until: Until) -> None:
        """`write` carries a write of the API out; `until` awaits something no longer than the server lives."""
        self._services = services
        self._write = write
        self._until = until

    def add_to(self, app: web.Application) -> None:
        """Add the page's routes."""
        for path, view in views.PAGES.items():
            app.router.add_get(path, self._shown(view))
        app.router.add_get("/enter/{token}", self._enter)
        app.router.add_get("/live", self._live)
        app.router.add_get("/files/{id}", self._file)
        app.router.add_get("/cases/{id}/quote", self._quote)
        app.router.add_post("/leave", self._leave)
        app.router.add_post("/do/{name}", self._do)
        app.router.add_post("/do/{name}/{id}", self._do)
        app.router.add_static("/static", STATIC)

    # --- who may see it -------------------------------------------------------------------------------------------

    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a request of the page pass, or show why not."""
        open_to_all = request.path.startswith(("/enter/", "/static/"))
        try:
            if not open_to_all:
                request[_SESSION] = self._services.pages.find(request.cookies.get(COOKIE, ""))
            response = await handler(request)
        except NoSession as e:
            response = _html("enter.html", {"error": e.detail}, status=401)
        except P2PError as e:
            response = self._problem(request, e)
        except web.HTTPException as e:
            gone = e.status in (403, 404, 405)
            error = NoSuchRoute("there is no such page") if gone else BadRequest(e.reason)
            response = self._problem(request, error)
        except Exception:
            # As for the API: whatever it was, the asker learns no more than that, and the log all of it.
            log.exception("%s %s failed", request.method, request.path)
            response = self._problem(request, InternalError())
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Content-Security-Policy", _POLICY)
        return response

    def _problem(self, request: web.Request, error: P2PError) -> web.Response:
        template = "code.html" if isinstance(error, CodeNeeded) else "problem.html"
        facts = {"error": error.detail, "again": _local(request.headers.get("Referer", ""))}
        return _html(template, facts, session=request.get(_SESSION), status=int(status_of(error)))

    async def _enter(self, request: web.Request) -> web.Response:
        token = self._services.pages.enter(request.match_info["token"])
        response = _lead("/")
        # Not `Secure`: the page is on this machine, over plain HTTP. Strict: no other site makes the browser send it.
        response.set_cookie(COOKIE, token, max_age=IDLE_SECONDS, httponly=True, samesite="Strict", path="/")
        return response

    async def _leave(self, request: web.Request) -> web.Response:
        fields = await request.post()
        request[_SESSION].check(str(fields.get("_form", "")))
        self._services.pages.leave(request.cookies.get(COOKIE, ""))
        response = _html("enter.html", {"error": "You are logged out. `p2pnode page` makes another link."})
        response.del_cookie(COOKIE)
        return response

    # --- what is shown ----------------------------------------------------------------------------------------------

    def _shown(self, view: views.View) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            item = _id(request)
            cursor = await self._services.events.last()
            template, facts = await view(self._services, item, dict(request.query))
            session = request[_SESSION]
            flash = session.flash
            if REFRESH not in request.headers:
                session.flash = ""
            return _html(
                template,
                {
                    **facts,
                    "cursor": cursor,
                    "flash": flash,
                    "here": request.path_qs,
                    "judges": self._services.cases is not None,
                },
                session=session,
            )

        return handle

    async def _live(self, request: web.Request) -> web.Response:
        """The events after a cursor, as soon as there is one."""
        try:
            after = int(request.query.get("after", "0")[:16])
        except ValueError:
            raise BadRequest("a cursor is a number") from None
        feed = self._services.events
        found = await feed.since(after, 100)
        if not found:
            await self._until(feed.wait(after), POLL_SECONDS)
            found = await feed.since(after, 100)
        topics = sorted({text for event in found for text in (event.topic, event.trade, event.offer) if text})
        return web.json_response({"next": found[-1].number if found else after, "about": topics})

    async def _file(self, request: web.Request) -> web.Response:
        if self._services.disputes is None:
            raise RoleMissing("this node does not trade: nobody showed it anything")
        file = await self._services.disputes.file(_id(request))
        shown = file.media in _INLINE and "save" not in request.query
        kind = "text/plain; charset=utf-8" if file.media == "text/plain" else file.media
        return web.Response(
            body=b64decode(file.data),
            headers={
                "Content-Type": kind if file.media in _INLINE else "application/octet-stream",
                "Content-Disposition": f'{"inline" if shown else "attachment"}; filename="{file.content[:16]}"',
                "Content-Security-Policy": _FILE_POLICY,
            },
        )

    async def _quote(self, request: web.Request) -> web.Response:
        """What a decision would pay to whom, for the slider."""
        facts = await views.quote(self._services, _id(request), dict(request.query))
        return _html("quote.html", facts)

    # --- what is done -----------------------------------------------------------------------------------------------

    async def _do(self, request: web.Request) -> web.Response:
        route = _WRITES.get(request.match_info["name"])
        if route is None:
            raise NoSuchRoute("there is nothing of that name to be done")
        posted = await request.clone(client_max_size=FILE_LIMIT).post()
        texts = [(name, value) for name, value in posted.items() if isinstance(value, str)]
        session = request[_SESSION]
        session.check(str(posted.get("_form", "")))
        key, code = str(posted.get("_key", "")), str(posted.get("_code", ""))
        files = [value for value in posted.values() if isinstance(value, web.FileField) and value.filename]
        more: dict[str, object] = {}
        if files:
            more["attachments"] = [await self._upload(file, f"{key}-{n}") for n, file in enumerate(files[:MOST_FILES])]
        body: s.Request = s.Empty() if route.body is None else forms.read(texts, route.body, **more)
        answer = await self._write(route, self._ask(_id(request), body), key, code)
        result = msgspec.json.decode(answer.body, type=route.answer)
        if route.name in _SHOWN:
            return _html(_SHOWN[route.name], {"result": result}, session=session)
        session.flash = views.done(route.name, result)
        return _lead(_local(str(posted.get("_next", ""))) or views.place_of(route.name, result))

    async def _upload(self, file: web.FileField, key: str) -> d.FileRef:
        data = await asyncio.to_thread(file.file.read)
        upload = d.FileUpload(name=_name(file.filename), data=b64encode(data).decode())
        answer = await self._write(_WRITES["file_upload"], self._ask("", upload), key, "")
        kept = msgspec.json.decode(answer.body, type=d.AttachmentView)
        return d.FileRef(content=kept.content, name=kept.name)

    def _ask(self, item: str, body: s.Request) -> Ask[Any, Any]:
        return Ask(self._services, item, NoQuery(), body, until=self._until, url="")


def _html(template: str, facts: dict[str, Any], *, session: Session | None = None, status: int = 200) -> web.Response:
    shared = {
        "form": session.form if session else "",
        "key": lambda: secrets.token_urlsafe(24),
        "in": session is not None,
    }
    return web.Response(status=status, text=render(template, {**shared, **facts}), content_type="text/html")


def _lead(path: str) -> web.Response:
    return web.Response(status=303, headers={"Location": path})


def _id(request: web.Request) -> str:
    text = request.match_info.get("id", "")
    if not text:
        return ""
    try:
        return check_id(text)
    except msgspec.ValidationError:
        raise NoSuchRoute("there is no such page: an id has 8 to 64 hex digits") from None


def _local(text: str) -> str:
    """A path of this page, or nothing: a form must not lead elsewhere."""
    path = re.sub(r"\Ahttps?://[^/]+", "", text)
    return path if re.fullmatch(r"/(?![/\\])[A-Za-z0-9/_\-.?=&%+]*", path) and not path.startswith(PREFIX) else ""


def _name(text: str) -> str:
    """What a file is called, without the folders that some browsers tell."""
    return re.split(r"[/\\]", text)[-1][:200] or "file"
