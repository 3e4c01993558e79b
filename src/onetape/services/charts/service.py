"""The service of charts: bars of many symbols and intervals, read from the tape when asked, and what they say."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid, OnetapeError
from onetape.record import Bar, interval_ns
from onetape.services.charts.measures import Regime, regime
from onetape.services.charts.spread import Spread, spread

if TYPE_CHECKING:
    from onetape.steady import SteadyTape
    from onetape.tape import Tape

BARS_MAX = 5000
#: Looking back for bars, the span grows so many times at most: nights and weekends have none.
_STEPS, _GROWTH = 8, 4


class ChartConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One chart. bars: how many of the newest are looked at. late_s: older than this, it says so; None: two bars."""

    chart_id: str
    symbol: str
    interval: str = "1min"
    bars: int = 500
    late_s: float | None = None


class SpreadConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """first - second * weight, of two charts by their ids, of one interval."""

    first: str
    second: str
    weight: float = 1.0


class ChartData(msgspec.Struct, frozen=True, kw_only=True):
    """A chart's newest bars, ascending. late: the newest tick is older than it may be, as far in the future, or none.

    missing: spans [start_ns, end_ns) within the bars of which the tape does not have the ticks. trouble: what could
    not be read, and why; the bars are then what could be.
    """

    chart_id: str
    symbol: str
    interval: str
    bars: list[Bar]
    at_ns: int | None
    age_s: float | None
    late: bool
    missing: list[tuple[int, int]]
    trouble: str | None = None


