"""What a replay plays: the records of a tape or of files, in one order that never changes, from any of its times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

import onetape
from onetape.clock import Time
from onetape.errors import ConfigInvalid
from onetape.record import TS_MAX_NS, Bar, Tick, interval_ns
from onetape.sources import file_reading
from onetape.sources.file_reading import Piece, Reading
from onetape.tape import Tape

#: Records converted at once: a few megabytes.
_ROWS = 4_096
_FIELDS = [name for name in Tick.__struct_fields__ if name != "seq"]


class Span(Protocol):
    """A sequence of records that reads the same every time."""

    @property
    def identity(self) -> str:
        """What tells it from another."""

    def records(self, since_ns: int) -> Iterator[Tick | Bar]:
        """Yield the records due at `since_ns` or later, in order; 0: all."""


def due_ns(record: Tick | Bar) -> int:
    """Return when a record is known: a tick when it happens, a bar at its end."""
    if isinstance(record, Tick):
        return record.ts_event_ns
    return record.ts_start_ns + interval_ns(record.interval)


class TapeSpan:
    """Ticks of a tape with start <= time < end, as the tape was at position `as_of`: what comes later is not in it."""

    def __init__(
        self,
        tape: Tape | str | Path,
        symbols: Sequence[str] | None = None,
        start: Time | None = None,
        end: Time | None = None,
        as_of: int | None = None,
    ) -> None:
        self._own = not isinstance(tape, Tape)
        self._tape = tape if isinstance(tape, Tape) else onetape.open(tape, mode="r")
        self._symbols = None if symbols is None else list(symbols)
        self._start_ns, self._end_ns = self._tape._span(start, end)
        self._as_of = self._tape.head if as_of is None else as_of

    @property
    def identity(self) -> str:
        """The position it is as of."""
        return str(self._as_of)

    def records(self, since_ns: int) -> Iterator[Tick | Bar]:
        """Yield ticks in canonical order, (ts_event_ns, seq)."""
        if not self._as_of:
            return
        start_ns = max(self._start_ns, since_ns)
        if start_ns >= self._end_ns:
            return
        end_ns = None if self._end_ns > TS_MAX_NS else self._end_ns
        found = self._tape.batches(self._symbols, start_ns, end_ns, _FIELDS, batch_rows=_ROWS, as_of=self._as_of)
        for batch in found:
            columns = [column.to_pylist() for column in batch.columns]
            yield from map(Tick, *columns)

    def close(self) -> None:
        """Close a tape that was opened for it."""
        if self._own:
            self._tape.close()


class FileSpan:
    """The records of files in the files' order, of some symbols or of all."""

    def __init__(
        self,
        path: Path,
        how: Reading,
        symbols: Sequence[str] | None = None,
        start_ns: int = 0,
        end_ns: int = TS_MAX_NS + 1,
    ) -> None:
        self._files, self._how = file_reading.files(path, how), how
        self._symbols = None if symbols is None else set(symbols)
        self._start_ns, self._end_ns = start_ns, end_ns
        self._identity = "-".join(file_reading.digest(one)[:16] for one in self._files[:64])

    @property
    def identity(self) -> str:
        """The digests of the files."""
        return self._identity

    def records(self, since_ns: int) -> Iterator[Tick | Bar]:
        """Yield records in the order of the files; a time that goes back does not make it go back."""
        since_ns, reached = max(since_ns, self._start_ns), 0
        for path in self._files:
            for piece in file_reading.pieces(path, self._how):
                for record in _records(piece):
                    if self._symbols is not None and record.symbol not in self._symbols:
                        continue
                    at_ns = due_ns(record)
                    if at_ns >= self._end_ns:
                        continue
                    reached = max(reached, at_ns)
                    if reached >= since_ns:
                        yield record

    def close(self) -> None:
        """Nothing is held."""


def _records(piece: Piece) -> Iterator[Tick | Bar]:
    if piece.columns is None:
        yield from piece.records
        return
    unknown = set(piece.columns) - set(Tick.__struct_fields__)
    if unknown:
        raise ConfigInvalid(f"columns {', '.join(sorted(unknown))} are of no tick", hint="map or leave them out")
    for start in range(0, piece.rows, _ROWS):
        count = min(_ROWS, piece.rows - start)
        columns = {name: _values(name, column, start, count) for name, column in piece.columns.items()}
        names = list(columns)
        for row in zip(*columns.values(), strict=False):
            yield Tick(**dict(zip(names, row, strict=True)))


def _values(name: str, column: Any, start: int, count: int) -> Any:
    """Return `count` values of a column as Tick takes them: a NaN of an array is absent, as the tape reads it."""
    if isinstance(column, str) or not hasattr(column, "__len__"):
        return repeat(column, count)
    part = column[start : start + count]
    if isinstance(part, np.ndarray):
        absent = np.isnan(part) if part.dtype.kind == "f" else None
        values = part.tolist()
        if absent is not None and absent.any():
            values = [None if gone else value for value, gone in zip(values, absent.tolist(), strict=True)]
    else:
        values = part.to_pylist() if hasattr(part, "to_pylist") else list(part)
    if name in ("side", "flags"):
        return [value or 0 for value in values]
    return values


def renamed(record: Tick | Bar, rename: Mapping[str, str]) -> Tick | Bar:
    """Return a record under the symbol that it is to have: a name of `rename`, or its "*" with {symbol} in it."""
    target = rename.get(record.symbol)
    if target is None:
        pattern = rename.get("*")
        if pattern is None:
            return record
        target = pattern.replace("{symbol}", record.symbol)
    return msgspec.structs.replace(record, symbol=target)
