"""History against a plain list: any appends, seals and late records; several symbols, batches, as-of joins."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

import onetape
from onetape.store import join, windows
from onetape.store.order import canonical_order

SYMBOLS = ("ES", "NQ", "東京")
PRICE = st.one_of(st.none(), st.integers(-4, 4).map(lambda n: n / 4))


@st.composite
def ticks(draw: st.DrawFn) -> onetape.Tick:
    values = [draw(PRICE) for _ in range(3)]
    if values == [None, None, None]:
        values[draw(st.integers(0, 2))] = 1.0
    price, bid, ask = values
    return onetape.Tick(
        draw(st.sampled_from(SYMBOLS)),
        draw(st.integers(0, 12)),  # so few times that most are equal
        price=price,
        size=draw(st.one_of(st.none(), st.just(2.0))),
        bid=bid,
        ask=ask,
        source=draw(st.sampled_from((None, "x", "y"))),
        trades=draw(st.one_of(st.none(), st.integers(0, 9))),
    )


STEPS = st.lists(st.one_of(st.lists(ticks(), min_size=1, max_size=8), st.just("seal")), max_size=8)


@contextmanager
def _tape(steps: list[list[onetape.Tick] | str]) -> Iterator[tuple[onetape.Tape, list[dict[str, object]]]]:
    """A tape after some steps, and what a list of its records in canonical order would be."""
    told: list[onetape.Tick] = []
    with tempfile.TemporaryDirectory() as folder, onetape.open(Path(folder) / "t.db", retention_days=None) as tape:
        for step in steps:
            if isinstance(step, str):
                tape.seal()
            else:
                tape.append(step)
                told += step
        rows = [
            {name: getattr(tick, name) for name in tick.__struct_fields__} | {"seq": seq}
            for seq, tick in enumerate(told, 1)
        ]
        yield tape, sorted(rows, key=lambda row: (row["ts_event_ns"], row["seq"]))  # type: ignore[return-value]


def _inside(rows: list[dict[str, object]], symbols: object, start: int, end: int) -> list[dict[str, object]]:
    wanted = SYMBOLS if symbols is None else symbols
    return [row for row in rows if row["symbol"] in wanted and start <= row["ts_event_ns"] < end]  # type: ignore[operator]


@settings(max_examples=60)
@given(STEPS, st.one_of(st.none(), st.lists(st.sampled_from((*SYMBOLS, "none")), max_size=4)), st.data())
def test_several_symbols_read_at_once_are_the_merged_list(
    steps: list[list[onetape.Tick] | str], symbols: list[str] | None, data: st.DataObject
) -> None:
    start, end = data.draw(st.integers(0, 13)), data.draw(st.integers(0, 13))
    with _tape(steps) as (tape, rows):
        expected = _inside(rows, symbols, start, end)
        table = tape.read(symbols, start, end)
        assert table.to_pylist() == expected
        table.validate(full=True)
        few = tape.read(symbols, start, end, ["trades", "symbol", "source"])
        assert few.to_pylist() == [{name: row[name] for name in ("trades", "symbol", "source")} for row in expected]
        count = data.draw(st.integers(1, 4))
        newest = [row for name in SYMBOLS for row in _inside(rows, [name], 0, 99)[-count:]]
        newest.sort(key=lambda row: (row["ts_event_ns"], row["seq"]))  # type: ignore[arg-type, return-value]
        assert tape.newest(None, count).to_pylist() == newest


@settings(max_examples=60)
@given(STEPS, st.one_of(st.none(), st.sampled_from(SYMBOLS)), st.integers(1, 5), st.integers(1, 6))
def test_batches_one_behind_the_other_are_what_read_returns(
    steps: list[list[onetape.Tick] | str], symbols: str | None, batch_rows: int, piece: int
) -> None:
    with _tape(steps) as (tape, _):
        whole = tape.read(symbols)
        cut = windows.of_symbols
        windows.of_symbols = lambda *args: cut(*args[:-1], piece)  # so that a few ticks are several windows
        try:
            found = list(tape.batches(symbols, batch_rows=batch_rows))
        finally:
            windows.of_symbols = cut
        assert all(0 < batch.num_rows <= batch_rows for batch in found)
        assert pa.Table.from_batches(found, whole.schema).to_pylist() == whole.to_pylist()


@settings(max_examples=80)
@given(STEPS, st.integers(0, 13), st.integers(0, 13), st.one_of(st.none(), st.integers(0, 6)))
def test_each_trade_has_the_newest_quote_that_is_not_later(
    steps: list[list[onetape.Tick] | str], start: int, end: int, max_age_ns: int | None
) -> None:
    with _tape(steps) as (tape, rows):
        expected = []
        for at, row in enumerate(mine := _inside(rows, ["ES"], 0, 99)):
            if row["price"] is None or not start <= row["ts_event_ns"] < end:  # type: ignore[operator]
                continue
            quote: dict[str, object] = {}
            for before in mine[: at + 1]:
                if before["bid"] is not None or before["ask"] is not None:
                    quote = before
            age = row["ts_event_ns"] - quote["ts_event_ns"] if quote else None  # type: ignore[operator]
            if age is not None and max_age_ns is not None and age > max_age_ns:
                quote, age = {}, None
            expected.append((row["seq"], quote.get("bid"), quote.get("ask"), quote.get("ts_event_ns"), age))
        table = tape.trades_with_quotes("ES", start, end, max_age_ns=max_age_ns)
        names = ("seq", "bid", "ask", "quote_ts_ns", "quote_age_ns")
        assert [tuple(row[name] for name in names) for row in table.to_pylist()] == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=40))
def test_the_order_is_that_of_time_and_then_position(pairs: list[tuple[int, int]]) -> None:
    ts, seq = np.array([t for t, _ in pairs], "<i8"), np.array([s for _, s in pairs], "<i8")
    found = canonical_order(ts, seq).tolist()
    assert found == sorted(range(len(pairs)), key=lambda i: (*pairs[i], i))


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=40), st.data())
def test_the_newest_before_is_found_however_many_share_a_time(
    times: list[int], of_times: list[int], data: st.DataObject
) -> None:
    seqs = data.draw(st.permutations(range(len(times) + len(of_times))))
    rows = sorted(zip(times, seqs, strict=False))
    of = sorted(zip(of_times, seqs[len(times) :], strict=True))
    expected = [max((at for at, quote in enumerate(of) if quote <= row), default=-1) for row in rows]
    columns = [
        np.array(values, "<i8") for pairs in (rows, of) for values in ([t for t, _ in pairs], [s for _, s in pairs])
    ]
    assert join.newest_before(*columns).tolist() == expected
