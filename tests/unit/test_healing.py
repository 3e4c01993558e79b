"""Healing: only gaps are asked for, nothing is stored twice, failures are bounded and said."""

import gzip
import random

import numpy as np
import pyarrow as pa
import pytest

import onetape
from onetape import ConfigInvalid, Tick
from onetape.healing import CsvSource, TapeSource, asks, heal
from onetape.healing.answers import PART_RECORDS

S = 10**9
MIN, HOUR, DAY = 60 * S, 3600 * S, 86400 * S
T = onetape.to_ns("2026-03-02T10:00:00")


class Vendor:
    """A source from memory that counts its questions."""

    name = "vendor"

    def __init__(self, ticks, fails=0, step=100):
        self.ticks, self.fails, self.step, self.asked = sorted(ticks, key=lambda t: t.ts_event_ns), fails, step, []

    def fetch(self, symbol, start_ns, end_ns):
        self.asked.append((symbol, start_ns, end_ns))
        found = [t for t in self.ticks if t.symbol == symbol and start_ns <= t.ts_event_ns < end_ns]
        for at in range(0, len(found), self.step):
            if self.fails:
                self.fails -= 1
                raise ConnectionError("the line broke")
            yield found[at : at + self.step]


class WholeVendor(Vendor):
    """One that has all there ever was."""

    def covers(self, symbol, start_ns, end_ns):
        return [(start_ns, end_ns)]


def _ticks(symbol="ES", start=0, end=3600, step=1, price=1.0):
    return [Tick(symbol, T + n * S, price=price + n) for n in range(start, end, step)]


@pytest.fixture
def tape(tmp_path):
    """A feed was up for ten minutes, down for twenty, and up again."""
    with onetape.open(tmp_path / "t.db", retention_days=None) as made:
        for start, end in ((0, 600), (1800, 3600)):
            made.append(_ticks("ES", start, end))
            made.cover("ES", T + start * S, T + end * S, source="feed")
        yield made


def _rows(tape, symbol="ES"):
    found = tape.read(symbol, columns=["ts_event_ns", "price"]).to_pydict()
    return sorted(zip(found["ts_event_ns"], found["price"], strict=True))


def _whole():
    return [(t.ts_event_ns, t.price) for t in _ticks()]


def test_exactly_the_gap_is_asked_for_and_stored_once(tape):
    vendor, latest = Vendor(_ticks()), tape.latest("ES")
    done = heal(tape, vendor)
    assert vendor.asked == [("ES", T + 600 * S, T + 1800 * S)]
    assert (done.stored, done.left_out, done.covered_ns, done.failures) == (1200, 0, 1200 * S, ())
    assert _rows(tape) == _whole()
    assert tape.latest("ES") == latest, "old ticks never become the latest"
    assert tape.gaps() == []
    again = heal(tape, vendor)
    assert (again.gaps, again.asked, again.stored) == (0, 0, 0) and len(vendor.asked) == 1
    assert sum(bar.trades for bar in tape.bar_list("ES")) == 3600


def test_two_equal_records_of_a_source_are_two_records(tape):
    double = [Tick("ES", T + 700 * S, price=5.0)] * 2
    assert heal(tape, Vendor(double)).stored == 2


def test_a_dry_run_asks_nothing_and_writes_nothing(tape):
    vendor, head = Vendor(_ticks()), tape.stats().head
    plan = asks(tape, vendor, piece_s=600)
    assert [(p.start_ns - T, p.end_ns - T) for p in plan.pieces] == [(600 * S, 1200 * S), (1200 * S, 1800 * S)]
    assert vendor.asked == [] and tape.stats().head == head


def test_pieces_end_where_the_clock_says_so_that_a_second_plan_is_the_rest_of_the_first(tape):
    vendor = Vendor(_ticks())
    before = asks(tape, vendor, piece_s=300).pieces
    tape.cover("ES", T + 600 * S, T + 1300 * S, source="other")
    after = asks(tape, vendor, piece_s=300).pieces
    assert {piece.end_ns for piece in after} <= {piece.end_ns for piece in before}


def test_records_outside_of_what_was_asked_and_at_times_the_tape_has_are_left_out(tape):
    class Generous(Vendor):
        def fetch(self, symbol, start_ns, end_ns):
            return [self.ticks]

    tape.append(Tick("ES", T + 1000 * S, price=-7.0))
    done = heal(tape, Generous(_ticks()))
    assert done.stored == 1199
    assert [row for row in _rows(tape) if row[0] == T + 1000 * S] == [(T + 1000 * S, -7.0)]
    assert len(_rows(tape)) == 3600


