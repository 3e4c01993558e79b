"""The feed: every record once on the tape, at once where it can be, and clear words where it cannot."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.waiting import waited_for

import onetape
from onetape.clock import now_ns
from onetape.errors import CursorConflict, SourceRefused, TapeBusy, TapeFull
from onetape.record import Tick
from onetape.sources.feed import Feed
from onetape.sources.source import Delivery, Source
from onetape.steady import SteadyTape

PATIENCE_S = 60.0
T0 = 1_700_000_000_000_000_000


class Scripted(Source):
    """Gives what it is told to: a list, or what a generator function yields."""

    kind = "scripted"

    def __init__(self, given: Callable[[str | None], Iterator[Delivery]], name: str = "s") -> None:
        super().__init__(name)
        self._given, self.resumed = given, "not asked"

    def resume(self, cursor: str | None) -> None:
        self.resumed = cursor
        super().resume(cursor)

    def _deliveries(self) -> Iterator[Delivery]:
        self._tell(state="live")
        yield from self._given(self.resumed)


def ticks(start: int, count: int, symbol: str = "ESZ6") -> list[Tick]:
    return [Tick(symbol, T0 + n, float(n), 1.0) for n in range(start, start + count)]


def numbers(tape: onetape.Tape, symbol: str = "ESZ6") -> list[float]:
    return tape.read(symbol, 0, 2**62, ["price"])["price"].to_pylist()


def counted(total: int, by: int = 1) -> Callable[[str | None], Iterator[Delivery]]:
    def given(cursor: str | None) -> Iterator[Delivery]:
        for at in range(int(cursor or 0), total, by):
            yield Delivery(ticks(at, by), cursor=str(at + by))

    return given


def listed(*deliveries: Delivery) -> Callable[[str | None], Iterator[Delivery]]:
    return lambda _cursor: iter(deliveries)


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[onetape.Tape]:
    with onetape.open(tmp_path / "t.db") as tape:
        yield tape


def test_a_feed_that_starts_again_goes_on_where_its_tape_is(tape: onetape.Tape) -> None:
    Feed(Scripted(counted(10)), tape).run()
    source = Scripted(counted(25, 5))
    feed = Feed(source, tape)
    feed.run()
    assert source.resumed == "10"
    assert numbers(tape) == [float(n) for n in range(25)]
    assert (feed.stats.stored, feed.stats.last_seq, feed.stats.cursor) == (15, tape.stats().head, "25")
    assert feed.stats.state == "ended" and feed.stats.waiting == 0


def test_a_source_far_ahead_is_stored_in_few_commits_and_in_order(tape: onetape.Tape) -> None:
    feed = Feed(Scripted(counted(20_000, 2)), tape)
    feed.run()
    assert numbers(tape) == [float(n) for n in range(20_000)]
    assert feed.stats.commits < 2_000
    assert tape.cursor("source:s") == "20000"


def test_one_delivery_is_on_the_tape_before_the_next_one_comes(tape: onetape.Tape) -> None:
    seen = []

    def given(_cursor: str | None) -> Iterator[Delivery]:
        for at in range(3):
            yield Delivery(ticks(at, 1), cursor=str(at))
            waited_for(lambda at=at: tape.cursor("source:s") == str(at))
            seen.append(at)

    Feed(Scripted(given), tape).run()
    assert seen == [0, 1, 2]


def test_invalid_records_are_kept_in_quarantine_and_counted(tape: onetape.Tape) -> None:
    bad = [Tick("ESZ6", T0, float("nan")), Tick("ESZ6", T0), Tick("", T0, 1.0)]
    feed = Feed(Scripted(listed(Delivery([*ticks(0, 2), *bad, *ticks(2, 1)], cursor="1"))), tape)
    feed.run()
    assert numbers(tape) == [0.0, 1.0, 2.0]
    assert (feed.stats.stored, feed.stats.refused, feed.stats.duplicates) == (3, 3, 0)
    assert len(tape.quarantined()) == 3 and tape.cursor("source:s") == "1"


def test_repeats_are_left_out_by_their_ids_and_the_cursor_moves_all_the_same(tape: onetape.Tape) -> None:
    first = Delivery(ticks(0, 3), ids=[b"a", b"b", b"c"], cursor="1")
    again = Delivery(ticks(1, 3), ids=[b"b", b"c", b"d"], cursor="2")
    Feed(Scripted(listed(first)), tape).run()
    feed = Feed(Scripted(listed(again)), tape)
    feed.run()
    assert numbers(tape) == [0.0, 1.0, 2.0, 3.0]
    assert (feed.stats.stored, feed.stats.duplicates, feed.stats.refused) == (1, 2, 0)
    assert tape.cursor("source:s") == "2"


def test_columns_are_stored_as_they_come_between_records(tape: onetape.Tape) -> None:
    columns = {"symbol": "ESZ6", "ts_event_ns": [T0 + 1, T0 + 2], "price": [1.0, 2.0]}
    given = listed(Delivery(ticks(0, 1), cursor="a"), Delivery(columns=columns, cursor="b"), Delivery(ticks(3, 1)))
    Feed(Scripted(given), tape).run()
    assert [tick.price for tick in tape.recent("ESZ6", 9)] == [0.0, 1.0, 2.0, 3.0]
    assert tape.cursor("source:s") == "b"


def test_what_the_tape_holds_already_is_left_out_once_and_counted(tape: onetape.Tape) -> None:
    tape.append(ticks(0, 2), cursor=("source:s", None, "2"))
    feed = Feed(Scripted(listed(Delivery(ticks(0, 2), cursor="2"), Delivery(ticks(2, 1), cursor="3"))), tape)
    feed.run()
    assert numbers(tape) == [0.0, 1.0, 2.0] and feed.stats.duplicates == 2


def test_a_cursor_that_stands_still_behind_new_records_ends_the_feed_instead_of_losing_them(tape: onetape.Tape) -> None:
    feed = Feed(Scripted(listed(Delivery(ticks(0, 1), cursor="1"), Delivery(ticks(1, 1), cursor="1"))), tape)
    with pytest.raises(SourceRefused, match="its cursor stays at '1'"):
        feed.run()
    assert "cursor stays" in str(feed.stats.last_error)


def test_a_feed_whose_cursor_somebody_else_moved_stops_with_a_clear_error_and_nothing_is_twice(
    tape: onetape.Tape,
) -> None:
    go = threading.Event()

    def slow(cursor: str | None) -> Iterator[Delivery]:
        yield Delivery(ticks(0, 1), cursor="1")
        go.wait(PATIENCE_S)
        yield Delivery(ticks(1, 1), cursor="2")

    first = Feed(Scripted(slow), tape)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            first.run()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    waited_for(lambda: tape.cursor("source:s") == "1")
    tape.append(ticks(1, 4), cursor=("source:s", "1", "5"))  # (from a machine whose locks do not reach here)
    go.set()
    thread.join(PATIENCE_S)
    assert isinstance(failed[0], CursorConflict) and "another feed of this name" in str(failed[0])
    assert numbers(tape) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_of_two_feeds_of_one_name_without_a_cursor_one_stops_and_takes_over_once_the_other_is_killed(
    tape: onetape.Tape,
) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER_FEED, str(tape.path)], cwd=Path(__file__).parents[3], stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == b"runs\n"
        with pytest.raises(CursorConflict, match="another feed of this name runs"):
            Feed(Scripted(listed(Delivery(ticks(0, 3)))), tape).run()
        Feed(Scripted(listed(Delivery(ticks(5, 1))), name="t"), tape).run()  # of another name
        assert numbers(tape) == [5.0]
    finally:
        other.kill()
        other.communicate()
    for _ in range(2):
        Feed(Scripted(listed(Delivery(ticks(0, 1)))), tape).run()
    assert sorted(numbers(tape)) == [0.0, 0.0, 5.0]


OTHER_FEED = """
import sys, time
import onetape
from onetape.sources.feed import Feed
from tests.unit.sources.test_feed import Scripted

