"""The unmaking: of each new key, whether it still is what the migration made, and if so it goes.

It is ours while it holds what the ledger says was written, or what both sides held at the end of the way back, or what
its old key holds now, where the migration made it. All others were written by somebody since, or were there before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onetape.migrate.copying import compare
from onetape.migrate.copying.compare import Comparer
from onetape.migrate.keys.dump import digest
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.phases import state as states
from onetape.migrate.phases.helm import Helm
from onetape.migrate.phases.history import History, Replaced
from onetape.migrate.phases.undone import Hand, Undone
from onetape.migrate.steps.owned import Owned
from onetape.migrate.steps.unmerge import ELSEWHERE, Unmerge
from onetape.migrate.verifying import sides as sides_file
from onetape.migrate.verifying.side import Side, read_sides
from onetape.migrate.verifying.sides import Sides
from onetape.migrate.verifying.twins import Twin, Twins
from onetape.migrate.wire.endpoint import Argument, Endpoint, ReplyError
from onetape.tape import Tape

_AT_ONCE = 50

CHANGED = "was written since, or the ledger cannot say what was"
BEFORE = "was there before the migration"


class Unmake:
    """Unmakes copies. `hand` removes, or only says that it could; `done` is told of each key."""

    def __init__(
        self,
        helm: Helm,
        reader: Endpoint,
        ledger: Ledger,
        history: History,
        tape: Tape | None,
        hand: Hand,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._plan = helm.plan
        self._reader = reader
        self._history = history
        self._hand = hand
        self._check = check
        self._comparer = Comparer(reader)
        self._twins = Twins(reader, helm.plan)
        self._owned = Owned(ledger)
        #: Both sides were written by our clients for a while, so that there are new keys that no ledger knows.
        self._lived = bool(history.transitions())
        path = sides_file.path_of(helm.ledger_path)
        self._sides = Sides(path) if path.exists() else None
        self._done = Undone()
        self._streams = Unmerge(reader, helm.plan, tape, hand, self._done, self._owned.has_target, check)

    def __enter__(self) -> Unmake:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._owned.close()
        if self._sides is not None:
            self._sides.close()

    def run(self) -> Undone:
        """Do it. Raises EndpointError."""
        for page in self._twins.old_side():
            self._owned.meet(page)
            self._pages(page)
        for page in self._owned.not_met(self._plan.target_db):
            self._pages(page)
        if self._lived:
            for page in self._twins.without_old():
                self._pages([twin for twin in page if self._owned.find(twin) is None])
        self._streams.run()
        return self._done

    def _pages(self, page: Sequence[Twin]) -> None:
        for at in range(0, len(page), _AT_ONCE):
            self._check()
            self._some([twin for twin in page[at : at + _AT_ONCE] if not twin.joined])
        for twin in page:
            if twin.joined:
                self._joined(twin)

    # Copies

    def _some(self, twins: Sequence[Twin], attempt: int = 0) -> None:
        if not twins:
            return
        self._hand.watch([twin.new_key for twin in twins])
        sides = self._new_sides(twins)
        equal = self._equal([twin for twin, side in zip(twins, sides, strict=True) if side is not None])
        gone: list[Twin] = []
        back: list[tuple[Twin, Replaced]] = []
        kept: list[tuple[Twin, str]] = []
        for twin, side in zip(twins, sides, strict=True):
            if side is None:
                continue
            why = self._not_ours(twin, side, twin in equal)
            replaced = self._replaced(twin)
            if why is not None:
                if why and not self._is_back(twin, side):
                    kept.append((twin, why))
            elif replaced is None:
                gone.append(twin)
            else:
                back.append((twin, replaced))
        if not self._hand.remove([twin.new_key for twin in gone]):
            self._again(twins, attempt)
            return
        for twin in gone:
            self._done.add("removed", twin.new_db, twin.new_key)
        for twin, why in kept:
            self._done.add("kept", twin.new_db, twin.new_key, why)
        for twin, replaced in back:
            self._put_back(twin, replaced)

    def _again(self, twins: Sequence[Twin], attempt: int) -> None:
        if len(twins) > 1:
            for twin in twins:
                self._some([twin])
        elif attempt < 5:
            self._some(twins, attempt + 1)
        else:
            self._done.add("kept", twins[0].new_db, twins[0].new_key, "it is written all the time")

    def _not_ours(self, twin: Twin, side: Side, equal: bool) -> str | None:
        """Return None where the new key is ours, else why it stays; "" for one that is no affair of the migration."""
        known = self._owned.find(twin)
        made = known is not None and known[2]
        # Even where the ledger says that we made it: a run that was killed, or cut off, took an equal key for its copy.
        if self._history.was_found(twin.new_db, twin.new_key) and self._replaced(twin) is None:
            return BEFORE if known is not None else ""
        if known is not None and made and side.is_what(known[0], known[1]):
            return None
        held = None if self._sides is None else self._sides.find(twin.old)
        if (made or self._lived) and held is not None and side.is_what(*held):
            return None
        if equal and (made or self._lived):
            return None
        if known is not None and not made:
            return BEFORE
        return CHANGED if known is not None or self._lived else ""

    def _replaced(self, twin: Twin) -> Replaced | None:
        """Return the last value of somebody else that a command replaced here, and that was not put back."""
        rows = list(self._history.replaced(db=twin.new_db, key=twin.new_key, open_only=True))
        theirs = [row for row in rows if not row.ours and row.payload is not None]
        return theirs[-1] if theirs else None

    def _is_back(self, twin: Twin, side: Side) -> bool:
        """Return whether the key holds a value of somebody else that was replaced, and is there again."""
        rows = [row for row in self._history.replaced(db=twin.new_db, key=twin.new_key) if not row.ours]
        return bool(rows) and rows[-1].payload is not None and digest(rows[-1].payload) == side.stands

    def _put_back(self, twin: Twin, replaced: Replaced) -> None:
        self._hand.watch([twin.new_key])
        (side,) = self._new_sides([twin])
        equal = self._equal([twin])
        if side is not None and self._not_ours(twin, side, twin in equal) is not None:
            self._done.add("kept", twin.new_db, twin.new_key, CHANGED)
            return
        if not self._hand.write:
            self._done.add("put_back", twin.new_db, twin.new_key)
            return
        assert replaced.payload is not None
        expire_ms = max(0, replaced.expire_ms)
        commands: list[Sequence[Argument]] = [("MULTI",), ("UNLINK", twin.new_key)]
        if not expire_ms or expire_ms > states.server_ms(self._hand.endpoint):
            commands.append(("RESTORE", twin.new_key, expire_ms, replaced.payload, "ABSTTL"))
        result = self._hand.endpoint.pipeline([*commands, ("EXEC",)])[-1]
        bad = result if isinstance(result, ReplyError) else next(
            (one for one in result or () if isinstance(one, ReplyError)), None
        )  # fmt: skip
        if result is None or bad is not None:
            why = "it was written meanwhile: run it again" if bad is None else bad.message
            self._done.add("failed", twin.new_db, twin.new_key, why)
            return
        self._hand.at("put_back")
        self._history.put_back(twin.new_db, twin.new_key)
        self._done.add("put_back", twin.new_db, twin.new_key)

    def _new_sides(self, twins: Sequence[Twin]) -> list[Side | None]:
        return read_sides(self._reader, self._plan.target_db, [twin.new_key for twin in twins])

    def _equal(self, twins: Sequence[Twin]) -> set[Twin]:
        equal: set[Twin] = set()
        for db in dict.fromkeys(twin.old_db for twin in twins):
            some = [twin for twin in twins if twin.old_db == db]
            codes = self._comparer.codes(db, self._plan.target_db, [(twin.old_key, twin.new_key) for twin in some])
            for place, twin in enumerate(some):
                code = codes[place : place + 1]
                close = code in (compare.DIFFERENT, compare.BIG)
                if code == compare.EQUAL or (close and self._twins.equal(twin)):
                    equal.add(twin)
        return equal

    # Streams that ticks were merged into

    def _joined(self, twin: Twin) -> None:
        """A copied stream with merged ticks: removed as a whole while it is ours and the ticks are elsewhere too."""
        self._hand.watch([twin.new_key])
        (side,) = self._new_sides([twin])
        if side is None:
            return
        equal = self._twins.equal(twin)  # but for merged ticks
        why = self._not_ours(twin, side, equal)
        if why is None and self._streams.nowhere_else(twin.new_key):
            why = ELSEWHERE
        if why:
            self._done.add("kept", twin.new_db, twin.new_key, why)
        elif why is None:
            done = self._hand.remove([twin.new_key])
            told = "" if done else "it was written meanwhile: run it again"
            self._done.add("removed" if done else "failed", twin.new_db, twin.new_key, told)


__all__ = ["Unmake"]
