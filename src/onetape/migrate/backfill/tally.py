"""The tally: what became of the keys of a run, counted, and the first of what went wrong."""

from __future__ import annotations

from collections import Counter

from onetape.migrate.ledger.entry import Outcome
from onetape.migrate.plans.plan import Plan
from onetape.migrate.report import ERRORS_LISTED, KeyFailure

_OUTCOMES = tuple(Outcome)


class Tally:
    """Counts and errors of a run, bounded."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.by_rule: Counter[tuple[int, int]] = Counter()  # (rule, outcome's code) → keys
        self.errors: list[KeyFailure] = []
        self.error_count = 0
        self.notes: list[KeyFailure] = []
        self.note_count = 0
        self.ticks_landed = 0
        self.ticks_known = 0
        self.done = 0

    def add(self, rules: list[int], outcomes: list[int]) -> None:
        """Count keys with their outcomes."""
        self.by_rule.update(zip(rules, outcomes, strict=True))
        self.done += len(rules)

    def error(self, rule: int, source_db: int, key: bytes, target: bytes, why: str) -> None:
        """Count an error, and keep it while there is room."""
        self.error_count += 1
        if len(self.errors) < ERRORS_LISTED:
            self.errors.append(KeyFailure(self._plan.rules[rule].step, source_db, key, target, why))

    def note(self, rule: int, source_db: int, key: bytes, target: bytes, what: str) -> None:
        """Count a key that is over, but not all of which a tape can hold; and keep it while there is room."""
        self.note_count += 1
        if len(self.notes) < ERRORS_LISTED:
            self.notes.append(KeyFailure(self._plan.rules[rule].step, source_db, key, target, what))

    def steps(self) -> dict[str, dict[str, int]]:
        """Return step → outcome → keys, for every step of the plan."""
        steps: dict[str, dict[str, int]] = {step: {} for step in self._plan.steps}
        for (rule, code), number in sorted(self.by_rule.items()):
            counts, name = steps[self._plan.rules[rule].step], _OUTCOMES[code].value
            counts[name] = counts.get(name, 0) + number
        return steps
