"""The files of an export: one writer a format, each given tables of one symbol in order of time."""

from __future__ import annotations

import gzip
import hashlib
import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Protocol, cast
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from onetape.clock import to_text
from onetape.store.layout import DAY_NS

#: Rows of a row group or record batch: what a reader of the file holds at once.
GROUP_ROWS = 131_072
#: A name of a folder has at most 255 bytes; a symbol of 255 bytes can take three times as many.
_FOLDER_NAME_MAX = 200


class Writer(Protocol):
    """Takes tables of one symbol each, in order; `files` counts what it has written."""

    files: int

    def write(self, symbol: str, table: Any) -> None: ...
    def close(self) -> None: ...


class CsvFile:
    """One CSV file: a header line, then a line a record; texts in quotes, what is absent empty.

    Before a time in ns stands the same time as ISO 8601, in `time`. Floats are written with the fewest digits that
    read back as the same 64 bits.
    """

    def __init__(self, path: Path, schema: Any, *, zipped: bool) -> None:
        self.files = 1
        self._time = next((name for name in schema.names if name in ("ts_event_ns", "ts_start_ns")), None)
        plain = [pa.field(field.name, _plain(field.type)) for field in schema]
        if self._time is not None:
            plain.insert(schema.get_field_index(self._time), pa.field("time", pa.string()))
        self._schema = pa.schema(plain)
        self._stack = ExitStack()
        raw: IO[bytes] = self._stack.enter_context(path.open("wb"))
        if zipped:  # no name and no time in it: the same records give the same bytes
            raw = cast(IO[bytes], self._stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0)))
        raw.write(",".join(self._schema.names).encode() + b"\n")
        options = pcsv.WriteOptions(include_header=False, quoting_style="needed")
        self._csv = self._stack.enter_context(pcsv.CSVWriter(raw, self._schema, write_options=options))

    def write(self, symbol: str, table: Any) -> None:
        """Write rows."""
        columns = [
            iso_texts(table.column(cast(str, self._time))) if field.name == "time" else table.column(field.name)
            for field in self._schema
        ]
        cast_ = [column.cast(field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._csv.write_table(pa.table(cast_, schema=self._schema), max_chunksize=GROUP_ROWS)

    def close(self) -> None:
        """End the file."""
        self._stack.close()


def _plain(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def iso_texts(times: Any) -> Any:
    """Return times in ns as ISO 8601 texts in UTC with nine decimals."""
    texts = times.cast(pa.timestamp("ns")).cast(pa.string())  # with a zone, it takes ten times as long
    return pc.binary_join_element_wise(pc.utf8_replace_slice(texts, 10, 11, "T"), "Z", "")


class ArrowFile:
    """One Arrow IPC file of record batches. Texts are codes into lists that are known before the first batch."""

    def __init__(self, path: Path, schema: Any, texts: dict[str, Sequence[str]]) -> None:
        self.files = 1
        self._schema = schema
        self._texts = {name: pa.array(list(known), pa.string()) for name, known in texts.items()}
        self._stack = ExitStack()
        raw = self._stack.enter_context(path.open("wb"))
        options = ipc.IpcWriteOptions(compression="lz4")
        self._ipc = self._stack.enter_context(ipc.new_file(raw, schema, options=options))

    def write(self, symbol: str, table: Any) -> None:
        """Write rows as record batches."""
        columns = [self._coded(field, table.column(field.name)) for field in self._schema]
        self._ipc.write_table(pa.table(columns, schema=self._schema), max_chunksize=GROUP_ROWS)

    def _coded(self, field: Any, column: Any) -> Any:
        if not pa.types.is_dictionary(field.type):
            return column
        known = self._texts[field.name]
        parts = [
            pa.DictionaryArray.from_arrays(pc.index_in(part.dictionary, known).take(part.indices), known)
            for part in column.chunks
        ]
        return pa.chunked_array(parts, field.type)

    def close(self) -> None:
        """End the file."""
        self._stack.close()


class ParquetFile:
    """One Parquet file of row groups."""

    def __init__(self, path: Path, schema: Any) -> None:
        self.files = 1
        self._schema = schema
        self._stack = ExitStack()
        raw = self._stack.enter_context(path.open("wb"))
        whole = [field.name for field in schema if pa.types.is_int64(field.type)]
        texts = [field.name for field in schema if pa.types.is_dictionary(field.type) or pa.types.is_string(field.type)]
        self._parquet = self._stack.enter_context(
            pq.ParquetWriter(
                raw,
                schema,
                compression="zstd",
                use_dictionary=texts + [field.name for field in schema if pa.types.is_floating(field.type)],
                column_encoding=dict.fromkeys(whole, "DELTA_BINARY_PACKED"),
            )
        )

    def write(self, symbol: str, table: Any) -> None:
        """Write rows as row groups."""
        if table.num_rows:
            columns = [table.column(field.name) for field in self._schema]
            self._parquet.write_table(pa.table(columns, schema=self._schema), row_group_size=GROUP_ROWS)

    def close(self) -> None:
        """End the file."""
        self._stack.close()


class ParquetFolder:
    """A folder symbol=…/date=…/part-0.parquet, a file for each symbol and UTC day.

    The symbol stands in the name of its folder, percent-encoded, and in each file's metadata; it is no column.
    """

    def __init__(self, path: Path, schema: Any, time: str) -> None:
        self.files = 0
        self._path, self._time, self._schema = path, time, schema
        self._open: tuple[str, int] | None = None
        self._file: ParquetFile | None = None

    def write(self, symbol: str, table: Any) -> None:
        """Write rows to the files of their days."""
        days = table.column(self._time).to_numpy() // DAY_NS
        edges = [0, *(np.flatnonzero(days[1:] != days[:-1]) + 1).tolist(), len(days)]
        for start, end in itertools.pairwise(edges):
            if start < end:
                self._of(symbol, int(days[start])).write(symbol, table.slice(start, end - start))

    def _of(self, symbol: str, day: int) -> ParquetFile:
        if self._file is not None and self._open == (symbol, day):
            return self._file
        self.close()
        folder = self._path / f"symbol={folder_name(symbol)}" / f"date={to_text(day * DAY_NS)[:10]}"
        folder.mkdir(parents=True)
        schema = pa.schema(
            [field for field in self._schema if field.name != "symbol"],
            {**self._schema.metadata, b"onetape.symbol": symbol.encode()},
        )
        self._file, self._open = ParquetFile(folder / "part-0.parquet", schema), (symbol, day)
        self.files += 1
        return self._file

    def close(self) -> None:
        """End the file that is open."""
        if self._file is not None:
            file, self._file, self._open = self._file, None, None
            file.close()


def folder_name(symbol: str) -> str:
    """Return a symbol percent-encoded; one that is too long for a folder is cut, with its digest to tell it apart."""
    encoded = quote(symbol, safe="").replace(".", "%2E") if symbol.strip(".") == "" else quote(symbol, safe="")
    if len(encoded) <= _FOLDER_NAME_MAX:
        return encoded
    whole = encoded[: _FOLDER_NAME_MAX - 24].rsplit("%", 1)[0]
    return f"{whole}~{hashlib.sha256(symbol.encode()).hexdigest()[:16]}"
