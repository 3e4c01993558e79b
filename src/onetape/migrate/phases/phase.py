"""The phase: how far a live migration has come, and which step leads from where to where. Pure."""

from __future__ import annotations

import enum

from onetape.errors import PhaseRefused


class Phase(enum.StrEnum):
    """What holds for all writers and readers at once. In this order; back from any but the last.

    Until `READS_SWITCHED` the old keys are the truth, from `CUT_OVER` on the new ones. From `DUAL_WRITING` to
    `CUT_OVER` both are written.
    """

    PLANNED = "planned"  # writers write old names only
    DUAL_WRITING = "dual_writing"  # and the new ones with them
    BACKFILLED = "backfilled"  # what was there before is over
    VERIFIED = "verified"  # and proven equal
    READS_SWITCHED = "reads_switched"  # readers ask the new names first
    CUT_OVER = "cut_over"  # the new names are the truth; the old ones mirror them
    FINISHED = "finished"  # the old names are gone

    @property
    def place(self) -> int:
        """Return 0 for the first phase, 6 for the last."""
        return _PLACES[self]

    def at_least(self, other: Phase) -> bool:
        """Return whether this phase is `other` or a later one."""
        return self.place >= other.place

    @property
    def new_is_truth(self) -> bool:
        """Return whether the new names hold what counts when the two sides differ."""
        return self.at_least(Phase.CUT_OVER)

    @property
    def both_written(self) -> bool:
        """Return whether a write goes to both sides."""
        return Phase.DUAL_WRITING.place <= self.place <= Phase.CUT_OVER.place


ORDER = tuple(Phase)
_PLACES = {phase: place for place, phase in enumerate(ORDER)}

#: Command → (the phases that it may be given in, the phase that it leads to). Given again in the phase that it leads
#: to, a command changes nothing but its own settings.
STEPS: dict[str, tuple[tuple[Phase, ...], Phase]] = {
    "start": ((Phase.PLANNED,), Phase.DUAL_WRITING),
    "backfill": ((Phase.DUAL_WRITING,), Phase.BACKFILLED),
    "verify": ((Phase.BACKFILLED,), Phase.VERIFIED),
    "switch-reads": ((Phase.VERIFIED,), Phase.READS_SWITCHED),
    "cutover": ((Phase.READS_SWITCHED,), Phase.CUT_OVER),
    "finish": ((Phase.CUT_OVER,), Phase.FINISHED),
}


def step(command: str, now: Phase) -> Phase:
    """Return the phase that a command leads to from here. Raises PhaseRefused where it is out of its turn."""
    allowed, to = STEPS[command]
    if now in allowed or now is to:
        return to
    told = " or ".join(allowed)
    before = next((name for name, (_, leads) in STEPS.items() if leads in allowed), None)
    hint = "nothing leads back from the end" if now is Phase.FINISHED else "onetape migrate rollback leads back"
    if now.place < allowed[0].place and before is not None:
        hint = f"the way there: onetape migrate {before}"
    raise PhaseRefused(
        f"{command} belongs to the phase {told}, and this migration is in {now}", hint=hint, phase=str(now)
    )


def back(now: Phase, to: Phase | None = None) -> Phase:
    """Return the phase that a rollback leads to: one step back, or `to`. Raises PhaseRefused."""
    if now is Phase.FINISHED:
        raise PhaseRefused(
            "a finished migration cannot be rolled back: the old keys are gone", hint="finish is the last word",
            phase=str(now),
        )  # fmt: skip
    if now is Phase.PLANNED:
        raise PhaseRefused("there is nothing to roll back: the phase is planned", phase=str(now))
    before = ORDER[now.place - 1] if to is None else to
    if before.place >= now.place:
        raise PhaseRefused(f"{before} is not before {now}", hint="a rollback leads back", phase=str(now))
    return before


def parse(name: str) -> Phase:
    """Return the phase of that name. Raises PhaseRefused, naming all of them."""
    try:
        return Phase(name.replace("-", "_"))
    except ValueError as error:
        raise PhaseRefused(f"there is no phase {name!r}", hint="phases are " + ", ".join(ORDER)) from error


__all__ = ["ORDER", "STEPS", "Phase", "back", "parse", "step"]
