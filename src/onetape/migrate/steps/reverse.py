"""The way back: from each phase to one before it, and nothing that was written meanwhile is lost.

Leaving the cutover, where the new names were the truth, takes three looks: old keys are made what the new ones are;
what both sides hold is put down; the phase changes for all at one instant; and a last look finds what was written in
between by others than our clients, and carries it over where only the new side of a pair was written. A way back that
was killed after the change is ended by the next rollback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from onetape.errors import GateRefused, StateLost
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.phases import phase as phases
from onetape.migrate.phases import state as states
from onetape.migrate.phases.helm import Helm
from onetape.migrate.phases.history import History
from onetape.migrate.phases.move import Move
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import State
from onetape.migrate.report import EXIT_FAILURES, EXIT_OK, key_text
from onetape.migrate.steps.course import done, nothing, planned
from onetape.migrate.steps.fence import unfence
from onetape.migrate.steps.force import Done, Fence, Forcer, Order
from onetape.migrate.steps.mend import JOINED_BACK, LISTED, UNPLACED, Mend, Mended, differing, refuse_a_flush
from onetape.migrate.verifying import sides as sides_file
from onetape.migrate.verifying.side import Side
from onetape.migrate.verifying.sides import Sides
from onetape.migrate.verifying.twins import Twin, Twins
from onetape.migrate.wire.endpoint import Endpoint

_PASSES = 5

NEW_CHANGED = "was written under its new name in the moment of the change"
BOTH_CHANGED = "both sides were written in the moment of the change: the old one stands, the new one's value is kept"
OLD_CHANGED = "its old side was written since, which is the truth now: verify --repair settles it"


def rollback(
    helm: Helm, *, to: Phase | None, execute: bool, force: bool, discard: bool = False, allow_flush: bool = False
) -> Move:
    """Go back one phase, or to `to`. See Migration.rollback."""
    with helm.connect(writable=execute) as endpoint:
        try:
            now = states.required(helm.look(endpoint))
        except StateLost as lost:
            return _after_loss(helm, endpoint, lost, to, execute)
        if not force:
            helm.own(now)
        if pending(helm, now):
            return _end(helm, endpoint, now, execute, discard)
        if to is now.phase:
            return nothing("rollback", now, f"the phase is {now.phase}")
        target = phases.back(now.phase, to)
        lines = _told(now, target)
        dry = _dry(helm, endpoint, now, target, lines, allow_flush)
        if not execute:
            return dry
        with helm.lease("rollback") as lease:
            return _go(helm, endpoint, now, target, lines, lease.check, force, discard)


def _told(now: State, to: Phase) -> list[str]:
    lines = []
    if now.phase is Phase.CUT_OVER:
        lines += [
            "old keys are made what the new ones are now, under the same compare-and-set",
            f"{now.phase} becomes {to}: the old names are the truth again, from one instant on",
            "what was written in between is carried over by a last look",
        ]
    else:
        lines.append(f"{now.phase} becomes {to}")
    if now.phase.at_least(Phase.READS_SWITCHED) and not to.at_least(Phase.READS_SWITCHED):
        lines.append("readers ask the old names only")
    if to is Phase.PLANNED:
        lines.append("clients write the old names only; new keys stay until onetape migrate undo")
    return lines


def _dry(helm: Helm, endpoint: Endpoint, now: State, to: Phase, lines: list[str], allow_flush: bool) -> Move:
    facts = {}
    if now.phase is Phase.CUT_OVER:
        with opened(helm) as ledger:
            found = Mend(helm.plan, endpoint, None, ledger, "old").run()
        if not allow_flush:
            refuse_a_flush(found, "old")
        facts = {"mend": found.to_dict()}
        lines = [*lines, *found.lines("old", would=True)]
    return planned("rollback", now, to, lines, facts=facts)


def _go(
    helm: Helm, endpoint: Endpoint, now: State, to: Phase, lines: list[str], check: Callable[[], None],
    force: bool, discard: bool,
) -> Move:  # fmt: skip
    before, warnings, code = now.phase, [], EXIT_OK
    facts: dict[str, Any] = {}
    with helm.connect(writable=False) as reader, helm.history(endpoint) as history:
        way = Way(helm, endpoint, reader, history, check, discard)
        if now.phase is Phase.CUT_OVER:
            now, mended, last = way.leave(now, force)
            facts = {"before": mended.to_dict(), "after": last.to_dict()}
            lines += mended.lines("old") + [f"after the change: {line}" for line in last.lines("old")]
            warnings = [*mended.left, *last.left, *last.failed]
            code = EXIT_FAILURES if last.failed else EXIT_OK
        if now.phase is not to:
            now = way.step(now, to)
        warnings += [f"user {user} has its rights back" for user in unfence(endpoint, history)]
    return done("rollback", before, now, lines, warnings, facts=facts, exit_code=code)


class Way:
    """One way back, with its connections and the lease's check."""

    def __init__(
        self, helm: Helm, endpoint: Endpoint, reader: Endpoint, history: History, check: Callable[[], None],
        discard: bool,
    ) -> None:  # fmt: skip
        self._helm = helm
        self._endpoint = endpoint
        self._reader = reader
        self._history = history
        self._check = check
        self._discard = discard
        self._path = sides_file.path_of(helm.ledger_path)

    def leave(self, now: State, force: bool) -> tuple[State, Mended, Mended]:
        """Go from CUT_OVER to READS_SWITCHED. Return the state, what was made equal before, and after the change."""
        sides_file.remove(self._path)
        mended = self._back(now.phase)
        reason = refuse_loss(mended, force)
        with Sides(self._path) as sides:
            sides.take(self._reader, Twins(self._reader, self._helm.plan), self._check)
        self._helm.at("sides_taken")
        now = self._now(now)
        with Sides(self._path) as sides:
            sides.set_about("verified_ms", None if reason else self._history.value("verified_ms"))
            sides.set_about("pending", str(now.version + 1))  # no other change than ours makes that one
        self._history.set_values(verified_ms="0")  # until the last look leaves nothing that differs
        after = self._shift(now, Phase.READS_SWITCHED, forced=bool(reason), reason=reason)
        return after, mended, self.last_look(after)

    def step(self, now: State, to: Phase) -> State:
        """Go from a phase before CUT_OVER to an earlier one."""
        fields = {} if to.at_least(Phase.READS_SWITCHED) else {"read_share": 0.0, "shadow_share": 0.0}
        if to is not Phase.PLANNED:
            return self._shift(now, to, **fields)
        sides_file.remove(self._path)
        twins = Twins(self._reader, self._helm.plan)
        with Sides(self._path) as sides:  # stays, for undo
            sides.take(self._reader, twins, self._check)
            hot = sides.take(self._reader, twins, self._check)
            self._helm.at("sides_taken")
            after = self._shift(now, to, **fields)
            sides.look(self._reader, hot)  # before those are written again that are written all the time
            sides.take(self._reader, twins, self._check)  # and those that were created since
        return after

    def _shift(self, now: State, to: Phase, **fields: Any) -> State:
        self._check()
        return self._helm.shift(self._endpoint, "rollback", self._now(now), to, **fields)

    def _now(self, before: State) -> State:
        """Return the state with settings that changed meanwhile; a change of phase is told as one, by its version."""
        found = states.required(self._helm.look(self._endpoint))
        return found if found.phase is before.phase else before

    def _back(self, phase: Phase) -> Mended:
        """Make old keys what the new ones are, until a look finds nothing more to do."""
        total = Mended()
        with opened(self._helm) as ledger:
            for _pass in range(_PASSES):
                mend = Mend(
                    self._helm.plan, self._reader, self._forcer(phase), ledger, "old", check=self._check
                )  # fmt: skip
                mended = mend.run()
                acted = {name: mended.counts[name] + total.counts[name] for name in ("copied", "replaced", "removed")}
                more, total = mended.acted, mended
                total.counts.update({name: number - total.counts[name] for name, number in acted.items()})
                self._helm.at("reversed")
                if not more:
                    break
        return total

    def last_look(self, state: State) -> Mended:
        """Carry over what was written under new names alone between the look before the change and the change."""
        result = Mended()
        twins, forcer = Twins(self._reader, self._helm.plan), self._forcer(state.phase)
        with Sides(self._path) as sides:
            for page in differing(twins):
                for twin in page:
                    self._check()
                    result.add(str(twin), _carry(forcer, sides, twin))
            for one in twins.unplaced:
                result.add(key_text(one.new_key), Done("left", UNPLACED))
            verified_ms = sides.about("verified_ms")
            if verified_ms is not None and not result.left and not result.failed:
                self._history.set_values(verified_ms=verified_ms)
            sides.set_about("pending", None)
        sides_file.remove(self._path)
        self._helm.at("carried_over")
        return result

    def _forcer(self, phase: Phase) -> Forcer:
        fence = Fence(self._helm.names, phase)
        return Forcer(
            self._endpoint, self._reader, self._history, "rollback", fence, discard=self._discard, at=self._helm.at
        )


