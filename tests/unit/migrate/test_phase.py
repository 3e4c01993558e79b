"""Phases: the order of the commands, and what one out of its turn is told."""

from __future__ import annotations

import pytest

from onetape.errors import PhaseRefused
from onetape.migrate.phases.phase import ORDER, STEPS, Phase, back, parse, step


def test_the_commands_lead_through_all_phases_in_order() -> None:
    now = Phase.PLANNED
    met = [now]
    for command in STEPS:
        now = step(command, now)
        met.append(now)
    assert met == list(ORDER)


def test_a_command_given_again_stays_where_it_led() -> None:
    for command, (_, to) in STEPS.items():
        assert step(command, to) is to


@pytest.mark.parametrize(
    ("command", "now", "told"),
    [
        ("cutover", Phase.DUAL_WRITING, "onetape migrate switch-reads"),
        ("finish", Phase.READS_SWITCHED, "onetape migrate cutover"),
        ("start", Phase.CUT_OVER, "rollback"),
        ("backfill", Phase.FINISHED, "nothing leads back"),
    ],
)
def test_a_command_out_of_its_turn_names_the_phase_and_the_way(command: str, now: Phase, told: str) -> None:
    with pytest.raises(PhaseRefused, match=str(now)) as refused:
        step(command, now)
    assert told in refused.value.hint


def test_a_rollback_leads_one_step_back_or_further_but_never_on_nor_from_the_end() -> None:
    assert back(Phase.CUT_OVER) is Phase.READS_SWITCHED
    assert back(Phase.CUT_OVER, Phase.PLANNED) is Phase.PLANNED
    for now, to in [(Phase.PLANNED, None), (Phase.FINISHED, None), (Phase.VERIFIED, Phase.CUT_OVER)]:
        with pytest.raises(PhaseRefused):
            back(now, to)


def test_only_between_dual_writing_and_cutover_are_both_sides_written() -> None:
    assert [phase for phase in Phase if phase.both_written] == list(ORDER[1:6])
    assert [phase for phase in Phase if phase.new_is_truth] == [Phase.CUT_OVER, Phase.FINISHED]


def test_a_phase_is_found_by_its_name_and_an_unknown_one_is_told_all_names() -> None:
    assert parse("cut-over") is Phase.CUT_OVER
    with pytest.raises(PhaseRefused, match="reads_switched"):
        parse("cutover")
