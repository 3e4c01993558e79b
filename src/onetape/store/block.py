"""A block: records of one kind in columns, packed to bytes with a checksum. Journal rows and chunks are blocks.

    header   16 bytes <BBHIII: version 1, kind, 0, count, bits, 0
    columns  those whose bit is set, in the order of their bits, `count` little-endian values each
    trailer  4 bytes: CRC-32 of all before

A column nobody filled has no bit and takes no room. Absent values: NaN in float columns (a record's own NaN is
invalid, so it is free), ABSENT in integer columns, 0 in symbol, source, flags and side.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onetape.errors import ChunkCorrupt
from onetape.record import Tick
from onetape.store.layout import KIND_BAR, KIND_TICK

Array = npt.NDArray[Any]
Columns = dict[str, Array]

ABSENT = -(2**63)
_HEADER = struct.Struct("<BBHIII")
_CRC = struct.Struct("<I")
_VERSION = 1

#: Bits 0 to 15 are 8 bytes wide, 16 to 18 four, 19 one: every column starts aligned.
TICK_COLUMNS: tuple[tuple[str, str], ...] = (
    ("ts_event_ns", "<i8"),
    ("price", "<f8"),
    ("size", "<f8"),
    ("bid", "<f8"),
    ("ask", "<f8"),
    ("bid_size", "<f8"),
    ("ask_size", "<f8"),
    ("open", "<f8"),
    ("high", "<f8"),
    ("low", "<f8"),
    ("volume", "<f8"),
    ("vwap", "<f8"),
    ("open_interest", "<f8"),
    ("trades", "<i8"),
    ("ts_recv_ns", "<i8"),
    ("seq", "<i8"),
    ("symbol", "<u4"),
    ("source", "<u4"),
    ("flags", "<u4"),
    ("side", "<i1"),
)
BAR_COLUMNS: tuple[tuple[str, str], ...] = (
    ("ts_event_ns", "<i8"),  # the bar's start: the time a bar is ordered by
    ("open", "<f8"),
    ("high", "<f8"),
    ("low", "<f8"),
    ("close", "<f8"),
    ("volume", "<f8"),
    ("vwap", "<f8"),
    ("bid_volume", "<f8"),
    ("ask_volume", "<f8"),
    ("interval_ns", "<i8"),
    ("trades", "<i8"),
    ("revision", "<i8"),
    ("reserved_12", "<i8"),
    ("reserved_13", "<i8"),
    ("reserved_14", "<i8"),
    ("seq", "<i8"),
    ("symbol", "<u4"),
    ("source", "<u4"),
    ("reserved_18", "<u4"),
    ("complete", "<i1"),
)
_SCHEMAS = {KIND_TICK: TICK_COLUMNS, KIND_BAR: BAR_COLUMNS}
DTYPES: dict[int, dict[str, np.dtype[Any]]] = {
    kind: {name: np.dtype(code) for name, code in schema} for kind, schema in _SCHEMAS.items()
}


def absent(kind: int, name: str) -> float | int:
    """Return the value that stands for "not there" in a column."""
    dtype = DTYPES[kind][name]
    if dtype.kind == "f":
        return float("nan")
    return ABSENT if dtype.itemsize == 8 else 0


def full(kind: int, name: str, count: int) -> Array:
    """Return a column of `count` absent values."""
    return np.full(count, absent(kind, name), dtype=DTYPES[kind][name])


def encode(kind: int, columns: Mapping[str, Array]) -> bytes:
    """Pack columns of equal length; those not given are absent."""
    parts: list[bytes] = []
    bits, count = 0, len(columns["ts_event_ns"])
    for bit, (name, code) in enumerate(_SCHEMAS[kind]):
        column = columns.get(name)
        if column is not None:
            bits |= 1 << bit
            parts.append(np.ascontiguousarray(column, dtype=code).tobytes())
    body = _HEADER.pack(_VERSION, kind, 0, count, bits, 0) + b"".join(parts)
    return body + _CRC.pack(zlib.crc32(body))


def decode(blob: bytes, where: str) -> tuple[int, Columns]:
    """Return (kind, columns) of a block. The arrays are read-only views of `blob`. Raises ChunkCorrupt."""
    kind, count, bits = _verify(blob, where)
    columns: Columns = {}
    offset = _HEADER.size
    for bit, (name, _code) in enumerate(_SCHEMAS[kind]):
        if bits >> bit & 1:
            dtype = DTYPES[kind][name]
            columns[name] = np.frombuffer(blob, dtype, count, offset)
            offset += count * dtype.itemsize
    return kind, columns


def _verify(blob: bytes, where: str) -> tuple[int, int, int]:
    size = len(blob) - _CRC.size
    if size < _HEADER.size or zlib.crc32(memoryview(blob)[:size]) != _CRC.unpack_from(blob, size)[0]:
        raise ChunkCorrupt(f"{where} fails its checksum", hint="restore the tape from a backup; other blocks are fine")
    version, kind, _, count, bits, _ = _HEADER.unpack_from(blob)
    if version != _VERSION or kind not in _SCHEMAS:
        raise ChunkCorrupt(f"{where} is of an unknown kind ({version}/{kind})", hint="install a newer onetape")
    return kind, count, bits


def decode_many(rows: Sequence[tuple[int, int, bytes]], where: str) -> dict[int, Columns]:
    """Return the columns, with seq, of journal rows (seq_last, count, payload) in their order, by kind.

    Rows of one record and one layout, which single appends leave by the thousand, are decoded in one go.
    """
    singles: dict[bytes, list[tuple[int, bytes]]] = {}
    parts: dict[int, list[Columns]] = {}
    for seq_last, count, blob in rows:
        if count == 1:
            _verify(blob, f"{where} row {seq_last}")
            singles.setdefault(blob[: _HEADER.size], []).append((seq_last, blob))
        elif count:
            kind, columns = decode(blob, f"{where} row {seq_last}")
            columns["seq"] = np.arange(seq_last - count + 1, seq_last + 1, dtype="<i8")
            parts.setdefault(kind, []).append(columns)
    for header, found in singles.items():
        _, kind, _, _, bits, _ = _HEADER.unpack(header)
        table = np.frombuffer(b"".join([blob for _, blob in found]), _row_dtype(kind, bits))
        columns = {name: table[name] for name in table.dtype.names or () if not name.startswith("_")}
        columns["seq"] = np.fromiter([seq for seq, _ in found], dtype="<i8", count=len(found))
        parts.setdefault(kind, []).append(columns)
    return {kind: _in_seq_order(concatenate(kind, found_parts)) for kind, found_parts in parts.items()}


def _in_seq_order(columns: Columns) -> Columns:
    seq = columns["seq"]
    if len(seq) < 2 or bool((seq[1:] > seq[:-1]).all()):
        return columns
    return take(columns, np.argsort(seq, kind="stable"))


_row_dtypes: dict[tuple[int, int], np.dtype[Any]] = {}


def _row_dtype(kind: int, bits: int) -> np.dtype[Any]:
    known = _row_dtypes.get((kind, bits))
    if known is None:
        fields = [("_header", "V16")]
        fields += [column for bit, column in enumerate(_SCHEMAS[kind]) if bits >> bit & 1]
        known = _row_dtypes[kind, bits] = np.dtype([*fields, ("_crc", "<u4")])
    return known


def concatenate(kind: int, parts: Sequence[Columns]) -> Columns:
    """Join columns end to end; where only some parts have a column, the others get absent values."""
    if len(parts) == 1:
        return parts[0]
    names = {name for part in parts for name in part}
    counts = [len(part["ts_event_ns"]) for part in parts]
    return {
        name: np.concatenate(
            [part[name] if name in part else full(kind, name, count) for part, count in zip(parts, counts, strict=True)]
        )
        for name, _ in _SCHEMAS[kind]
        if name in names
    }


def take(columns: Columns, which: Array) -> Columns:
    """Return the rows that an index array or a mask names."""
    return {name: column[which] for name, column in columns.items()}


def canonical(columns: Columns) -> Columns:
    """Return the rows in canonical order (ts_event_ns, seq)."""
    ts = columns["ts_event_ns"]
    seq = columns["seq"]
    if len(ts) < 2:
        return columns
    later = ts[1:] > ts[:-1]
    if bool((later | ((ts[1:] == ts[:-1]) & (seq[1:] > seq[:-1]))).all()):
        return columns
    return take(columns, np.lexsort((seq, ts)))


_TICK_FLOATS: tuple[tuple[str, int], ...] = tuple(
    (name, 1 << bit) for bit, (name, code) in enumerate(TICK_COLUMNS) if code == "<f8"
)
_packers: dict[int, struct.Struct] = {}


def _packer(bits: int) -> struct.Struct:
    codes = {"<i8": "q", "<f8": "d", "<u4": "I", "<i1": "b"}
    known = _packers[bits] = struct.Struct(
        "<BBHIII" + "".join(codes[code] for bit, (_, code) in enumerate(TICK_COLUMNS) if bits >> bit & 1)
    )
    return known


def encode_tick(tick: Tick, symbol_id: int, source_id: int) -> bytes | None:
    """Pack one tick, or return None if anything about it is invalid: the caller finds out what.

    This is the path of a single durable append; it validates while it packs. `x - x` is 0.0 for a finite
    number only.
    """
    bits = 0x10001
    values: list[float | int] = [tick.ts_event_ns]
    add = values.append
    zero = 0.0
    if (x := tick.price) is not None:
        bits |= 0x2
        zero += x - x
        add(x)
    if (x := tick.size) is not None:
        bits |= 0x4
        if not x >= 0.0:
            return None
        zero += x - x
        add(x)
    if (x := tick.bid) is not None:
        bits |= 0x8
        zero += x - x
        add(x)
    if (x := tick.ask) is not None:
        bits |= 0x10
        zero += x - x
        add(x)
    if not bits & 0x1A:
        return None
    if (x := tick.bid_size) is not None:
        bits |= 0x20
        if not x >= 0.0:
            return None
        zero += x - x
        add(x)
    if (x := tick.ask_size) is not None:
        bits |= 0x40
        if not x >= 0.0:
            return None
        zero += x - x
        add(x)
    for name, bit in _SESSION_FLOATS:
        if (x := getattr(tick, name)) is not None:
            bits |= bit
            zero += x - x
            add(x)
    if zero != 0.0:
        return None
    if (volume := tick.volume) is not None and volume < 0.0:
        return None
    if (interest := tick.open_interest) is not None and interest < 0.0:
        return None
    if (n := tick.trades) is not None:
        if n < 0:
            return None
        bits |= 0x2000
        add(n)
    if (n := tick.ts_recv_ns) is not None:
        if not 0 <= n < 0x7FFFFFFFFFFFFFFF:
            return None
        bits |= 0x4000
        add(n)
    if not 0 <= values[0] < 0x7FFFFFFFFFFFFFFF:
        return None
    add(symbol_id)
    if source_id:
        bits |= 0x20000
        add(source_id)
    if (n := tick.flags) != 0:
        bits |= 0x40000
        add(n)
    if (n := tick.side) != 0:
        if n not in (1, -1):
            return None
        bits |= 0x80000
        add(n)
    body = (_packers.get(bits) or _packer(bits)).pack(_VERSION, KIND_TICK, 0, 1, bits, 0, *values)
    return body + _CRC.pack(zlib.crc32(body))


_SESSION_FLOATS = tuple(
    (name, bit) for name, bit in _TICK_FLOATS if name in ("open", "high", "low", "volume", "vwap", "open_interest")
)
