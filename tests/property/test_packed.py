"""Packed columns give back every bit, whatever the values; and a chunk in which a bit was flipped is never read."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onetape.errors import ChunkCorrupt
from onetape.store import packed
from onetape.store.block import ABSENT, DTYPES
from onetape.store.layout import KIND_BAR, KIND_CANCEL, KIND_MINUTE, KIND_TICK

KINDS = (KIND_TICK, KIND_BAR, KIND_CANCEL, KIND_MINUTE)
LEVELS = st.sampled_from((packed.FAST, packed.SMALL))
GRIDS = (0.25, 0.01, 1e-5, 1e-8, 1.0, 1 / 256, 1 / 3)
EDGES = {
    "<i8": (0, 1, -1, ABSENT, ABSENT + 1, 2**63 - 1, 2**62, 10**18, 1_700_000_000_000_000_000, 10**6, 10**9),
    "<u4": (0, 1, 2, 65_535, 65_536, 2**32 - 1),
    "|i1": (-128, -1, 0, 1, 127),
    "<f8": (0.0, -0.0, 5e-324, -5e-324, 2.2e-308, 1.8e308 / 1.01, -1e308, 2.0**53, 2.0**53 + 2, 2.0**30, -(2.0**30),
            0.1, 0.1 + 0.2, 1e15 + 0.5, 4503599627370497.5, 1e-10),
}  # fmt: skip


def _values(dtype: np.dtype, count: int, draw: st.DrawFn) -> np.ndarray:
    """Return a column as feeds make them, or as nobody does: a walk on a grid, few values, edges, anything."""
    how = draw(st.sampled_from(("walk", "walk", "few", "edges", "any")))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    edges = np.array(EDGES[dtype.str], dtype)
    if how == "edges":
        return rng.choice(edges, count)
    if how == "few":
        return rng.choice(edges[rng.integers(0, len(edges), 2)], count)
    if how == "any":
        raw = rng.bytes(count * dtype.itemsize)
        return np.frombuffer(raw, dtype).copy()
    steps = np.cumsum(rng.integers(-3, 4, count)) + draw(st.sampled_from((0, 400, 20_000, 2**31, 10**9)))
    if dtype.kind == "f":
        return steps * draw(st.sampled_from(GRIDS))
    if dtype.itemsize == 8:
        return steps.astype("<i8") * draw(st.sampled_from((1, 1_000, 1_000_000)))
    return (steps % (3 if dtype.itemsize == 1 else 2**32)).astype(dtype)


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, dict[str, np.ndarray]]:
    kind = draw(st.sampled_from(KINDS))
    count = draw(st.one_of(st.integers(1, 70), st.sampled_from((1, 47, 48, 49, 300))))
    names = ["ts_event_ns", *draw(st.sets(st.sampled_from([n for n in DTYPES[kind] if n != "ts_event_ns"])))]
    columns: dict[str, np.ndarray] = {}
    for name in names:
        column = _values(DTYPES[kind][name], count, draw)
        if column.dtype.kind == "f":
            column[np.isnan(column)] = np.nan  # what is absent has one bit pattern
            if draw(st.booleans()):
                column[np.random.default_rng(count).random(count) < draw(st.sampled_from((0.02, 0.5, 1.0)))] = np.nan
        beside = packed._BASES.get(name)
        if beside in columns and draw(st.booleans()):  # near another column, as bid and ask are near the price
            column = columns[beside] + draw(st.sampled_from((0.25, -0.01, 0.0)))
        columns[name] = column
    if "seq" in columns and draw(st.booleans()):
        columns["seq"] = np.arange(5, 5 + count)
    return kind, columns


def _same(found: np.ndarray, told: np.ndarray) -> bool:
    return found.dtype == told.dtype and found.tobytes() == told.tobytes()


def _absent(column: np.ndarray) -> bool:
    return bool(np.isnan(column).all()) if column.dtype.kind == "f" else bool((column == ABSENT).all())


@settings(max_examples=400)
@given(tables(), LEVELS, st.randoms(use_true_random=False))
def test_what_is_packed_comes_back_bit_for_bit_whole_or_column_by_column(table, level, chance):
    kind, columns = table
    blob = packed.pack(kind, columns, level)
    found_kind, found = packed.unpack(blob, "here")
    assert found_kind == kind
    for name, column in columns.items():
        if name in found:
            assert _same(found[name], column.astype(DTYPES[kind][name])), name
        else:
            assert _absent(column), name
    assert set(found) <= set(columns)
    some = set(chance.sample(sorted(columns), chance.randint(0, len(columns))))
    _, part = packed.unpack(blob, "here", some)
    assert set(part) == some & set(found)
    assert all(_same(part[name], found[name]) for name in part)


@settings(max_examples=60)
@given(tables(), LEVELS, st.data())
def test_a_flipped_bit_anywhere_in_a_chunk_is_told_and_never_read_as_other_data(table, level, data):
    kind, columns = table
    blob = packed.pack(kind, columns, level)
    for _ in range(20):
        bit = data.draw(st.integers(0, 8 * len(blob) - 1))
        bad = bytearray(blob)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ChunkCorrupt, match="chunk 7"):
            packed.unpack(bytes(bad), "chunk 7")
    for cut in {0, 1, 8, 16, len(blob) // 2, len(blob) - 1}:
        with pytest.raises(ChunkCorrupt):
            packed.unpack(blob[:cut], "chunk 7")


@settings(max_examples=60)
@given(tables(), st.integers(0, 2**32), st.integers(1, 6))
def test_bytes_that_were_never_packed_but_bear_a_good_checksum_raise_nothing_but_chunk_corrupt(table, seed, edits):
    import xxhash

    kind, columns = table
    rng = np.random.default_rng(seed)
    body = bytearray(packed.pack(kind, columns)[:-8])
    for _ in range(edits):
        body[int(rng.integers(0, min(len(body), 16 + 16 * len(columns))))] = int(rng.integers(0, 256))
    if struct.unpack_from("<I", body, 4)[0] > 1000:
        return  # a count nobody would write: as large an allocation as it says
    forged = bytes(body) + struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(body)))
    try:
        packed.unpack(forged, "chunk 7")
    except ChunkCorrupt as error:
        assert "chunk 7" in str(error)


@settings(max_examples=100)
@given(
    st.sampled_from((4, 100, 1e5, 1e8, 1, 256)),
    st.sampled_from((1.0, 1e8, 100.0, 4.0)),
    st.integers(0, 2**32 - 1),
    st.sampled_from((200, 3000)),
)
@example(4, 1.0, 4, 3000)
def test_prices_on_a_grid_are_kept_as_integers_whatever_was_packed_before(scale, hint, seed, count):
    rng = np.random.default_rng(seed)
    prices = (400 + np.cumsum(rng.integers(-3, 4, count))) / scale
    prices[:: max(1, count // 24)] = np.rint(prices[:: max(1, count // 24)])  # those that a sample would look at
    columns = {"ts_event_ns": np.arange(count), "price": prices}
    packed._hints["price"] = hint
    entry = packed.directory(packed.pack(KIND_TICK, columns, packed.SMALL), "here").entries["price"]
    assert entry.method in (packed._SCALED, packed._CONSTANT)
