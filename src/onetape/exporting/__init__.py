"""Exporting: what a tape holds as CSV, Parquet or Arrow files: of one moment, in bounded memory, whole or not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from onetape.clock import Time, to_ns
from onetape.errors import ConfigInvalid
from onetape.exporting import files, schema, target
from onetape.exporting.schema import Origin, What
from onetape.progress import Progress, ProgressMeter
from onetape.record import TS_MAX_NS, interval_ns, interval_text
from onetape.store import arrow

if TYPE_CHECKING:
    from onetape.tape import Tape
    from onetape.tape.moment import Moment

Format = Literal["csv", "parquet", "arrow"]
_BY_NAME: dict[str, Format] = {
    ".csv": "csv",
    ".csv.gz": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}

OnProgress = Callable[[Progress], object]


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What an export wrote. `head`: the position of the tape it shows; times are those of the records, None: none."""

    to: str
    format: Format
    what: What
    interval: str | None
    head: int
    symbols: int
    rows: int
    files: int
    bytes: int
    ts_first_ns: int | None
    ts_last_ns: int | None
    seconds: float


def export(
    tape: Tape,
    to: str | os.PathLike[str],
    *,
    format: Format | None = None,
    symbols: Sequence[str] | None = None,
    start: Time | None = None,
    end: Time | None = None,
    what: What = "ticks",
    interval: str = "1min",
    columns: Sequence[str] | None = None,
    replace: bool = False,
    on_progress: OnProgress | None = None,
) -> Exported:
    """Write the ticks or bars with start <= time < end to a file, or to a folder of Parquet files.

    Everything is of one moment of the tape, and is read and written in pieces. `format` None goes by the name of
    `to`: .csv, .csv.gz, .parquet, .arrow, .feather, .ipc. "parquet" to a name without .parquet makes a folder
    symbol=…/date=…/part-0.parquet. Records are in order of symbol (as asked, else by name), then canonical.
    Times are int64 ns. `columns`: names of fields, all by default. bars: of every source and the tape's own.

    Raises ConfigInvalid for a target that is there (unless `replace`) and for what cannot be asked, ExportFailed
    for one that cannot be written (nothing of it is left), ChunkCorrupt.
    """
    path = Path(os.path.abspath(to))  # noqa: PTH100  (a link as target is replaced, not followed)
    format = format or by_name(path)
    folder = format == "parquet" and path.suffix != ".parquet"
    if format not in ("csv", "parquet", "arrow"):
        raise ConfigInvalid(f"format = {format!r}", hint="it is csv, parquet or arrow")
    if what not in ("ticks", "bars"):
        raise ConfigInvalid(f"what = {what!r}", hint="it is ticks or bars")
    keep_off(tape, path)
    job = _Job(tape, format, what, interval, columns, on_progress)
    with tape.moment() as moment:
        asked = known(moment, symbols, tape)
        span = (0 if start is None else to_ns(start, "start"), TS_MAX_NS + 1 if end is None else to_ns(end, "end"))
        with target.writing(path, folder=folder, replace=replace) as temporary:
            count, size = job.write(moment, asked, span, temporary, path, folder=folder)
    return Exported(
        to=str(path),
        format=format,
        what=what,
        interval=job.interval,
        head=moment.head,
        symbols=len(job.symbols),
        rows=job.rows,
        files=count,
        bytes=size,
        ts_first_ns=job.first_ns,
        ts_last_ns=job.last_ns,
        seconds=time.monotonic() - job.began_s,
    )


def by_name(path: Path) -> Format:
    """Return the format that a name ends with. Raises ConfigInvalid."""
    found = next((kind for end, kind in _BY_NAME.items() if path.name.lower().endswith(end)), None)
    if found is None:
        raise ConfigInvalid(f"{path}: its name does not say which format", hint="give --format csv, parquet or arrow")
    return found


def keep_off(tape: Tape, path: Path) -> None:
    """Refuse the tape's own files as target."""
    for mine in (tape.path, tape.path.with_name(tape.path.name + "-wal"), tape.path.with_name(tape.path.name + "-shm")):
        if os.path.realpath(path) == str(mine):
            raise ConfigInvalid(f"{path} belongs to the tape", hint="give another name")


