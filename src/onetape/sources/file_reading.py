"""Reading files as sources do: every format that can be imported, CSV, and JSON lines, in bounded pieces, in order."""

from __future__ import annotations

import gzip
import hashlib
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Literal, cast

import msgspec

from onetape import importing
from onetape.errors import ConfigInvalid, ImportInvalid
from onetape.importing import formats
from onetape.migrate.fields.tick_fields import TickDecoder
from onetape.migrate.landing.hash_ticks import columns_for_tape
from onetape.record import Bar, Tick

log = logging.getLogger("onetape.sources")

_LINES = 8_192
_LINE_BYTES_MAX = 16 << 20
_JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_CSV = (".csv", ".csv.gz", ".txt", ".tsv", ".zip")


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """How a file is read. format: a name that `onetape import --list-formats` knows, "csv" or "jsonl"; None finds it.

    holds: whether a file of named columns holds ticks or bars. The rest is as the importing formats take it.
    """

    format: str | None = None
    symbol: str | None = None
    source: str | None = None
    timezone: str | None = None
    mapping: dict[str, str] = {}
    holds: Literal["ticks", "bars"] | None = None
    interval: str | None = None
    time_format: str = "auto"
    at: str | None = None
    as_path: str | None = None
    allow_cut: bool = False
    delimiter: str | None = None
    header: tuple[str, ...] = ()


class Piece(msgspec.Struct, frozen=True):
    """Rows of a file in order: columns, or records. `rows` counts what it stands for; `refused` could not be read."""

    rows: int
    columns: Mapping[str, Any] | None = None
    records: Sequence[Tick | Bar] = ()
    refused: int = 0
    first_refused: str | None = None

    def behind(self, rows: int) -> Piece:
        """Return what comes behind the first `rows` rows. Only of a piece without refused rows, or none of it."""
        if not rows:
            return self
        if self.columns is None:
            if len(self.records) != self.rows:
                raise ConfigInvalid(
                    f"row {rows} is within a piece that is read whole", hint="begin at the file's start"
                )
            return Piece(self.rows - rows, None, self.records[rows:])
        cut = {name: each if _is_scalar(each) else each[rows:] for name, each in self.columns.items()}
        return Piece(self.rows - rows, cut)


def _is_scalar(column: Any) -> bool:
    return isinstance(column, str) or not hasattr(column, "__len__")


def files(path: Path, how: Reading) -> list[Path]:
    """Return the file, or the files of a folder that can be read, in the order of their paths. Raises ImportInvalid."""
    if not path.exists():
        raise ImportInvalid(f"{path}: no such file", hint="check the path")
    if not path.is_dir() or _format_of(path, how) is not None:
        return [path]
    found = [one for one in sorted(path.rglob("*")) if one.is_file() and _name_of(one, how) is not None]
    if not found:
        raise ImportInvalid(f"{path}: no file in it that can be read", hint="say the format")
    return found


def digest(path: Path) -> str:
    """Return the sha256 of a file, or of all files of a folder that is read as one."""
    content = hashlib.sha256()
    for one in [path] if path.is_file() else sorted(path.rglob("*")):
        if one.is_file():
            with one.open("rb") as file:
                content.update(hashlib.file_digest(file, "sha256").digest())
    return content.hexdigest()


def pieces(path: Path, how: Reading) -> Iterator[Piece]:
    """Yield what a file holds, in its order, in pieces of at most 65,536 rows. Raises ImportInvalid with the place."""
    name = _name_of(path, how)
    if name == "jsonl":
        yield from _json_lines(path, how)
    elif name == "csv":
        yield from _csv(path, how)
    elif name is not None:
        yield from _formatted(path, how)
    else:
        raise ImportInvalid(f"{path}: not a format that is known", hint="say which it is: format = NAME")


def _format_of(path: Path, how: Reading) -> formats.Format | None:
    if how.format is None:
        return formats.detect(path)
    if how.format in ("csv", "jsonl"):
        return None
    chosen = formats.find(how.format)
    return chosen if path.is_file() or chosen.detects(path) else None


def _name_of(path: Path, how: Reading) -> str | None:
    if how.format is not None:
        return how.format
    name = path.name.lower()
    if name.endswith(_JSON_LINES):
        return "jsonl"
    found = formats.detect(path)
    if found is not None:
        return found.name
    return "csv" if name.endswith(_CSV) else None


