"""The server: uvicorn around the application, its settings checked first, ended gracefully."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from onetape.config import WebSettings
from onetape.errors import ConfigInvalid
from onetape.web.guard import is_loopback
from onetape.web.protocol import Protocol
from onetape.web.reading import Reading

_BACKLOG = 2048
#: How long open requests may take at the end, s.
_GRACE_S = 5
#: How often it is asked whether the server is to end, s.
_LOOK_S = 0.05


def check(settings: WebSettings) -> None:
    """Raise ConfigInvalid for an address that others can reach, without a token."""
    if not is_loopback(settings.host) and settings.token is None:
        raise ConfigInvalid(
            f"[web] host = {settings.host!r} can be reached by others, and there is no token",
            hint='set token = "…" (16 characters or more) in [web], or host = "127.0.0.1"',
            setting="web",
        )


async def serve(app: FastAPI, settings: WebSettings, *, on_ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve until cancelled; then say goodbye to clients and end. `on_ready` gets the address once it listens.

    Port 0 takes a free one. Raises ConfigInvalid for settings that must not be, and an address that cannot be had.
    """
    check(settings)
    # uvicorn's own would tell the query, which may hold the token; the guard's log tells of each request without it.
    logging.getLogger("uvicorn.access").setLevel(logging.CRITICAL)
    listening = _listen(settings.host, settings.port)
    config = uvicorn.Config(
        app,
        http=Reading,
        ws=Protocol,
        ws_max_size=settings.message_bytes_max,
        ws_per_message_deflate=False,  # a frame is made once for all, and not packed for each
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        lifespan="on",
        proxy_headers=False,
        h11_max_incomplete_event_size=65_536,
        timeout_graceful_shutdown=_GRACE_S,
        timeout_keep_alive=30,
        limit_concurrency=None,
        backlog=_BACKLOG,
    )
    server = _Server(config)
    running = asyncio.ensure_future(server.serve(sockets=[listening]))
    try:
        while not server.started and not running.done():
            await asyncio.sleep(_LOOK_S / 5)
        if server.started:
            host, port = listening.getsockname()[:2]
            on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        await asyncio.shield(running)
    except asyncio.CancelledError:
        server.should_exit = True
        await app.state.hub.farewell()
        await asyncio.wait([running])
        raise
    finally:
        listening.close()
    if running.done() and not server.stopping:
        raise ConfigInvalid("the web server could not start", hint="the log says why")


class _Server(uvicorn.Server):
    """A server whose signals are somebody else's."""

    stopping = False

    def capture_signals(self) -> Any:
        """Leave signals to the process."""
        import contextlib

        return contextlib.nullcontext()

    async def shutdown(self, sockets: Any = None) -> None:
        """End, and remember that it was asked for."""
        self.stopping = True
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, proto)
    except OSError as error:
        raise ConfigInvalid(f"[web] host = {host!r}: {error}", setting="web") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
        made.listen(_BACKLOG)
        made.setblocking(False)
    except OSError as error:
        made.close()
        raise ConfigInvalid(
            f"[web] {host}:{port} cannot be listened on: {error.strerror}", hint="give another port", setting="web"
        ) from error
    return made