def known(moment: Moment, symbols: Sequence[str] | None, tape: Tape) -> list[str]:
    """Return the symbols asked for, by the names they have on the tape; all for None. Raises ConfigInvalid."""
    there = moment.symbols()
    if symbols is None:
        return there
    asked = []
    for name in symbols:
        symbol = name if name in there else tape.symbol_of(name)
        if symbol not in there:
            close = get_close_matches(name, there, n=3, cutoff=0.5)
            hint = f"there is {', '.join(close)}" if close else "see onetape symbols"
            raise ConfigInvalid(f"no symbol {name!r} on {tape.path}", hint=hint)
        asked.append(symbol)
    return list(dict.fromkeys(asked))


class _Job:
    """One export on its way."""

    def __init__(
        self,
        tape: Tape,
        format: Format,
        what: What,
        interval: str,
        columns: Sequence[str] | None,
        on_progress: OnProgress | None,
    ) -> None:
        self.format, self.what = format, what
        self.interval: str | None = None
        if what == "bars":
            try:
                self.interval = interval_text(interval_ns(interval))
            except ValueError as error:
                raise ConfigInvalid(str(error)) from error
        self.time: str = "ts_event_ns" if what == "ticks" else "ts_start_ns"
        self.columns = schema.names(what, columns)
        self.rows, self.symbols, self.began_s = 0, set[str](), time.monotonic()
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self._meter, self._on_progress = ProgressMeter("exporting"), on_progress

    def write(
        self,
        moment: Moment,
        symbols: Sequence[str],
        span: tuple[int, int],
        temporary: Path,
        path: Path,
        *,
        folder: bool,
    ) -> tuple[int, int]:
        """Write everything; return how many files and bytes."""
        from onetape import __version__

        origin = Origin(__version__, self.what, moment.head, self.interval)
        writer = self._writer(moment, symbols, temporary, path, origin, folder=folder)
        try:
            spans = {symbol: moment.spans(symbol, self.what, *span) for symbol in symbols}
            total = sum(count for found in spans.values() for _, _, count in found)
            for symbol, found in spans.items():
                for start_ns, end_ns, _ in found:
                    self._piece(moment, writer, symbol, start_ns, end_ns, total)
        finally:
            writer.close()
        size = sum(file.stat().st_size for file in temporary.rglob("*")) if folder else temporary.stat().st_size
        if folder:
            facts = {**msgspec.to_builtins(origin), "rows": self.rows, "files": writer.files}
            (temporary / target.MANIFEST).write_bytes(msgspec.json.encode(facts) + b"\n")
        return writer.files, size

    def _piece(self, moment: Moment, writer: files.Writer, symbol: str, start_ns: int, end_ns: int, total: int) -> None:
        wanted = list(dict.fromkeys([*self.columns, self.time]))
        if self.what == "ticks":
            found = moment.ticks(symbol, start_ns, end_ns, wanted)
        else:
            assert self.interval is not None
            found = arrow.bars_to_arrow(moment.bars(symbol, self.interval, start_ns, end_ns))
        if found.num_rows:
            times = found.column(self.time)
            first, last = times[0].as_py(), times[-1].as_py()
            self.first_ns = first if self.first_ns is None else min(first, self.first_ns)
            self.last_ns = last if self.last_ns is None else max(last, self.last_ns)
            self.symbols.add(symbol)
            writer.write(symbol, found)
        self.rows += found.num_rows
        if self._on_progress is not None:
            self._on_progress(self._meter.update(self.rows, max(total, self.rows)))

    def _writer(
        self,
        moment: Moment,
        symbols: Sequence[str],
        temporary: Path,
        path: Path,
        origin: Origin,
        *,
        folder: bool,
    ) -> files.Writer:
        kind = schema.of(self.what, self.columns, origin.metadata())
        if self.format == "csv":
            return files.CsvFile(temporary, kind, zipped=path.suffix.lower() == ".gz")
        if self.format == "arrow":
            return files.ArrowFile(temporary, kind, {"symbol": symbols, "source": moment.sources()})
        return files.ParquetFolder(temporary, kind, self.time) if folder else files.ParquetFile(temporary, kind)


__all__ = ["Exported", "Format", "by_name", "export"]