def _formatted(path: Path, how: Reading) -> Iterator[Piece]:
    chosen = formats.detect(path) if how.format is None else formats.find(how.format)
    assert chosen is not None
    options = formats.Options(
        symbol=how.symbol,
        source=how.source,
        timezone=how.timezone,
        mapping=how.mapping,
        kind=how.holds,
        interval=how.interval,
        time_format=how.time_format,
        at=how.at,
        as_path=how.as_path,
        allow_cut=how.allow_cut,
        on_invalid="quarantine",
    )
    unused = sorted(options.given() - chosen.uses - {"on_invalid"})
    if unused:
        raise ConfigInvalid(f"{', '.join(unused)}: nothing in the format {chosen.name} for it", hint="leave it out")
    for part in chosen.parts(path, options):
        stamp = _stamp(part.path)
        part.begin(None)
        for batch in part.batches(lambda _read: None):
            if part.steady and _stamp(part.path) != stamp:
                raise ImportInvalid(
                    f"{part.shown} changed while it was read", hint="give a file that nobody is writing"
                )
            if not batch.rows:
                continue
            if isinstance(batch.data, list):
                yield Piece(batch.rows, None, batch.data)
            else:
                yield Piece(batch.rows, batch.data)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _csv(path: Path, how: Reading) -> Iterator[Piece]:
    options = importing.CsvOptions(
        kind=how.holds or "ticks",
        symbol=how.symbol,
        mapping=how.mapping,
        time_format=how.time_format,
        timezone=how.timezone or "UTC",
        delimiter=how.delimiter,
        header=how.header,
        source=how.source,
        interval=how.interval,
        on_invalid="quarantine",
    )
    for rows, data in importing.read_csv(path, options):
        yield Piece(rows, None, data) if isinstance(data, list) else Piece(rows, data)


def _json_lines(path: Path, how: Reading) -> Iterator[Piece]:
    """Yield the records of a recording, an object a line: as this project writes Ticks and Bars, or as feeds do."""
    decoder = TickDecoder(how.timezone or "UTC")
    number, lines = 0, []
    for line in _lines(path, how.allow_cut):
        lines.append(line)
        if len(lines) == _LINES:
            yield _decoded(lines, number, decoder, how)
            number += len(lines)
            lines = []
    if lines:
        yield _decoded(lines, number, decoder, how)


def _lines(path: Path, allow_cut: bool) -> Iterator[bytes]:
    number = 0
    with ExitStack() as stack:
        raw: IO[bytes] = stack.enter_context(path.open("rb"))
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw))) if packed else raw
        try:
            while line := stream.readline(_LINE_BYTES_MAX):
                number += 1
                if len(line) == _LINE_BYTES_MAX:
                    raise ImportInvalid(f"{path}, line {number}: longer than {_LINE_BYTES_MAX >> 20} MiB")
                yield line
        except (EOFError, zlib.error, OSError) as error:
            if allow_cut and isinstance(error, EOFError):
                return
            raise ImportInvalid(
                f"{path}, line {number + 1}: cannot be read: {error}",
                hint="it is damaged or cut off; allow_cut takes what is whole of one that was cut",
            ) from error


def _decoded(lines: Sequence[bytes], first: int, decoder: TickDecoder, how: Reading) -> Piece:
    """Return the records of some lines, in order; what is none is counted and the first one named."""
    found: dict[int, Tick | Bar] = {}
    foreign: list[int] = []
    flat: list[list[Any]] = []
    refused: dict[int, str] = {}
    for at, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            said = msgspec.json.decode(line)
            if not isinstance(said, dict):
                raise ValueError("no JSON object")
            if "ts_event_ns" in said or "ts_start_ns" in said:
                found[at] = _own(said, how)
            else:
                foreign.append(at)
                flat.append([part for pair in said.items() for part in pair])
        except (ValueError, msgspec.DecodeError) as error:
            refused[at] = str(error)
    if foreign:
        decoded = decoder.decode(flat, [how.symbol or ""] * len(flat), [None] * len(flat))
        rows = set(decoded.rows)
        refused.update((foreign[at], why) for at, why in decoded.rejected.items() if at not in rows)
        columns = columns_for_tape(decoded, how.source or "file")
        lists = {name: column for name, column in columns.items() if not _is_scalar(column)}
        fixed = {name: column for name, column in columns.items() if _is_scalar(column)}
        for row, at in enumerate(decoded.rows):
            found[foreign[at]] = Tick(**fixed, **{name: column[row] for name, column in lists.items()})
    told = None
    if refused:
        at = min(refused)
        told = f"line {first + at + 1}: {refused[at]}"
    return Piece(len(lines), None, [found[at] for at in sorted(found)], len(refused), told)


def _own(said: dict[str, Any], how: Reading) -> Tick | Bar:
    if how.symbol is not None:
        said.setdefault("symbol", how.symbol)
    if how.source is not None:
        said.setdefault("source", how.source)
    said.pop("seq", None)
    return msgspec.convert(said, Tick) if "ts_event_ns" in said else msgspec.convert(said, Bar)
