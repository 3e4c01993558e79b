"""What is done with a pair, and what is remembered of it: without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from onetape.errors import LedgerBusy, LedgerUnusable
from onetape.migrate.mirror.judge import Act, judge
from onetape.migrate.mirror.memory import OF_DUMP, Held, Memory, Word

A, B, C = ((OF_DUMP + bytes([n]) * 16, -1) for n in range(3))
PLACE = (5, b"old:\xff")


def held(side: tuple[bytes, int], following: tuple[bytes, int] | None = None) -> Held:
    return Held(b"new", *side, *(following or (None, -1)))


@pytest.mark.parametrize(
    ("source", "target", "known", "gone", "act"),
    [
        (None, None, None, False, Act.NOTHING),
        (A, None, None, False, Act.COPY),
        (A, None, held(B), False, Act.COPY),
        (A, A, None, False, Act.EQUAL),
        (B, A, held(A), False, Act.REPLACE),
        (B, A, held(C, A), False, Act.REPLACE),  # what was about to be written when it was killed
        (B, A, held(A, C), False, Act.REPLACE),  # and what was there before that
        (B, A, None, False, Act.KEEP),
        (B, C, held(A), False, Act.KEEP),
        (B, (A[0], 5), held(A), False, Act.KEEP),  # somebody gave it an expiry
        (None, A, held(A), True, Act.DELETE),
        (None, A, held(A), False, Act.LEAVE),
        (None, C, held(A), True, Act.KEEP),
        (None, C, None, True, Act.KEEP),
        ((A[0], 1000), (A[0], 1001), None, False, Act.KEEP),
    ],
)
def test_nothing_is_written_over_that_is_not_as_it_was_left(source, target, known, gone, act) -> None:  # type: ignore[no-untyped-def]
    assert judge(source, target, known, gone=gone) is act


def test_a_server_that_tells_expiries_by_the_time_left_is_given_some_slack() -> None:
    assert judge((A[0], 1000), (A[0], 1050), None, gone=False, slack_ms=100) is Act.EQUAL


def word(side: tuple[bytes, int]) -> Word:
    return Word(*PLACE, b"new:\xff", 0, *side)


def test_what_is_intended_is_known_beside_what_was_there(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "m") as memory:
        memory.bind("plan", "run")
        memory.remember([word(A)])
        memory.intend([(word(B), A)])
    with Memory.open(tmp_path / "m") as memory:  # killed here
        found = memory.find([PLACE])[PLACE]
        assert found.holds(*A) and found.holds(*B) and not found.holds(*C)
        # The act had been done; the next one is intended on top of it, and killed too.
        memory.intend([(word(C), B)])
        found = memory.find([PLACE])[PLACE]
        assert found.holds(*B) and found.holds(*C) and not found.holds(*A)
        memory.remember([word(C)])
        found = memory.find([PLACE])[PLACE]
        assert found.holds(*C) and not found.holds(*B)
        memory.forget([PLACE])
        assert memory.find([PLACE]) == {} and memory.count() == 0


def test_after_a_restart_of_the_server_pairs_are_looked_at_again(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "m") as memory:
        memory.bind("plan", "one")
        memory.remember([word(A)])
        assert memory.find([PLACE])[PLACE].fresh
        memory.bind("plan", "two")
        assert not memory.find([PLACE])[PLACE].fresh


def test_kept_pairs_are_news_once_and_counted_over_restarts(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "m") as memory:
        assert memory.keep(PLACE, b"new", 0, "why", 1)
        assert not memory.keep(PLACE, b"new", 0, "why", 2)
        assert memory.keep(PLACE, b"new", 0, "another", 3)
        assert memory.kept_count() == 1
    with Memory.open(tmp_path / "m") as memory:
        assert memory.kept_count() == 1
        assert memory.kept() == [(*PLACE, b"new", 0, "another")]
        assert memory.kept(after=PLACE) == []
        assert memory.settled([PLACE, (0, b"x")]) == [PLACE]
        assert memory.settled([PLACE]) == [] and memory.kept_count() == 0


def test_one_mirror_at_a_time_and_one_plan_a_memory(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "m") as memory:
        memory.bind("plan", "run")
        with pytest.raises(LedgerBusy):
            Memory.open(tmp_path / "m")
        with pytest.raises(LedgerUnusable, match="another plan"):
            memory.bind("other", "run")
    (tmp_path / "text").write_text("no database, and long enough to be taken for none at all" * 20)
    with pytest.raises(LedgerUnusable):
        Memory.open(tmp_path / "text")
