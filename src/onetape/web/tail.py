"""The tail: a follower that tells what came by symbol (how many ticks, the last trade and quote), not by record.

At 20,000 ticks a second a Python object a tick would cost more than all else that the server does; columns do not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from onetape.errors import TapeClosed
from onetape.live.follower import Follower
from onetape.live.waker import Waker
from onetape.store import layout, replay
from onetape.store.block import Array, Columns
from onetape.store.layout import KIND_TICK
from onetape.tape import Tape
from onetape.web.rows import Last

_STEPS_MAX = 16

#: Symbol → how many ticks, and the last of them; symbols that were touched by anything else have a count of 0.
Told = dict[str, tuple[int, Last]]


class Tail(Follower):
    """Follows all symbols of a tape; gather() gives what came."""

    def gather(self, timeout_s: float) -> Told:
        """Return what came, waiting up to `timeout_s` for it."""
        found = super().take(timeout_s)
        return found[0] if found else {}  # type: ignore[return-value]

    @property
    def ended(self) -> bool:
        """Whether somebody closed it: the tape was."""
        return self._closed

    def _look(self) -> list[Told]:  # type: ignore[override]
        if os.getpid() != self._pid:
            raise TapeClosed("this follower was opened before the process was forked", hint="follow in the new process")
        told: Told = {}
        with self._using:
            self._names.catalog.refresh(self._connection)
            for _ in range(_STEPS_MAX):
                step = None if self._closed else replay.step(self._connection, self.position, True, self._cache)
                if step is None:
                    break
                for kind, columns in step.found.items():
                    self._add(told, kind, columns)
                self.position = step.position
        return [told] if told else []

    def _add(self, told: Told, kind: int, columns: Columns) -> None:
        symbols = columns["symbol"]
        ids, counts = np.unique(symbols, return_counts=True)
        lasts = _lasts(columns) if kind == KIND_TICK else {}
        for symbol_id, count in zip(ids.tolist(), counts.tolist(), strict=True):
            name = self._names.catalog.symbol(self._connection, symbol_id)
            before, last = told.get(name) or (0, Last())
            if symbol_id in lasts:
                last.join(lasts[symbol_id])
            told[name] = before + (count if kind == KIND_TICK else 0), last


def open_tail(tape: Tape, position: int | None) -> Tail:
    """Return a tail behind a position, or from now. As Tape.follow() makes a follower."""
    tape._check_open()
    connection = tape._connect("r")
    waker = Waker(layout.wal_path(tape.path))
    try:
        made = Tail(connection, waker, position=position, on_close=tape._forget)
    except BaseException:
        waker.close()
        connection.close()
        raise
    with tape._followers_lock:
        tape._followers.add(made)
        tape._followed = True
    return made


def _lasts(columns: Columns) -> dict[int, Last]:
    """Return the last trade and the last quote of each symbol id."""
    found: dict[int, Last] = {}
    nothing = np.zeros(len(columns["seq"]), dtype=bool)
    trades = ~np.isnan(columns["price"]) if "price" in columns else nothing
    quotes = nothing
    for side in ("bid", "ask"):
        if side in columns:
            quotes = quotes | ~np.isnan(columns[side])
    for at in _newest(columns, trades):
        last = found.setdefault(int(columns["symbol"][at]), Last())
        last.trade_ns = int(columns["ts_event_ns"][at])
        last.price, last.size = _value(columns, "price", at), _value(columns, "size", at)
    for at in _newest(columns, quotes):
        last = found.setdefault(int(columns["symbol"][at]), Last())
        last.quote_ns = int(columns["ts_event_ns"][at])
        last.bid, last.ask = _value(columns, "bid", at), _value(columns, "ask", at)
        last.bid_size, last.ask_size = _value(columns, "bid_size", at), _value(columns, "ask_size", at)
    return found


def _newest(columns: Columns, mask: Array) -> list[int]:
    """Return which of these rows is each symbol's greatest in canonical order."""
    rows = np.flatnonzero(mask)
    if not len(rows):
        return []
    order = np.lexsort((columns["seq"][rows], columns["ts_event_ns"][rows], columns["symbol"][rows]))
    rows = rows[order]
    symbols = columns["symbol"][rows]
    found: list[int] = rows[np.append(symbols[1:] != symbols[:-1], True)].tolist()
    return found


def _value(columns: Mapping[str, Array], name: str, at: int) -> float | None:
    if name not in columns:
        return None
    value = float(columns[name][at])
    return None if value != value else value
