"""Decoding: the fields of stream entries and hashes, as any feed names them, into Tick columns.

Pure: no server, no tape. The names are in tick_names, times in tick_times, values in tick_values. Fields are looked
up once for each distinct layout (the tuple of field names); after that a page is converted column by column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from onetape.migrate.fields import tick_names, tick_values
from onetape.migrate.fields.tick_names import Pick
from onetape.migrate.fields.tick_times import TimeReader
from onetape.record import UNKNOWN

_LAYOUTS_MAX = 1000


class Decoded(NamedTuple):
    """A page of entries as columns.

    `columns`: Tick's field name → list, all of one length, None for what is absent. `rows[i]` is the place
    of column row i in the page, ascending. `rejected`: place in the page → why it is no valid tick. Entries
    whose values can be read but are invalid (a NaN price, a negative size) are in both, so that a tape can
    keep them in quarantine; `valid()` leaves them out.
    """

    columns: dict[str, list[Any]]
    rows: list[int]
    rejected: dict[int, str]

    def valid(self) -> Decoded:
        """Return it without the rejected rows."""
        if not self.rejected:
            return self
        kept = [i for i, row in enumerate(self.rows) if row not in self.rejected]
        columns = {name: [values[i] for i in kept] for name, values in self.columns.items()}
        return Decoded(columns, [self.rows[i] for i in kept], self.rejected)


class _Layout(NamedTuple):
    numbers: dict[str, tuple[Pick, ...]]
    counts: dict[str, tuple[Pick, ...]]
    sides: tuple[Pick, ...]
    maker: tuple[Pick, ...]
    times: tuple[Pick, ...]
    receive_times: tuple[Pick, ...]
    symbols: tuple[Pick, ...]
    payload: int | None
    names: list[str]


class TickDecoder:
    """Decodes pages of entries of one legacy system, whose naive times are in `zone`."""

    def __init__(self, zone: str = "UTC") -> None:
        self._time = TimeReader(zone)
        self._layouts: dict[tuple[bytes | str, ...], _Layout] = {}
        self._symbols: dict[tuple[str, Any], str] = {}

    def decode(
        self, page: Sequence[Sequence[Any]], symbols: Sequence[str], default_ns: Sequence[int | None]
    ) -> Decoded:
        """Decode entries given as flat lists [name, value, name, value, ...] of bytes.

        `symbols[i]` is the symbol the entry's key names; a symbol in the entry wins where it differs, except
        that "INFY" in an entry of "NSE:INFY" is the same. `default_ns[i]` is the time of an entry that
        carries none. Never raises for what an entry holds.
        """
        rejected: dict[int, str] = {}
        groups: dict[tuple[bytes | str, ...], tuple[list[int], list[Sequence[Any]]]] = {}
        for i, flat in enumerate(page):
            names: tuple[bytes | str, ...] = tuple(flat[::2])
            values: Sequence[Any] = flat[1::2]
            payload = self._layout(names).payload
            if payload is not None:
                try:
                    names, values = self._opened(names, values, payload)
                except ValueError as error:
                    rejected[i] = str(error)
                    continue
            group = groups.get(names)
            if group is None:
                group = groups[names] = ([], [])
            group[0].append(i)
            group[1].append(values)
        parts = [
            self._group(self._layout(names), places, rows, symbols, default_ns, rejected)
            for names, (places, rows) in groups.items()
        ]
        return _joined(parts, rejected)

    def event_ns(self, flat: Sequence[Any], default_ns: int | None) -> int | None:
        """Return the time of an entry that need not be a tick, or `default_ns` where its fields tell none."""
        names: tuple[bytes | str, ...] = tuple(flat[::2])
        values: Sequence[Any] = flat[1::2]
        payload = self._layout(names).payload
        if payload is not None:
            try:
                names, values = self._opened(names, values, payload)
            except ValueError:
                return default_ns
        for place, _inside in self._layout(names).times:
            try:
                found = self._time.read(values[place])
            except ValueError:
                continue
            if found is not None:
                return found
        return default_ns

    def _layout(self, names: tuple[bytes | str, ...]) -> _Layout:
        found = self._layouts.get(names)
        if found is None:
            if len(self._layouts) >= _LAYOUTS_MAX:
                self._layouts.clear()
            found = self._layouts[names] = _layout_of([tick_names.normal(name) for name in names])
        return found

    def _opened(
        self, names: tuple[bytes | str, ...], values: Sequence[Any], payload: int
    ) -> tuple[tuple[bytes | str, ...], Sequence[Any]]:
        """Return the fields of the JSON object in a payload, then those around it, which count for less."""
        try:
            inner = tick_names.as_object(values[payload])
        except ValueError:
            inner = None
        if not isinstance(inner, dict):
            raise ValueError(f"{tick_names.normal(names[payload])!r} holds no JSON object of a tick")
        rest = [i for i in range(len(names)) if i != payload]
        return (*inner, *(names[i] for i in rest)), (*inner.values(), *(values[i] for i in rest))

    def _group(
        self,
        layout: _Layout,
        places: list[int],
        rows: list[Sequence[Any]],
        symbols: Sequence[str],
        default_ns: Sequence[int | None],
        rejected: dict[int, str],
    ) -> tuple[list[int], dict[str, list[Any]]]:
        fields = list(zip(*rows, strict=True))
        unread: set[int] = set()  # rows of the group that cannot be on the tape at all

        def reject(row: int, why: str, readable: bool = False) -> None:
            rejected.setdefault(places[row], why)
            if not readable:
                unread.add(row)

        columns: dict[str, list[Any]] = {
            "symbol": self._symbol_column(layout, fields, [symbols[i] for i in places], reject),
            "ts_event_ns": self._time_column(layout.times, fields, [default_ns[i] for i in places], reject),
        }
        for name, where in layout.numbers.items():
            columns[name] = tick_values.number_column(name, where, fields, reject)
        for name, where in layout.counts.items():
            columns[name] = tick_values.column(where, fields, partial(tick_values.as_count, name), reject)
            if name == "flags":
                columns[name] = [value or 0 for value in columns[name]]
        if layout.sides:
            columns["side"] = [
                side or UNKNOWN for side in tick_values.column(layout.sides, fields, tick_values.as_side, reject)
            ]
        elif layout.maker:
            columns["side"] = [
                side or UNKNOWN for side in tick_values.column(layout.maker, fields, tick_values.as_maker_side, reject)
            ]
        if layout.receive_times:
            columns["ts_recv_ns"] = tick_values.column(layout.receive_times, fields, self._receive_time, reject)
        priced = [columns[name] for name in ("price", "bid", "ask") if name in columns]
        if len(priced) != 1 or None in priced[0]:
            for row in range(len(places)):
                if all(column[row] is None for column in priced):
                    reject(row, f"no price, bid or ask among the fields {tick_values.shown(layout.names)}")
        if unread:
            kept = [row for row in range(len(places)) if row not in unread]
            columns = {name: [values[row] for row in kept] for name, values in columns.items()}
            places = [places[row] for row in kept]
        return places, columns

    def _symbol_column(
        self, layout: _Layout, fields: list[Any], of_key: list[str], reject: Callable[..., None]
    ) -> list[str]:
        none: list[Any] = [None] * len(of_key)
        own = tick_values.column(layout.symbols, fields, tick_values.as_text, reject) if layout.symbols else none
        cache, resolved = self._symbols, []
        if len(cache) > 10 * _LAYOUTS_MAX:
            cache.clear()
        for row, pair in enumerate(zip(of_key, own, strict=True)):
            found = cache.get(pair)
            if found is None:
                try:
                    found = cache[pair] = tick_values.tick_symbol(*pair)
                except ValueError as error:
                    reject(row, str(error))
                    found = pair[0]
            resolved.append(found)
        return resolved

    def _time_column(
        self,
        where: tuple[Pick, ...],
        fields: list[Any],
        default_ns: list[int | None],
        reject: Callable[..., None],
    ) -> list[int | None]:
        times: list[int | None] = [None] * len(default_ns)
        if where:
            try:
                times = self._time.read_column(fields[where[0].place])
                if None in times and len(where) > 1:
                    times = tick_values.column(where, fields, self._time.read, reject)
            except ValueError:
                times = tick_values.column(where, fields, self._time.read, reject)
        if None in times:
            both = zip(times, default_ns, strict=True)
            times = [default if time is None else time for time, default in both]
            for row, time in enumerate(times):
                if time is None:
                    reject(row, "no time in the fields or in the key")
        return times

    def _receive_time(self, value: Any) -> int | None:
        try:
            return self._time.read(value)
        except ValueError:  # it decides nothing, so a tick is not refused for it
            return None


def _layout_of(names: list[str]) -> _Layout:
    def numbers(column: str, wanted: tuple[str, ...]) -> tuple[Pick, ...]:
        return tick_names.picks(names, wanted) + tick_names.nested_picks(names, column)

    found = {column: numbers(column, wanted) for column, wanted in tick_names.NUMBERS.items()}
    counts = {column: tick_names.picks(names, wanted) for column, wanted in tick_names.COUNTS.items()}
    payloads = tick_names.picks(names, tick_names.PAYLOADS)
    # A field named "tick" or "value" beside a price is data of the feed's own, not the tick itself.
    is_payload = payloads and not any(found[column] for column in ("price", "bid", "ask"))
    return _Layout(
        numbers={column: where for column, where in found.items() if where},
        counts={column: where for column, where in counts.items() if where},
        sides=tick_names.picks(names, tick_names.SIDES),
        maker=tick_names.picks(names, tick_names.BUYER_IS_MAKER),
        times=tick_names.picks(names, tick_names.EVENT_TIMES),
        receive_times=tick_names.picks(names, tick_names.RECEIVE_TIMES),
        symbols=tick_names.picks(names, tick_names.SYMBOLS),
        payload=payloads[0].place if is_payload else None,
        names=names,
    )


def _joined(parts: list[tuple[list[int], dict[str, list[Any]]]], rejected: dict[int, str]) -> Decoded:
    parts = [part for part in parts if part[0]]
    if len(parts) == 1:
        return Decoded(parts[0][1], parts[0][0], rejected)
    rows = sorted(row for places, _columns in parts for row in places)
    position = {row: i for i, row in enumerate(rows)}
    absent = {"side": UNKNOWN, "flags": 0}
    columns: dict[str, list[Any]] = {}
    for places, part in parts:
        at = [position[row] for row in places]
        for name, values in part.items():
            out = columns.setdefault(name, [absent.get(name)] * len(rows))
            for i, value in zip(at, values, strict=True):
                out[i] = value
    return Decoded(columns, rows, rejected)
