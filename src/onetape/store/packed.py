"""Packed columns: the bytes of a chunk. Each column is compressed by itself, and can be read by itself.

    header      16 bytes <BBHIQ: version 2, kind, number of columns, count of records, 0
    directory   16 bytes a column <BBBBId: its bit, method, base, marks, bytes, scale (or unit of a time)
    columns     the bytes of each, in the order of the directory
    trailer     8 bytes: XXH3 (64 bits) of all before

What market data is like decides the method. Prices stand on a grid, so a float column is kept as integers and a scale
where that gives back every bit (integer / scale == float), else as the floats they are; integers go to pcodec, as
differences where a column walks (times, prices), as they are where it does not (sizes). A column of one value is that
value, positions without a hole are the first of them. Bid and ask lie near the price, so they may be kept as
the difference from another column. What is absent is a bitmap, and the column holds the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import xxhash
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

from onetape.errors import ChunkCorrupt
from onetape.store.block import ABSENT, DTYPES, REPAIR, Array, Columns, full

VERSION = 2
#: Compression when records are sealed: fast; and when they are compacted: smallest for what it costs.
FAST, SMALL = 0, 8
_HEADER = struct.Struct("<BBHIQ")
_ENTRY = struct.Struct("<BBBBId")
_HASH = struct.Struct("<Q")
_VALUE = {"i": struct.Struct("<q"), "u": struct.Struct("<q"), "f": struct.Struct("<d")}

_RAW, _CONSTANT, _RANGE, _INTEGERS, _SMALL_INTEGERS, _SCALED, _FLOATS = range(7)
_WITH_ABSENT, _WIDE = 1, 2
_NO_BASE = 255
#: Fewer values than this are kept as they are: the codec's own header would be larger.
_CODEC_FROM = 48
#: Grids of prices and sizes: binary fractions (futures), decimals (everything else), smallest first.
_SCALES = (1.0, 2.0, 4.0, 8.0, 10.0, 16.0, 32.0, 64.0, 100.0, 128.0, 256.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10)
#: So far from zero, the difference of two columns still fits.
_HALF_INT32 = 2.0**30
_EXACT_MAX = 2.0**53
_BINARY = frozenset((1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0))
_SAMPLES = 24
#: Columns whose next value is near the last one; of the others the value itself is the shorter thing to say.
_WALKS = {"ts_event_ns", "ts_recv_ns", "seq", "symbol", "target", "price", "bid", "ask", "open", "high", "low", "close"}
_WALKS |= {"volume", "vwap", "notional", "open_interest", "trades", "first_ts", "last_ts", "first_seq", "last_seq"}
_TIMES = frozenset(("ts_event_ns", "ts_recv_ns", "first_ts", "last_ts"))
#: Columns that may be kept as their difference from another one, in the order in which that is tried.
_BASES = {"bid": "price", "ask": "bid", "high": "open", "low": "open", "close": "open", "ask_volume": "volume"}
#: The scale that fitted a column last: most likely it fits again.
_hints: dict[str, float] = {}


def _config(level: int, walks: bool) -> ChunkConfig:
    delta = DeltaSpec.try_consecutive(1) if walks else DeltaSpec.no_op()
    return ChunkConfig(compression_level=level, delta_spec=delta, mode_spec=ModeSpec.classic(), enable_8_bit=False)


_CONFIGS = {(level, walks): _config(level, walks) for level in (FAST, SMALL) for walks in (False, True)}


class Entry(NamedTuple):
    """One column in a directory; `start` is where its bytes begin."""

    name: str
    method: int
    base: str | None
    marks: int
    start: int
    size: int
    scale: float


class Directory(NamedTuple):
    """What a chunk holds, read from its head: nothing is decoded yet."""

    kind: int
    records: int
    entries: dict[str, Entry]

    def complete(self, name: str) -> bool:
        """Return whether every record has a value in a column."""
        return name in self.entries and not self.entries[name].marks & _WITH_ABSENT


class _Packed(NamedTuple):
    method: int
    marks: int
    payload: bytes
    scale: float = 0.0
    base: str | None = None


def pack(kind: int, columns: Mapping[str, Array], level: int = FAST) -> bytes:
    """Pack columns of equal length, at least one record."""
    names = DTYPES[kind]
    count = len(columns["ts_event_ns"])
    integers: dict[str, tuple[float, Array]] = {}
    packed: list[tuple[int, _Packed]] = []
    for bit, name in enumerate(names):
        column = columns.get(name)
        if column is not None:
            dtype = names[name]
            found = _pack(name, column if column.dtype == dtype else column.astype(dtype), level, integers)
            if found is not None:
                packed.append((bit, found))
    bits = {name: bit for bit, name in enumerate(names)}
    parts = [_HEADER.pack(VERSION, kind, len(packed), count, 0)]
    for bit, (method, marks, payload, scale, base) in packed:
        parts.append(_ENTRY.pack(bit, method, _NO_BASE if base is None else bits[base], marks, len(payload), scale))
    parts += [found.payload for _, found in packed]
    body = b"".join(parts)
    return body + _HASH.pack(xxhash.xxh3_64_intdigest(body))


def _pack(name: str, column: Array, level: int, integers: dict[str, tuple[float, Array]]) -> _Packed | None:
    """Pack one column, or return None if nothing in it is there. What it is as integers is left in `integers`."""
    kind = column.dtype.kind
    gone: Array | None
    marks, bitmap = 0, b""
    if kind == "f":
        gone = np.isnan(column) if np.isnan(column.min()) else None  # a minimum over a NaN is NaN
    elif column.dtype.itemsize == 8 and name not in ("ts_event_ns", "seq"):
        gone = column == ABSENT
    else:
        gone = None
    if gone is not None and gone.any():
        if gone.all():
            return None
        marks, bitmap = _WITH_ABSENT, np.packbits(gone, bitorder="little").tobytes()
        column = column[~gone]
    first = column[0]
    words = column.view(_WORDS[column.dtype.itemsize])
    if words[0] == words[-1] and bool((words == words[0]).all()):
        value = first.item()
        if kind == "f" and not marks:
            _remember(name, column, integers)
        return _Packed(_CONSTANT, marks, bitmap + _VALUE[kind].pack(value))
    if len(column) < _CODEC_FROM:
        return _Packed(_RAW, marks, bitmap + column.tobytes())
    if kind == "f":
        return _pack_floats(name, column, level, marks, bitmap, integers)
    config = _CONFIGS[level, name in _WALKS]
    if column.dtype.itemsize == 8:
        if int(column[-1]) - int(first) == len(column) - 1 and bool((column[1:] > column[:-1]).all()):
            return _Packed(_RANGE, marks, bitmap + _VALUE["i"].pack(first.item()))
        step, whole = _coarse(name, column)
        return _Packed(_INTEGERS, marks, bitmap + standalone.simple_compress(whole, config), step)
    lifted = column + np.int8(1) if kind == "i" else column
    narrow = lifted.astype("<u2") if kind == "i" or int(lifted.max()) < 65536 else lifted
    return _Packed(_SMALL_INTEGERS, marks, bitmap + standalone.simple_compress(narrow, config))


_WORDS = {1: "<u1", 4: "<u4", 8: "<u8"}


def _coarse(name: str, column: Array) -> tuple[float, Array]:
    """Return (unit, times in that unit): most times are of whole milli- or microseconds."""
    if name in _TIMES:
        for unit in (1_000_000, 1_000):
            if bool((column[:: max(1, len(column) // _SAMPLES)] % unit == 0).all()):
                whole = column // unit
                if bool((whole * unit == column).all()):
                    return float(unit), whole
    return 0.0, np.ascontiguousarray(column)


def _remember(name: str, column: Array, integers: dict[str, tuple[float, Array]]) -> None:
    found = _as_integers(name, column)
    if found is not None:
        integers[name] = found


def _pack_floats(
    name: str, column: Array, level: int, marks: int, bitmap: bytes, integers: dict[str, tuple[float, Array]]
) -> _Packed:
    found = _as_integers(name, column)
    if found is None:
        config = ChunkConfig(compression_level=max(level, 4), enable_8_bit=False)
        return _Packed(_FLOATS, marks, bitmap + standalone.simple_compress(np.ascontiguousarray(column), config))
    scale, whole = found
    wide = _WIDE if whole.dtype.itemsize == 8 else 0
    base = _BASES.get(name)
    best: _Packed | None = None
    if not marks:
        integers[name] = found
        beside = integers.get(base) if base is not None else None
        if beside is not None and beside[0] == scale and beside[1].dtype == whole.dtype:
            config = _CONFIGS[level, False]
            best = _Packed(_SCALED, marks | wide, standalone.simple_compress(whole - beside[1], config), scale, base)
            if level == FAST:
                return best
    config = _CONFIGS[level, name in _WALKS]
    alone = _Packed(_SCALED, marks | wide, bitmap + standalone.simple_compress(whole, config), scale)
    return alone if best is None or len(alone.payload) <= len(best.payload) else best


@np.errstate(over="ignore", invalid="ignore")  # what does not fit becomes something that does not come back
def _as_integers(name: str, column: Array) -> tuple[float, Array] | None:
    """Return (scale, integers) with integers / scale == column in every bit, or None if no grid is found."""
    sample = column[:: max(1, len(column) // _SAMPLES)]
    hint = _hints.get(name)
    for scale in _SCALES if hint is None else (hint, *_SCALES):
        scaled = np.rint(sample * scale)
        if not ((scaled / scale == sample) & (np.abs(scaled) < _EXACT_MAX)).all():
            continue
        whole, wrong = _exactly(column, scale)
        if whole is not None:
            _hints[name] = scale
            return scale, whole
        if column[wrong] == 0.0:  # a negative zero: no integer is one
            return None
        sample = np.append(sample, column[wrong])  # so that the next scale is not tried in vain
    return None


def _exactly(column: Array, scale: float) -> tuple[Array | None, int]:
    """Return the integers that divided by `scale` give every bit of a column; else None and a place where they fail."""
    scaled = column if scale == 1.0 else column * scale
    if scale not in _BINARY:  # a decimal times its scale may miss the whole number by a bit
        scaled = np.rint(scaled)
    wrong = 0
    for dtype, limit in (("<i4", _HALF_INT32), ("<i8", _EXACT_MAX)):
        whole = scaled.astype(dtype)
        differs = (whole / scale).view("<u8") != column.view("<u8")  # -0.0 is told apart too
        if not differs.any():
            if int(whole.max()) < limit and int(whole.min()) > -limit:
                return whole, 0
            differs = np.abs(scaled) >= limit
        wrong = int(differs.argmax())
    return None, wrong


def directory(blob: bytes, where: str) -> Directory:
    """Check a chunk's bytes and return what they hold. Raises ChunkCorrupt."""
    size = len(blob) - _HASH.size
    if size < _HEADER.size or xxhash.xxh3_64_intdigest(memoryview(blob)[:size]) != _HASH.unpack_from(blob, size)[0]:
        raise ChunkCorrupt(f"{where} fails its checksum", hint=REPAIR)
    version, kind, number, count, _ = _HEADER.unpack_from(blob)
    if version != VERSION or kind not in DTYPES:
        raise ChunkCorrupt(f"{where} is of an unknown kind ({version}/{kind})", hint="install a newer onetape")
    names = _NAMES[kind]
    start = _HEADER.size + number * _ENTRY.size
    entries: dict[str, Entry] = {}
    try:
        for at in range(_HEADER.size, start, _ENTRY.size):
            bit, method, base, marks, length, scale = _ENTRY.unpack_from(blob, at)
            name = names[bit]
            entries[name] = Entry(name, method, None if base == _NO_BASE else names[base], marks, start, length, scale)
            start += length
    except (IndexError, struct.error) as error:
        raise ChunkCorrupt(f"{where} cannot be decoded: {error}", hint=REPAIR) from error
    return Directory(kind, count, entries)


