"""Whatever a tape holds, its export imported on an empty tape gives the same records: all fields, bit for bit."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import onetape
from onetape import Bar, Tick
from onetape.exporting import export
from onetape.importing import CsvOptions, import_csv
from onetape.importing.formats import import_file
from onetape.record import TS_MAX_NS

TEXT = st.one_of(
    st.sampled_from(
        ["ES", "BTC/USD", 'a "b", c', "東京", " x ", "NA", "1", "'", "a=b%2F", ".", "..", "-0", "#", "x" * 255]
    ),
    st.text(
        st.characters(exclude_categories=("Cs", "Cc", "Cf", "Zl", "Zp", "Co", "Cn", "Zs")), min_size=1, max_size=20
    ),
).filter(lambda text: text.isprintable() and 0 < len(text.encode()) < 256)
NUMBER = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1, 1e22, 1e23]),
)
SIZE = NUMBER.map(abs)
TIME = st.one_of(
    st.integers(0, TS_MAX_NS),
    st.sampled_from([0, 1, 999, 10**9, TS_MAX_NS, 1_767_600_000_000_000_001]),
    st.integers(1_767_600_000_000_000_000, 1_767_600_000_000_000_009),
)
MAYBE = st.none()
TICK = st.builds(
    Tick,
    TEXT,
    TIME,
    price=NUMBER,
    size=MAYBE | SIZE,
    bid=MAYBE | NUMBER,
    ask=MAYBE | NUMBER,
    bid_size=MAYBE | SIZE,
    ask_size=MAYBE | SIZE,
    side=st.sampled_from([-1, 0, 1]),
    flags=st.sampled_from([0, 1, 2**32 - 1]),
    open=MAYBE | NUMBER,
    high=MAYBE | NUMBER,
    low=MAYBE | NUMBER,
    volume=MAYBE | SIZE,
    vwap=MAYBE | NUMBER,
    trades=MAYBE | st.sampled_from([0, 1, 2**53 + 1, 2**62]),
    open_interest=MAYBE | SIZE,
    source=MAYBE | TEXT,
    ts_recv_ns=MAYBE | TIME,
)
MINUTE = 60 * 10**9


def _bar(symbol: str, start: int, low: float, high: float, **rest: Any) -> Bar:
    low, high = min(low, high), max(low, high)
    return Bar(symbol, "1min", start * MINUTE, low, high, low, high, **rest)


BAR = st.builds(
    _bar,
    TEXT,
    st.one_of(st.integers(0, TS_MAX_NS // MINUTE - 1), st.integers(29_460_000, 29_460_005)),
    NUMBER,
    NUMBER,
    volume=MAYBE | SIZE,
    vwap=MAYBE | NUMBER,
    trades=MAYBE | st.sampled_from([0, 7, 2**53 + 1]),
    bid_volume=MAYBE | SIZE,
    ask_volume=MAYBE | SIZE,
    complete=st.booleans(),
    revision=st.sampled_from([0, 1, 7]),
    source=TEXT,
)
TARGETS = ["o.csv", "o.csv.gz", "o.parquet", "o.arrow", "folder"]


def _bits(row: dict[str, Any]) -> dict[str, Any]:
    return {n: struct.pack("<d", v) if isinstance(v, float) else v for n, v in row.items() if n != "seq"}


def _import(tape: onetape.Tape, path: Path, what: str) -> None:
    if ".csv" in path.name:
        import_csv(tape, path, CsvOptions(kind=what))  # type: ignore[arg-type]
    else:
        import_file(tape, path)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=20)
@example([Tick(" ES ", 5, price=-0.0, source=" a "), Tick("ES", 5, price=5e-324)])
@given(st.lists(TICK, min_size=1, max_size=12))
def test_ticks_come_back(name: str, ticks: list[Tick]) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place)
        with onetape.open(path / "a.db", retention_days=None) as old, onetape.open(path / "b.db") as new:
            old.append(ticks)
            export(old, path / name, format="parquet" if name == "folder" else None)
            _import(new, path / name, "ticks")
            assert [one.symbol for one in new.symbols()] == [one.symbol for one in old.symbols()]
            for symbol in {tick.symbol for tick in ticks}:
                assert list(map(_bits, new.read(symbol).to_pylist())) == list(map(_bits, old.read(symbol).to_pylist()))
            head = new.stats().head
            _import(new, path / name, "ticks")
            assert new.stats().head == head


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=20)
@given(st.lists(BAR, min_size=1, max_size=8))
def test_bars_come_back(name: str, bars: list[Bar]) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place)
        with onetape.open(path / "a.db", retention_days=None) as old, onetape.open(path / "b.db") as new:
            old.append(bars)
            export(old, path / name, format="parquet" if name == "folder" else None, what="bars")
            _import(new, path / name, "bars")
            for symbol, source in {(bar.symbol, bar.source) for bar in bars}:
                kept = [old.bar_list(symbol, source=source), new.bar_list(symbol, source=source)]
                assert kept[0]
                rows = [[_bits(msgspec.structs.asdict(bar)) for bar in one] for one in kept]
                assert rows[0] == rows[1]
