"""A block: records of one kind, packed to bytes with a checksum. What a journal's row holds.

    header   16 bytes <BBHIII: version, kind, time (low 16 bits), count, bits, time (high 32 bits)
    values   version 1: columns, those whose bit is set, in the order of their bits, `count` little-endian values each;
             version 3: records one behind another, each with the values of those columns
    trailer  4 bytes: CRC-32 of all before

The time is when the block was appended, ms since the epoch (0 in files of format 1). Chunks of format 1 are blocks too.

A column nobody filled has no bit and takes no room. Absent values: NaN in float columns (a record's own NaN is
invalid, so it is free), ABSENT in integer columns, 0 in symbol, source, flags and side.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from onetape.errors import ChunkCorrupt
from onetape.store.layout import KIND_BAR, KIND_CANCEL, KIND_MINUTE, KIND_TICK

Array = npt.NDArray[Any]
Columns = dict[str, Array]

ABSENT = -(2**63)
_HEADER = struct.Struct("<BBHIII")
_CRC = struct.Struct("<I")
_VERSION, _ROWS = 1, 3
_HEAD = np.dtype(
    [("version", "u1"), ("kind", "u1"), ("low", "<u2"), ("count", "<u4"), ("bits", "<u4"), ("high", "<u4")]
)
#: The CRC-32 of anything with its own CRC-32 behind it, little-endian: one call checks a whole block.
_INTACT = 0x2144DF1C
#: Blocks of one size from which decoding them in one go pays: numpy's calls cost as much as some blocks one by one.
_ALIKE_FROM = 8
REPAIR = "onetape doctor says what is affected and sets it aside; everything else can be read"

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
CANCEL_COLUMNS: tuple[tuple[str, str], ...] = (
    ("ts_event_ns", "<i8"),  # of the tick that is taken back
    ("target", "<i8"),  # its position
    ("trade", "<i8"),  # 1 if it had a price
    *((f"reserved_{bit}", "<i8") for bit in range(3, 15)),
    ("seq", "<i8"),
    ("symbol", "<u4"),
)
MINUTE_COLUMNS: tuple[tuple[str, str], ...] = (
    ("ts_event_ns", "<i8"),  # the minute's start
    ("open", "<f8"),
    ("high", "<f8"),
    ("low", "<f8"),
    ("close", "<f8"),
    ("volume", "<f8"),
    ("notional", "<f8"),
    ("bid_volume", "<f8"),
    ("ask_volume", "<f8"),
    ("trades", "<i8"),
    ("revision", "<i8"),
    ("first_ts", "<i8"),
    ("first_seq", "<i8"),
    ("last_ts", "<i8"),
    ("last_seq", "<i8"),
)
_SCHEMAS = {
    KIND_TICK: TICK_COLUMNS,
    KIND_BAR: BAR_COLUMNS,
    KIND_CANCEL: CANCEL_COLUMNS,
    KIND_MINUTE: MINUTE_COLUMNS,
}
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


def encode(kind: int, columns: Mapping[str, Array], at_ms: int = 0) -> bytes:
    """Pack columns of equal length, appended at `at_ms`; those not given are absent."""
    parts: list[bytes] = []
    bits, count = 0, len(columns["ts_event_ns"])
    for bit, (name, dtype) in enumerate(DTYPES[kind].items()):
        column = columns.get(name)
        if column is not None:
            bits |= 1 << bit
            parts.append((column if column.dtype == dtype else column.astype(dtype)).tobytes())
    return sealed_bytes(_VERSION, kind, count, bits, at_ms, *parts)


def encode_rows(kind: int, bits: int, count: int, rows: bytes | bytearray, at_ms: int) -> bytes:
    """Pack records that are packed one behind another already, each with the columns of `bits`."""
    return sealed_bytes(_ROWS, kind, count, bits, at_ms, rows)


def one_row(kind: int, columns: Mapping[str, Array]) -> tuple[int, bytes]:
    """Return (bits, row) of one record, for encode_rows()."""
    blob = encode(kind, columns)
    return int(_HEADER.unpack_from(blob)[4]), blob[_HEADER.size : -_CRC.size]


def sealed_bytes(version: int, kind: int, count: int, bits: int, at_ms: int, *parts: bytes | bytearray) -> bytes:
    """Return header, parts and trailer as the bytes of one block."""
    body = b"".join([_HEADER.pack(version, kind, at_ms & 0xFFFF, count, bits, at_ms >> 16), *parts])
    return body + _CRC.pack(zlib.crc32(body))


def moments(rows: Sequence[tuple[int, int, bytes]]) -> tuple[Array, Array]:
    """Return the last positions of journal rows and the times (ms) at which they were appended."""
    told = [(row[0], row[2][:16]) for row in rows if len(row[2]) >= 16]
    heads = np.frombuffer(b"".join(head for _, head in told), _HEAD)
    seqs = np.array([seq for seq, _ in told], dtype="<i8")
    return seqs, (heads["high"].astype("<i8") << 16) | heads["low"]


def decode(blob: bytes, where: str) -> tuple[int, Columns]:
    """Return (kind, columns) of a block. The arrays are read-only views of `blob`. Raises ChunkCorrupt."""
    version, kind, count, bits = _verify(blob, where)
    columns: Columns = {}
    offset = _HEADER.size
    if version == _ROWS:
        table = np.frombuffer(blob, _record_dtype(kind, bits), count, offset)
        return kind, {name: table[name] for name in table.dtype.names or ()}
    for bit, (name, dtype) in enumerate(DTYPES[kind].items()):
        if bits >> bit & 1:
            columns[name] = np.frombuffer(blob, dtype, count, offset)
            offset += count * dtype.itemsize
    return kind, columns


def is_whole(blob: bytes) -> bool:
    """Return whether bytes are a block that bears its own checksum."""
    size = len(blob) - _CRC.size
    return size >= _HEADER.size and zlib.crc32(memoryview(blob)[:size]) == _CRC.unpack_from(blob, size)[0]


def _verify(blob: bytes, where: str) -> tuple[int, int, int, int]:
    size = len(blob) - _CRC.size
    if size < _HEADER.size or zlib.crc32(memoryview(blob)[:size]) != _CRC.unpack_from(blob, size)[0]:
        raise ChunkCorrupt(f"{where} fails its checksum", hint=REPAIR)
    version, kind, _, count, bits, _ = _HEADER.unpack_from(blob)
    if version not in (_VERSION, _ROWS) or kind not in _SCHEMAS:
        raise ChunkCorrupt(f"{where} is of an unknown kind ({version}/{kind})", hint="install a newer onetape")
    if len(blob) != count * _record_dtype(kind, bits).itemsize + _HEADER.size + _CRC.size:
        raise ChunkCorrupt(f"{where} has the wrong size", hint=REPAIR)
    return version, kind, count, bits


def decode_many(rows: Sequence[tuple[int, int, bytes]], where: str) -> dict[int, Columns]:
    """Return the columns, with seq, of journal rows (seq_last, count, payload) in their order, by kind.

    Rows of as many records and one size, which single appends and feeds leave by the thousand, are decoded in one go.
    """
    alike: dict[tuple[int, int], tuple[list[int], list[bytes]]] = {}
    parts: dict[int, list[Columns]] = {}
    for seq_last, count, blob in rows:
        if count:
            group = alike.get((count, len(blob)))
            if group is None:
                group = alike[count, len(blob)] = ([], [])
            group[0].append(seq_last)
            group[1].append(blob)
    for (count, size), (seqs, blobs) in alike.items():
        if count > 1 and len(seqs) < _ALIKE_FROM:
            for seq_last, blob in zip(seqs, blobs, strict=True):
                kind, columns = decode(blob, f"{where} row {seq_last}")
                columns["seq"] = np.arange(seq_last - count + 1, seq_last + 1, dtype="<i8")
                parts.setdefault(kind, []).append(columns)
        else:
            for kind, columns in _decode_alike(count, size, seqs, blobs, where):
                parts.setdefault(kind, []).append(columns)
    return {kind: _in_seq_order(concatenate(kind, found_parts)) for kind, found_parts in parts.items()}


def _decode_alike(
    count: int, size: int, seqs: list[int], blobs: list[bytes], where: str
) -> Iterator[tuple[int, Columns]]:
    """Yield (kind, columns) of blocks of one size that hold `count` records each; those of one layout together."""
    if size < _HEADER.size + _CRC.size:
        raise ChunkCorrupt(f"{where} row {seqs[0]} has the wrong size", hint=REPAIR)
    for at, total in enumerate(map(zlib.crc32, blobs)):
        if total != _INTACT:
            raise ChunkCorrupt(f"{where} row {seqs[at]} fails its checksum", hint=REPAIR)
    joined = b"".join(blobs)
    heads = np.frombuffer(joined, np.dtype([("head", _HEAD), ("rest", f"V{size - _HEADER.size}")]))["head"]
    wrong = np.flatnonzero(heads["count"] != count)
    if len(wrong):
        raise ChunkCorrupt(f"{where} row {seqs[wrong[0]]} has the wrong size", hint=REPAIR)
    layouts = heads["bits"].astype("<u8") << 16 | heads["version"].astype("<u8") << 8 | heads["kind"]
    positions = np.array(seqs, dtype="<i8")
    if count > 1:
        positions = (positions[:, None] + np.arange(1 - count, 1, dtype="<i8")).ravel()
    for layout in np.unique(layouts).tolist():
        kind, version, bits = layout & 0xFF, layout >> 8 & 0xFF, layout >> 16
        which = np.flatnonzero(layouts == layout)
        _verify(blobs[which[0]], f"{where} row {seqs[which[0]]}")
        dtype = _block_dtype(version, kind, bits, count)
        table = np.frombuffer(joined, dtype)
        if version == _ROWS:
            table = table["_rows"]
        columns = {name: table[name].reshape(-1) for name in table.dtype.names or () if not name.startswith("_")}
        columns["seq"] = positions
        if len(which) < len(seqs):
            mine = which if count == 1 else (which[:, None] * count + np.arange(count)).ravel()
            columns = take(columns, mine)
        yield kind, columns


def _in_seq_order(columns: Columns) -> Columns:
    seq = columns["seq"]
    if len(seq) < 2 or bool((seq[1:] > seq[:-1]).all()):
        return columns
    return take(columns, np.argsort(seq, kind="stable"))


@cache
def _record_dtype(kind: int, bits: int) -> np.dtype[Any]:
    return np.dtype([column for bit, column in enumerate(_SCHEMAS[kind]) if bits >> bit & 1])


@lru_cache(1024)
def _block_dtype(version: int, kind: int, bits: int, count: int) -> np.dtype[Any]:
    """Return a whole block of `count` records as one item: columns behind each other, or records (`_rows`)."""
    record = _record_dtype(kind, bits)
    if version == _ROWS:
        return np.dtype([("_header", "V16"), ("_rows", record, (count,)), ("_crc", "<u4")])
    columns = [(name, record[name], (count,)) for name in record.names or ()]
    return np.dtype([("_header", "V16"), *columns, ("_crc", "<u4")])


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


def take(columns: Columns, which: Array | slice) -> Columns:
    """Return the rows that an index array or a mask names."""
    return {name: column[which] for name, column in columns.items()}


def distinct(ids: Array) -> Array:
    """Return the distinct ids of a column of symbols or sources, ascending."""
    if not len(ids):
        return ids
    runs = ids[np.concatenate(([True], ids[1:] != ids[:-1]))]
    most = int(runs.max())
    return np.flatnonzero(np.bincount(runs, minlength=most + 1)) if most < 2**20 else np.unique(runs)


def in_symbol_order(symbols: Array, ts: Array, seq: Array) -> bool:
    """Return whether records are sorted by symbol, and each symbol's in canonical order."""
    same = symbols[1:] == symbols[:-1]
    if not same.all() and bool((symbols[1:] < symbols[:-1]).any()):
        return False
    later = ts[1:] > ts[:-1]
    later |= ~same
    if later.all():
        return True
    later |= (ts[1:] == ts[:-1]) & (seq[1:] > seq[:-1])
    return bool(later.all())


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
