"""Charts: the tape's own bars, spreads, regimes, alignment; and what is late or missing is said."""

import pytest

import onetape
from onetape import ConfigInvalid, Tick
from onetape.services import registry
from onetape.services.charts import ChartConfig, ChartService, SpreadConfig
from onetape.services.service import Service

S = 1_000_000_000
MIN = 60 * S
T0 = 1_790_000_000 * S // MIN * MIN


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        yield tape


def walk(symbol, prices, step=MIN, start=T0):
    return [Tick(symbol, start + n * step + S, float(price), size=1) for n, price in enumerate(prices)]


def service(tape, *charts, spreads=(), now=T0 + 60 * MIN):
    return ChartService(tape, charts, spreads, clock=lambda: now)


def test_the_newest_bars_come_ascending_and_are_the_tapes_own(tape):
    tape.append(walk("A", range(100, 160)))
    charts = service(tape, ChartConfig("a", "A", bars=10))
    assert isinstance(charts, Service)
    data = charts.chart_data("a")
    assert data.bars == tape.bar_list("A", "1min")[-10:]
    assert [bar.close for bar in charts.chart_data("a", 3).bars] == [157, 158, 159]
    assert data.late is False and data.trouble is None


def test_bars_are_found_behind_a_night_without_trades(tape):
    tape.append(walk("A", range(10, 15)) + walk("A", range(20, 22), start=T0 + 16 * 60 * MIN))
    data = service(tape, ChartConfig("a", "A", bars=6), now=T0 + 962 * MIN).chart_data("a")
    assert [bar.close for bar in data.bars] == [11, 12, 13, 14, 20, 21]


def test_late_and_missing_data_are_said(tape):
    tape.append(walk("A", range(100, 140)))
    tape.mark_missing("A", T0 + 5 * MIN, T0 + 8 * MIN, source="feed")
    charts = service(tape, ChartConfig("a", "A"), ChartConfig("none", "Z"), now=T0 + 50 * MIN)
    data = charts.chart_data("a")
    assert data.late is True and data.age_s == pytest.approx(659)
    assert (T0 + 5 * MIN, T0 + 8 * MIN) in data.missing
    doubt = {one["chart_id"]: one for one in charts.current_analysis()["doubt"]}
    assert doubt["a"]["late"] and doubt["a"]["missing"] and "no trade" in doubt["none"]["trouble"]


def test_a_trend_a_range_and_a_wild_market_are_told_apart(tape):
    tape.append(walk("UP", range(100, 160)) + walk("DOWN", range(200, 140, -1)))
    tape.append(walk("FLAT", [100 + n % 2 for n in range(60)]))
    tape.append(walk("WILD", [100 + n % 2 for n in range(46)] + [100 + n % 2 * 9 for n in range(14)]))
    names = ["UP", "DOWN", "FLAT", "WILD", "NEW"]
    tape.append(walk("NEW", [1, 2, 3]))
    said = service(tape, *(ChartConfig(name, name) for name in names)).current_analysis()["charts"]
    found = {name: (said[name]["regime"]["name"], said[name]["regime"]["direction"]) for name in names}
    assert found == {
        "UP": ("trend", 1),
        "DOWN": ("trend", -1),
        "FLAT": ("range", 0),
        "WILD": ("volatile", 0),
        "NEW": ("unknown", 0),
    }


def test_timeframes_that_agree_are_aligned(tape):
    tape.append(walk("A", range(100, 250)))
    charts = service(tape, ChartConfig("a1", "A"), ChartConfig("a5", "A", "5min"), ChartConfig("ah", "A", "1h"))
    found = charts.current_analysis()["alignment"]["A"]
    assert found == {"directions": {"1min": 1, "5min": 1, "1h": None}, "score": 1.0, "aligned": True}


def test_a_spread_compares_the_same_times_only_and_fills_nothing_in(tape):
    tape.append(walk("A", [100 + n % 3 for n in range(30)]))
    second = walk("B", [50.0] * 29 + [40.0])
    tape.append(second[:10] + second[12:])
    charts = service(tape, ChartConfig("a", "A"), ChartConfig("b", "B"), spreads=[SpreadConfig("a", "b", 2.0)])
    (found,) = charts.spreads()
    assert (found.common, found.unmatched, found.at_ns) == (28, 2, T0 + 29 * MIN)
    assert found.difference == 102 - 80 and found.ratio == 102 / 40
    assert found.difference_z > 4 and found.ratio_z > 4


def test_a_late_tick_changes_the_chart_at_the_next_look(tape):
    tape.append(walk("A", [100, 101]))
    charts = service(tape, ChartConfig("a", "A"))
    assert charts.chart_data("a").bars[0].high == 100
    tape.append(Tick("A", T0 + 2 * S, 105.0, size=1))
    assert charts.chart_data("a").bars[0].high == 105