def refuse_loss(mended: Mended, force: bool) -> str:
    """Raise GateRefused where something written under new names would be lost; forced, return what it was."""
    reasons = [*mended.lost, *mended.failed]
    number = mended.counts["lost"] + mended.counts["failed"] + mended.counts["busy"]
    if reasons and not force:
        raise GateRefused(
            f"{number:,} keys cannot be carried back to their old names: " + "; ".join(reasons[:5]),
            hint="what was carried back stays so; --force goes back without them, and says so in the history",
            reasons=reasons,
        )
    more = f"; and {number - LISTED:,} more" if number > LISTED else ""
    return "; ".join(reasons[:LISTED]) + more


def _carry(forcer: Forcer, sides: Sides, twin: Twin) -> Done:
    held = sides.find(twin.old)

    def ordered(new: Side | None, old: Side | None) -> Order:
        if twin.joined:
            return Order("leave", JOINED_BACK)
        if held is None:
            if old is None:
                return Order("copy", NEW_CHANGED)
            return Order("leave", OLD_CHANGED if new is None else BOTH_CHANGED)
        old_still = old is not None and old.is_what(*held)
        new_still = new is not None and new.is_what(*held)
        if old_still and not new_still:
            return Order(
                "remove" if new is None else "copy", "was written under its new name in the moment of the change"
            )
        if old is None and new is not None and not new_still:
            return Order("leave", BOTH_CHANGED)
        return Order("leave", OLD_CHANGED if new_still or new is None else BOTH_CHANGED)

    done = forcer.force(twin.new, twin.old, ordered, lambda side: None)
    if done.why == BOTH_CHANGED:
        forcer.put_aside(twin.new, twin.old, BOTH_CHANGED)
    return done