def test_what_the_source_does_not_have_stays_missing_and_is_not_asked_for_again_unless_told(tape):
    empty = Vendor([])
    done = heal(tape, empty)
    assert (done.stored, done.covered_ns, done.empty_ns) == (0, 0, 1200 * S)
    gap = tape.gaps("ES")[0]
    assert (gap.state, gap.asked) == ("missing", ("vendor",)), "not papered over"
    done = heal(tape, empty)
    assert (done.asked, done.asked_before) == (0, 1) and len(empty.asked) == 1
    other = Vendor(_ticks(end=700))
    other.name = "other"
    assert heal(tape, other).asked == 1, "another source is asked"


def test_again_asks_again_and_stores_what_is_there_by_now(tape):
    heal(tape, Vendor([]))
    assert heal(tape, Vendor(_ticks()), again=True).stored == 1200
    assert _rows(tape) == _whole()


def test_a_source_that_has_everything_makes_what_it_has_nothing_of_quiet(tape):
    done = heal(tape, WholeVendor([]))
    assert (done.covered_ns, done.empty_ns) == (1200 * S, 0)
    assert [(s.state, s.by) for s in tape.coverage("ES", T + 600 * S, T + 1800 * S)] == [("quiet", ("vendor",))]
    assert tape.gaps() == []


def test_a_source_that_fails_now_and_then_is_tried_again_with_growing_pauses(tape):
    slept = []
    done = heal(tape, Vendor(_ticks(), fails=3), sleep=slept.append)
    assert (done.stored, done.failures) == (1200, ())
    assert slept == [0.5, 1.0, 2.0]
    assert _rows(tape) == _whole()


def test_a_source_that_is_down_is_given_up_after_three_pieces_and_the_next_run_goes_on(tape):
    slept = []
    done = heal(tape, Vendor(_ticks(), fails=10**9), piece_s=60, tries=2, sleep=slept.append)
    assert len(done.failures) == 3 and done.not_asked == 17 and len(slept) == 3
    assert "the line broke" in done.failures[0].why
    assert heal(tape, Vendor(_ticks()), piece_s=60).stored == 1200
    assert _rows(tape) == _whole()


def test_one_piece_that_cannot_be_stored_does_not_stop_the_others(tape):
    ticks = [t if t.ts_event_ns != T + 900 * S else Tick("ES", t.ts_event_ns, price=float("inf")) for t in _ticks()]
    done = heal(tape, Vendor(ticks), piece_s=300)
    assert len(done.failures) == 1 and "price" in done.failures[0].why
    assert len(_rows(tape)) == 3600 - 300
    assert [(g.start_ns, g.end_ns) for g in tape.gaps()] == [(T + 900 * S, T + 1200 * S)]


def test_a_source_that_gives_another_symbol_is_found_out(tape):
    class Wrong(Vendor):
        def fetch(self, symbol, start_ns, end_ns):
            return [[Tick("NQ", start_ns, price=1.0)]]

    done = heal(tape, Wrong([]))
    assert "NQ" in done.failures[0].why and done.stored == 0


def test_the_rate_is_kept(tape):
    slept = []
    heal(tape, Vendor(_ticks()), piece_s=300, requests_per_s=2, sleep=slept.append)
    assert len(slept) == 3 and all(0.3 < s <= 0.5 for s in slept)


def test_tables_of_any_kind_are_taken(tape):
    times = [t.ts_event_ns for t in _ticks(start=600, end=1800)]
    table = {"symbol": "ES", "ts_event_ns": np.array(times), "price": np.arange(601.0, 1801.0)}

    class Tables(Vendor):
        def fetch(self, symbol, start_ns, end_ns):
            arrow = pa.table({"symbol": ["ES"] * 1200, "ts_event_ns": times, "price": table["price"]})
            yield arrow.slice(0, 400)
            yield {name: column if name == "symbol" else column[400:800] for name, column in table.items()}
            yield arrow.slice(800).to_pandas()

    assert heal(tape, Tables([])).stored == 1200
    assert _rows(tape) == _whole()


def test_a_piece_larger_than_a_transaction_is_stored_in_parts_cut_between_two_times(tmp_path):
    count = 3 * PART_RECORDS
    times = T + np.sort(np.random.default_rng(1).integers(0, 1800, count)) * S  # many share a time

    class Big(Vendor):
        def fetch(self, symbol, start_ns, end_ns):
            mine = times[(times >= start_ns) & (times < end_ns)]
            for at in range(0, len(mine), 50_000):
                yield {"symbol": symbol, "ts_event_ns": mine[at : at + 50_000], "price": 1.0}

    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        tape.cover("ES", T - S, T, source="feed")
        tape.cover("ES", T + HOUR, T + HOUR + S, source="feed")
        done = heal(tape, Big([]))
        assert done.stored == count and done.asked == 1
        assert tape.read("ES", columns=["ts_event_ns"]).column(0).to_pylist() == times.tolist()
        assert tape.gaps() == []


