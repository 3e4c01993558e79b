"""Nothing that an entry can hold breaks the decoder, and what it reads it reads exactly."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from onetape.migrate.fields.tick_fields import TickDecoder
from onetape.migrate.fields.tick_names import EVENT_TIMES, NUMBERS, PAYLOADS, SYMBOLS
from onetape.migrate.fields.tick_times import TimeReader
from onetape.record import TS_MAX_NS, Tick

known = [*EVENT_TIMES, *PAYLOADS, *SYMBOLS, "ohlc", "depth", "bids", "side", "trades", "flags"]
names = st.one_of(
    st.sampled_from([name.encode() for name in [*known, *(n for group in NUMBERS.values() for n in group)]]),
    st.binary(max_size=8),
)
texts = st.one_of(
    st.binary(max_size=12),
    st.floats().map(lambda number: repr(number).encode()),
    st.integers(-(2**70), 2**70).map(lambda number: b"%d" % number),
    st.sampled_from([b"", b"null", b"nan", b"{}", b"[]", b'{"price":1}', b"[[1,2]]", b"2024-11-13 10:10:00"]),
)
entries = st.lists(st.tuples(names, texts), max_size=6).map(lambda pairs: [part for pair in pairs for part in pair])


@given(page=st.lists(entries, max_size=12))
def test_any_page_is_decoded_or_told(page: list[list[bytes]]) -> None:
    decoded = TickDecoder("Asia/Kolkata").decode(page, ["X"] * len(page), [None] * len(page))
    assert set(decoded.rows) | decoded.rejected.keys() == set(range(len(page)))
    assert decoded.rows == sorted(set(decoded.rows))
    assert decoded.columns.keys() <= set(Tick.__struct_fields__)
    valid = decoded.valid()
    assert not set(valid.rows) & decoded.rejected.keys()
    assert {len(values) for values in valid.columns.values()} <= {len(valid.rows)}
    assert all(0 <= ns <= TS_MAX_NS for ns in valid.columns.get("ts_event_ns", []))


@given(pages=st.lists(st.lists(entries, max_size=5), max_size=3))
def test_what_an_entry_gives_does_not_depend_on_its_neighbours(pages: list[list[list[bytes]]]) -> None:
    page = [flat for part in pages for flat in part]
    shared = TickDecoder("UTC").decode(page, ["X"] * len(page), [1] * len(page))
    for i, flat in enumerate(page):
        alone = TickDecoder("UTC").decode([flat], ["X"], [1])
        assert (i in shared.rejected) == (0 in alone.rejected)
        if i in shared.rows:
            at = shared.rows.index(i)
            together: dict[str, Any] = {name: values[at] for name, values in shared.columns.items()}
            single = {name: values[0] for name, values in alone.columns.items()}
            told = {name: repr(value) for name, value in together.items() if value not in (None, 0)}
            assert told == {name: repr(value) for name, value in single.items() if value not in (None, 0)}


@given(price=st.floats(allow_nan=False, allow_infinity=False), ns=st.integers(10**17, TS_MAX_NS))
def test_prices_and_times_are_exact(price: float, ns: int) -> None:
    flat = [b"price", repr(price).encode(), b"ts", b"%d" % ns]
    decoded = TickDecoder("UTC").decode([flat], ["X"], [None])
    assert repr(decoded.columns["price"][0]) == repr(price)
    assert decoded.columns["ts_event_ns"] == [ns]


@given(ns=st.integers(10**17, TS_MAX_NS), digits=st.sampled_from([(10**9, 9), (10**6, 6), (10**3, 3)]))
def test_an_epoch_time_is_the_same_in_every_unit(ns: int, digits: tuple[int, int]) -> None:
    unit, places = digits
    assert TimeReader("UTC").read(f"{ns // unit}.{ns % unit:0{places}d}") == ns