_NAMES = {kind: tuple(schema) for kind, schema in DTYPES.items()}


def unpack(blob: bytes, where: str, wanted: Collection[str] | None = None) -> tuple[int, Columns]:
    """Return (kind, columns) of a chunk: those of `wanted` that it has, or all. Raises ChunkCorrupt."""
    found = directory(blob, where)
    names = [name for name in found.entries if wanted is None or name in wanted]
    out = {name: np.empty(found.records, DTYPES[found.kind][name]) for name in names}
    unpack_into(blob, found, out, where)
    return found.kind, out


def unpack_into(blob: bytes, found: Directory, out: Mapping[str, Array], where: str) -> None:
    """Decode into `out`, arrays of `found.records` values by column; what the chunk does not have becomes absent."""
    integers: dict[str, Array] = {}
    try:
        for name, target in out.items():
            entry = found.entries.get(name)
            if entry is None:
                target[:] = full(found.kind, name, 1)[0]
            else:
                _unpack(blob, found, entry, target, integers)
    except (RuntimeError, TypeError, ValueError, KeyError, OverflowError, struct.error) as error:
        raise ChunkCorrupt(f"{where} cannot be decoded: {error}", hint=REPAIR) from error


def _unpack(blob: bytes, found: Directory, entry: Entry, target: Array, integers: dict[str, Array]) -> None:
    start, end = entry.start, entry.start + entry.size
    if not entry.marks & _WITH_ABSENT:
        _values(blob, found, entry, start, end, target, integers)
        return
    bitmap_end = start + (found.records + 7) // 8
    gone = np.unpackbits(np.frombuffer(blob[start:bitmap_end], "<u1"), count=found.records, bitorder="little")
    there = gone == 0
    dense = np.empty(int(np.count_nonzero(there)), target.dtype)
    _values(blob, found, entry, bitmap_end, end, dense, integers)
    target[:] = full(found.kind, entry.name, 1)[0]
    target[there] = dense


