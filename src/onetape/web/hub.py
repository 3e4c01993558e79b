"""The hub: all WebSocket clients of a system, what they want, and the pump that feeds them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from onetape.clock import now_ns
from onetape.config import WebSettings
from onetape.errors import OnetapeError
from onetape.offloop import in_thread
from onetape.store.interval import Interval
from onetape.web.candles import Known, Window, newest
from onetape.web.fanout import Fanout, Group, Key
from onetape.web.messages import Refused
from onetape.web.protocol import framed
from onetape.web.pump import News, Pump
from onetape.web.rows import BarRow, Last, bar_row, last_of, ms

if TYPE_CHECKING:
    from onetape.services.system import System
    from onetape.web.client import Client

_log = logging.getLogger("onetape.web")
_encode = msgspec.json.encode

#: Clients that were passed over are looked after so often; the status is sent so often, s.
_LOOK_S, _STATUS_S = 0.1, 1.0
#: A client that has taken nothing for so long is cut off, s.
STALLED_S = 30.0
#: From further back than so many positions bars are given anew, instead of what changed.
_BEHIND_MAX = 2_000_000
_CHANGED_MAX = 5000
#: A snapshot is given to all who ask within so long, s; what changed since it was read is told right behind it.
_SNAPSHOT_S = 5.0
#: Snapshots read at a time: they take the processor, and not the disk.
_READERS = 2


class Shot(msgspec.Struct, frozen=True):
    """A snapshot's frame, and the version of the channel before it was read: what changed later is told again."""

    seen: int
    window: Window
    last: Last


