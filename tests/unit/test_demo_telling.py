"""How the demo prints: numbers are never cut, what is quiet says nothing."""

from __future__ import annotations

import pytest

from onetape.demo.telling import Telling, outcomes, size


def test_a_table_cuts_text_where_there_is_no_room_and_numbers_never(capsys: pytest.CaptureFixture[str]) -> None:
    telling = Telling()
    telling.table(["old name", "new name", "keys"], [["a" * 80, "b" * 60, "1,234,567"], ["short", "x", "1"]], left=2)
    head, long, short = capsys.readouterr().out.splitlines()
    assert len(long) == telling.width and long.endswith("1,234,567") and long.count("…") == 2
    assert "short" in short and short.endswith("        1")
    assert head.endswith("keys")


def test_counts_become_a_table_with_a_sum() -> None:
    head, rows = outcomes({"volume": {"copied": 2000, "failed": 0}, "ticks": {"newer_target_kept": 3}})
    assert head == ["step", "copied", "newer target kept"]
    assert rows == [["volume", "2,000", "-"], ["ticks", "-", "3"], ["all", "2,000", "3"]]


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    telling = Telling(quiet=True)
    telling.chapter("a chapter")
    telling.line("a line")
    telling.table(["a"], [["1"]])
    with telling.progress("work"):
        pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 bytes"), (1023, "1,023 bytes"), (18_137_088, "17.3 MiB"), (2**40, "1,024.0 GiB")]
)
def test_sizes_are_for_people(count: int, told: str) -> None:
    assert size(count) == told