def _values(
    blob: bytes, found: Directory, entry: Entry, start: int, end: int, target: Array, integers: dict[str, Array]
) -> None:
    method = entry.method
    if method == _CONSTANT:
        target[:] = _VALUE[target.dtype.kind].unpack_from(blob, start)[0]
    elif method == _RANGE:
        first = _VALUE["i"].unpack_from(blob, start)[0]
        target[:] = np.arange(first, first + len(target))
    elif method == _RAW:
        target[:] = np.frombuffer(blob[start:end], target.dtype)
    elif method == _SCALED:
        target[:] = _whole(blob, found, entry, start, end, integers)
        if entry.scale in _BINARY:
            if entry.scale != 1.0:
                target *= 1.0 / entry.scale  # the same bits as dividing, in half the time
        else:
            target /= entry.scale
    elif method == _SMALL_INTEGERS:
        values = standalone.simple_decompress(blob[start:end])
        if target.dtype.kind == "i":
            np.subtract(values.astype("<i2"), 1, out=target, casting="unsafe")
        else:
            target[:] = values
    elif method in (_INTEGERS, _FLOATS):
        standalone.simple_decompress_into(blob[start:end], target)
        if entry.scale:
            target *= target.dtype.type(entry.scale)
    else:
        raise ValueError(f"method {method} is not known")


def _whole(blob: bytes, found: Directory, entry: Entry, start: int, end: int, integers: dict[str, Array]) -> Array:
    """Return a scaled column's integers; those of a column that is the base of another are kept for it."""
    known = integers.get(entry.name)
    if known is not None:
        return known
    values: Array = standalone.simple_decompress(blob[start:end])
    if entry.base is not None:
        below = found.entries[entry.base]
        if below.method == _CONSTANT:
            value = _VALUE["f"].unpack_from(blob, below.start)[0]
            values += values.dtype.type(round(value * entry.scale))
        else:
            values += _whole(blob, found, below, below.start, below.start + below.size, integers)
    integers[entry.name] = values
    return values
