"""Charts and texts of the proof's page: nothing is left out of a bar, nothing of a name can act."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetape.migrate.proving.page import charts
from onetape.migrate.proving.page.table import key, table
from onetape.migrate.proving.page.text import number, shown


def bars(svg: str, kind: str) -> list[tuple[float, str]]:
    found = re.findall(rf'<rect class="{kind}"[^>]* height="([\d.]+)"[^>]*><title>([^<]*)</title>', svg)
    return [(float(height), told) for height, told in found]


def widths(svg: str, kind: str) -> list[float]:
    return [float(one) for one in re.findall(rf'<rect class="{kind}"[^>]* width="([\d.]+)"', svg)]


def test_equal_ticks_give_bars_of_one_height_and_a_loss_a_lower_one() -> None:
    svg = charts.ticks_by_day([("2025-11-20", 100, 100, 100), ("2025-11-21", 200, 150, 200)])
    assert [height for height, _told in bars(svg, "old")] == [80.0, 160.0]
    assert [height for height, _told in bars(svg, "new")] == [80.0, 120.0]
    assert bars(svg, "tape")[1] == (160.0, "2025-11-21: old 200, new 150, tape 200")


def test_a_thousand_days_are_joined_and_none_is_lost() -> None:
    days = [(f"d{i:09}", i, i + 1, None) for i in range(1000)]
    svg = charts.ticks_by_day(days)
    told = [told for _height, told in bars(svg, "old")]
    assert 100 <= len(told) <= 120
    sums = [re.findall(r"old ([\d,]+), new ([\d,]+)", one)[0] for one in told]
    assert sum(int(old.replace(",", "")) for old, _new in sums) == sum(range(1000))
    assert sum(int(new.replace(",", "")) for _old, new in sums) == sum(range(1001))
    assert 'class="swatch tape"' not in svg


def test_outcomes_are_as_long_as_they_are_many_and_unknown_ones_are_drawn_too() -> None:
    svg = charts.outcomes({"ticks": {"copied": 300, "failed": 100}, "ohlc": {"copied": 40, "new outcome": 0}})
    assert widths(svg, "good")[0] == pytest.approx(3 * widths(svg, "bad")[0], abs=0.2)
    assert len(widths(svg, "good")) == 2
    assert charts.outcomes({}) == charts.outcomes({"x": {}}) == ""
    assert "odd one" in charts.outcomes({"x": {"odd_one": 1}})


def test_phases_over_time_stand_even_if_a_clock_went_back() -> None:
    rows = [
        {"phase": "planned", "from": "2025-11-21T10:00:00Z"},
        {"phase": "dual_writing", "from": "2025-11-21T09:00:00Z"},
        {"phase": "backfilled", "from": "2025-11-21T11:00:00Z", "forced": True},
    ]
    svg = charts.phases(rows, "2025-11-21T12:00:00Z")
    assert "60.0 min" in svg
    assert len(widths(svg, "phase")) == 2 and len(widths(svg, "warn")) == 1
    assert charts.phases([], "2025-11-21T12:00:00Z") == ""
    assert charts.phases(rows[:1], "2025-11-21T10:00:00Z")


def test_what_cannot_be_drawn_is_no_chart() -> None:
    assert charts.progress([]) == charts.progress([(0.0, 0), (1.0, 0)]) == charts.progress([(1.0, 5), (1.0, 9)]) == ""
    assert charts.seconds_by_reason({}) == charts.seconds_by_reason({"x": 0}) == charts.ticks_by_day([]) == ""
    many = charts.progress([(i / 10, i * 7) for i in range(10_000)])
    assert many.count(",") < 1000 and "69,993" in many


@given(st.text())
def test_any_text_stays_text(text: str) -> None:
    told = shown(text)
    assert not set(told) & set("<>\"'\u202e\u2067\x00\x7f")
    element = ElementTree.fromstring(f'<p title="{told}">{told}</p>')
    assert element.text == element.attrib["title"] or not text
    if text.isascii() and text.isprintable() and 0 < len(text) < 400:
        assert element.text == text


@given(st.text(max_size=30), st.integers(0, 20), st.integers(1, 10))
def test_a_table_is_well_formed_and_says_how_much_it_leaves_out(name: str, rows: int, most: int) -> None:
    made = table(("Key",), [[key(name)]] * rows, most)
    if not rows:
        assert made == ""
        return
    found = ElementTree.fromstring(f"<div>{made}</div>")
    assert len(found.findall(".//tbody/tr")) == min(rows, most)
    assert ("more are not shown" in made) == (rows > most)


def test_numbers_are_written_whole() -> None:
    assert [number(one) for one in (1234567, 0.1, 1234.5, None, 1e300, "9" * 30)] == [
        "1,234,567",
        "0.1",
        "1,234.5",
        "–",
        "1e+300",
        "9" * 30,
    ]
