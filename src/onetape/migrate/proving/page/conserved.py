"""The page's section on conservation: ticks and bars of old keys, new keys and tape, and what was found besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onetape import clock
from onetape.migrate.proving.page import charts
from onetape.migrate.proving.page.table import Cell, facts, key, table, word
from onetape.migrate.proving.page.text import number, shown

_ROWS = 500
_SIDES = {"old": "old keys", "new": "new keys", "tape": "tape"}
_FINDINGS = {
    "doubled": "Doubled",
    "others": "Entries that are no ticks",
    "reading": "Two readings that disagree",
    "unread": "Keys that cannot be read",
    "gap": "Gaps of the data: spans without ticks that old keys have too",
    "ohlc": "Stored bars that the ticks do not give: so in the old keys already",
}


def render(found: Mapping[str, Any] | None) -> str:
    """Return the section for a conservation as plain data."""
    if found is None:
        return '<p class="bad-word">Not compared.</p>'
    tone = "good-word" if found["conserved"] else "bad-word"
    told = f'<p class="{tone}">{shown(str(found["verdict"]).capitalize())}.</p>'
    if found["until_ms"] is not None:
        told += f"<p>Ticks before {_time(found['until_ms'])} were compared: writers are at work.</p>"
    told += _totals(found)
    told += f'<p class="soft">Days are those of {shown(found["zone"])}. Sums are exact, of every tick once. '
    told += f"{number(found['read_twice'])} ticks of the old keys were read a second time by other code. "
    told += f"{number(found['ohlc_checked'])} stored bars were computed again from ticks, "
    told += f"{number(found['ohlc_unchecked'])} have none.</p>"
    chart = charts.ticks_by_day([(day["day"], day["old"], day["new"], day["tape"]) for day in found["days"]])
    if chart:
        told += f"<h3>Ticks a day</h3><figure>{chart}</figure>"
    told += _differing([row for row in found["rows"] if row["balance"] != "equal"])
    told += _bars("Bars that differ", [row for row in found["bars"] if row["balance"] != "equal"], False)
    for kind, title in _FINDINGS.items():
        told += _findings(title, [one for one in found["findings"] if one["kind"] == kind], found["unlisted"], kind)
    told += _equal([row for row in found["rows"] if row["balance"] == "equal"])
    told += _bars("Bars, equal on all sides", [row for row in found["bars"] if row["balance"] == "equal"], True)
    if found["rows_unlisted"] or found["bars_unlisted"]:
        rest = found["rows_unlisted"] + found["bars_unlisted"]
        told += f'<p class="soft">{number(rest)} equal rows are not listed in this report.</p>'
    return told


def _totals(found: Mapping[str, Any]) -> str:
    rows = [
        [
            word(name),
            *(Cell(number(found["totals"][side][what]), "n") for what in ("ticks", "volume", "bars", "others")),
        ]
        for side, name in _SIDES.items()
        if side in found["totals"]
    ]
    inside = table(("Side", "Ticks", "Volume", "Bars", "Entries that are no ticks"), rows, _ROWS)
    balances = [(name.capitalize(), number(count)) for name, count in sorted(found["balances"].items()) if count]
    return inside + '<p class="soft">Rows of symbol and day, by what they amount to:</p>' + facts(balances)


def _differing(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    told = f"<h3>What differs: {number(len(rows))}</h3>"
    for row in rows[:_ROWS]:
        told += f"<article><h4><code>{shown(row['symbol'])}</code> {shown(row['day'])} "
        told += f'<span class="{shown(row["balance"])}">{shown(row["balance"])}</span></h4>'
        told += "<ul>" + "".join(f"<li>{shown(line)}</li>" for line in row["told"]) + "</ul>"
        lines = [_side(name, row[side]) for side, name in _SIDES.items() if row[side] is not None]
        told += table(("Side", "Ticks", "Volume", "First", "Last", "High", "Low"), lines, len(lines)) + "</article>"
    more = len(rows) - _ROWS
    return told + (
        f'<p class="soft">{number(more)} more are in the JSON file beside this page.</p>' if more > 0 else ""
    )


def _side(name: str, side: Mapping[str, Any]) -> list[Cell]:
    return [
        word(name),
        Cell(number(side["ticks"]), "n"),
        Cell(number(side["volume"]), "n"),
        word(_moment(side, "first")),
        word(_moment(side, "last")),
        Cell(number(side["high"]), "n"),
        Cell(number(side["low"]), "n"),
    ]


def _equal(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    lines = [[key(row["symbol"]), word(row["day"]), *_side("", row["old"])[1:]] for row in rows[:_ROWS]]
    head = ("Symbol", "Day", "Ticks", "Volume", "First", "Last", "High", "Low")
    return _folded(f"Equal on all sides: {number(len(rows))}", table(head, lines, _ROWS, len(rows)), True)


def _bars(title: str, rows: Sequence[Mapping[str, Any]], folded: bool) -> str:
    if not rows:
        return ""
    lines = []
    for row in rows[:_ROWS]:
        sides = [row["old"], row["new"], *([row["tape"]] if row["tape"] is not None else [])]
        lines.append(
            [
                key(row["symbol"]),
                word(row["interval"]),
                word(row["day"]),
                Cell(shown(row["balance"]), row["balance"]),
                Cell(" / ".join(number(side["bars"]) for side in sides), "n"),
                Cell(" / ".join(number(side["volume"]) for side in sides), "n"),
                word("; ".join(row["told"])),
            ]
        )
    head = ("Symbol", "Interval", "Day", "", "Bars old / new / tape", "Volume", "What differs")
    return _folded(f"{title}: {number(len(rows))}", table(head, lines, _ROWS, len(rows)), folded)


def _findings(title: str, found: Sequence[Mapping[str, Any]], unlisted: Mapping[str, int], kind: str) -> str:
    total = len(found) + unlisted.get(kind, 0)
    if not total:
        return ""
    lines = [[key(one["symbol"]), word(one["day"]), word(one["told"])] for one in found]
    named = any(one["symbol"] for one in found)
    head = ("Symbol", "Day", "What") if named else ("What",)
    rows = lines if named else [line[2:] for line in lines]
    severe = any(one["failure"] for one in found)
    return _folded(f"{title}: {number(total)}", table(head, rows, _ROWS, total), not severe)


def _folded(title: str, inside: str, folded: bool) -> str:
    if not folded:
        return f"<h3>{shown(title)}</h3>{inside}"
    return f"<details><summary>{shown(title)}</summary>{inside}</details>"


def _moment(side: Mapping[str, Any], which: str) -> str:
    ms, prices = side[f"{which}_ms"], side[f"{which}_price"]
    if ms is None:
        return ""
    price = "" if prices is None else f", {number(prices[0])}"
    price += "" if prices is None or prices[0] == prices[1] else f" to {number(prices[1])}"
    return f"{_time(ms)}{price}"


def _time(ms: int) -> str:
    return clock.to_text(ms * 1_000_000)[:23].replace("T", " ")


__all__ = ["render"]