class ChartService:
    """Reads the tape when it is asked and keeps no bars. Any thread may call. Raises ConfigInvalid."""

    name = "charts"

    def __init__(
        self,
        tape: SteadyTape | Tape,
        charts: Sequence[ChartConfig] = (),
        spreads: Sequence[SpreadConfig] = (),
        *,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        self._tape, self._clock = tape, clock
        self._charts: dict[str, ChartConfig] = {}
        for chart in charts:
            self.add(chart)
        self._spreads = tuple(spreads)
        for one in self._spreads:
            intervals = {self._chart(chart_id).interval for chart_id in (one.first, one.second)}
            if len(intervals) > 1:
                raise ConfigInvalid(f"the spread of {one.first} and {one.second}: intervals {sorted(intervals)} differ")
            if not math.isfinite(one.weight):
                raise ConfigInvalid(f"the spread of {one.first} and {one.second}: weight = {one.weight}")

    async def start(self) -> None:
        """Nothing runs by itself."""

    async def stop(self) -> None:
        """Nothing runs by itself."""

    def status(self) -> dict[str, Any]:
        """Return how it is, as plain data."""
        return {"charts": list(self._charts), "spreads": len(self._spreads)}

    @property
    def charts(self) -> dict[str, ChartConfig]:
        """Return the charts by id."""
        return dict(self._charts)

    def add(self, chart: ChartConfig) -> None:
        """Add a chart. Raises ConfigInvalid for one that makes no sense, or whose id is another's."""
        if chart.chart_id in self._charts and self._charts[chart.chart_id] != chart:
            raise ConfigInvalid(f"two charts {chart.chart_id!r}", hint="give each an id of its own")
        if not chart.chart_id or not chart.symbol:
            raise ConfigInvalid(f"chart {chart.chart_id!r} of {chart.symbol!r}", hint="both have a name")
        try:
            interval_ns(chart.interval)
        except ValueError as error:
            raise ConfigInvalid(f"chart {chart.chart_id!r}: {error}") from error
        if not 1 <= chart.bars <= BARS_MAX:
            raise ConfigInvalid(f"chart {chart.chart_id!r}: bars = {chart.bars}", hint=f"1 to {BARS_MAX}")
        if chart.late_s is not None and not chart.late_s > 0:
            raise ConfigInvalid(f"chart {chart.chart_id!r}: late_s = {chart.late_s}", hint="above zero")
        self._charts[chart.chart_id] = chart

    def chart_data(self, chart_id: str, limit: int | None = None) -> ChartData:
        """Return a chart's newest `limit` bars, as many as it looks at where it is left out. Raises ConfigInvalid."""
        chart = self._chart(chart_id)
        count = chart.bars if limit is None else limit
        if not 1 <= count <= BARS_MAX:
            raise ConfigInvalid(f"limit = {limit}", hint=f"1 to {BARS_MAX}")
        bars: list[Bar] = []
        missing: list[tuple[int, int]] = []
        at: int | None = None
        trouble: str | None = None
        try:
            newest = self._tape.latest(chart.symbol)
            if newest is not None:
                at = newest.ts_event_ns
                bars = self._newest(chart, at, count)
                missing, trouble = self._missing(chart, bars, at)
        except OnetapeError as error:
            trouble = str(error)
        since_s = None if at is None else (self._clock() - at) / 1e9
        late_s = chart.late_s if chart.late_s is not None else 2 * interval_ns(chart.interval) / 1e9
        ahead = since_s is not None and -since_s > late_s
        if trouble is None and not bars:
            trouble = "the tape has no trade of it"
        elif trouble is None and ahead and since_s is not None:
            trouble = f"its newest tick is {-since_s:.0f} s in the future: how late it is is not known"
        return ChartData(
            chart_id=chart_id,
            symbol=chart.symbol,
            interval=chart.interval,
            bars=bars,
            at_ns=at,
            age_s=None if since_s is None else max(0.0, since_s),
            late=since_s is None or since_s > late_s or ahead,
            missing=missing,
            trouble=trouble,
        )

    def current_analysis(self) -> dict[str, Any]:
        """Return what all charts say now, as plain data: charts, spreads, alignment by symbol, and what is in doubt.

        alignment: for each symbol, direction by interval, their mean as `score` (-1 to 1), and `aligned` where all
        known ones are the same and not 0. doubt: each chart that is late, has missing data or could not be read.
        """
        found = {chart_id: self.chart_data(chart_id) for chart_id in list(self._charts)}
        regimes = {chart_id: regime(data.bars) for chart_id, data in found.items()}
        doubt = [
            {"chart_id": chart_id, "late": data.late, "missing": len(data.missing), "trouble": data.trouble}
            for chart_id, data in found.items()
            if data.late or data.missing or data.trouble
        ]
        return {
            "at_ms": self._clock() // 1_000_000,
            "charts": {chart_id: _said(data, regimes[chart_id]) for chart_id, data in found.items()},
            "spreads": [msgspec.to_builtins(self._spread(one, found)) for one in self._spreads],
            "alignment": self._alignment(regimes),
            "doubt": doubt,
        }

    def spreads(self) -> list[Spread]:
        """Return the spreads now, in the order of the settings."""
        needed = {chart_id for one in self._spreads for chart_id in (one.first, one.second)}
        found = {chart_id: self.chart_data(chart_id) for chart_id in needed}
        return [self._spread(one, found) for one in self._spreads]

    def _spread(self, one: SpreadConfig, found: dict[str, ChartData]) -> Spread:
        name = f"{one.first}-{one.second}"
        return spread(name, (one.first, one.second), found[one.first].bars, found[one.second].bars, one.weight)

    def _chart(self, chart_id: str) -> ChartConfig:
        if chart_id not in self._charts:
            known = ", ".join(self._charts) or "none"
            raise ConfigInvalid(f"no chart {chart_id!r}", hint=f"there are: {known}")
        return self._charts[chart_id]

    def _newest(self, chart: ChartConfig, at_ns: int, count: int) -> list[Bar]:
        length = interval_ns(chart.interval)
        end = at_ns // length * length + length
        span, found = count * length, []
        for _ in range(_STEPS):
            start = max(0, end - span)
            found = self._tape.bar_list(chart.symbol, chart.interval, start, end)
            if len(found) >= count or start == 0:
                break
            span *= _GROWTH
        return list(found[-count:])

    def _missing(self, chart: ChartConfig, bars: list[Bar], at_ns: int) -> tuple[list[tuple[int, int]], str | None]:
        # A SteadyTape has the real one in `tape`, None while it is away; a Tape is one itself.
        tape: Any = getattr(self._tape, "tape", self._tape)
        if tape is None:
            return [], "the tape is away: bars are of what is held in memory, and what is missing is not known"
        if not bars:
            return [], None
        length = interval_ns(chart.interval)
        gaps = tape.gaps(chart.symbol, bars[0].ts_start_ns, bars[-1].ts_start_ns + length)
        # Nobody spoke of the moments before a first tick either: what is inferred counts from a bar's length on.
        found = [gap for gap in gaps if gap.state == "missing" or gap.end_ns - gap.start_ns >= length]
        # Behind the newest tick there is only what somebody said to be missing; all else of it is what `late` says.
        return [(gap.start_ns, gap.end_ns) for gap in found if gap.by or gap.start_ns <= at_ns], None

    def _alignment(self, regimes: dict[str, Regime]) -> dict[str, dict[str, Any]]:
        by_symbol: dict[str, dict[str, Regime]] = defaultdict(dict)
        for chart_id, one in regimes.items():
            chart = self._charts[chart_id]
            by_symbol[chart.symbol][chart.interval] = one
        found = {}
        for symbol, ones in by_symbol.items():
            known = [one.direction for one in ones.values() if one.name != "unknown"]
            found[symbol] = {
                "directions": {name: None if one.name == "unknown" else one.direction for name, one in ones.items()},
                "score": sum(known) / len(known) if known else None,
                "aligned": len(known) > 1 and known[0] != 0 and len(set(known)) == 1,
            }
        return found


def _said(data: ChartData, what: Regime) -> dict[str, Any]:
    last = data.bars[-1] if data.bars else None
    return {
        "symbol": data.symbol,
        "interval": data.interval,
        "bars": len(data.bars),
        "close": None if last is None else last.close,
        "change": None if last is None else last.close - data.bars[0].open,
        "at_ms": None if data.at_ns is None else data.at_ns // 1_000_000,
        "age_s": data.age_s,
        "late": data.late,
        "missing_ms": [[start // 1_000_000, end // 1_000_000] for start, end in data.missing],
        "trouble": data.trouble,
        "regime": msgspec.to_builtins(what),
    }