def _end(helm: Helm, endpoint: Endpoint, now: State, execute: bool, discard: bool) -> Move:
    lines = [f"a way back to {now.phase} was not finished: its last look is made now"]
    if not execute:
        return planned("rollback", now, now.phase, lines)
    with helm.lease("rollback") as lease, helm.connect(writable=False) as reader, helm.history(endpoint) as history:
        history.reconcile(now)
        unfence(endpoint, history)
        last = Way(helm, endpoint, reader, history, lease.check, discard).last_look(now)
    lines += [*last.lines("old"), "run it again for a further step back"]
    code = EXIT_FAILURES if last.failed else EXIT_OK
    return done("rollback", now.phase, now, lines, last.left, facts={"after": last.to_dict()}, exit_code=code)


def pending(helm: Helm, now: State) -> bool:
    """Return whether the last look of the way back that led to this phase was not made.

    What was put down for another one says nothing of the keys as they are: a server may have lost them since.
    """
    path = sides_file.path_of(helm.ledger_path)
    if not path.exists() or now.phase is not Phase.READS_SWITCHED:
        return False
    with Sides(path) as sides:
        return sides.about("pending") == str(now.entered)


def _after_loss(helm: Helm, endpoint: Endpoint, lost: StateLost, to: Phase | None, execute: bool) -> Move:
    """The server forgot the state after the cutover: the old names, which mirrored the new ones, are the truth."""
    if Phase(lost.facts["phase"]) is not Phase.CUT_OVER:
        raise lost
    target = Phase.DUAL_WRITING if to is None or to is not Phase.PLANNED else to
    lines = [
        lost.message,
        f"the state is written anew as {target}, with a version that no client can know yet",
        "the old names, which mirrored the new ones until then, are the truth again, as they are",
    ]
    if target is not Phase.PLANNED:
        lines.append("backfill, then verify --repair: new keys follow the old ones")
    if not execute:
        return planned("rollback", None, target, lines, before=Phase.CUT_OVER)
    with helm.lease("rollback"):
        found = states.load(endpoint, helm.plan)
        floor = helm.restored_floor(endpoint)
        after = helm.shift(
            endpoint, "rollback", found, target, floor=floor, read_share=0.0, shadow_share=0.0,
            reason=f"written anew: {lost.message}",
        )  # fmt: skip
        with helm.history(endpoint) as history:
            unfence(endpoint, history)
    return done("rollback", Phase.CUT_OVER, after, lines)


@contextmanager
def opened(helm: Helm) -> Iterator[Ledger | None]:
    """Open the ledger for reading, None where there is none."""
    if not helm.ledger_path.exists():
        yield None
        return
    with Ledger.open(helm.ledger_path, mode="r") as ledger:
        yield ledger


__all__ = ["opened", "pending", "refuse_loss", "rollback"]
