"""The client: one WebSocket connection, what it asked for and what it has seen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from onetape.clock import now_ns
from onetape.errors import OnetapeError
from onetape.offloop import in_thread
from onetape.web.candles import interval_of
from onetape.web.fanout import Group, Key
from onetape.web.messages import Message, Refused, Subscribe, Unsubscribe, error_of, parse
from onetape.web.protocol import Protocol, framed
from onetape.web.rates import Rates
from onetape.web.rows import LastRow, ms

if TYPE_CHECKING:
    from onetape.web.hub import Hub, Shot

_log = logging.getLogger("onetape.web")
_encode = msgspec.json.encode

#: Messages a second, and at once, that a client may send.
_MESSAGES_PER_S, _MESSAGES_AT_ONCE = 20.0, 100.0
#: What a bar of a snapshot costs of that.
_BAR_COST = 1 / 20_000
_LOOK_S = 0.02
#: Mistakes after which a client is sent away.
_MISTAKES_MAX = 20


class Client:
    """One connection. `seen`: the version of the fan-out up to which everything was told."""

    def __init__(self, hub: Hub, websocket: WebSocket, protocol: Protocol) -> None:
        self.hub = hub
        self._websocket = websocket
        self._protocol = protocol
        self._rates = Rates(_MESSAGES_PER_S, _MESSAGES_AT_ONCE)
        self._mistakes = 0
        self._anew: set[Key] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.seen = hub.fanout.version
        self.group: Group | None = None
        self.keys: set[Key] = set()
        self._history: dict[Key, int] = {}
        self.taken_at = asyncio.get_running_loop().time()

    @property
    def behind(self) -> bool:
        """Whether the connection has not taken what was written to it."""
        return self._protocol.waiting_bytes > 0

    def taking_since(self, now: float) -> float:
        """Return for how long it has been behind, s."""
        return now - self.taken_at

    def write(self, message: bytes) -> None:
        """Send a JSON text message."""
        self._protocol.write_framed(framed(message))

    def frame(self, frame: bytes) -> None:
        """Send a message that is framed already."""
        self._protocol.write_framed(frame)

    def tell(self, told: Any) -> None:
        """Send something as JSON."""
        self.write(_encode(told))

    def abort(self, why: str) -> None:
        """Cut the connection off."""
        _log.info("a client is cut off: %s", why, extra={"client": self.address})
        self._protocol.abort()

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye with a reason."""
        if self._closed:
            return
        self._closed = True
        if self.behind:
            self._protocol.abort()
            return
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await self._websocket.close(code, reason)

    @property
    def address(self) -> str:
        """Where it comes from."""
        place = self._websocket.client
        return f"{place.host}:{place.port}" if place else "?"

    async def run(self) -> None:
        """Serve it until it goes."""
        self.hub.clients.add(self)
        try:
            while not self._closed:
                message = await self._websocket.receive()
                if message["type"] == "websocket.disconnect":
                    break
                await self._hear(message.get("text") or message.get("bytes") or b"")
        finally:
            self._closed = True
            self.hub.clients.discard(self)
            for task in self._tasks:
                task.cancel()
            self._regroup(set())

    async def _hear(self, text: str | bytes) -> None:
        await asyncio.sleep(self._rates.take(""))  # it is not read from meanwhile
        await self._taken()
        try:
            await self._do(parse(text))
        except OnetapeError as error:
            self.tell(error_of(error))
            self._mistakes += 1
            if self._mistakes >= _MISTAKES_MAX:
                await self.close(1008, "too many mistakes")

    async def _taken(self) -> None:
        """Wait until it has taken what was written: so what it asks for never piles up."""
        while self.behind and not self._closed:
            await asyncio.sleep(_LOOK_S)

    async def _do(self, message: Message) -> None:
        if isinstance(message, Subscribe):
            await self._subscribe(message)
        elif isinstance(message, Unsubscribe):
            leaving = set(message.symbols)
            self._regroup({key for key in self.keys if key[0] not in leaving})
        else:
            self.tell({"op": "pong", "now_ms": ms(now_ns())})

    async def _subscribe(self, asked: Subscribe) -> None:
        interval = interval_of(asked.interval)
        symbols = list(dict.fromkeys(asked.symbols))
        most = self.hub.settings.symbols_per_client_max
        kept = {key for key in self.keys if key[0] not in set(symbols)}
        if len(kept) + len(symbols) > most:
            raise Refused("too_many_symbols", f"{len(kept) + len(symbols)} symbols, at most {most} a client")
        self._rates.charge("", len(symbols) * (0.02 + asked.history * _BAR_COST))
        await in_thread(self.hub.check_symbols, symbols)
        for symbol in symbols:
            key = symbol, interval.text
            self.hub.fanout.channel(key)  # held while its bars are read
            try:
                shot = await self.hub.snapshot(key, interval, 0 if asked.from_ is not None else asked.history)
                await self._begin(key, shot, asked)
            finally:
                self.hub.release([key])

    async def _begin(self, key: Key, shot: Shot, asked: Subscribe) -> None:
        """Send where a symbol stands, and let it be told from there."""
        await self._taken()
        seen = shot.seen
        if asked.from_ is None:
            self._tell_snapshot(key, shot)
        else:
            changed = await self.hub.changed_since(key, asked.from_)
            if changed is None:
                shot = await self.hub.snapshot(key, interval_of(key[1]), asked.history)
                self._tell_snapshot(key, shot)
            else:
                position, rows = changed
                # What the fan-out has told since `seen` is told again: rows are whole bars, so twice is once.
                revised = [row[0] for row in rows if row[6]]
                last = self._last(key, shot)
                self.tell(
                    {
                        "op": "delta",
                        "position": position,
                        "symbols": {key[0]: {"bars": rows, "last": last, "n": 0, "revised": revised}},
                    }
                )
        self._history[key] = asked.history
        self._regroup({other for other in self.keys if other[0] != key[0]} | {key}, seen)

    def _tell_snapshot(self, key: Key, shot: Shot) -> None:
        window = shot.window
        self.tell(
            {
                "op": "snapshot",
                "symbol": key[0],
                "interval": key[1],
                "position": window.position,
                "bars": window.bars,
                "more": window.more,
                "last": self._last(key, shot),
                "gaps": window.gaps,
            }
        )

    def _last(self, key: Key, shot: Shot) -> LastRow | None:
        channel = self.hub.fanout.channels.get(key)
        if channel is not None:
            channel.last.join(shot.last) if channel.last.trade_ns < 0 and channel.last.quote_ns < 0 else None
            return channel.last.row()
        return shot.last.row()

    def _regroup(self, keys: set[Key], seen: int | None = None) -> None:
        """Want these channels from now on; `seen` is the version up to which new ones were told."""
        fanout = self.hub.fanout
        if keys != self.keys:
            for key in keys - self.keys:
                fanout.channel(key)
            if self.group is not None:
                fanout.part(self, self.group)
            left = self.keys - keys
            self.keys, self.group = keys, fanout.group(keys)
            self.hub.release(left)
            for key in left:
                self._history.pop(key, None)
        if seen is not None:
            self.seen = min(self.seen, seen) if len(self.keys) > 1 else seen
        if self.group is not None:
            fanout.join(self, self.group)

    def anew(self, keys: Iterable[Key]) -> None:
        """Give bars anew: what changed of them is not known any more."""
        wanted = set(keys) - self._anew
        if not wanted or self._closed:
            return
        self._anew |= wanted
        task = asyncio.ensure_future(self._give_anew(wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _give_anew(self, keys: set[Key]) -> None:
        for key in keys:
            self._anew.discard(key)
            if key not in self.keys:
                continue
            self.hub.fanout.channel(key)
            try:
                shot = await self.hub.snapshot(key, interval_of(key[1]), self._history.get(key, 300))
                await self._taken()
                if key in self.keys:
                    self._tell_snapshot(key, shot)
                    self.seen = min(self.seen, shot.seen)
            except OnetapeError as error:
                self.tell(error_of(error))
            finally:
                self.hub.release([key])
