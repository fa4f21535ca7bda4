"""The OpenAPI 3.1 document, generated from the routes and their msgspec types."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from p2pnode.api.routes import PREFIX, ROUTES, Route
from p2pnode.api.schema import EventView, Problem

_REF: Final = "#/components/schemas/{name}"


def document(version: str) -> dict[str, Any]:
    """The whole document; `version` is the node's."""
    types = {route.answer for route in ROUTES} | {route.body for route in ROUTES if route.body is not None}
    named = sorted({*types, Problem, EventView}, key=lambda t: t.__name__)
    _, components = msgspec.json.schema_components(named, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = _operation(route)
    paths[f"{PREFIX}/events/stream"] = {"get": _stream()}
    result: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "p2pnode local API",
            "version": version,
            "summary": "What the command line and the page of a p2pnode daemon are made on.",
        },
        "servers": [{"url": "http://127.0.0.1:7353"}],
        "security": [{"cookie": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "cookie": {
                    "type": "http",
                    "scheme": "basic",
                    "description": "The line in the file api.cookie of the data directory, as user and password.",
                }
            },
            "responses": {
                "Problem": {
                    "description": "It can't be done; the document says why.",
                    "content": {"application/problem+json": {"schema": {"$ref": _REF.format(name="Problem")}}},
                }
            },
        },
    }
    return _ecma(result)  # type: ignore[no-any-return]


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.path.split("/")[1]],
        "parameters": _parameters(route),
        "responses": {
            str(route.status): {
                "description": (route.answer.__doc__ or "").splitlines()[0],
                "content": {"application/json": {"schema": {"$ref": _REF.format(name=route.answer.__name__)}}},
            },
            "default": {"$ref": "#/components/responses/Problem"},
        },
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REF.format(name=route.body.__name__)}}},
        }
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if "{id}" in route.path:
        pattern = r"^[0-9a-f]{8,64}$"
        about = "The id, or its first 8 digits or more"
        schema = {"type": "string", "pattern": pattern}
        found.append({"name": "id", "in": "path", "required": True, "description": about, "schema": schema})
    _, parts = msgspec.json.schema_components([route.query], ref_template=_REF)
    query = parts[route.query.__name__]
    for name, schema in query.get("properties", {}).items():
        found.append({"name": name, "in": "query", "required": name in query.get("required", ()), "schema": schema})
    if route.writes:
        pattern = r"^[A-Za-z0-9_\-]{8,128}$"
        about = "New for each write; the same again returns the recorded answer"
        schema = {"type": "string", "pattern": pattern}
        found.append(
            {"name": "Idempotency-Key", "in": "header", "required": True, "description": about, "schema": schema}
        )
    return found


def _stream() -> dict[str, Any]:
    return {
        "operationId": "event_stream",
        "summary": "WebSocket: every event after the cursor as it happens, one EventView per text message",
        "tags": ["events"],
        "parameters": [
            {"name": "after", "in": "query", "required": False, "schema": {"type": "integer", "minimum": 0}}
        ],
        "responses": {
            "101": {"description": "Switching to the WebSocket protocol."},
            "default": {"$ref": "#/components/responses/Problem"},
        },
    }


def _ecma(node: Any) -> Any:  # noqa: ANN401  (any JSON)
    """Patterns as JSON Schema has them: ECMA-262 has ^ and $ for the anchors that Python writes as A and Z."""
    if isinstance(node, dict):
        return {
            key: re.sub(r"\\Z$", "$", re.sub(r"^\\A", "^", value))
            if key == "pattern" and isinstance(value, str)
            else _ecma(value)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_ecma(item) for item in node]
    return node
