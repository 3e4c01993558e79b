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

import msgspec
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
#: The CRC-32 of anything with its own CRC-32 behind it, little-endian: one call checks a whole block.
_INTACT = 0x2144DF1C
_REPAIR = "restore the tape from a backup; other blocks are fine"

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
    for bit, (name, dtype) in enumerate(DTYPES[kind].items()):
        column = columns.get(name)
        if column is not None:
            bits |= 1 << bit
            parts.append((column if column.dtype == dtype else column.astype(dtype)).tobytes())
    body = b"".join([_HEADER.pack(_VERSION, kind, 0, count, bits, 0), *parts])
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
        raise ChunkCorrupt(f"{where} fails its checksum", hint=_REPAIR)
    version, kind, _, count, bits, _ = _HEADER.unpack_from(blob)
    if version != _VERSION or kind not in _SCHEMAS:
        raise ChunkCorrupt(f"{where} is of an unknown kind ({version}/{kind})", hint="install a newer onetape")
    if len(blob) != count * (_row_dtype(kind, bits).itemsize - _HEADER.size - _CRC.size) + _HEADER.size + _CRC.size:
        raise ChunkCorrupt(f"{where} has the wrong size", hint=_REPAIR)
    return kind, count, bits


def decode_many(rows: Sequence[tuple[int, int, bytes]], where: str) -> dict[int, Columns]:
    """Return the columns, with seq, of journal rows (seq_last, count, payload) in their order, by kind.

    Rows of one record and one layout, which single appends leave by the thousand, are decoded in one go.
    """
    singles: dict[bytes, tuple[list[int], list[bytes]]] = {}
    parts: dict[int, list[Columns]] = {}
    for seq_last, count, blob in rows:
        if count == 1:
            header = blob[:16]
            group = singles.get(header)
            if group is None:
                group = singles[header] = ([], [])
            group[0].append(seq_last)
            group[1].append(blob)
        elif count:
            kind, columns = decode(blob, f"{where} row {seq_last}")
            columns["seq"] = np.arange(seq_last - count + 1, seq_last + 1, dtype="<i8")
            parts.setdefault(kind, []).append(columns)
    for seqs, blobs in singles.values():
        kind, columns = _decode_singles(seqs, blobs, where)
        parts.setdefault(kind, []).append(columns)
    return {kind: _in_seq_order(concatenate(kind, found_parts)) for kind, found_parts in parts.items()}


def _decode_singles(seqs: list[int], blobs: list[bytes], where: str) -> tuple[int, Columns]:
    kind, _, bits = _verify(blobs[0], f"{where} row {seqs[0]}")
    dtype = _row_dtype(kind, bits)
    joined = b"".join(blobs)
    size = dtype.itemsize
    if len(joined) != size * len(blobs):
        raise ChunkCorrupt(f"{where} rows {seqs[0]} to {seqs[-1]} have the wrong size", hint=_REPAIR)
    table = np.frombuffer(joined, dtype)
    for at, total in enumerate(map(zlib.crc32, blobs)):
        if total != _INTACT:
            raise ChunkCorrupt(f"{where} row {seqs[at]} fails its checksum", hint=_REPAIR)
    columns = {name: table[name] for name in dtype.names or () if not name.startswith("_")}
    columns["seq"] = np.array(seqs, dtype="<i8")
    return kind, columns


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


_packers: dict[int, struct.Struct] = {}
_astuple = msgspec.structs.astuple
_crc32 = zlib.crc32
_pack_crc = _CRC.pack
#: The shapes most feeds send, packed without a loop: a trade with both sides of the book, a trade, a quote.
_FULL = struct.Struct("<BBHIIIqddddddI").pack
_FULL_SIDE = struct.Struct("<BBHIIIqddddddIb").pack
_TRADE = struct.Struct("<BBHIIIqddI").pack
_TRADE_SIDE = struct.Struct("<BBHIIIqddIb").pack
_QUOTE = struct.Struct("<BBHIIIqddddI").pack