def test_a_source_that_goes_back_in_time_behind_what_is_stored_is_refused_and_the_time_stays_missing(tmp_path):
    class Back(Vendor):
        def fetch(self, symbol, start_ns, end_ns):
            count = PART_RECORDS + 10
            yield {"symbol": symbol, "ts_event_ns": start_ns + np.arange(count) * 1000, "price": 1.0}
            yield [Tick(symbol, start_ns + 5, price=1.0)]

    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        tape.cover("ES", T - S, T, source="feed")
        tape.cover("ES", T + HOUR, T + HOUR + S, source="feed")
        done = heal(tape, Back([]))
        assert "not in order of time" in done.failures[0].why
        assert {g.state for g in tape.gaps("ES")} == {"missing"}
        assert sum(g.end_ns - g.start_ns for g in tape.gaps("ES")) == HOUR


def test_the_last_minute_is_left_to_the_live_feed(tmp_path):
    with onetape.open(tmp_path / "t.db") as tape:
        now = onetape.now_ns()
        tape.cover("ES", now - HOUR, now - 600 * S, source="feed")
        plan = asks(tape, Vendor([]), end=now + DAY)
        assert 0 < now - 59 * S - max(p.end_ns for p in plan.pieces) < 60 * S


def test_another_tape_heals_and_vouches_only_for_what_it_covers(tape, tmp_path):
    random.seed(2)
    with onetape.open(tmp_path / "other.db", retention_days=None) as other:
        ticks = [
            Tick("ES", T + int(n * S + random.random() * S), price=float(n), size=2.0, bid=1.0, source="x")
            for n in range(300, 3000)
            if not 1000 <= n < 1300
        ]
        other.append(ticks)
        other.cover("ES", T + 300 * S, T + 1000 * S, source="x")
        other.cover("ES", T + 1300 * S, T + 3000 * S, source="x")
    with TapeSource(tmp_path / "other.db") as source:
        done = heal(tape, source)
    assert done.stored == 900
    assert [(g.start_ns - T, g.end_ns - T, g.asked) for g in tape.gaps()] == [(1000 * S, 1300 * S, ("tape:other.db",))]
    rows = tape.read("ES", T + 600 * S, T + 1800 * S).to_pylist()
    assert [(r["ts_event_ns"], r["size"], r["source"]) for r in rows] == [
        (t.ts_event_ns, 2.0, "x") for t in ticks if T + 600 * S <= t.ts_event_ns < T + 1800 * S
    ]
    with onetape.open(tmp_path / "other.db", retention_days=None) as other:
        other.append([Tick("ES", T + n * S, price=1.0) for n in range(1000, 1300)])
        other.cover("ES", T + 1000 * S, T + 1300 * S, source="x")
    with TapeSource(tmp_path / "other.db") as source:
        assert heal(tape, source).stored == 300, "what it has by now is asked for without being told"
    assert tape.gaps() == []


def test_a_tape_cannot_heal_itself(tape):
    with TapeSource(tape.path) as source, pytest.raises(ConfigInvalid):
        heal(tape, source)


def test_csv_files_of_a_folder_heal_and_vouch_from_their_first_to_their_last_row(tape, tmp_path):
    folder = tmp_path / "csv"
    folder.mkdir()
    for number, (start, end) in enumerate(((0, 900), (1500, 3600))):
        rows = "".join(f"{t.ts_event_ns},ES,{t.price}\n" for t in _ticks(start=start, end=end))
        with gzip.open(folder / f"{number}.csv.gz", "wt") as file:
            file.write("ts_event_ns,symbol,price\n" + rows)
    with CsvSource([folder]) as source:
        made = source._folder
        done = heal(tape, source)
    assert not made.exists()
    assert done.stored == 600
    assert [((g.start_ns - T) // S, (g.end_ns - T) // S, g.asked) for g in tape.gaps()] == [(899, 1500, ("csv:csv",))]
    with pytest.raises(ConfigInvalid):
        CsvSource([tmp_path / "none.csv"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigInvalid):
        CsvSource([tmp_path / "empty"])


def test_a_damaged_csv_is_refused_and_leaves_no_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "bad.csv").write_text("ts_event_ns,symbol,price\n1,ES,abc\n")
    with pytest.raises(onetape.ImportInvalid):
        CsvSource([tmp_path / "bad.csv"])
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_symbol_nobody_knows_can_be_asked_for_in_a_given_span(tape):
    vendor = Vendor(_ticks("NQ"))
    assert heal(tape, vendor, "NQ").gaps == 0
    assert heal(tape, vendor, ["NQ"], T, T + HOUR).stored == 3600
    assert tape.latest("NQ").ts_event_ns == T + 3599 * S


@pytest.mark.parametrize(
    "options", [{"tries": 0}, {"requests_per_s": 0}, {"requests_per_s": -1}, {"piece_s": 0}, {"piece_s": float("nan")}]
)
def test_settings_that_would_never_end_are_refused(tape, options):
    with pytest.raises(ConfigInvalid):
        heal(tape, Vendor([]), **options)
