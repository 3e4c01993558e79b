"""Columnar files: Parquet and Arrow IPC, and folders of Parquet files in the manner of Hive: columns with types."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from onetape.errors import ImportInvalid
from onetape.importing import format, names, times, typed
from onetape.importing.format import Batch, Format, Options, Part, Tell, Wrong
from onetape.record import Bar, interval_ns

#: Rows decoded at once; a batch to append is put together of them.
_READ_ROWS = 65_536
_USES = frozenset({"symbol", "source", "timezone", "mapping", "kind", "interval", "time_format"})
_STREAM_MARK = b"\xff\xff\xff\xff"


class _File:
    """One file: its schema, what its path and its metadata say of all of its rows, and its rows."""

    def __init__(self, path: Path, shown: str, said: Mapping[str, str]) -> None:
        self.path, self.shown = path, shown
        with self._reading("opening"):
            self.schema = self._schema()
        told = {key.decode(): value.decode() for key, value in (self.schema.metadata or {}).items() if _is_ours(key)}
        self.said = {**said, **({"symbol": told["onetape.symbol"]} if "onetape.symbol" in told else {})}
        self.what = told.get("onetape.what")
        self.interval = told.get("onetape.interval")

    def _schema(self) -> Any:
        raise NotImplementedError

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """Yield record batches of at least these columns."""
        raise NotImplementedError

    def _reading(self, act: str) -> _Mapped:
        return _Mapped(self.shown, act)

    def digest(self) -> str:
        """Return the sha256 of the file."""
        with self._reading("reading"), self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _is_ours(key: bytes) -> bool:
    return key.startswith(b"onetape.")


class _Mapped:
    """Turns the errors of reading a damaged file into ImportInvalid."""

    def __init__(self, shown: str, act: str) -> None:
        self._shown, self.act = shown, act

    def __enter__(self) -> _Mapped:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, pa.ArrowException | OSError | EOFError | UnicodeDecodeError | NotImplementedError):
            raise ImportInvalid(
                f"{self._shown}: cannot be read ({self.act}): {error}",
                hint="the file is damaged, cut off, or of another format: get it again",
            ) from error


class _ParquetFile(_File):
    def _schema(self) -> Any:
        with pq.ParquetFile(self.path) as file:
            return file.schema_arrow

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        with self._reading("opening") as place, pq.ParquetFile(self.path, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                place.act = f"row group {group + 1} of {file.num_row_groups}"
                yield from file.iter_batches(_READ_ROWS, row_groups=[group], columns=list(columns), use_threads=False)


class _ArrowFile(_File):
    def _schema(self) -> Any:
        with pa.memory_map(str(self.path)) as source, self._reader(source) as reader:
            return reader.schema

    def _reader(self, source: Any) -> Any:
        start = source.read(6)
        source.seek(0)
        return ipc.open_file(source) if start == b"ARROW1" else ipc.open_stream(source)

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        with (
            self._reading("opening") as place,
            pa.memory_map(str(self.path)) as source,
            self._reader(source) as reader,
        ):
            found = (
                (reader.get_batch(at) for at in range(reader.num_record_batches))
                if isinstance(reader, ipc.RecordBatchFileReader)
                else iter(reader)
            )
            for number in itertools.count(1):
                place.act = f"record batch {number}"
                batch = next(found, None)
                if batch is None:
                    return
                batch.validate(full=True)
                kept = batch.select(list(columns))
                for start in range(0, kept.num_rows, _READ_ROWS):
                    yield kept.slice(start, _READ_ROWS)


class _Columns(Part):
    """The rows of one file, or of all files of a folder, in the order of their paths."""

    def __init__(self, path: Path, files: Sequence[_File], options: Options) -> None:
        self.path, self.shown = path, str(path)
        self.bytes_total = sum(file.path.stat().st_size for file in files)
        self._files, self._options = files, options
        self.kind: names.Kind = _one_kind(files, options)
        self._fields = names.fields_of(self.kind)
        self._plans = [self._plan(file) for file in files]
        self.how = {
            "kind": self.kind,
            "symbol": options.symbol,
            "source": options.source,
            "interval": options.interval,
            "timezone": options.timezone,
            "time_format": options.time_format,
            "columns": sorted({str(sorted(plan.layout.columns.items())) for plan in self._plans}),
        }
        unused = sorted({name for plan in self._plans for name in plan.layout.unused} - {"date"})
        self.notes = [f"not used: {', '.join(unused)}"] if unused else []

    def _plan(self, file: _File) -> _Plan:
        said = {name: value for name, value in file.said.items() if name in ("symbol", "source", "interval")}
        if self.kind == "bars" and file.interval is not None:
            said.setdefault("interval", file.interval)
        given = {name: value for name in said if (value := getattr(self._options, name, None)) is not None}
        for name in ("symbol", "source", "interval"):
            if getattr(self._options, name) is not None:
                given[name] = getattr(self._options, name)
        mapped = set(self._options.mapping)
        there = set(file.schema.names)
        constants = {
            name: text for name, text in {**said, **given}.items() if name in given or name not in there | mapped
        }
        constants = {name: text for name, text in constants.items() if name in self._fields}
        layout = names.resolve(file.schema.names, self.kind, self._options.mapping, list(constants), file.shown)
        for field, columns in layout.columns.items():
            for column in columns:
                why = typed.refusal(field, file.schema.field(column).type, alone=len(columns) == 1)
                if why:
                    raise ImportInvalid(
                        f"{file.shown}, row 1, column {column!r} ({field}): {why}; nothing was stored",
                        hint=f"--map {field}=COLUMN names another column, --map {field}= leaves it out",
                        file=file.shown,
                        column=column,
                    )
        reader = typed.Reader(file.shown, self._options.time_format, self._options.timezone or "UTC")
        return _Plan(file, layout, constants, reader)

    def batches(self, tell: Tell) -> Generator[Batch, None, str]:
        """Yield batches of exactly BATCH_ROWS, the last one shorter."""
        content = hashlib.sha256()
        held: list[Any] = []
        marks: list[tuple[int, str, int]] = []  # row of this part, file, row in the file
        wrongs: dict[int, Wrong] = {}
        done = read = first = 0
        for plan in self._plans:
            content.update(f"{sorted(plan.constants.items())} {plan.file.digest()}\n".encode())
            row = 0
            for found in plan.file.batches(plan.layout.wanted()):
                table, wrong = plan.convert(found)
                marks.append((done, plan.file.shown if len(self._plans) > 1 else "", row))
                wrongs.update({done + at: one for at, one in wrong.items()})
                held.append(table)
                done, row = done + table.num_rows, row + table.num_rows
                while done - first >= format.BATCH_ROWS:
                    joined = pa.concat_tables(held, promote_options="default")
                    yield self._batch(joined.slice(0, format.BATCH_ROWS), first, marks, wrongs)
                    first += format.BATCH_ROWS
                    held = [joined.slice(format.BATCH_ROWS)] if done > first else []
                    marks = marks[-1:] if done > first else []
            read += plan.file.path.stat().st_size
            tell(read)
        if held and done > first:
            yield self._batch(pa.concat_tables(held, promote_options="default"), first, marks, wrongs)
        return content.hexdigest()

    def _batch(self, table: Any, first: int, marks: Sequence[tuple[int, str, int]], wrongs: dict[int, Wrong]) -> Batch:
        rows = table.num_rows
        mine = {at - first: wrongs.pop(at) for at in [at for at in wrongs if at < first + rows]}
        data: Any = {name: table.column(name) for name in table.column_names}
        if self.kind == "bars":
            data = _bars(data, rows, mine)
        return Batch(data=data, rows=rows, place=_placed(first, list(marks)), wrong=mine)


class _Plan:
    """How one file's rows become records."""

    def __init__(self, file: _File, layout: names.Layout, constants: Mapping[str, str], reader: typed.Reader) -> None:
        self.file, self.layout, self.constants, self._reader = file, layout, constants, reader

    def convert(self, batch: Any) -> tuple[Any, dict[int, Wrong]]:
        """Return a table of fields, and what is wrong by row."""
        wrongs: dict[int, Wrong] = {}
        columns = {}
        for field, of in self.layout.columns.items():
            found = self._reader.read(field, [batch.column(name) for name in of], of[0])
            columns[field] = found.values
            for at in found.bad.nonzero()[0].tolist():
                wrongs.setdefault(at, Wrong("+".join(of), _shown(batch, of, at), found.why))
        for field, text in self.constants.items():
            columns[field] = pa.DictionaryArray.from_arrays(
                pa.array([0] * batch.num_rows, pa.int32()), pa.array([text], pa.string())
            )
        return pa.table({name: _as_text(column) for name, column in columns.items()}), wrongs