def silent(cursor):
    print("runs", flush=True)
    time.sleep(3600)
    yield from ()

Feed(Scripted(silent), onetape.open(sys.argv[1])).run()
"""


class LosesAnswers:
    """A tape that stores, and whose answer is lost: the error says nothing of it."""

    def __init__(self, tape: onetape.Tape, errors: Sequence[Exception]) -> None:
        self._tape, self._errors = tape, list(errors)

    def __getattr__(self, name: str) -> object:
        return getattr(self._tape, name)

    def append(self, *given: object, **named: object) -> object:
        done = self._tape.append(*given, **named)  # type: ignore[arg-type]
        if self._errors:
            raise self._errors.pop(0)
        return done


def test_a_commit_whose_answer_was_lost_is_tried_again_and_stored_once(tape: onetape.Tape) -> None:
    feed = Feed(Scripted(counted(3)), LosesAnswers(tape, [TapeBusy("busy"), TapeFull("full")]))  # type: ignore[arg-type]
    feed.run()
    assert numbers(tape) == [0.0, 1.0, 2.0]
    assert feed.stats.last_error is None and tape.cursor("source:s") == "3"


def test_closing_stores_what_the_source_gave_and_ends_the_source(tape: onetape.Tape) -> None:
    def endless(_cursor: str | None) -> Iterator[Delivery]:
        at = 0
        while True:
            at += 1
            yield Delivery(ticks(at, 1), cursor=str(at))

    source = Scripted(endless)
    feed = Feed(source, tape)
    thread = threading.Thread(target=feed.run)
    thread.start()
    waited_for(lambda: feed.stats.stored > 100)
    feed.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive() and source.stopped
    last = int(tape.cursor("source:s") or 0)
    assert numbers(tape) == [float(n) for n in range(1, last + 1)]
    assert feed.stats.records == feed.stats.stored == last


def test_what_came_before_a_sources_error_is_stored_before_the_error_is_raised(tape: onetape.Tape) -> None:
    def breaks(_cursor: str | None) -> Iterator[Delivery]:
        yield Delivery(ticks(0, 2), cursor="2")
        raise SourceRefused("no right to it", hint="ask")

    feed = Feed(Scripted(breaks), tape)
    with pytest.raises(SourceRefused, match="no right"):
        feed.run()
    assert numbers(tape) == [0.0, 1.0]
    assert feed.stats.state == "failed"


def test_what_a_source_says_is_missing_is_missing_and_what_it_covers_is_covered(tape: onetape.Tape) -> None:
    say = Delivery(ticks(0, 1), covers=[("ESZ6", T0, T0 + 10**9)], missing=[("ESZ6", T0 + 2 * 10**9, T0 + 3 * 10**9)])
    feed = Feed(Scripted(listed(say)), tape)
    feed.run()
    (gap,) = [gap for gap in tape.gaps("ESZ6", T0, T0 + 4 * 10**9) if gap.start_ns == T0 + 2 * 10**9]
    assert gap.state == "missing" and gap.end_ns == T0 + 3 * 10**9
    spans = tape.coverage("ESZ6", T0, T0 + 10**9)
    assert {span.state for span in spans} <= {"covered", "quiet"} and feed.stats.gaps == 1


def test_the_time_a_live_source_is_connected_is_covered_and_an_outage_is_not(tape: onetape.Tape) -> None:
    spans: dict[str, int] = {}

    def given(_cursor: str | None) -> Iterator[Delivery]:
        yield Delivery([Tick("ESZ6", now_ns(), 1.0)])
        spans["live"] = now_ns()
        for _ in range(3):
            time.sleep(0.6)
            yield Delivery()
        spans["lost"] = now_ns()
        source._tell(state="waiting")
        time.sleep(1.2)
        source._tell(state="live")
        source._count(reconnects=1)
        spans["back"] = now_ns()
        for _ in range(4):
            yield Delivery([Tick("ESZ6", now_ns(), 1.0)])
            time.sleep(0.6)

    source = Scripted(given)
    Feed(source, tape).run()

    def covered(start: int, end: int) -> int:
        known = tape.coverage("ESZ6", start, end)
        return sum(span.end_ns - span.start_ns for span in known if span.by == ("s",))

    assert covered(spans["live"], spans["lost"]) > 10**9
    assert covered(spans["lost"], spans["back"]) == 0
    assert covered(spans["back"], now_ns()) > 10**9


def test_a_source_that_tells_of_the_past_covers_nothing_of_the_present(tape: onetape.Tape) -> None:
    def given(_cursor: str | None) -> Iterator[Delivery]:
        for at in range(3):
            yield Delivery(ticks(at, 1))
            time.sleep(0.6)

    source = Scripted(given)
    source.live = False  # type: ignore[attr-defined]
    since = now_ns()
    Feed(source, tape).run()
    assert not any(span.by for span in tape.coverage("ESZ6", since, now_ns()))


def test_what_was_given_before_the_tapes_cursor_was_known_is_asked_for_again(tmp_path: Path) -> None:
    path, aside = tmp_path / "t.db", tmp_path / "aside.db"
    with onetape.open(path) as tape:
        Feed(Scripted(counted(5)), tape).run()
    path.rename(aside)
    for left in tmp_path.glob("t.db*"):
        left.unlink()
    path.mkdir()  # in the tape's place: it is away when the system starts
    failed: list[BaseException] = []

    def run() -> None:
        try:
            feed.run()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    with SteadyTape(path, retry_s=0.05) as steady:
        feed = Feed(Scripted(counted(10)), steady)
        thread = threading.Thread(target=run)
        thread.start()
        waited_for(lambda: feed.stats.held == 10)
        path.rmdir()
        aside.rename(path)
        thread.join(PATIENCE_S)
        assert isinstance(failed[0], CursorConflict) and "start the feed again" in failed[0].hint
        again = Feed(Scripted(counted(10)), steady)
        again.run()
        assert steady.tape is not None
        assert numbers(steady.tape) == [float(n) for n in range(10)]


def test_a_feed_over_an_outage_is_on_the_tape_once_before_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    path.mkdir()
    with SteadyTape(path, retry_s=0.05) as steady:
        feed = Feed(Scripted(counted(10)), steady)
        thread = threading.Thread(target=feed.run)
        thread.start()
        waited_for(lambda: feed.stats.held == 10)
        path.rmdir()
        thread.join(PATIENCE_S)
        assert not thread.is_alive() and steady.tape is not None
        assert numbers(steady.tape) == [float(n) for n in range(10)]
