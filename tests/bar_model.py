"""A plain Python model of bars: one loop over a list of ticks a rule, without NumPy, chunks or a journal."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from onetape import Bar, Tick

DAY = 86_400_000_000_000
MINUTE = 60_000_000_000
UNITS = {"ms": 10**6, "s": 10**9, "min": MINUTE, "h": 60 * MINUTE, "d": DAY}


@dataclass
class Model:
    """What a tape was told: every tick with its position, and positions that were taken back, in order of arrival."""

    ticks: list[Tick] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)

    def bars(self, symbol: str, interval: str, hours: tuple[str, str, str] | None = None, price: str = "trade"):
        every = sorted(
            (
                (t.ts_event_ns, t.seq, p, t)
                for t in self.ticks
                if t.symbol == symbol and (p := _price(t, price)) is not None
            ),
            key=lambda row: row[:2],
        )
        newest = max((row[0] for row in every), default=-1)
        digits = interval.rstrip("abcdefghijklmnopqrstuvwxyz")
        unit = interval[len(digits) :]
        size = float(digits)
        out = []
        sessions = _sessions(every, hours)
        by_session = [[row for row in every if opens <= row[0] < closes] for _, opens, closes in sessions]
        for at, (day, opens, closes) in enumerate(sessions):
            mine = [row for row in by_session[at] if row[1] not in self.gone]
            if not mine:
                continue
            following = sessions[at + 1][2] if at + 1 < len(sessions) else closes
            scope = [row for row in every if opens <= row[0] < following]
            if unit in UNITS:
                step = closes - opens if unit == "d" else int(size) * UNITS[unit]
                begin = opens
                while begin < closes:
                    over = min(begin + step, closes)
                    part = [row for row in mine if begin <= row[0] < over]
                    if part:
                        bar = self._time_bar(part, step, begin, over, scope, every, price)
                        out.append((day, None, begin, None, newest >= over, bar))
                    begin = over
            else:
                parts, closed = _cut(mine, unit, size)
                for number, part in enumerate(parts):
                    after = parts[number + 1][0][:2] if number + 1 < len(parts) else (closes, 0)
                    before = [row for row in by_session[at] if row[:2] < after]
                    revision = sum((row[1] in self.gone) + _late(row, row[:2], scope) for row in before)
                    complete = number + 1 < len(parts) or closed or newest >= closes
                    bar = (*_fold(part, price != "trade"), revision)
                    out.append((day, number, part[0][0], part[-1][0], complete, bar))
        return [
            Bar(symbol, interval, ts, *content, complete, revision, None, None, day if hours else None, number, end)
            for day, number, ts, end, complete, (*content, revision) in out
        ]

    def _time_bar(self, part, step, begin, over, scope, every, price):
        if step % MINUTE or price != "trade":
            cell = [row for row in scope if begin <= row[0] < over]
            return (
                *_fold(part, price != "trade"),
                sum((row[1] in self.gone) + _late(row, (over, -1), scope) for row in cell),
            )
        minutes: dict[int, list] = {}
        for row in part:
            minutes.setdefault(row[0] // MINUTE, []).append(row)
        folded = [_fold(rows) for rows in minutes.values()]
        revision = 0
        for minute in minutes:
            for row in every:
                if row[0] // MINUTE == minute:
                    revision += row[1] in self.gone
                    revision += any(one[1] < row[1] and one[0] // MINUTE > minute for one in every)
        sums = [_sum([f[i] for f in folded]) for i in (4, 7, 8)]
        notional = _sum([_notional(rows) for rows in minutes.values()])
        vwap = notional / sums[0] if sums[0] else None
        ohlc = (folded[0][0], max(f[1] for f in folded), min(f[2] for f in folded), folded[-1][3])
        return (*ohlc, sums[0], vwap, sum(f[6] for f in folded), sums[1], sums[2], revision)


def _price(tick: Tick, price: str) -> float | None:
    if price == "trade":
        return tick.price
    if price == "mid":
        return None if tick.bid is None or tick.ask is None else tick.bid * 0.5 + tick.ask * 0.5
    return getattr(tick, price)


def _late(row, after, scope) -> bool:
    """Return whether a record arrived when one behind `after` had."""
    return any(one[:2] >= after and one[:2] != row[:2] and one[1] < row[1] for one in scope)


def _sessions(every, hours):
    if not every:
        return []
    if hours is None:
        first, last = every[0][0] // DAY, every[-1][0] // DAY
        return [(None, day * DAY, (day + 1) * DAY) for day in range(first, last + 1)]
    zone, opens, closes = hours
    first = datetime.fromtimestamp(every[0][0] // 10**9, UTC).date() - timedelta(days=2)
    out = []
    for offset in range((every[-1][0] - every[0][0]) // DAY + 5):
        day = first + timedelta(days=offset)
        if day.weekday() < 5:
            before = timedelta(days=1 if closes <= opens else 0)
            out.append((day, _utc(day - before, opens, zone), _utc(day, closes, zone)))
    return out


def _utc(day: date, clock: str, zone: str) -> int:
    hour, minute = map(int, clock.split(":"))
    local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=ZoneInfo(zone))
    return int(local.timestamp()) * 10**9


def _cut(rows, unit, size):
    parts, part, amount = [], [], 0.0
    for row in rows:
        trade = row[3]
        if unit == "range":
            prices = [one[2] for one in part] + [row[2]]
            margin = 1e-12 * max(abs(max(prices)), abs(min(prices)))
            if part and max(prices) - min(prices) > size + margin:
                parts.append(part)
                part = []
            part.append(row)
            continue
        part.append(row)
        sized = trade.size or 0.0
        amount += 1 if unit == "tick" else sized if unit == "volume" else sized * abs(row[2])
        if amount >= size * (1 - 1e-12):
            parts.append(part)
            part, amount = [], 0.0
    return (parts, True) if not part else ([*parts, part], False)


def _sum(values):
    told = [value for value in values if value is not None]
    total = 0.0
    for value in told:
        total += value
    return total if told else None


def _notional(rows):
    return _sum([row[3].size * (row[2] + 0.0) for row in rows if row[3].size is not None])


def _fold(rows, quoted=False):
    """Return open, high, low, close, volume, vwap, trades, bid and ask volume, at the places a Bar has them."""
    prices = [row[2] + 0.0 for row in rows]
    trades = [] if quoted else [row[3] for row in rows]
    volume = _sum([trade.size for trade in trades])
    notional = _sum([None if t.size is None else t.size * p for p, t in zip(prices, trades, strict=False)])
    sided = [trade for trade in trades if trade.side and trade.size is not None]
    sold = _sum([t.size if t.side < 0 else 0.0 for t in sided])
    bought = _sum([t.size if t.side > 0 else 0.0 for t in sided])
    vwap = notional / volume if volume else None
    return (prices[0], max(prices), min(prices), prices[-1], volume, vwap, len(rows), sold, bought)
