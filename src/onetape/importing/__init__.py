"""Importing: CSV files onto the tape, with a column mapping, in bounded memory, and never twice.

A file is read twice: first everything is checked, then it is stored, so that a wrong value in its last line leaves
nothing half-imported. It is stored in batches, each in a transaction, known by the digest of the file's content and
of how it is read: after a kill, the same import goes on where it was; done once, it changes nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from onetape.errors import ImportInvalid
from onetape.importing import names, times, values
from onetape.importing.csv_file import CsvFile, files_in
from onetape.importing.names import Kind, Layout, fields_of, parse_mapping
from onetape.progress import Progress, ProgressMeter
from onetape.record import Bar, interval_ns
from onetape.store import table
from onetape.store.layout import KIND_BAR
from onetape.tape import Tape

#: Rows of one transaction: about a tenth of a second of work and 30 MB of memory. Part of a batch's identity.
BATCH_ROWS = 65_536
_REFUSED_LISTED = 20
_SYMBOLS_LISTED = 1000

OnProgress = Callable[[Progress], object]


class CsvOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a CSV file is read.

    mapping: field of the record → column of the file ("date+time" joins two; "" leaves a field out); what is not
    mapped is found by its usual names (onetape.importing.names). symbol, source, interval: one for all rows.
    time_format: ns, us, ms, s, iso, a strptime pattern, or auto: what the first row looks like. timezone: of times
    written without an offset. header: column names of a file without a header line. delimiter: None finds it.
    on_invalid: "raise" stores nothing of a file with a wrong row; "quarantine" stores the good ones.
    """

    kind: Kind = "ticks"
    symbol: str | None = None
    mapping: dict[str, str] = {}
    time_format: str = "auto"
    timezone: str = "UTC"
    delimiter: str | None = None
    header: tuple[str, ...] = ()
    source: str | None = None
    interval: str | None = None
    on_invalid: Literal["raise", "quarantine"] = "raise"


