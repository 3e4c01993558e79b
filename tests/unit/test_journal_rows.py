"""Rows of the journal decoded together: what they hold, in the order of their positions, and each one's damage told."""

from __future__ import annotations

import numpy as np
import pytest

from onetape.errors import ChunkCorrupt
from onetape.store import block, layout
from onetape.store.block import Columns

Row = tuple[int, int, bytes]


def test_rows_of_any_size_and_layout_decode_as_each_does_by_itself() -> None:
    dice = np.random.default_rng(5)
    rows: list[Row] = []
    seq = 0
    for _ in range(400):
        count = int(dice.choice([1, 1, 2, 20, 20, 21, 300]))
        seq += count + int(dice.integers(0, 3))
        rows.append(_row(dice, seq, count, by_record=bool(dice.integers(2)), extra=int(dice.integers(3))))
    assert len({(count, len(blob)) for _, count, blob in rows}) > 8

    found = block.decode_many(rows, "journal")

    expected = _one_by_one(rows)
    assert set(found) == set(expected)
    for kind, columns in expected.items():
        assert set(found[kind]) == set(columns)
        for name, column in columns.items():
            assert found[kind][name].dtype == column.dtype
            assert found[kind][name].tobytes() == column.tobytes(), name


def test_a_damaged_row_among_many_alike_is_named() -> None:
    dice = np.random.default_rng(6)
    rows = [_row(dice, 20 * (n + 1), 20, by_record=False, extra=0) for n in range(50)]
    for at in (0, 17, 49):
        bad = bytearray(rows[at][2])
        bad[200] ^= 4
        with pytest.raises(ChunkCorrupt, match=f"journal row {rows[at][0]} fails its checksum"):
            block.decode_many([*rows[:at], (rows[at][0], 20, bytes(bad)), *rows[at + 1 :]], "journal")


def test_a_row_that_says_another_count_than_its_block_is_refused_not_misread() -> None:
    dice = np.random.default_rng(7)
    rows = [_row(dice, 20 * (n + 1), 20, by_record=False, extra=0) for n in range(50)]
    rows = [(seq, 10, blob) for seq, _, blob in rows]

    with pytest.raises(ChunkCorrupt, match="journal row 20 has the wrong size"):
        block.decode_many(rows, "journal")


def _row(dice: np.random.Generator, seq_last: int, count: int, *, by_record: bool, extra: int) -> Row:
    """Return a row of ticks: columns or records, with one of three sets of columns, two of them of one width."""
    columns: Columns = {
        "ts_event_ns": dice.integers(0, 2**60, count),
        "price": dice.normal(size=count),
        "symbol": dice.integers(1, 9, count).astype("<u4"),
    }
    if extra:
        columns["size" if extra == 1 else "bid"] = dice.normal(size=count)
    if not by_record:
        return seq_last, count, block.encode(layout.KIND_TICK, columns, seq_last)
    packed = [
        block.one_row(layout.KIND_TICK, {name: c[at : at + 1] for name, c in columns.items()}) for at in range(count)
    ]
    blob = block.encode_rows(layout.KIND_TICK, packed[0][0], count, b"".join(row for _, row in packed), seq_last)
    return seq_last, count, blob


def _one_by_one(rows: list[Row]) -> dict[int, Columns]:
    parts: dict[int, list[Columns]] = {}
    for seq_last, count, blob in rows:
        kind, columns = block.decode(blob, "")
        parts.setdefault(kind, []).append({**columns, "seq": np.arange(seq_last - count + 1, seq_last + 1)})
    return {kind: block.concatenate(kind, found) for kind, found in parts.items()}