@pytest.mark.parametrize(
    "chart", [{"interval": "soon"}, {"bars": 0}, {"bars": 10**6}, {"late_s": -1.0}, {"symbol": ""}]
)
def test_a_chart_that_makes_no_sense_is_refused(chart):
    with pytest.raises(ConfigInvalid):
        ChartService(None, [ChartConfig(**{"chart_id": "a", "symbol": "A", **chart})])


def test_the_settings_name_charts_and_spreads_and_an_unknown_chart_is_named():
    table = {"charts": [{"chart_id": "a", "symbol": "A"}], "spreads": [{"first": "a", "second": "b"}]}
    with pytest.raises(ConfigInvalid, match="no chart 'b'"):
        registry.make("charts", table, None)
    del table["spreads"]
    assert set(registry.make("charts", table, None).charts) == {"a"}
    with pytest.raises(ConfigInvalid, match="no chart 'q'"):
        ChartService(None).chart_data("q")


class Away:
    tape = None

    def latest(self, symbol=None):
        raise onetape.TapeUnusable("gone")


def test_with_the_tape_away_a_chart_says_so():
    charts = service(Away(), ChartConfig("a", "A"))
    assert "gone" in charts.chart_data("a").trouble
    assert charts.current_analysis()["doubt"][0]["late"] is True


class Steady:
    """What a steady tape is while its file is away."""

    tape = None

    def __init__(self, tape):
        self.latest, self.bar_list = tape.latest, tape.bar_list


def test_bars_of_a_tape_that_is_away_are_in_doubt(tape):
    tape.append(walk("A", range(100, 160)))
    whole, away = (service(one, ChartConfig("a", "A")) for one in (tape, Steady(tape)))
    assert whole.chart_data("a").trouble is None and whole.chart_data("a").missing == []
    assert whole.current_analysis()["doubt"] == []
    assert len(away.chart_data("a").bars) == 60 and "away" in away.chart_data("a").trouble


def test_behind_the_newest_tick_only_what_was_said_is_missing(tape):
    tape.append(walk("A", range(100, 140)))
    tape.mark_missing("A", T0 + 5 * MIN, T0 + 6 * MIN, source="feed")
    charts = service(tape, ChartConfig("a", "A"), now=T0 + 40 * MIN)
    before = charts.chart_data("a").missing
    assert before[0] == (T0 + 5 * MIN, T0 + 6 * MIN) and all(end < T0 + 39 * MIN for _, end in before)
    tape.mark_missing("A", T0 + 39 * MIN + 20 * S, T0 + 39 * MIN + 30 * S, source="feed")
    assert charts.chart_data("a").missing[len(before) :] == [(T0 + 39 * MIN + 20 * S, T0 + 39 * MIN + 30 * S)]


def test_a_tick_of_the_future_is_said_and_does_not_pass_for_a_live_one(tape):
    tape.append(walk("A", range(100, 140)))
    tape.append(Tick("A", T0 + 9 * 86_400 * S, 100.0))
    data = service(tape, ChartConfig("a", "A"), now=T0 + 40 * MIN).chart_data("a")
    assert data.late and "in the future" in data.trouble and len(data.bars) == 41


def test_prices_beyond_all_measure_leave_the_other_charts_what_they_are(tape):
    tape.append(walk("UP", range(100, 160)))
    tape.append(walk("BAD", [(-1) ** n * 1.7e308 for n in range(60)]))
    tape.append(walk("HUGE", [n * 1e306 for n in range(100, 160)]))
    charts = service(
        tape,
        *(ChartConfig(name, name) for name in ("UP", "BAD", "HUGE")),
        spreads=[SpreadConfig("UP", "BAD"), SpreadConfig("BAD", "HUGE", -1e300), SpreadConfig("HUGE", "BAD")],
    )
    found = charts.current_analysis()
    regimes = {name: chart["regime"] for name, chart in found["charts"].items()}
    assert [regimes[name]["name"] for name in ("UP", "BAD", "HUGE")] == ["trend", "range", "trend"]
    assert regimes["HUGE"]["range_ratio"] == pytest.approx(regimes["UP"]["range_ratio"])
    assert found["spreads"][1]["difference"] is None


def test_a_chart_may_be_added_while_another_thread_asks(tape, monkeypatch):
    tape.append(walk("A", range(100, 130)))
    charts = service(tape, ChartConfig("a", "A"), ChartConfig("b", "A"))
    whole = charts.chart_data

    def asked(chart_id, limit=None):
        charts.add(ChartConfig("later", "A"))
        return whole(chart_id, limit)

    monkeypatch.setattr(charts, "chart_data", asked)
    assert list(charts.current_analysis()["charts"]) == ["a", "b"]
