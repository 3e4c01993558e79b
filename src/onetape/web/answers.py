"""Answers: JSON made by msgspec, errors in one shape, and the page that asks for a token."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import msgspec
from starlette.responses import Response

from onetape.errors import (
    ConfigInvalid,
    HistoryGone,
    InvalidRecord,
    OnetapeError,
    SnapshotMissing,
    TapeError,
)
from onetape.web.messages import Refused, code_of

_MISSING = ("symbol_unknown", "depth_unknown", "not_found", "source_unknown", "service_off")


class Json(Response):
    """A response of anything that msgspec encodes; NaN becomes null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the JSON."""
        return msgspec.json.encode(content, enc_hook=str)


def error_body(code: str, message: str, hint: str = "") -> bytes:
    """Return an error as JSON."""
    return msgspec.json.encode({"error": {"code": code, "message": message, "hint": hint}})


def error(status: int, code: str, message: str, hint: str = "") -> Response:
    """Return an error's response."""
    return Response(error_body(code, message, hint), status, media_type="application/json")


def of_error(raised: OnetapeError) -> Response:
    """Return the response of an error of onetape's: 400 what was asked wrongly, 404, 410, 503 what is not there now."""
    if isinstance(raised, Refused):
        status = 404 if raised.code in _MISSING else 409 if raised.code == "not_possible" else 400
        return error(status, raised.code, raised.message, raised.hint)
    if isinstance(raised, SnapshotMissing):
        status = 404
    elif isinstance(raised, HistoryGone):
        status = 410
    elif isinstance(raised, ConfigInvalid | InvalidRecord):
        status = 400
    elif isinstance(raised, TapeError):
        status = 503
    else:
        status = 500
    return error(status, code_of(raised), raised.message, raised.hint)


def asks_for_a_page(accept: str) -> bool:
    """Return whether a browser asks."""
    return "text/html" in accept


def token_page(why: str) -> bytes:
    """Return a page that asks for the token: the one that is shipped, else one that needs nothing else."""
    shipped = Path(__file__).parent / "static" / "token.html"
    if shipped.is_file():
        return shipped.read_bytes()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>onetape: token</title></head>
<body><main><h1>onetape</h1><p role="alert">{html.escape(why[:1].upper() + why[1:])}.</p>
<form method="get" action="/"><label>Token <input name="token" type="password" autocomplete="current-password"
required autofocus></label> <button>Open</button></form></main></body></html>
""".encode()


def docs_page(description: dict[str, Any]) -> bytes:
    """Return a plain page of the API's paths, made of its description; it loads nothing."""
    parts = []
    for path, methods in description["paths"].items():
        for method, told in methods.items():
            rows = "".join(
                f"<li><code>{html.escape(one['name'])}</code> {html.escape(one.get('description', ''))}"
                f" <small>{html.escape(msgspec.json.encode(one['schema']).decode())}</small></li>"
                for one in told.get("parameters", [])
            )
            parts.append(
                f"<section><h2><code>{method.upper()} {html.escape(path)}</code></h2>"
                f"<p>{html.escape(told.get('summary', ''))}</p><ul>{rows}</ul></section>"
            )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>onetape: API</title></head>
<body><main><h1>API</h1><p>As OpenAPI: <a href="/api/openapi.json">/api/openapi.json</a>. The WebSocket is at
<code>/ws/v1</code>.</p>{"".join(parts)}</main></body></html>
""".encode()
