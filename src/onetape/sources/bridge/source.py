"""The bridge source: symbols of a Sierra Chart bridge, pushed over WebSockets, or polled where it does not push."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from onetape.clock import now_ns, to_text
from onetape.errors import ConfigInvalid
from onetape.importing.scid import FUTURE_S_MAX
from onetape.record import Tick
from onetape.sources.bridge.http import BridgeAway, BridgeHttp, quoted
from onetape.sources.bridge.look import Known, LookInvalid, Watch, read
from onetape.sources.bridge.push import Push
from onetape.sources.source import Backoff, Delivery, Reconnecting

Transport = Literal["auto", "ws", "http"]

#: A connection that lasted this long, s, was a good one: the next wait is short again.
GOOD_S = 10.0

#: A time this much after now is none, ns: it would be the latest for ever.
_FUTURE_NS = FUTURE_S_MAX * 1_000_000_000
#: A bridge that names a symbol anew is believed when it has not used the name before for this long, ns: a roll.
_RENAMED_NS = 60_000_000_000


class _Cursor(msgspec.Struct, array_like=True):
    number: int  # of deliveries with records: no two cursors are equal
    known: dict[str, Known]


class BridgeSource(Reconnecting):
    """Ticks of `symbols` from a bridge.

    transport: "auto" pushes, and polls those symbols whose WebSocket the bridge refuses; "ws" or "http" alone.
    poll_s: how often it polls.
    """

    kind = "bridge"
    lost = (OSError, EOFError, ConnectionClosed, InvalidHandshake)

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        symbols: Sequence[str],
        *,
        transport: Transport = "auto",
        poll_s: float = 0.5,
        connect_s: float = 10.0,
        backoff: Backoff | None = None,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        if not symbols:
            raise ConfigInvalid(f"source {name}: no symbols", hint='say which, such as symbols = ["ESZ6"]')
        super().__init__(name, backoff=backoff, clock=clock)
        self._host, self._port, self._symbols = host, port, list(dict.fromkeys(symbols))
        self._transport, self._poll_s, self._connect_s = transport, poll_s, connect_s
        self._watches = {symbol: Watch(symbol, name) for symbol in self._symbols}
        self._number = 0
        self._alive_ns: int | None = None
        self._counted: dict[str, float] = {}
        self._names: dict[str, tuple[str, int]] = {}  # what the bridge calls a symbol, and when it did last
        self._push: Push | None = None

    def resume(self, cursor: str | None) -> None:
        """Go on: a state that was told before is not told again."""
        known: dict[str, Known] = {}
        if cursor is not None:
            try:
                taken = msgspec.json.decode(cursor, type=_Cursor)
            except msgspec.DecodeError as error:
                raise ConfigInvalid(
                    f"a cursor that no bridge source wrote: {cursor[:60]!r}",
                    hint="another kind of source had this name before",
                ) from error
            self._number, known = taken.number, taken.known
        self._watches = {symbol: Watch(symbol, self.name, known.get(symbol)) for symbol in self._symbols}
        super().resume(cursor)

    def close(self) -> None:
        super().close()
        push = self._push
        if push is not None:
            push.hang_up()

    def _wanted(self) -> bool:
        return not self.stopped

    def _session(self) -> Iterator[Delivery]:
        began, good = time.monotonic(), False
        with BridgeHttp(self._host, self._port, answer_s=self._connect_s, wanted=self._wanted) as http:
            push = self._push = Push(self._host, self._port, self._connect_s, self._wanted)
            try:
                polled = list(self._symbols)
                if self._transport != "http":
                    polled = [
                        symbol for symbol in self._symbols if not push.open(symbol, required=self._transport == "ws")
                    ]
                for watch in self._watches.values():
                    watch.reconnected()
                self._facts["pushed"], self._facts["polled"] = len(self._symbols) - len(polled), len(polled)
                begun_ns, next_poll = self._clock(), time.monotonic()
                missing = self._gap(begun_ns)
                answered = next_poll  # when the last poll that was answered began
                while not self.stopped:
                    ticks: list[Tick] = []
                    if polled and time.monotonic() >= next_poll:
                        began_poll = time.monotonic()
                        for symbol, state in self._poll(http, polled):
                            self._take(symbol, state, ticks, polled=True)
                        answered, next_poll = began_poll, time.monotonic() + self._poll_s
                    heard = min(answered if polled else math.inf, push.heard)
                    wait_s = min(0.5, next_poll - time.monotonic()) if polled else 0.5
                    for symbol, text in push.messages(max(wait_s, 0.001)):
                        self._take(symbol, text, ticks, polled=False)
                    if self.stats.state != "live":
                        self._tell(state="live", trouble=None)
                    if not good and time.monotonic() - began > GOOD_S:
                        self._backoff.reset()
                        good = True
                    heard_ns = max(begun_ns, self._clock() - int((time.monotonic() - heard) * 1e9))
                    yield self._delivery(ticks, missing, heard_ns)
                    missing, self._alive_ns = [], heard_ns
                    push.check()
            finally:
                self._push = None
                push.close()

    def _gap(self, now: int) -> list[tuple[str, int, int]]:
        before = self._alive_ns
        if before is None or now <= before:
            return []
        return [(symbol, before, now) for symbol in self._symbols]

    def _poll(self, http: BridgeHttp, symbols: list[str]) -> Iterator[tuple[str, Any]]:
        """Yield (symbol, state) of those the bridge has: from one answer for all, else one by one."""
        try:
            states = _by_symbol(http.json("/api/market_data"))
        except BridgeAway as error:
            if error.status is None:
                raise
            states = None
        absent: list[str] = []
        for symbol in symbols:
            if self.stopped:
                return
            if states is not None and symbol in states:
                yield symbol, states[symbol]
                continue
            try:
                yield symbol, http.json(f"/api/data/{quoted(symbol)}")
            except BridgeAway as error:
                if error.status not in (404, 422):
                    raise
                absent.append(symbol)
        self._facts["unknown_to_the_bridge"] = absent

    def _take(self, symbol: str, message: Any, ticks: list[Tick], *, polled: bool) -> None:
        try:
            if isinstance(message, str | bytes):
                message = msgspec.json.decode(message)
            for one in message if isinstance(message, list) else [message]:
                look, now = read(one), self._clock()
                if look.ts_ns is not None and look.ts_ns > now + _FUTURE_NS:
                    raise LookInvalid(f"a time in the future: {to_text(look.ts_ns)}")
                self._check_name(symbol, look.symbol, now)
                tick = self._watches[symbol].news(look, now, polled=polled)
                if tick is not None:
                    ticks.append(tick)
        except (LookInvalid, msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            self._count(refused=1)
            self._facts["refused_last"] = f"{symbol}: {error}"

    def _check_name(self, symbol: str, told: str | None, now: int) -> None:
        """Raise LookInvalid for a message of another symbol. A bridge may have its own names, but one at a time."""
        if told is None or told == symbol:
            if told is not None:
                self._names[symbol] = (told, now)
            return
        name, last_ns = self._names.get(symbol, (told, now))
        if told in self._watches or (told != name and now - last_ns < _RENAMED_NS):
            raise LookInvalid(f"a message of {told!r:.60}")
        self._names[symbol] = (told, now)

    def _delivery(self, ticks: list[Tick], missing: list[tuple[str, int, int]], heard_ns: int) -> Delivery:
        totals = {
            name: sum(getattr(watch, name) for watch in self._watches.values())
            for name in ("repeats", "placeholders", "unseen")
        }
        self._count(duplicates=int(totals["repeats"] - self._counted.get("repeats", 0)))
        self._counted = totals
        self._facts["placeholders"], self._facts["volume_unseen"] = totals["placeholders"], totals["unseen"]
        if not ticks:
            return Delivery(missing=missing, heard_ns=heard_ns)
        self._number += 1
        known = {symbol: watch.known for symbol, watch in self._watches.items()}
        cursor = _Cursor(self._number, {symbol: one for symbol, one in known.items() if one is not None})
        return Delivery(ticks, cursor=msgspec.json.encode(cursor).decode(), missing=missing, heard_ns=heard_ns)


def _by_symbol(value: Any) -> dict[str, Any]:
    """The states of an answer about all symbols: an object by symbol, perhaps below "data" or "symbols", or a list."""
    for name in ("data", "symbols", "market_data"):
        if isinstance(value, dict) and isinstance(value.get(name), dict | list):
            value = value[name]
            break
    if isinstance(value, list):
        found = {}
        for entry in value:
            if isinstance(entry, dict):
                symbol = next((entry[name] for name in ("symbol", "Symbol", "ticker") if name in entry), None)
                if isinstance(symbol, str):
                    found[symbol] = entry
        return found
    return value if isinstance(value, dict) else {}