def _as_text(column: Any) -> Any:
    return column.cast(pa.string()) if isinstance(column, pa.DictionaryArray) else column


def _shown(batch: Any, of: Sequence[str], at: int) -> object:
    return " ".join(_cell(batch.column(name)[at]) for name in of)


def _cell(value: Any) -> str:
    try:
        return str(value)
    except (OverflowError, ValueError):  # a time that Python's cannot hold
        return f"{value.value} {value.type}"


def _placed(first: int, marks: Sequence[tuple[int, str, int]]) -> Callable[[int], str]:
    def place(index: int) -> str:
        since, file, row = max((mark for mark in marks if mark[0] <= first + index), key=lambda mark: mark[0])
        where = f"row {row + first + index - since + 1}"
        return f"{file}, {where}" if file else where

    return place


def _bars(columns: Mapping[str, Any], rows: int, wrongs: dict[int, Wrong]) -> list[Bar]:
    lists = {name: column.to_pylist() for name, column in columns.items()}
    lists["interval"] = [_interval(text, at, wrongs) for at, text in enumerate(lists["interval"])]
    for field in ("open", "high", "low", "close"):
        for at, value in enumerate(lists[field]):
            if value is None:
                wrongs.setdefault(at, Wrong(field, None, "a bar has an open, a high, a low and a close"))
                lists[field][at] = float("nan")
    for field, plain in (("complete", True), ("revision", 0)):
        if field in lists:
            lists[field] = [plain if value is None else value for value in lists[field]]
    for at in wrongs:  # what could not be read, the tape is to refuse as well
        lists["open"][at] = float("nan")
    return [Bar(**dict(zip(lists, row, strict=True))) for row in zip(*lists.values(), strict=True)]


