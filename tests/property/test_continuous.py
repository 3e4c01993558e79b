"""A follower that takes records as they come, and a reader who comes when all is over, see one continuous future."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

import onetape
from onetape import Roll, Tick

DAY = 86_400_000_000_000
FIRST = 20_000  # a day in 2024
CHAIN = [("A", "2024-10-09"), ("B", "2024-10-12"), ("D", "2025-01-20")]
TICKS = st.lists(
    st.tuples(
        st.integers(0, 14),  # day
        st.integers(0, 23),  # hour
        st.sampled_from("ABD"),
        st.sampled_from([None, 1.0, 5.0, 20.0]),  # size
        st.sampled_from([None, 10.0, 30.0]),  # open interest
    ),
    max_size=60,
)


@given(TICKS, st.sampled_from(["volume", "open_interest", "2d", "1bd"]), st.sampled_from(["00:00", "17:00"]))
@settings(max_examples=40)
def test_live_and_history_are_the_same_ticks_and_the_same_rolls(
    rows: list[tuple[int, int, str, float | None, float | None]], rule: str, day_start: str
) -> None:
    rows.sort(key=lambda row: row[:2])
    with tempfile.TemporaryDirectory() as folder, onetape.open(Path(folder) / "t.db", retention_days=None) as tape:
        view = tape.define_continuous("C", CHAIN, rule, timezone="America/Chicago", day_start=day_start)
        live: list[object] = []
        with view.follow() as follower:
            for n, (day, hour, symbol, size, interest) in enumerate(rows):
                at = (FIRST + day) * DAY + hour * DAY // 24 + n
                tape.append(Tick(symbol, at, price=100.0 + n, size=size, open_interest=interest))
                live += follower.take(0)
                if n % 17 == 16:
                    tape.seal()
            live += follower.take(0)
        ticks = [record for record in live if isinstance(record, Tick)]
        assert ticks == [Tick(**row) for row in view.read().to_pylist()]
        last_ns = max((tick.ts_event_ns for name in "ABD" if (tick := tape.latest(name))), default=0)
        told = [record for record in live if isinstance(record, Roll)]
        assert told == view.rolls(end=last_ns + 1)
        with view.follow(from_seq=0) as again:
            replayed: list[object] = []
            while found := again.take(0):  # a sealed span at a time
                replayed += found
            assert replayed == live
        fronts = [tick.symbol for tick in ticks]
        assert fronts == sorted(fronts)  # never back
        for roll in told:
            at = live.index(roll)
            before = [record.ts_event_ns for record in live[:at]]
            after = [record.ts_event_ns for record in live[at + 1 :]]
            assert all(ts <= roll.ts_ns for ts in before) and all(ts >= roll.ts_ns for ts in after)
