"""Draw the pictures of "Reading history" from what onetape answers: python docs/pictures/draw.py [FOLDER].

The page's own blocks make the tape; it is opened again, and each picture is of what the page has just read.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from svg import BLUE, FAINT, GREEN, GREY, GRID, INK, ORANGE, RED, VIOLET, Picture, Scale

import onetape
from onetape.store import spans

HERE = Path(__file__).resolve().parent
SECOND, MINUTE = 1_000_000_000, 60_000_000_000


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else HERE).resolve()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        with contextlib.redirect_stdout(io.StringIO()):
            for block in re.findall(
                r"^```python\n(.*?)^```", (HERE.parent / "reading_history.md").read_text(), re.M | re.S
            ):
                exec(compile(block, "reading_history.md", "exec"), PAGE)
        with onetape.open("history.db", mode="r") as tape:
            draw_bars(tape).save(folder / "bars.svg")
            draw_as_of(tape).save(folder / "as_of.svg")
            draw_quotes(tape).save(folder / "quotes.svg")
            draw_coverage(tape).save(folder / "coverage.svg")
            draw_roll(tape).save(folder / "roll.svg")
        draw_spans(Path(place) / "spans.db").save(folder / "spans.svg")
        os.chdir(HERE)


PAGE: dict[str, object] = {"__name__": "reading_history"}


def clock(ts_ns: float) -> str:
    return f"{datetime.fromtimestamp(ts_ns / SECOND, UTC):%H:%M}"


def prices(picture: Picture, scale: Scale, ticks: list[float], left: float, right: float) -> None:
    """Lines at round prices, with their labels."""
    for price in ticks:
        picture.line(left, scale(price), right, scale(price), GRID)
        picture.text(left - 8, scale(price) + 4, f"{price:g}", "end", FAINT)


def draw_bars(tape: onetape.Tape) -> Picture:
    picture = Picture(860, 400, "Bars of fifteen minutes; one is revised")
    span = ("ESH6", "15min", "2026-03-06T14:30", "2026-03-06T19:00")
    now = tape.bar_list(*span)
    before = {bar.ts_start_ns: bar for bar in tape.bar_list(*span, as_of="friday")}
    left, right = 60, 840
    y = Scale(5960, 6005, 280, 50)
    most = max(bar.volume or 0 for bar in now)
    volume = Scale(0, most, 365, 310)
    prices(picture, y, [5960, 5970, 5980, 5990, 6000], left, right)
    slot = (right - left) / len(now)

    def candle(bar: onetape.Bar, middle: float, colour: str, fill: str, dash: str = "", width: float = 12) -> None:
        picture.line(middle, y(bar.high), middle, y(bar.low), colour, 1.2, dash)
        top, bottom = max(bar.open, bar.close), min(bar.open, bar.close)
        picture.box(middle - width / 2, y(top), width, max(1.0, y(bottom) - y(top)), fill, colour, dash)

    for number, bar in enumerate(now):
        middle = left + slot * (number + 0.5)
        was = before[bar.ts_start_ns]
        colour = GREEN if bar.close >= bar.open else RED
        revised = (was.high, was.low, was.volume) != (bar.high, bar.low, bar.volume)
        if revised:
            picture.box(middle - slot / 2, 50, slot, 315, "#fff7ed")
            candle(was, middle - 9, FAINT, "#ffffff", "3 2", 10)
            candle(bar, middle + 6, colour, colour)
            picture.text(middle + slot / 2 + 8, 66, "revised:", colour=ORANGE)
            told = (("high", was.high, bar.high), ("low", was.low, bar.low), ("volume", was.volume, bar.volume))
            for row, (name, old, new) in enumerate(told):
                picture.text(middle + slot / 2 + 8, 82 + 15 * row, f"{name} {old:g}, now {new:g}", colour=ORANGE)
        else:
            candle(bar, middle, colour, colour)
        picture.box(middle - 7, volume(bar.volume or 0), 14, 365 - volume(bar.volume or 0), GREY)
        if number % 2 == 0:
            picture.text(middle, 384, clock(bar.ts_start_ns), "middle", FAINT)
    picture.text(left - 8, 340, "volume", "end", FAINT)
    picture.text(left, 28, "ESH6, 15min, Friday 2026-03-06 (UTC): as it is now; dashed: as of the snapshot", size=14)
    return picture


def draw_as_of(tape: onetape.Tape) -> Picture:
    picture = Picture(860, 400, "Event time over the order of appending")
    start_ns, end_ns = onetape.to_ns("2026-03-06T15:00"), onetape.to_ns("2026-03-06T15:06")
    with tape.follow("ESH6", from_seq=0, idle_s=0.05) as follower:
        shown = [
            record
            for record in follower
            if start_ns <= getattr(record, "ts_event_ns", 0) < end_ns and getattr(record, "price", 1) is not None
        ]
    cut = tape.as_of("friday")
    place = {record.seq: number for number, record in enumerate(shown)}
    left, right, top, bottom = 70, 650, 50, 350
    x = Scale(0, len(shown), left, right)
    y = Scale(start_ns, end_ns, bottom, top)
    for minute in range(0, 7, 2):
        at = y(start_ns + minute * MINUTE)
        picture.line(left, at, right, at, GRID)
        picture.text(left - 8, at + 4, clock(start_ns + minute * MINUTE), "end", FAINT)
    first_after = next(number for number, record in enumerate(shown) if record.seq > cut)
    edge = x(first_after - 0.5)
    picture.box(left, top, edge - left, bottom - top, "#f1f5f9")
    picture.line(edge, top - 8, edge, bottom, BLUE, 1.5, "5 3")
    picture.text(edge - 8, top - 12, 'as_of="friday" reads this side', "end", BLUE)
    revised = {record.seq - 1 for record in shown if isinstance(record, onetape.Tick) and record.seq > cut}
    words = []
    for record in shown:
        at_x, at_y = x(place[record.seq]), y(record.ts_event_ns)
        if isinstance(record, onetape.Cancel):
            back_x = x(place[record.target_seq])
            picture.line(at_x, at_y, back_x, at_y, RED, 1, "2 3")
            picture.cross(back_x, at_y, RED)
            picture.dot(at_x, at_y, RED, 4, filled=False)
            words.append((at_y, RED, "takes one back" if record.seq not in revised else "takes one back …"))
        elif record.seq > cut:
            picture.dot(at_x, at_y, ORANGE, 4)
            replaces = any(isinstance(other, onetape.Cancel) and other.seq == record.seq - 1 for other in shown)
            words.append((at_y, ORANGE, "… and this stands instead" if replaces else "comes late"))
        else:
            picture.dot(at_x, at_y, INK if record.price and record.price > 5970 else RED, 2)
    used: list[float] = []
    for at_y, colour, told in dict.fromkeys(words):
        while any(abs(at_y - other) < 15 for other in used):
            at_y += 15
        used.append(at_y)
        picture.text(right + 14, at_y + 4, told, colour=colour)
    picture.text(left, bottom + 24, "position: the order in which the tape learned of it", colour=FAINT)
    picture.text(right, bottom + 24, "later", "end", FAINT)
    picture.text(14, 28, "event time, UTC", colour=FAINT)
    return picture


def draw_quotes(tape: onetape.Tape) -> Picture:
    picture = Picture(860, 340, "Trades beside the quotes that stood")
    span = ("ESH6", "2026-03-06T14:30", "2026-03-06T14:32")
    start_ns, end_ns = onetape.to_ns(span[1]), onetape.to_ns(span[2])
    quotes = [
        row for row in tape.read(*span, columns=["ts_event_ns", "bid", "ask"]).to_pylist() if row["bid"] is not None
    ]
    trades = tape.trades_with_quotes(*span).to_pylist()
    asks, bids = [row["ask"] for row in quotes], [row["bid"] for row in quotes]
    left, right, top, bottom = 60, 820, 50, 290
    x = Scale(start_ns, end_ns, left, right)
    y = Scale(min(bids) - 0.5, max(asks) + 0.5, bottom, top)
    low = int(min(bids))
    prices(picture, y, list(range(low, int(max(asks)) + 1)), left, right)
    for side, colour in (("ask", RED), ("bid", GREEN)):
        steps: list[tuple[float, float]] = []
        for row, after in zip(quotes, [*quotes[1:], None], strict=True):
            until = end_ns if after is None else after["ts_event_ns"]
            steps += [(x(row["ts_event_ns"]), y(row[side])), (x(until), y(row[side]))]
        picture.path(steps, colour)
    for row in trades:
        at = x(row["ts_event_ns"])
        picture.dot(at, y(row["price"]), INK, 2 + row["size"] / 2)
    for seconds in range(0, 121, 30):
        at = start_ns + seconds * SECOND
        picture.text(x(at), 310, f"{datetime.fromtimestamp(at / SECOND, UTC):%H:%M:%S}", "middle", FAINT)
    picture.legend(left, 28, [(RED, "ask"), (GREEN, "bid"), (INK, "trade, larger with its size")])
    return picture


STATES = {
    "covered": GREEN,
    "quiet": "#9bd3b8",
    "missing": RED,
    "unknown": ORANGE,
    "closed": GRID,
    "pruned": VIOLET,
}


def draw_coverage(tape: onetape.Tape) -> Picture:
    picture = Picture(860, 240, "Coverage, a line a day")
    days = ["2026-03-06", "2026-03-07", "2026-03-08", "2026-03-09"]
    left, right, top, height = 130, 840, 60, 30
    found = tape.coverage("ESH6", "2026-03-06", "2026-03-10", session="America/New_York 09:30-16:00")
    day_ns = 24 * 60 * MINUTE
    for row, day in enumerate(days):
        start_ns = onetape.to_ns(day)
        x = Scale(start_ns, start_ns + day_ns, left, right)
        y = top + row * (height + 6)
        picture.text(left - 10, y + 20, f"{datetime.fromtimestamp(start_ns / SECOND, UTC):%a %Y-%m-%d}", "end")
        for span in found:
            first, last = max(span.start_ns, start_ns), min(span.end_ns, start_ns + day_ns)
            if first < last:
                picture.box(x(first), y, x(last) - x(first), height, STATES[span.state])
    for hour in range(0, 25, 3):
        at = left + (right - left) * hour / 24
        picture.line(at, top - 6, at, top + 4 * (height + 6), "#ffffff")
        picture.text(at, top + 4 * (height + 6) + 14, f"{hour:02}:00", "middle", FAINT)
    seen = dict.fromkeys(span.state for span in found)
    picture.legend(left, 34, [(colour, state) for state, colour in STATES.items() if state in seen])
    picture.text(left - 10, 34, "ESH6", "end", size=14)
    return picture


def draw_roll(tape: onetape.Tape) -> Picture:
    picture = Picture(860, 360, "A continuous future, raw and back-adjusted")
    view = tape.continuous("ES.c")
    span = ("2025-12-01", "2025-12-17")
    raw = view.read(*span, columns=["symbol", "price"]).to_pylist()
    adjusted = view.read(*span, columns=["symbol", "price"], adjust="back").to_pylist()
    days = view.read(*span, columns=["ts_event_ns"])["ts_event_ns"].to_pylist()
    (roll,) = view.rolls(*span)
    left, right, top, bottom = 60, 840, 60, 310
    x = Scale(0, len(raw) - 1, left, right)
    every = [row["price"] for row in raw + adjusted]
    low, high = min(every) // 20 * 20, max(every) // 20 * 20 + 20
    y = Scale(low, high, bottom, top)
    prices(picture, y, list(range(int(low), int(high) + 1, 20)), left, right)
    at = next(number for number, ts_ns in enumerate(days) if ts_ns >= roll.ts_ns) - 0.5
    for symbol, colour in ((roll.old, ORANGE), (roll.new, BLUE)):
        points = [(x(number), y(row["price"])) for number, row in enumerate(raw) if row["symbol"] == symbol]
        picture.path(points, colour, 2)
    picture.path(
        [(x(n), y(row["price"])) for n, row in enumerate(adjusted) if row["symbol"] == roll.old], BLUE, 1.5, "4 3"
    )
    picture.line(x(at), top - 5, x(at), bottom, INK, 1, "2 3")
    picture.text(x(at), top - 12, f"roll to {roll.new}, gap {roll.gap:g}", "middle")
    picture.text(x(at), bottom - 8, f"  {roll.why}", colour=FAINT)
    for number, ts_ns in enumerate(days):
        if number == 0 or ts_ns // (24 * 60 * MINUTE) != days[number - 1] // (24 * 60 * MINUTE):
            picture.text(x(number), bottom + 18, f"{datetime.fromtimestamp(ts_ns / SECOND, UTC):%d %b}", colour=FAINT)
    legend = [(ORANGE, f"{roll.old}, as traded"), (BLUE, f"{roll.new}, as traded; dashed: back-adjusted")]
    picture.legend(left, 28, legend)
    return picture


def draw_spans(path: Path) -> Picture:
    """What lies in the file while single ticks of three symbols arrive, and after compact()."""
    picture = Picture(860, 330, "Spans of positions: sealed, merged, compacted")
    stages: list[tuple[str, int, list[tuple[int, int, int, int, int]]]] = []
    names, start_ns = ("ESH6", "NQH6", "CLJ6"), onetape.to_ns("2026-03-06T14:30")

    def look(said: str) -> None:
        with tape._reading() as connection:
            found = connection.execute(
                "SELECT first, seal, level, count(*), max(symbol_id) FROM span JOIN chunk USING (seal)"
                " GROUP BY seal ORDER BY seal"
            ).fetchall()
        stages.append((said, tape.stats().head, found))

    with onetape.open(path, retention_days=None) as tape:
        for number in range(24 * 4096 + 1000):
            tape.append(onetape.Tick(names[number % 3], start_ns + number * 100_000_000, price=6000.0, size=1))
            if number == 10 * 4096 + 1000:
                look("while it is written")
        look("later")
        tape.compact()
        look("after compact()")
    left, right = 30, 830
    x = Scale(0, 25 * 4096, left, right)
    look_of = {spans.SEALED: GREY, spans.MERGED: "#8fb8de", spans.COMPACT: GREEN}
    picture.legend(
        left,
        28,
        [
            (ORANGE, "journal"),
            (GREY, "sealed, symbols mixed"),
            ("#8fb8de", "merged, chunks of one symbol"),
            (GREEN, "compacted, as small as it gets"),
        ],
    )
    for row, (said, head, found) in enumerate(stages):
        y = 70 + row * 85
        total = f"{len(found)} spans" if len(found) > 1 else "1 span"
        told = f"{said}: {head:,} positions in {total}, {sum(one[3] for one in found)} chunks"
        picture.text(left, y - 8, told)
        for first, seal, level, chunks, symbol in found:
            begin, width = x(first - 1), x(seal) - x(first - 1)
            picture.box(begin, y, width, 42, look_of[level], "#ffffff")
            if symbol:
                for line in range(1, chunks):
                    picture.line(begin, y + 42 * line / chunks, begin + width, y + 42 * line / chunks, "#ffffff")
        sealed = found[-1][1]
        if head > sealed:
            picture.box(x(sealed), y, max(2.0, x(head) - x(sealed)), 42, ORANGE)
    picture.text(right, 312, "positions", "end", FAINT)
    return picture


if __name__ == "__main__":
    main()