class Refused(msgspec.Struct, frozen=True):
    """A row that was not stored: where it stands and what is wrong with it."""

    line: int
    column: str
    value: str
    why: str


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one CSV text: `rows` read, of them stored now, known from an earlier import, refused.

    `in_order`: whether times only grow, which the tape does not need. `dry_run`: nothing was stored.
    """

    file: str
    kind: Kind
    rows: int
    stored: int
    known: int
    refused: int
    first_refused: tuple[Refused, ...]
    ts_first_ns: int | None
    ts_last_ns: int | None
    symbols: tuple[str, ...]
    columns: dict[str, str]
    unused: tuple[str, ...]
    time_format: str
    in_order: bool
    digest: str
    dry_run: bool
    seconds: float


def import_csv(
    tape: Tape | None, path: str | os.PathLike[str], options: CsvOptions, *, on_progress: OnProgress | None = None
) -> list[Imported]:
    """Import a CSV file, plain or gzip, or every file of a zip; without a tape only say what would be done.

    Every text in a zip is checked before the first one is stored. Raises ImportInvalid, naming file, line, column
    and value, with nothing stored; TapeError, with whole batches stored: import again to go on.
    """
    times.check(options.time_format, options.timezone)
    if options.interval is not None:
        _check_interval(options.interval)
    jobs = [_Job(file, options, on_progress) for file in files_in(Path(path), options.delimiter, options.header)]
    for job in jobs:
        job.check()
    if tape is not None:
        for job in jobs:
            job.store(tape)
    return [job.result(dry_run=tape is None) for job in jobs]


def read_csv(path: str | os.PathLike[str], options: CsvOptions) -> Generator[tuple[int, Any]]:
    """Yield what a CSV file holds as (rows, data), in its order: columns for append_table(), or a list of Bars.

    With on_invalid="quarantine" a wrong value stands as something that a tape refuses. Raises ImportInvalid.
    """
    times.check(options.time_format, options.timezone)
    if options.interval is not None:
        _check_interval(options.interval)
    for file in files_in(Path(path), options.delimiter, options.header):
        for batch in _Job(file, options, None)._batches("reading", first=False):
            yield batch.rows, batch.data


class _Batch(msgspec.Struct):
    """Rows ready to append, and where the first of them stands."""

    first_row: int
    rows: int
    data: Any  # a mapping of columns for ticks, a list of Bars


class _Job:
    """One CSV text on its way."""

    def __init__(self, file: CsvFile, options: CsvOptions, on_progress: OnProgress | None) -> None:
        self.file, self.options = file, options
        given = [name for name in ("symbol", "source", "interval") if getattr(options, name) is not None]
        self.layout: Layout = names.resolve(file.header, options.kind, options.mapping, given, file.shown)
        self._own = names.is_own(file.header)
        self._spoilt: list[int] = []
        self._on_progress = on_progress
        self._stamp = self._stat()
        self._time = "ts_event_ns" if options.kind == "ticks" else "ts_start_ns"
        self._forms: dict[str, str] = {}
        self._kept: _Batch | None = None
        self._refused: dict[int, tuple[str, object, str]] = {}  # row → field, value, why
        self._checking = False
        self._refused_of_batch: dict[int, int] = {}
        self._symbols: dict[str, None] = {}
        self._span: tuple[int, int] | None = None
        self._in_order, self._rows, self._stored, self._known = True, 0, 0, 0
        self.digest = ""
        self.seconds = 0.0

    def check(self) -> None:
        """Read everything and store nothing. Raises ImportInvalid for the first wrong row, unless quarantined."""
        self._checking = True
        for number, batch in enumerate(self._batches("checking", first=True)):
            self._check(number, batch)
            self._kept = batch if not number else None  # what fits one batch need not be read again
            self._rows += batch.rows
        self._checking = False

    def store(self, tape: Tape) -> None:
        """Append the batches that the tape does not know."""
        batches = [self._kept] if self._kept is not None else self._batches("storing", first=False)
        on_invalid, name = self.options.on_invalid, self._identity()
        for number, batch in enumerate(batches if self._rows else []):
            self._refuse_change()
            append = tape.append_table if self.options.kind == "ticks" else tape.append
            done = append(batch.data, batch=f"{name}:{number}", on_invalid=on_invalid)
            self._stored += done.stored
            if not done.stored and done.last >= done.first:
                self._known += batch.rows - self._refused_of_batch.get(number, 0)
        self._kept = None

    def result(self, *, dry_run: bool) -> Imported:
        columns = {field: "+".join(of) for field, of in self.layout.columns.items()}
        listed = sorted(self._refused)[:_REFUSED_LISTED]
        return Imported(
            file=self.file.shown,
            kind=self.options.kind,
            rows=self._rows,
            stored=self._stored,
            known=self._known,
            refused=sum(self._refused_of_batch.values()),
            first_refused=tuple(self._places(listed)),
            ts_first_ns=self._span[0] if self._span else None,
            ts_last_ns=self._span[1] if self._span else None,
            symbols=tuple(self._symbols),
            columns=columns,
            unused=self.layout.unused,
            time_format=self._forms.get(self._time, self.options.time_format),
            in_order=self._in_order,
            digest=self.digest,
            dry_run=dry_run,
            seconds=self.seconds,
        )

    def _identity(self) -> str:
        """Return what this content, read this way, is known by on a tape."""
        how = {
            "kind": self.options.kind,
            "columns": self.layout.columns,
            "forms": self._forms,
            "timezone": self.options.timezone,
            "delimiter": self.file.delimiter,
            "header": self.options.header,
            "symbol": self.options.symbol,
            "source": self.options.source,
            "interval": self.options.interval,
            "rows": BATCH_ROWS,
        }
        content = self.digest.encode() + msgspec.json.encode(how, order="deterministic")
        return f"csv:{hashlib.sha256(content).hexdigest()}"

    def _batches(self, step: str, *, first: bool) -> Generator[_Batch]:
        meter = ProgressMeter(step)
        rows = 0

        def tell(read: int) -> None:
            progress = meter.update(read, self.file.bytes_total)
            self.seconds = progress.elapsed_s
            if self._on_progress is not None:
                self._on_progress(progress)

        found = self.file.batches(self.layout.wanted(), BATCH_ROWS, tell)
        while True:
            try:
                texts = next(found)
            except StopIteration as end:
                if first:
                    self.digest = end.value
                tell(self.file.bytes_total)
                return
            yield self._convert(texts, rows)
            rows += texts.num_rows

    def _convert(self, texts: Any, first_row: int) -> _Batch:
        count = texts.num_rows
        columns: dict[str, Any] = {}
        for field, of in self.layout.columns.items():
            text = _joined([texts.column(name).combine_chunks() for name in of])
            columns[field] = self._values(field, text, first_row)
        for field in ("symbol", "source", "interval"):
            value = getattr(self.options, field)
            if value is not None and field in fields_of(self.options.kind):
                columns[field] = value
        if self.options.kind == "ticks":
            return _Batch(first_row, count, columns)
        return _Batch(first_row, count, self._bars(columns, count, first_row))

    def _values(self, field: str, text: Any, first_row: int) -> Any:
        if field in names.TEXT_FIELDS and self._own:
            return text if field == "symbol" else pc.if_else(pc.equal(text, ""), None, text)
        if field in names.TEXT_FIELDS:
            trimmed = pc.utf8_trim_whitespace(text)
            return trimmed if field == "symbol" else pc.if_else(pc.equal(trimmed, ""), None, trimmed)
        thousands = self.file.delimiter != ";"
        if field in names.TIME_FIELDS:
            absent = np.zeros(len(text), dtype=bool)
            if field == "ts_recv_ns":  # the one time that may be absent
                absent = pc.is_in(pc.utf8_trim_whitespace(text), values.ABSENT).to_numpy(zero_copy_only=False)
            if absent.all():
                return pa.nulls(len(text), pa.int64())
            ns, bad, why = times.read(text, self._form(field, text, first_row), self.options.timezone)
            if absent.any():
                ns, bad = pa.array(ns, pa.int64(), mask=absent), bad & ~absent
            found = values.Column(ns, bad, why or f"not a time of the form {self._forms[field]}")
        elif field == "side":
            found = values.sides(text)
        elif field in names.TRUTH_FIELDS:
            found = values.truths(text)
        elif field in names.INT_FIELDS:
            found = values.whole_numbers(text, thousands=thousands)
        else:
            found = values.numbers(text, thousands=thousands)
        for at in np.flatnonzero(found.bad).tolist():
            self._refuse(first_row + at, field, text[at].as_py(), found.why)
            if field in ("complete", "revision"):
                self._spoilt.append(at)
        return found.values

    def _form(self, field: str, text: Any, first_row: int) -> str:
        """Return the form of a column's times: what the first row looks like holds for the whole file."""
        if field not in self._forms:
            if self._own and self.layout.columns[field] == (field,):
                self._forms[field] = "ns"
            elif self.options.time_format != "auto":
                self._forms[field] = self.options.time_format
            else:
                sample = next((t for t in text.slice(0, 1000).to_pylist() if t.strip()), "")
                form = times.detect(sample)
                if form is None:
                    row = first_row + next((i for i, t in enumerate(text.to_pylist()) if t == sample), 0)
                    raise self._error(row, field, sample, "a time of a form that is not known", "give --time-format")
                self._forms[field] = form
        return self._forms[field]

    def _bars(self, columns: dict[str, Any], count: int, first_row: int) -> list[Bar]:
        lists = {name: _listed(column, count) for name, column in columns.items()}
        for field in ("open", "high", "low", "close"):
            for at, value in enumerate(lists[field]):
                if value is None:
                    self._refuse(first_row + at, field, "", "a bar has an open, a high, a low and a close")
                    lists[field][at] = float("nan")
        if self.options.interval is None:
            for at, interval in enumerate(lists["interval"]):
                try:
                    interval_ns(interval or "")
                except ValueError:
                    self._refuse(first_row + at, "interval", interval or "", "not an interval such as 1min")
                    lists["interval"][at], lists["ts_start_ns"][at] = "1s", -1
        for at in self._spoilt:  # the tape is to refuse them as well
            lists["open"][at] = float("nan")
        self._spoilt.clear()
        for field, plain in (("complete", True), ("revision", 0)):
            if field in lists:
                lists[field] = [plain if value is None else value for value in lists[field]]
        return [Bar(**dict(zip(lists, row, strict=True))) for row in zip(*lists.values(), strict=True)]

    def _check(self, number: int, batch: _Batch) -> None:
        """Note what the tape would say to a batch."""
        if self.options.kind == "ticks":
            found = table.from_table(batch.data)
        else:
            found = table.from_records(batch.data, KIND_BAR, 0)
        for problem in found.problems():
            field = self._time if problem.field == "ts_event_ns" else problem.field
            self._refuse(batch.first_row + problem.index, field, problem.value, problem.why)
        end = batch.first_row + batch.rows
        refused = [row - batch.first_row for row in self._refused if batch.first_row <= row < end]
        self._refused_of_batch[number] = len(refused)
        good = np.ones(batch.rows, dtype=bool)
        good[refused] = False
        self._forget_refused()
        ns = found.columns["ts_event_ns"][good]
        if len(ns):
            before = self._span[1] if self._span else int(ns[0])
            self._in_order &= int(ns[0]) >= before and bool((np.diff(ns) >= 0).all())
            self._span = (min(int(ns.min()), self._span[0] if self._span else int(ns[0])), max(int(ns.max()), before))
        for index in np.unique(found.columns["symbol"][good]).tolist():
            if len(self._symbols) < _SYMBOLS_LISTED:
                self._symbols[found.symbols[index]] = None

    def _refuse(self, row: int, field: str, value: object, why: str) -> None:
        """Note a row that cannot be stored; the first of a file ends it, unless they go to quarantine."""
        if row in self._refused or not self._checking:
            return
        self._refused[row] = field, value, why
        if self.options.on_invalid == "raise":
            raise self._error(row, field, value, why, "correct it, or import with --on-invalid quarantine")

    def _forget_refused(self) -> None:
        """Keep only what is listed: a file of nothing but wrong rows must not fill the memory."""
        for row in sorted(self._refused)[_REFUSED_LISTED:]:
            del self._refused[row]

    def _places(self, rows: Sequence[int]) -> list[Refused]:
        """Return where refused rows stand and what stands there."""
        found = self.file.where(rows) if rows else {}
        places = []
        for row in rows:
            line, cells = found.get(row, (0, {}))
            field, value, why = self._refused[row]
            of = self.layout.columns.get(field, ())
            text = " ".join(cells.get(name, "") for name in of) if of else str(value)
            shown = text if len(text) <= 80 else text[:77] + "..."
            places.append(Refused(line, "+".join(of) or field, shown, why))
        return places

    def _error(self, row: int, field: str, value: object, why: str, hint: str) -> ImportInvalid:
        self._refused[row] = field, value, why
        line, column, text, _ = msgspec.structs.astuple(self._places([row])[0])
        into = "" if column == field else f" ({field})"
        return ImportInvalid(
            f"{self.file.shown}, line {line}, column {column!r}{into}: {text!r}: {why}; nothing was stored",
            hint=hint,
            file=self.file.shown,
            line=line,
            column=column,
            value=text,
        )

    def _stat(self) -> tuple[int, int]:
        found = self.file.path.stat()
        return found.st_size, found.st_mtime_ns

    def _refuse_change(self) -> None:
        if self._stat() != self._stamp:
            raise ImportInvalid(
                f"{self.file.shown} changed while it was read", hint="import a file that nobody is writing"
            )


def _joined(parts: Sequence[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    return pc.binary_join_element_wise(*map(pc.utf8_trim_whitespace, parts), " ")


def _listed(column: Any, count: int) -> list[Any]:
    if isinstance(column, str):
        return [column] * count
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return list(column.to_pylist())
    return list(column.tolist())


def _check_interval(interval: str) -> None:
    try:
        interval_ns(interval)
    except ValueError as error:
        raise ImportInvalid(f"--interval: {error}", hint="such as 1min, 5min, 1h, 1d") from error


__all__ = ["BATCH_ROWS", "CsvOptions", "Imported", "Refused", "import_csv", "parse_mapping", "read_csv"]
