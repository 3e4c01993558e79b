"""A CSV file on disk, plain, gzip or in a zip: its header, its rows in bounded batches, and where a row stands."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import re
import threading
import zipfile
import zlib
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.csv as pcsv

from onetape.errors import ImportInvalid

_HEAD_BYTES_MAX = 1 << 20
#: A row must fit into a block. Four times as much reads no faster and takes 100 MB more memory.
_BLOCK_BYTES = 1 << 20
_DELIMITERS = ",;\t|"
_LOOKS_LIKE_DATA = re.compile(r"[+-]?[\d.,:/TZ -]+")


class CsvFile:
    """One CSV text: a file, or one member of a zip.

    `header` are its column names, blanks around them removed; those of `names` where the file has no header line.
    """

    def __init__(self, path: Path, member: str | None, delimiter: str | None, names: Sequence[str] = ()) -> None:
        self.path, self.member = path, member
        self.shown = str(path) if member is None else f"{path}!{member}"
        self.bytes_total = path.stat().st_size
        self.has_header = not names
        with self._open() as (stream, _):
            head = self._read_head(stream)
        if delimiter is not None and len(delimiter) != 1:
            raise ImportInvalid(f"--delimiter {delimiter!r}: it is one character", hint="such as ';' or a tab")
        self.delimiter = delimiter or max(_DELIMITERS, key=lambda c: _outside_quotes(head).count(c))
        cells = [cell.strip() for cell in next(csv.reader([head], delimiter=self.delimiter))]
        self.header = list(names) if names else cells
        if names and len(names) != len(cells):
            raise ImportInvalid(
                f"{self.shown}: --header names {len(names)} columns, line 1 has {len(cells)}: {head[:80]!r}",
                hint="name every column",
            )
        if not names and all(cell and _LOOKS_LIKE_DATA.fullmatch(cell) for cell in cells):
            raise ImportInvalid(
                f"{self.shown}: line 1 is data, not column names: {head[:80]!r}",
                hint="name the columns with --header time,price,size",
            )

    def _read_head(self, stream: _Counted) -> str:
        raw = stream.first_line(consume=False)
        if raw is None:
            raise ImportInvalid(f"{self.shown}: the file is empty", hint="it needs a header line and rows")
        return self._text(raw, 1)

    def _text(self, raw: bytes, line: int) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise ImportInvalid(
                f"{self.shown}, line {line}: not UTF-8", hint="convert it: iconv -f latin1 -t utf-8 FILE"
            ) from error

    def batches(
        self, wanted: Sequence[str], rows: int, on_read: Callable[[int], object] | None = None
    ) -> Generator[Any, None, str]:
        """Yield the wanted columns as Arrow tables of text of exactly `rows` rows, the last one shorter.

        `on_read` is told how many bytes of the file were read. The generator's return value is the sha256 of the
        content, not of its compression. Raises ImportInvalid with the line.
        """
        names = [name if self.header.index(name) == at else f"{name}\0{at}" for at, name in enumerate(self.header)]
        with self._open() as (stream, place):
            if self.has_header:
                stream.first_line(consume=True)
            held: list[Any] = []
            count = 0
            if stream.has_more():
                for batch in self._parsed(stream, names, wanted):
                    if on_read is not None:
                        on_read(place())
                    held.append(batch)
                    count += batch.num_rows
                    while count >= rows:
                        table = pa.Table.from_batches(held)
                        yield table.slice(0, rows).combine_chunks()
                        rest = table.slice(rows)
                        held, count = rest.to_batches(), rest.num_rows
            if count:
                yield pa.Table.from_batches(held).combine_chunks()
            return stream.digest()

    def _parsed(self, stream: _Counted, names: Sequence[str], wanted: Sequence[str]) -> Iterator[Any]:
        wrong: list[Any] = []

        def refuse(row: Any) -> str:
            wrong.append(row)
            return "error"

        seen = 0
        ahead = _ReadAhead(stream)
        try:
            reader = pcsv.open_csv(
                ahead,
                read_options=pcsv.ReadOptions(column_names=names, use_threads=False, block_size=_BLOCK_BYTES),
                parse_options=pcsv.ParseOptions(delimiter=self.delimiter, invalid_row_handler=refuse),
                convert_options=pcsv.ConvertOptions(
                    include_columns=list(wanted),
                    column_types=dict.fromkeys(wanted, pa.string()),
                    strings_can_be_null=False,
                ),
            )
            for batch in reader:
                seen += batch.num_rows
                yield batch
        except pa.ArrowInvalid as error:
            raise self._refused(error, wrong, seen) from error
        finally:
            ahead.end()

    def _refused(self, error: Exception, wrong: Sequence[Any], seen: int) -> ImportInvalid:
        if wrong:
            row = wrong[0]
            line = self.where([row.number - 1]).get(row.number - 1, ("?", {}))[0]
            return ImportInvalid(
                f"{self.shown}, line {line}: {row.actual_columns} columns instead of {row.expected_columns}: "
                f"{row.text[:80]!r}",
                hint="quote a value that contains the delimiter; an unfinished last line means a cut-off file",
            )
        if "UTF8" in str(error) or "UTF-8" in str(error):
            return ImportInvalid(
                f"{self.shown}, line {self._not_utf8_line()}: not UTF-8",
                hint="convert it: iconv -f latin1 -t utf-8 FILE",
            )
        if "straddl" in str(error):
            return ImportInvalid(
                f"{self.shown}: after row {seen} a row is longer than {_BLOCK_BYTES >> 20} MiB",
                hint="a quote that never ends is the usual cause",
            )
        return ImportInvalid(f"{self.shown}: {error}", hint="it is not CSV as described")

    def _not_utf8_line(self) -> int:
        with self._open() as (stream, _):
            for line, raw in enumerate(stream, 1):
                try:
                    raw.decode()
                except UnicodeDecodeError:
                    return line
        return 0

    def where(self, rows: Collection[int]) -> dict[int, tuple[int, dict[str, str]]]:
        """Return, for data rows (0: the first), the line each begins in and its cells by column name."""
        found: dict[int, tuple[int, dict[str, str]]] = {}
        with self._open() as (stream, _):
            text = io.TextIOWrapper(io.BufferedReader(stream), "utf-8", errors="replace", newline="")
            reader = csv.reader(text, delimiter=self.delimiter)
            at, line = -1 - self.has_header, 1
            for cells in reader:
                at += bool(cells)
                if cells and at in rows:
                    found[at] = line, dict(zip(self.header, cells, strict=False))
                    if len(found) == len(rows):
                        break
                line = reader.line_num + 1
        return found

    @contextmanager
    def _open(self) -> Iterator[tuple[_Counted, Callable[[], int]]]:
        with ExitStack() as stack:
            try:
                raw: IO[bytes] = stack.enter_context(self.path.open("rb"))
                magic = raw.read(2)
                raw.seek(0)
                stream = raw
                if self.member is not None:
                    stream = stack.enter_context(stack.enter_context(zipfile.ZipFile(raw)).open(self.member))
                elif magic == b"\x1f\x8b":
                    stream = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw)))
                yield _Counted(stream, self.shown), raw.tell
            except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
                raise ImportInvalid(
                    f"{self.shown}: cannot be read: {error}", hint="the file is damaged or cut off: get it again"
                ) from error
            except RuntimeError as error:
                raise ImportInvalid(f"{self.shown}: {error}", hint="unpack it first") from error


def files_in(path: Path, delimiter: str | None = None, names: Sequence[str] = ()) -> list[CsvFile]:
    """Return the CSV texts of a file: itself, or the members of a zip. Raises ImportInvalid."""
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "no such file"
        raise ImportInvalid(f"{path}: {what}", hint="give CSV files, plain, .gz or .zip")
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        members: list[str | None] = [None]
        if zipped:
            with zipfile.ZipFile(path) as archive:
                entries = [info.filename for info in archive.infolist() if not info.is_dir()]
            members = [name for name in entries if not name.startswith("__MACOSX/")]
    except (OSError, zipfile.BadZipFile) as error:
        raise ImportInvalid(f"{path}: cannot be read: {error}", hint="get the file again") from error
    return [CsvFile(path, member, delimiter, names) for member in members]


class _ReadAhead(io.RawIOBase):
    """A stream that another thread reads ahead of us, until it is ended.

    PyArrow's thread must not be inside Python when the process ends, which an import that stops early would bring
    about: ending waits for the read that goes on, and lets the next ones find the end.
    """

    def __init__(self, stream: _Counted) -> None:
        self._stream = stream
        self._reading = threading.Lock()
        self._ended = False

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        with self._reading:
            return b"" if self._ended else self._stream.read(size)

    def end(self) -> None:
        """Let no read begin any more, and wait for the one that goes on."""
        with self._reading:
            self._ended = True


class _Counted(io.RawIOBase):
    """A stream of UTF-8 that hashes what is read, leaves out a byte order mark, and can look at its first line."""

    def __init__(self, stream: IO[bytes], shown: str) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self._ahead = b""
        first = self._take(4)
        if first[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in first:
            raise ImportInvalid(f"{shown}: not UTF-8 text", hint="if it is UTF-16: iconv -f utf-16 -t utf-8 FILE")
        self._ahead = first.removeprefix(codecs.BOM_UTF8)

    def _take(self, count: int) -> bytes:
        data = self._stream.read(count)
        self._hash.update(data)
        return data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._ahead[: len(buffer)]
        self._ahead = self._ahead[len(data) :]
        if not data:
            data = self._take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        """Read exactly `size` bytes, fewer only at the end: blocks must not depend on how a stream is packed."""
        if size is None or size < 0:
            data, self._ahead = self._ahead + self._take(-1), b""
            return data
        while len(self._ahead) < size:
            more = self._take(size - len(self._ahead))
            if not more:
                break
            self._ahead += more
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data

    def first_line(self, *, consume: bool) -> bytes | None:
        """Return the first line that is not blank, without its end; None: there is none."""
        while True:
            found = re.search(rb"[^\r\n]*[^\r\n\t ][^\r\n]*", self._ahead)
            if found and (found.end() < len(self._ahead) or not self._more()):
                break
            if not found and not self._more():
                return None
            if len(self._ahead) > _HEAD_BYTES_MAX:
                return self._ahead[:_HEAD_BYTES_MAX]
        assert found is not None
        if consume:
            self._ahead = self._ahead[found.end() :].lstrip(b"\r\n")
        return found[0]

    def _more(self) -> bool:
        data = self._take(65536)
        self._ahead += data
        return bool(data)

    def has_more(self) -> bool:
        """Return whether there is more than blank lines."""
        while not self._ahead.strip():
            if not self._more():
                return False
        return True

    def digest(self) -> str:
        """Return the sha256, in hex, of everything that was read."""
        return self._hash.hexdigest()


def _outside_quotes(line: str) -> str:
    return re.sub(r'"[^"]*"', "", line)
