"""The web application of a system: the JSON API, the WebSocket, the page, health, metrics."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from onetape.config import WebSettings
from onetape.errors import OnetapeError
from onetape.offloop import in_thread
from onetape.web import answers, metrics
from onetape.web.api import make_router, make_services_router
from onetape.web.candles import Known
from onetape.web.client import Client
from onetape.web.guard import Guard
from onetape.web.hub import Hub
from onetape.web.protocol import Protocol

if TYPE_CHECKING:
    from onetape.services.system import System

_log = logging.getLogger("onetape.web")
_STATIC = Path(__file__).parent / "static"
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


def make_app(system: System, settings: WebSettings) -> FastAPI:
    """Return the application. It follows the tape while it is served; `app.state.hub` is its hub."""
    known = Known(system.tape)
    hub = Hub(system, settings, known)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await hub.start()
        try:
            yield
        finally:
            await hub.stop()

    app = FastAPI(
        title="onetape",
        description="Market data of this machine's tape. Errors are {error: {code, message, hint}}.",
        version="1",
        lifespan=lifespan,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.hub = hub
    app.include_router(make_router(system, known))
    app.include_router(make_services_router(system))
    _add_health(app, system, hub)
    _add_socket(app, hub)
    _add_page(app)
    _add_errors(app)
    app.add_middleware(Guard, settings=settings)
    return app


def _add_health(app: FastAPI, system: System, hub: Hub) -> None:
    def answer(request: Request, found: tuple[bool, list[str]]) -> Response:
        ok, reasons = found
        told = reasons if request.scope.get("state", {}).get("trusted") else []
        return answers.Json({"ok": ok, "reasons": told}, 200 if ok else 503)

    @app.get("/healthz", summary="Whether it does its work")
    async def healthz(request: Request) -> Response:
        return answer(request, await in_thread(system.healthy))

    @app.get("/readyz", summary="Whether it answers from the tape, and all that was to be started is")
    async def readyz(request: Request) -> Response:
        return answer(request, await in_thread(system.ready))

    @app.get("/metrics", summary="Metrics in Prometheus's text format")
    async def metric_text() -> Response:
        return Response(await in_thread(metrics.text, system, hub), media_type=_TEXT)


def _add_socket(app: FastAPI, hub: Hub) -> None:
    @app.websocket("/ws/v1")
    async def live(websocket: WebSocket) -> None:
        protocol = websocket.scope.get("extensions", {}).get("onetape")
        if not isinstance(protocol, Protocol):
            raise RuntimeError("the WebSocket is served by onetape.web.server alone")
        await websocket.accept()
        if len(hub.clients) >= hub.settings.clients_max:
            hub.refused += 1
            await websocket.close(1013, "too many clients; try again later")
            return
        await Client(hub, websocket, protocol).run()


def _add_page(app: FastAPI) -> None:
    if _STATIC.is_dir():
        app.mount("/static", StaticFiles(directory=_STATIC), name="static")

        @app.get("/", include_in_schema=False)
        async def page() -> Response:
            return FileResponse(_STATIC / "index.html", headers={"cache-control": "no-cache"})

    @app.get("/api/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(answers.docs_page(app.openapi()), media_type="text/html")


def _add_errors(app: FastAPI) -> None:
    async def of_onetape(_: Request, error: Any) -> Response:
        return answers.of_error(error)

    async def of_http(_: Request, error: Any) -> Response:
        code = {404: "not_found", 405: "method_refused"}.get(error.status_code, "http")
        return answers.error(error.status_code, code, str(error.detail))

    async def of_validation(_: Request, error: Any) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return answers.error(400, "invalid", f"{where}: {first['msg']}" if where else first["msg"], "see /api/docs")

    async def of_anything(request: Request, error: Exception) -> Response:
        _log.error("%s failed", request.url.path, exc_info=error)
        return answers.error(500, "internal", "this went wrong here; the log has the reason")

    app.add_exception_handler(OnetapeError, of_onetape)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(Exception, of_anything)
