"""The guard: who may ask, how often and how much, before anything of the application is reached.

Every request is held against: the path (nothing that climbs), the Host (this machine's own names, so that a page of
elsewhere cannot reach a local server by a name that it lets point here), the Origin (pages of other places), the rate
of its address, the token, the size of what it sends. Answers get headers that let a page load nothing from elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from onetape.config import WebSettings
from onetape.web.answers import asks_for_a_page, error_body, token_page
from onetape.web.rates import Rates

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_access = logging.getLogger("onetape.web.access")

COOKIE = "onetape"
#: Asked by machines that watch; they get no details without the token.
_OPEN = ("/healthz", "/readyz")
#: What a page is made of is no secret, and the page that asks for the token needs it.
_STATIC = "/static/"
#: The largest body of a request, bytes.
_BODY_MAX = 65_536
#: What a wrong token costs of an address's rate.
_WRONG_COST = 20.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

_SECURITY: Headers = [
    (
        b"content-security-policy",
        b"default-src 'self'; connect-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none';"
        b" form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def is_loopback(host: str) -> bool:
    """Return whether an address to listen on is this machine's own alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Denied(Exception):
    """An answer instead of what was asked for."""

    def __init__(self, status: int, code: str, message: str, hint: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.hint = status, code, message, hint
        self.headers: Headers = [
            (name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()
        ]


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: App, settings: WebSettings) -> None:
        self._app = app
        self._settings = settings
        self._local = is_loopback(settings.host)
        self._rates = Rates(settings.requests_per_s, settings.requests_per_s * 4)
        token = settings.token
        self._cookie = None if token is None else hmac.new(token.encode(), b"onetape page", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request = _Request(scope)
        began = time.perf_counter()
        answer = _Answer(scope, send, self._headers(request))
        try:
            self._check(request)
            scope.setdefault("state", {})["trusted"] = self._trusted(request)
            if scope["type"] == "http":
                receive = _bounded(request, receive)
            await self._app(scope, receive, answer.send)
        except Denied as denied:
            if answer.begun:
                raise
            await answer.deny(denied, page=asks_for_a_page(request.header(b"accept")) and denied.status == 401)
        finally:
            _access.info(
                "%s %s",
                scope.get("method", "WS"),
                request.shown,
                extra={
                    "client": request.address,
                    "status": answer.status,
                    "ms": round((time.perf_counter() - began) * 1e3, 2),
                },
            )

    def _check(self, request: _Request) -> None:
        if request.climbs:
            raise Denied(404, "not_found", "there is no such path")
        if self._local and request.host not in _LOOPBACK and request.host != self._settings.host:
            raise Denied(421, "host_refused", f"this is not {request.host[:100]!r}", "ask for 127.0.0.1 or localhost")
        if request.origin is not None and not self._welcome(request):
            raise Denied(403, "origin_refused", "a page of another place asks", "origins in [web] lists who may")
        cost = 0.02 if request.path.startswith(_STATIC) else 1.0
        wait = self._rates.take(request.address, cost)
        if wait:
            raise Denied(
                429, "too_many_requests", f"more than {self._settings.requests_per_s:g} requests a second",
                "ask less often", retry_after=str(max(1, round(wait))),
            )  # fmt: skip
        if request.scope.get("method") == "OPTIONS" and request.origin is not None:
            raise Denied(
                204, "", "", access_control_allow_methods="GET, POST", access_control_max_age="600",
                access_control_allow_headers="authorization, content-type",
            )  # fmt: skip
        self._identify(request)

    def _identify(self, request: _Request) -> None:
        token = self._settings.token
        if token is None or request.path in _OPEN or request.path.startswith(_STATIC):
            return
        given = request.query("token")
        if given is not None and request.path == "/" and request.scope["type"] == "http" and _same(given, token):
            cookie = f"{COOKIE}={self._cookie}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000"
            raise Denied(303, "", "", location="/", set_cookie=cookie)  # the token does not stay in the address
        if not self._trusted(request):
            told = given or request.header(b"authorization") or request.cookie(COOKIE)
            if told:
                self._rates.charge(request.address, _WRONG_COST)
            raise Denied(
                401, "token_wrong" if told else "token_missing",
                "the token is wrong" if told else "a token is asked for",
                "Authorization: Bearer TOKEN, or /?token=TOKEN once in a browser", www_authenticate="Bearer",
            )  # fmt: skip

    def _trusted(self, request: _Request) -> bool:
        token = self._settings.token
        if token is None:
            return True
        scheme, _, given = request.header(b"authorization").partition(" ")
        if scheme.lower() == "bearer" and _same(given.strip(), token):
            return True
        cookie = request.cookie(COOKIE)
        if cookie is not None and self._cookie is not None and _same(cookie, self._cookie):
            return True
        asked = request.query("token") if request.scope["type"] == "websocket" else None
        return asked is not None and _same(asked, token)

    def _welcome(self, request: _Request) -> bool:
        """Return whether a page of this origin may ask: one of this server itself, or one that is listed."""
        origin = request.origin or ""
        if origin.rstrip("/") in [known.rstrip("/") for known in self._settings.origins]:
            return True
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc.lower() == request.header(b"host").lower()

    def _headers(self, request: _Request) -> Headers:
        found = list(_SECURITY)
        origin = request.origin
        if origin is not None and origin.rstrip("/") in [known.rstrip("/") for known in self._settings.origins]:
            found = [pair for pair in found if pair[0] != b"cross-origin-resource-policy"]
            found += [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-allow-credentials", b"true"),
                (b"vary", b"origin"),
            ]
        if request.path.startswith("/api/"):
            found.append((b"cache-control", b"no-store"))
        return found


class _Request:
    """What the guard looks at of a request."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.path: str = scope["path"]
        self._headers = dict(scope["headers"])
        client = scope.get("client")
        self.address = client[0] if client else "?"
        origin = self.header(b"origin")
        self.origin = origin or None

    def header(self, name: bytes) -> str:
        value: bytes = self._headers.get(name, b"")
        return value.decode("latin-1")

    @property
    def host(self) -> str:
        try:
            return (urlsplit("//" + self.header(b"host")).hostname or "").rstrip(".")
        except ValueError:
            return ""

    @property
    def shown(self) -> str:
        """The path as a log may show it: in one line, not endless, and without what was asked (the token)."""
        return self.path[:200].encode("unicode_escape").decode()

    @property
    def climbs(self) -> bool:
        """Whether the path has `..`, a backslash or a zero byte, however often it is encoded."""
        path = (self.scope.get("raw_path") or self.path.encode()).decode("latin-1").partition("?")[0]
        for _ in range(3):
            path = unquote(path)
        return "\\" in path or "\0" in path or any(part == ".." for part in path.split("/"))

    def query(self, name: str) -> str | None:
        found = parse_qs(self.scope.get("query_string", b"").decode("latin-1"))
        return found[name][0] if name in found else None

    def cookie(self, name: str) -> str | None:
        try:
            found = SimpleCookie(self.header(b"cookie")).get(name)
        except CookieError:
            return None
        return None if found is None else found.value


class _Answer:
    """Adds headers to what is answered, and remembers how it was."""

    def __init__(self, scope: Scope, send: Send, headers: Headers) -> None:
        self._scope, self._send, self._headers = scope, send, headers
        self.begun = False
        self.status = 0

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.begun = True
            self.status = message["status"]
            own = {name.lower() for name, _ in message.get("headers", [])}
            more = [pair for pair in self._headers if pair[0] not in own]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        elif message["type"] == "websocket.accept":
            self.begun = True
            self.status = 101
        await self._send(message)

    async def deny(self, denied: Denied, *, page: bool) -> None:
        kind = b"application/json"
        body = b"" if denied.status in (204, 303) else error_body(denied.code, denied.message, denied.hint)
        if page:
            kind, body = b"text/html; charset=utf-8", token_page(denied.message)
        prefix = "websocket.http.response" if self._scope["type"] == "websocket" else "http.response"
        headers = [*denied.headers, (b"content-length", str(len(body)).encode())]
        if body:
            headers.append((b"content-type", kind))
        await self.send({"type": f"{prefix}.start", "status": denied.status, "headers": headers})
        await self.send({"type": f"{prefix}.body", "body": body, "more_body": False})


def _bounded(request: _Request, receive: Receive) -> Receive:
    """Return a receive that refuses bodies that are too large."""
    try:
        told = int(request.header(b"content-length") or 0)
    except ValueError:
        raise Denied(400, "invalid", "Content-Length is no number") from None
    if told > _BODY_MAX:
        raise Denied(413, "too_large", f"a body of {told} bytes, at most {_BODY_MAX}", connection="close")
    taken = 0

    async def bounded() -> MutableMapping[str, Any]:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > _BODY_MAX:
            raise Denied(413, "too_large", f"a body of more than {_BODY_MAX} bytes", connection="close")
        return message

    return bounded


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


__all__ = ["COOKIE", "Denied", "Guard", "is_loopback"]
