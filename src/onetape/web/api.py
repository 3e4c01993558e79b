"""The JSON API: each path asks the system one thing, off the loop, and answers it as plain data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from starlette.responses import Response

from onetape.offloop import in_thread
from onetape.record import TS_MAX_NS
from onetape.web import models
from onetape.web.answers import Json
from onetape.web.candles import BARS_MAX, Known, interval_of, newest
from onetape.web.messages import Refused
from onetape.web.rows import MS_NS, book_dict, tick_dict
from onetape.web.views import Views

if TYPE_CHECKING:
    from onetape.services.system import System

Name = Annotated[str, Query(min_length=1, max_length=255, description="the symbol's name")]
_LEVELS_MAX = 200
_FAULTS: dict[int | str, dict[str, Any]] = {
    400: {"model": models.Error, "description": "asked wrongly"},
    401: {"model": models.Error, "description": "no token, or a wrong one"},
    404: {"model": models.Error, "description": "there is no such thing"},
    429: {"model": models.Error, "description": "asked too often"},
    503: {"model": models.Error, "description": "the tape is away"},
}


def make_router(system: System, known: Known) -> APIRouter:
    """Return the routes under /api/v1."""
    api = APIRouter(prefix="/api/v1", responses=_FAULTS)
    views = Views(system, known)

    def knows(symbol: str) -> None:
        if known.of(symbol) is None and system.tape.latest(symbol) is None and symbol not in system.books():
            raise Refused("symbol_unknown", f"there is no symbol {symbol!r}", "GET /api/v1/symbols lists them")

    @api.get("/symbols", response_model=models.Symbols, summary="Symbols and where they stand")
    async def symbols(
        q: Annotated[str, Query(max_length=255, description="a part of the name")] = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Response:
        return Json(await in_thread(views.symbols, q, limit))

    @api.get("/candles", response_model=models.Candles, summary="The newest bars before a time")
    async def candles(
        symbol: Name,
        interval: Annotated[str, Query(max_length=20)] = "1min",
        end_ms: Annotated[int | None, Query(ge=0, description="bars that begin before; absent: up to now")] = None,
        limit: Annotated[int, Query(ge=1, le=BARS_MAX)] = 1000,
    ) -> Response:
        length = interval_of(interval)

        def read() -> dict[str, Any]:
            knows(symbol)
            end_ns = None if end_ms is None else min(end_ms * MS_NS, TS_MAX_NS)
            window = newest(system.tape, known.of(symbol), symbol, length, end_ns, limit)
            return {"symbol": symbol, "interval": length.text, **window._asdict()}

        return Json(await in_thread(read))

    @api.get("/ticks", response_model=models.Ticks, summary="The newest ticks")
    async def ticks(symbol: Name, limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> Response:
        def read() -> dict[str, Any]:
            knows(symbol)
            return {"symbol": symbol, "ticks": [tick_dict(tick) for tick in system.tape.recent(symbol, limit)]}

        return Json(await in_thread(read))

    @api.get("/depth", response_model=models.Depth, summary="The order book, where a source keeps one")
    async def depth(symbol: Name, levels: Annotated[int, Query(ge=1, le=_LEVELS_MAX)] = 20) -> Response:
        def read() -> dict[str, Any]:
            book = system.books().get(symbol)
            if book is None:
                raise Refused("depth_unknown", f"no source keeps an order book of {symbol!r}")
            return book_dict(symbol, book, levels)

        return Json(await in_thread(read))

    @api.get("/tape", summary="What the tape says of itself")
    async def tape() -> Response:
        return Json(await in_thread(views.tape))

    @api.get("/coverage", response_model=models.Coverage, summary="How much of each day is covered")
    async def coverage(symbol: Name, days: Annotated[int, Query(ge=1, le=400)] = 90) -> Response:
        def read() -> dict[str, Any]:
            knows(symbol)
            return views.coverage(symbol, days)

        return Json(await in_thread(read))

    @api.get("/sources", summary="The sources: what each has seen, and how it is")
    async def sources() -> Response:
        def read() -> dict[str, Any]:
            found = []
            for name, feed in system.feeds.items():
                told = msgspec.to_builtins(feed.stats)
                found.append({"name": name, **told, "replay": hasattr(feed.source, "seek")})
            return {"sources": found}

        return Json(await in_thread(read))

    @api.get("/status", summary="How everything is")
    async def status() -> Response:
        return Json(await in_thread(system.status))

    @api.get("/migration", summary="The live migration, where there is one")
    async def migration() -> Response:
        found = await in_thread(system.migration)
        return Json({"migration": None} if found is None else found)

    @api.post("/replay/{source}", summary="Pause, play, seek, or change the speed of a replay")
    async def replay(source: str, act: models.Act) -> Response:
        return Json(await in_thread(_replay, system, source, act))

    return api


def make_services_router(system: System) -> APIRouter:
    """Return the routes that ask services."""
    api = APIRouter(prefix="/api/v1", responses=_FAULTS)

    @api.get("/patterns", summary="Patterns that were found lately, the newest first")
    async def patterns(
        symbol: Annotated[str | None, Query(max_length=255)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Response:
        def read() -> dict[str, Any]:
            found = _service(system.patterns, "patterns").recent(limit, symbol)
            return {"patterns": [_plain(one) for one in found]}

        return Json(await in_thread(read))

    @api.get("/patterns/statistics", summary="How often each pattern was right")
    async def statistics() -> Response:
        def read() -> Any:
            return _plain(_service(system.patterns, "patterns").statistics())

        return Json(await in_thread(read))

    @api.get("/state", summary="Positions, risk, profit and loss")
    async def state() -> Response:
        def read() -> Any:
            found = _service(system.state, "state")
            return _plain(found.snapshot() if hasattr(found, "snapshot") else found.status())

        return Json(await in_thread(read))

    @api.get("/charts", summary="The analysis of all charts")
    async def charts() -> Response:
        return Json(await in_thread(lambda: _plain(_service(system.charts, "charts").current_analysis())))

    return api


def _service(service: Any, name: str) -> Any:
    if service is None:
        raise Refused("service_off", f"the service {name} does not run", f"[services.{name}] in onetape.toml starts it")
    return service


def _plain(value: Any) -> Any:
    """Return plain data; beside each time in ns there is one in ms, which JavaScript can hold."""
    return _with_ms(msgspec.to_builtins(value, enc_hook=str, str_keys=True))


def _with_ms(found: Any) -> Any:
    if isinstance(found, list):
        return [_with_ms(one) for one in found]
    if not isinstance(found, dict):
        return found
    told = {name: _with_ms(one) for name, one in found.items()}
    for name, one in found.items():
        if name.endswith("_ns") and isinstance(one, int):
            told[f"{name[:-3]}_ms"] = one // MS_NS
    return told


#: What `value` of a replay's act is.
_HOW = "seek takes a time in ms, speed a factor, 0 for as fast as possible"


def _replay(system: System, name: str, act: models.Act) -> dict[str, Any]:
    feed = system.feeds.get(name)
    if feed is None:
        known = ", ".join(system.feeds) or "none"
        raise Refused("source_unknown", f"there is no source {name[:80]!r}", f"sources: {known}")
    source: Any = feed.source
    if not hasattr(source, "seek"):
        raise Refused("not_possible", f"{name} is no replay", "only a replay can be paused or moved")
    value = act.value
    if act.action in ("seek", "speed") and (value is None or not math.isfinite(value) or value < 0):
        raise Refused("invalid", f"{act.action} with value {value}", _HOW)
    try:
        if act.action == "pause":
            source.pause()
        elif act.action == "play":
            source.play()
        elif act.action == "seek":
            source.seek(int(value or 0) * MS_NS)
        else:
            source.speed = float(value or 0)
    except (ValueError, TypeError) as error:
        raise Refused("invalid", str(error)) from error
    return {"source": name, "action": act.action, "stats": msgspec.to_builtins(feed.stats)}


__all__ = ["make_router", "make_services_router"]
