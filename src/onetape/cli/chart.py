"""Candles in a terminal: half a row of resolution, a price axis, a time axis; plain ASCII where there is no UTF-8."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from onetape.record import Bar

if TYPE_CHECKING:
    from rich.text import Text

_NONE, _WICK, _BODY = 0, 1, 2
# (upper half, lower half) of a cell → its glyph. Heavy lines are the body, light ones the wick.
_UNICODE = {
    (_NONE, _NONE): " ",
    (_WICK, _WICK): "│",
    (_WICK, _NONE): "╵",
    (_NONE, _WICK): "╷",
    (_BODY, _BODY): "┃",
    (_BODY, _NONE): "╹",
    (_NONE, _BODY): "╻",
    (_WICK, _BODY): "╽",
    (_BODY, _WICK): "╿",
}
_UP, _DOWN = "green", "red"
_WIDTH_MIN, _HEIGHT_MIN = 24, 3


def candle_chart(
    bars: Sequence[Bar],
    width: int = 100,
    height: int = 20,
    *,
    title: str = "",
    ascii_only: bool = False,
    colour: bool = True,
) -> Text:
    """Return the newest bars that fit as candles: `height` rows of prices, two of times and one of numbers.

    A candle is one column: heavy its body, light its wick; green rose, red fell, a doji takes the colour of its
    change from the bar before. Without colour a falling body is doubled (║), in ASCII `#` and a rising one `O`.
    Prices stand at the right, the last one marked; times are UTC. Bars are drawn side by side: minutes without
    a trade take no room.
    """
    from rich.text import Text

    if not bars:
        return Text("no bars")
    height = max(height, _HEIGHT_MIN)
    plot, labels = _fit(bars, max(width, _WIDTH_MIN), height)
    step = 2 if len(bars) * 2 <= plot else 1  # a column of air between candles where there is room
    shown = list(bars[-(plot // step) :])
    scale = _Scale(min(bar.low for bar in shown), max(bar.high for bar in shown), height)
    columns = [_column(bar, scale) for bar in shown]
    rises = _rises(shown)
    last_row = scale.half(shown[-1].close) // 2
    digits = labels.digits
    text = Text(no_wrap=True, end="")
    text.append(_head(title, shown, digits), style="bold" if colour else "")
    marks = dict(_price_marks(scale, height, labels.step))
    marks = {row: price for row, price in marks.items() if abs(row - last_row) > 0}
    for row in range(height):
        text.append("\n")
        for at, column in enumerate(columns):
            pair = (column[2 * row], column[2 * row + 1])
            glyph = _glyph(pair, rises[at], ascii_only, colour)
            text.append(glyph, style=(_UP if rises[at] else _DOWN) if colour and glyph != " " else "")
            if step == 2:
                text.append(" ")
        text.append(" " * (plot - len(columns) * step))
        if row == last_row:
            style = f"bold {_UP if rises[-1] else _DOWN}" if colour else ""
            text.append(("> " if ascii_only else "◂ ") + f"{shown[-1].close:.{digits}f}", style=style)
        elif row in marks:
            text.append(("+ " if ascii_only else "┤ ") + f"{marks[row]:.{digits}f}", style="dim" if colour else "")
        else:
            text.append("|" if ascii_only else "│", style="dim" if colour else "")
    ticks, times = _time_axis(shown, step, plot)
    if ascii_only:
        ticks = ticks.replace("┴", "+").replace("─", "-").replace("┘", "+")
    text.append(f"\n{ticks}\n{times}", style="dim" if colour else "")
    return text


class _Scale:
    """Prices to half rows, 0 at the top."""

    def __init__(self, low: float, high: float, height: int) -> None:
        if high <= low:  # one price only: it goes in the middle
            margin = abs(high) * 1e-4 or 1.0
            low, high = low - margin, high + margin
        self.low, self.high, self.halves = low, high, 2 * height

    def half(self, price: float) -> int:
        place = (self.high - price) / (self.high - self.low) * (self.halves - 1)
        return min(self.halves - 1, max(0, round(place)))

    def price(self, row: int) -> float:
        return self.high - (2 * row + 0.5) / (self.halves - 1) * (self.high - self.low)


class _Labels:
    """The round prices of the axis: their distance, and the decimals they need."""

    def __init__(self, bars: Sequence[Bar], height: int) -> None:
        low, high, last = min(b.low for b in bars), max(b.high for b in bars), bars[-1].close
        span = (high - low) or abs(high) * 1e-4 or 1.0
        raw = span / max(2, height / 4)
        power = 10.0 ** math.floor(math.log10(raw))
        self.step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= raw), 10 * power)
        of_step = max(0, -math.floor(math.log10(self.step))) + (2.5 * power == self.step and power < 10)
        self.digits = min(
            10, max(int(of_step), *(_decimals(p) for b in bars for p in (b.open, b.high, b.low, b.close)))
        )
        self.width = max(len(f"{price:.{self.digits}f}") for price in (low, high, last)) + 2


def _fit(bars: Sequence[Bar], width: int, height: int) -> tuple[int, _Labels]:
    """Return the columns for candles and the labels: how wide those are depends on which bars fit."""
    labels = _Labels(bars[-width:], height)
    return max(1, width - labels.width), labels


def _decimals(price: float) -> int:
    text = repr(price)
    return 0 if "e" in text or text.endswith(".0") else min(6, len(text.partition(".")[2]))


def _column(bar: Bar, scale: _Scale) -> list[int]:
    """Return what each half row of a candle shows."""
    halves = [_NONE] * scale.halves
    for at in range(scale.half(bar.high), scale.half(bar.low) + 1):
        halves[at] = _WICK
    for at in range(scale.half(max(bar.open, bar.close)), scale.half(min(bar.open, bar.close)) + 1):
        halves[at] = _BODY
    return halves


def _rises(bars: Sequence[Bar]) -> list[bool]:
    rises: list[bool] = []
    before = bars[0].open
    for bar in bars:
        rises.append(bar.close > bar.open or (bar.close == bar.open and bar.close >= before))
        before = bar.close
    return rises


def _glyph(pair: tuple[int, int], rise: bool, ascii_only: bool, colour: bool) -> str:
    if ascii_only:
        strongest = max(pair)
        return " " if strongest == _NONE else "|" if strongest == _WICK else "O" if rise else "#"
    if not colour and not rise and pair == (_BODY, _BODY):
        return "║"
    return _UNICODE[pair]


def _price_marks(scale: _Scale, height: int, step: float) -> list[tuple[int, float]]:
    """Return (row, round price) of the axis, one a row at the most."""
    marks: dict[int, float] = {}
    for count in range(math.ceil(scale.low / step), math.floor(scale.high / step) + 1):
        price = count * step
        marks.setdefault(min(height - 1, scale.half(price) // 2), price)
    return sorted(marks.items())


def _head(title: str, bars: Sequence[Bar], digits: int) -> str:
    first, last = bars[0], bars[-1]
    change = last.close - first.open
    share = f" ({change / first.open:+.2%})" if first.open else ""
    high, low = max(bar.high for bar in bars), min(bar.low for bar in bars)
    told = f"{last.close:.{digits}f}  {change:+.{digits}f}{share}  high {high:.{digits}f}  low {low:.{digits}f}"
    return f"{title}  {told}  {len(bars)} bars, UTC".strip()


def _time_axis(bars: Sequence[Bar], step: int, plot: int) -> tuple[str, str]:
    """Return the axis with its marks and the line of times; a date stands where the day changes."""
    axis, line = ["─"] * plot, [" "] * (plot + 1)
    free, day = 0, ""
    for at, bar in enumerate(bars):
        place = at * step
        moment = datetime.fromtimestamp(bar.ts_start_ns // 1_000_000_000, UTC)
        date = f"{moment:%Y-%m-%d}"
        intraday = bar.ts_start_ns % 86_400_000_000_000 != 0 or "d" not in bar.interval
        label = f"{moment:%m-%d %H:%M}" if intraday and date != day else f"{moment:%H:%M}" if intraday else date
        if place < free or place + len(label) > plot:
            continue
        line[place : place + len(label)] = label
        axis[place] = "┴"
        free, day = place + len(label) + max(3, 10 - len(label)), date
    return "".join(axis) + "┘", "".join(line).rstrip()