def _packer(bits: int) -> struct.Struct:
    codes = {"<i8": "q", "<f8": "d", "<u4": "I", "<i1": "b"}
    known = _packers[bits] = struct.Struct(
        "<BBHIII" + "".join(codes[code] for bit, (_, code) in enumerate(TICK_COLUMNS) if bits >> bit & 1)
    )
    return known


def encode_tick(tick: Tick, symbol_id: int, source_id: int) -> bytes | None:
    """Pack one tick, or return None if anything about it is invalid: the caller finds out what.

    This is the path of a single durable append, so it validates while it packs: a sum of floats is finite only if
    each of them is (`x - x` is 0.0 for a finite number only; a sum that overflows is left to the caller too).
    Raises what struct raises for values of a wrong type.
    """
    (_, ts, price, size, bid, ask, bid_size, ask_size, side, flags, open_, high, low, volume, vwap, trades, interest, _,
     received, _) = _astuple(tick)  # fmt: skip
    if not 0 <= ts < 0x7FFFFFFFFFFFFFFF:
        return None
    if (
        open_ is None
        and high is None
        and low is None
        and volume is None
        and vwap is None
        and trades is None
        and interest is None
        and received is None
        and flags == 0
        and source_id == 0
    ):
        quoted = bid is not None and ask is not None and bid_size is not None and ask_size is not None
        if price is not None and size is not None and (quoted or (bid is ask is bid_size is ask_size is None)):
            if quoted:
                total = price + size + bid + ask + bid_size + ask_size
                if total - total != 0.0 or size < 0.0 or bid_size < 0.0 or ask_size < 0.0:
                    return None
                if side == 0:
                    body = _FULL(1, 0, 0, 1, 0x1007F, 0, ts, price, size, bid, ask, bid_size, ask_size, symbol_id)
                    return body + _pack_crc(_crc32(body))
                if side == 1 or side == -1:
                    body = _FULL_SIDE(
                        1, 0, 0, 1, 0x9007F, 0, ts, price, size, bid, ask, bid_size, ask_size, symbol_id, side
                    )
                    return body + _pack_crc(_crc32(body))
                return None
            total = price + size
            if total - total != 0.0 or size < 0.0:
                return None
            if side == 0:
                body = _TRADE(1, 0, 0, 1, 0x10007, 0, ts, price, size, symbol_id)
                return body + _pack_crc(_crc32(body))
            if side == 1 or side == -1:
                body = _TRADE_SIDE(1, 0, 0, 1, 0x90007, 0, ts, price, size, symbol_id, side)
                return body + _pack_crc(_crc32(body))
            return None
        if quoted and price is size is None and side == 0:
            total = bid + ask + bid_size + ask_size
            if total - total != 0.0 or bid_size < 0.0 or ask_size < 0.0:
                return None
            body = _QUOTE(1, 0, 0, 1, 0x10079, 0, ts, bid, ask, bid_size, ask_size, symbol_id)
            return body + _pack_crc(_crc32(body))
    return _encode_any(tick, symbol_id, source_id)


_FLOATS: tuple[tuple[str, int, bool], ...] = tuple(
    (name, 1 << bit, name in ("size", "bid_size", "ask_size", "volume", "open_interest"))
    for bit, (name, code) in enumerate(TICK_COLUMNS)
    if code == "<f8"
)
_TOLD = 0b11010  # price, bid, ask


def _encode_any(tick: Tick, symbol_id: int, source_id: int) -> bytes | None:
    bits = 0x10001
    values: list[float | int] = [tick.ts_event_ns]
    add = values.append
    zero = 0.0
    for name, bit, not_negative in _FLOATS:
        if (x := getattr(tick, name)) is not None:
            if not_negative and not x >= 0.0:
                return None
            bits |= bit
            zero += x - x
            add(x)
    if zero != 0.0 or not bits & _TOLD:
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
    return body + _pack_crc(_crc32(body))