def _interval(text: str | None, at: int, wrongs: dict[int, Wrong]) -> str:
    try:
        interval_ns(text or "")
    except ValueError:
        wrongs.setdefault(at, Wrong("interval", text, "not an interval such as 1min"))
        return "1s"
    return text or ""


def _one_kind(files: Sequence[_File], options: Options) -> names.Kind:
    told = {file.what for file in files if file.what in ("ticks", "bars")}
    if len(told) > 1:
        raise ImportInvalid(f"{files[0].path.parent}: ticks and bars in one folder", hint="import the files one by one")
    if options.kind is not None or not told:
        return options.kind or "ticks"
    return "bars" if "bars" in told else "ticks"


def _parquet_parts(path: Path, options: Options) -> Sequence[Part]:
    _check(options)
    if not path.is_dir():
        return [_Columns(path, [_ParquetFile(path, str(path), _hive(path.parts[:-1]))], options)]
    found = [file for file in sorted(path.rglob("*.parquet")) if file.is_file() and not _hidden(file.relative_to(path))]
    if not found:
        if (path / "_onetape.json").is_file():
            return []
        raise ImportInvalid(f"{path}: a folder without Parquet files", hint="their names end with .parquet")
    files = [_ParquetFile(file, str(file), _hive(file.relative_to(path).parts[:-1])) for file in found]
    return [_Columns(path, files, options)]


def _arrow_parts(path: Path, options: Options) -> Sequence[Part]:
    _check(options)
    return [_Columns(path, [_ArrowFile(path, str(path), {})], options)]


def _check(options: Options) -> None:
    times.check(options.time_format, options.timezone or "UTC")
    if options.interval is not None:
        try:
            interval_ns(options.interval)
        except ValueError as error:
            raise ImportInvalid(f"--interval: {error}", hint="such as 1min, 5min, 1h, 1d") from error


def _hive(folders: Sequence[str]) -> dict[str, str]:
    """Return what folders such as symbol=ES/date=2026-01-05 say of the rows below them."""
    pairs = (folder.partition("=") for folder in folders if "=" in folder)
    return {unquote(key): unquote(value) for key, _, value in pairs if value != "__HIVE_DEFAULT_PARTITION__"}


def _hidden(path: Path) -> bool:
    return any(part.startswith(("_", ".")) for part in path.parts)


def _starts_with(path: Path, marks: tuple[bytes, ...]) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(8).startswith(marks)
    except OSError:
        return False


def _is_parquet(path: Path) -> bool:
    if path.is_dir():
        return (path / "_onetape.json").is_file() or any(
            below.is_dir() and next(below.rglob("*.parquet"), None) is not None for below in path.glob("*=*")
        )
    return _starts_with(path, (b"PAR1",)) or path.suffix.lower() == ".parquet"


def _is_arrow(path: Path) -> bool:
    named = path.suffix.lower() in (".arrow", ".arrows", ".feather", ".ipc")
    return not path.is_dir() and (_starts_with(path, (b"ARROW1", _STREAM_MARK)) or named)


PARQUET = Format(
    name="parquet",
    says="Parquet files of ticks or bars, and folders of them in the manner of Hive (symbol=…/date=…)",
    detects=_is_parquet,
    parts=_parquet_parts,
    uses=_USES,
)
ARROW = Format(
    name="arrow",
    says="Arrow IPC files and streams (.arrow, .feather, .ipc) of ticks or bars",
    detects=_is_arrow,
    parts=_arrow_parts,
    uses=_USES,
)
