"""One system from its settings: what runs, in which order it is started, and how it comes to its end.

Started in order: the tape, the sources, the services, the page; ended in reverse. Each is one supervised task, so what
goes wrong with one is waited out there, and everything else goes on. SIGTERM and SIGINT drain: the page says goodbye,
the sources store what they have read, and the tape is closed. A second signal does not wait.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from onetape.clock import now_ns
from onetape.config import Settings
from onetape.daemon import notify
from onetape.daemon.migration import Shown
from onetape.daemon.supervised import Supervised, in_own_thread
from onetape.errors import ConfigInvalid
from onetape.services import registry as services
from onetape.services.service import Service
from onetape.services.system import System
from onetape.sources import registry as sources
from onetape.sources.feed import Feed
from onetape.steady import SteadyTape

log = logging.getLogger("onetape.daemon")

#: How long closing the tape may take in any case, s.
CLOSE_S = 5.0
#: How often a service is asked whether it still runs, s.
_LOOK_S = 1.0


class Daemon:
    """A system made of settings. `run()` is its life; `stop()` ends it from any thread.

    Making it checks all settings and opens nothing but the tape, which may be away. Raises ConfigInvalid.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._sources = _named(settings.source)
        if settings.web.enabled:
            from onetape.web.server import check

            check(settings.web)
        self.tape = SteadyTape(
            settings.tape,
            durability=settings.durability,
            retention_days=settings.retention_days,
            bar_retention_days=settings.bar_retention_days,
            recent_per_symbol=settings.recent_per_symbol,
            memory_bytes=settings.memory_bytes,
        )
        wanted = {name: {} for name in services.KINDS} if settings.services is None else settings.services
        unknown = next((name for name in wanted if name not in services.KINDS), None)
        if unknown is not None:
            services.make(unknown, {}, self.tape)  # raises
        self.services: dict[str, Service] = {
            name: services.make(name, wanted[name], self.tape) for name in services.KINDS if name in wanted
        }
        self.feeds: dict[str, Feed] = {name: self._feed(name) for name in self._sources}
        self._migration = Shown(settings)
        self._tasks: list[Supervised] = []
        self._stopping: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.address: str | None = None
        self.system = System(
            tape=self.tape,
            feeds=self.feeds,
            services=self.services,
            migration=self._migration.look,
            tasks=lambda: [task.status() for task in self._tasks],
            started_ns=now_ns(),
        )

    async def run(self, *, signals: bool = True, on_ready: Callable[[Daemon], None] = lambda daemon: None) -> bool:
        """Run until stop() or a signal; return whether everything came to its end in time."""
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        if signals:
            self._listen()
        self.tape.start()
        try:
            await self._start()
            on_ready(self)
            notify.tell("READY=1")
            await self._until_stopped()
        finally:
            notify.tell("STOPPING=1")
            clean = await self._end()
        return clean

    def stop(self) -> None:
        """Ask it to end. May be called from any thread, and twice."""
        if self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)

    async def _start(self) -> None:
        await self._started(Supervised(f"source:{name}", self._source(name), once=True) for name in self._sources)
        await self._started(Supervised(f"service:{name}", _service(made)) for name, made in self.services.items())
        if self.settings.web.enabled:
            await self._started([Supervised("web", self._web)])

    async def _started(self, tasks: Iterable[Supervised]) -> None:
        """Start tasks, and wait until each runs or has said why it does not; those are tried again meanwhile."""
        made = list(tasks)
        self._tasks += made
        for task in made:
            task.start()
        assert self._stopping is not None
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            for task in made:
                waiting = asyncio.ensure_future(task.settled())
                await asyncio.wait([waiting, stopping], return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    waiting.cancel()
                elif not waiting.result() and task.state == "starting":
                    log.warning("%s takes long to start", task.name)
        finally:
            stopping.cancel()

    async def _until_stopped(self) -> None:
        assert self._stopping is not None
        every_s = notify.watchdog_s()
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), every_s)
            except TimeoutError:
                notify.tell("WATCHDOG=1")

    async def _end(self) -> bool:
        """End everything in reverse, within drain_s in all; return whether all of it ended."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.drain_s
        clean = True
        for group in ("web", "service:", "source:"):
            tasks = [task for task in self._tasks if task.name.startswith(group)]
            left_s = max(0.5, deadline - loop.time())
            clean = all(await asyncio.gather(*(task.stop(left_s) for task in tasks))) and clean
        self._migration.close()
        closing = asyncio.ensure_future(in_own_thread(self.tape.close, lambda: None, "onetape-close"))
        _, pending = await asyncio.wait([closing], timeout=max(CLOSE_S, deadline - loop.time()))
        if pending:
            log.error("the tape is not closed in time; it is left as after a kill, which costs nothing but a recovery")
            return False
        closing.result()
        return clean

    def _listen(self) -> None:
        loop, stopping = asyncio.get_running_loop(), self._stopping
        assert stopping is not None

        def ask(number: int) -> None:
            if stopping.is_set():
                log.error("%s again: ended without waiting", signal.Signals(number).name)
                raise SystemExit(1)
            log.info("%s: draining", signal.Signals(number).name)
            stopping.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ask, number)

    def _feed(self, name: str) -> Feed:
        table, where = self._sources[name]
        return Feed(sources.make({**table, "name": name}, where), self.tape)

    def _source(self, name: str) -> Callable[[Callable[[], None]], Awaitable[None]]:
        async def run(up: Callable[[], None]) -> None:
            feed = self.feeds[name]
            if feed.source.stopped or feed.source.stats.state != "idle":
                feed = self.feeds[name] = self._feed(name)  # one that ended is not iterated again
            up()
            await in_own_thread(feed.run, feed.close, f"onetape-{name}")

        return run

    async def _web(self, up: Callable[[], None]) -> None:
        from onetape.web.app import make_app
        from onetape.web.server import serve

        def told(address: str) -> None:
            self.address = address
            log.info("the page is at %s", address)
            up()

        await serve(make_app(self.system, self.settings.web), self.settings.web, on_ready=told)


def _service(service: Service) -> Callable[[Callable[[], None]], Awaitable[None]]:
    async def run(up: Callable[[], None]) -> None:
        try:
            await service.start()
            up()
            while service.status().get("running", True):
                await asyncio.sleep(_LOOK_S)
        finally:
            await service.stop()

    return run


def _named(tables: Iterable[dict[str, Any]]) -> dict[str, tuple[dict[str, Any], str]]:
    """Return the tables of sources by name, with where each stands; checked."""
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for at, table in enumerate(tables, 1):
        where = f"[[source]] number {at}"
        source = sources.make(table, where)
        if source.name in found:
            raise ConfigInvalid(
                f"{where}: a source named {source.name!r} stands before it",
                hint='give each a name of its own: name = "…"; it keeps the place on the tape',
            )
        found[source.name] = (table, where)
    return found