class Hub:
    """All clients of one system. Everything but want() and snapshot() is for the event loop."""

    def __init__(self, system: System, settings: WebSettings, known: Known) -> None:
        self.system, self.settings, self.known = system, settings, known
        self.fanout = Fanout(settings.frames_per_s, framed)
        self.clients: set[Client] = set()
        self.stalled_s = STALLED_S
        self.refused = 0
        self._pump = Pump(system.tape, self._deliver)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._shots: dict[tuple[Key, int], tuple[float, asyncio.Future[Shot]]] = {}
        self._readers = asyncio.Semaphore(_READERS)

    @property
    def trouble(self) -> str | None:
        """Why bars are not followed."""
        return self._pump.trouble

    async def start(self) -> None:
        """Begin to follow the tape."""
        self._loop = asyncio.get_running_loop()
        await in_thread(self._pump.start)
        self._task = asyncio.create_task(self._look_after())

    async def stop(self) -> None:
        """Say goodbye to all clients, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.farewell()
        await in_thread(self._pump.close)
        self.fanout.close()

    async def farewell(self) -> None:
        """Say to all clients that the server stops: they come back, from where they are."""
        await asyncio.gather(*(client.close(1012, "the server stops") for client in list(self.clients)))

    def _deliver(self, news: News) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._take, news)
        except RuntimeError:  # the loop has ended
            _log.debug("news after the end")

    def _take(self, news: News) -> None:
        self.fanout.take(news)
        if news.anew:
            self._shots.clear()
            for client in list(self.clients):
                client.anew(list(client.keys))

    async def _look_after(self) -> None:
        """Tell clients that were passed over, cut off those that take nothing, send the status."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await asyncio.sleep(_LOOK_S)
            now = loop.time()
            waiting: set[Group] = set()
            for client in list(self.clients):
                if client.behind:
                    if client.taking_since(now) > self.stalled_s:
                        self.fanout.counts.stalled += 1
                        client.abort("it took nothing for too long")
                    continue
                client.taken_at = now
                if client.group is not None and client.seen < client.group.told:
                    waiting.add(client.group)
            self.fanout.nudge(waiting)
            for at, (made, _) in list(self._shots.items()):
                if now - made > _SNAPSHOT_S:
                    del self._shots[at]
            if now >= due:
                due = now + _STATUS_S
                try:
                    status = framed(_encode(self.status()))
                except Exception:  # noqa: BLE001  (a part that cannot tell how it is must not end all clients)
                    _log.exception("the status could not be made")
                    continue
                for client in self.clients:
                    if not client.behind:
                        client.frame(status)

    def status(self) -> dict[str, Any]:
        """Return the status that clients get every second."""
        now = now_ns()
        feeds = []
        for name, feed in self.system.feeds.items():
            stats: Any = feed.stats
            stats = getattr(stats, "source", stats)
            seen = stats.last_recv_ns
            feeds.append(
                {
                    "name": name,
                    "kind": stats.kind,
                    "state": stats.state,
                    "lag_ms": stats.lag_ms,
                    "age_ms": None if seen is None else ms(now - seen),
                    "gaps": stats.gaps,
                    "dropped": stats.dropped,
                    "trouble": stats.trouble,
                }
            )
        return {
            "op": "status",
            "now_ms": ms(now),
            "feeds": feeds,
            "steady": _plain(self.system.tape.status),
            "frames_per_s": round(1 / self.fanout.period_s, 2),
        }

    # What clients want

    def want(self, key: Key) -> None:
        """Let a channel exist and be fed. The first user makes it; blocks (it asks the tape for its position)."""
        position = self._pump.want(*key)
        channel = self.fanout.channels.get(key)
        if channel is not None and channel.position is None:
            channel.position = position

    def release(self, keys: Iterable[Key]) -> None:
        """Want channels no more."""
        for key in keys:
            if self.fanout.release(key):
                self._pump.leave(*key)
                for at in [at for at in self._shots if at[0] == key]:
                    del self._shots[at]  # made for a channel that is gone

    async def snapshot(self, key: Key, interval: Interval, history: int) -> Shot:
        """Return a channel's newest bars; those who ask at about the same time share one reading."""
        loop = asyncio.get_running_loop()
        at = key, history
        kept = self._shots.get(at)
        if kept is not None and loop.time() - kept[0] <= _SNAPSHOT_S:
            shot = await asyncio.shield(kept[1])
            channel = self.fanout.channels.get(key)
            if channel is not None and channel.lost <= shot.seen:
                return shot
        seen = self.fanout.version
        task = asyncio.ensure_future(self._read(key, interval, history, seen))
        self._shots[at] = loop.time(), task
        return await asyncio.shield(task)

    async def _read(self, key: Key, interval: Interval, history: int, seen: int) -> Shot:
        symbol = key[0]
        tape = self.system.tape

        def read() -> Shot:
            self.want(key)
            window = Window(tape.head, [], False, [])
            if history:
                window = newest(tape, self.known.of(symbol), symbol, interval, None, history)
            return Shot(seen, window, last_of(tape.recent(symbol, 100)))

        async with self._readers:
            found = await in_thread(read)
        if key not in self.fanout.channels:  # whoever asked has gone meanwhile
            self._pump.leave(*key)
        return found

    async def changed_since(self, key: Key, position: int) -> tuple[int, list[BarRow]] | None:
        """Return which bars changed since a position and up to which one; None where that cannot be told."""
        tape = self.system.tape.tape
        if tape is None:
            return None

        def read() -> tuple[int, list[BarRow]] | None:
            head = self.system.tape.head
            if head is None or position > head or head - position > _BEHIND_MAX:
                return None
            rows: dict[int, BarRow] = {}
            try:
                with tape.follow_bars(key[0], key[1], from_seq=position) as follower:
                    while follower.position < head:
                        before = follower.position
                        for bar in follower.take(0.0):
                            row = bar_row(bar)
                            rows[row[0]] = row
                        if len(rows) > _CHANGED_MAX:
                            return None
                        if follower.position == before:
                            break
                    return follower.position, [rows[start] for start in sorted(rows)]
            except OnetapeError:
                return None  # retention was faster, or the tape is going away: the bars anew

        async with self._readers:
            return await in_thread(read)

    def check_symbols(self, symbols: Iterable[str]) -> None:
        """Raise Refused for a symbol that nothing is known of. Blocks."""
        for symbol in symbols:
            if self.known.of(symbol) is None and self.system.tape.latest(symbol) is None:
                raise Refused("symbol_unknown", f"there is no symbol {symbol[:80]!r}", "GET /api/v1/symbols lists them")


def _plain(status: Any) -> Any:
    return msgspec.to_builtins(status)
