"""The finish: clients write the new names only, and the old keys are removed. Nothing leads back from it.

An old key goes only while there is a new one that is equal, or was when both were last looked at, and only the new
one was written since: then the old one has nothing that counts. Its ticks and bars are put on the tape before it goes.
Ticks that are merged are merged once more, and go when they are in their stream. All others stay and are named. Killed
and run again, it goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from onetape.errors import EndpointError, GateRefused
from onetape.migrate.copying import compare
from onetape.migrate.copying.compare import Comparer
from onetape.migrate.landing.hash_ticks import HashTickReader
from onetape.migrate.landing.landing import TickLander
from onetape.migrate.landing.merge import missing
from onetape.migrate.ledger.entry import NOT_LANDED, Outcome
from onetape.migrate.phases import phase as phases
from onetape.migrate.phases import state as states
from onetape.migrate.phases.helm import Helm
from onetape.migrate.phases.history import History
from onetape.migrate.phases.move import Move
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import State, decode
from onetape.migrate.plans.plan import Plan, Rule
from onetape.migrate.report import EXIT_REFUSED, EXIT_SKIPS, key_text
from onetape.migrate.steps import census
from onetape.migrate.steps.course import done, nothing, planned
from onetape.migrate.steps.fence import saved
from onetape.migrate.verifying import sides as sides_file
from onetape.migrate.verifying.scan import Scan
from onetape.migrate.verifying.side import Side, read_sides
from onetape.migrate.verifying.sides import Sides
from onetape.migrate.verifying.twins import Twin, Twins
from onetape.migrate.wire.endpoint import Argument, Endpoint, ReplyError

_AT_ONCE = 50
_TICKS_AT_ONCE = 500
LISTED = 100

DIFFERS = "differs from its new key, and nothing says that this is because only the new one was written"
NO_NEW = "has no new key: it may be the last that is left of it"


class Removed(msgspec.Struct):
    """What became of old keys: "removed", "kept" or "busy" → keys, and the first of those kept in words."""

    counts: Counter[str] = msgspec.field(default_factory=Counter)
    kept: list[str] = []

    def keep(self, db: int, key: bytes, why: str) -> None:
        """Count one that stays."""
        self.counts["kept"] += 1
        if len(self.kept) < LISTED:
            self.kept.append(f"db {db} {key_text(key)}: {why}")

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**dict(self.counts), "kept_first": self.kept}


def finish(
    helm: Helm,
    *,
    lander: Callable[[Endpoint], TickLander],
    quiet_for_s: float,
    drop_differing: bool,
    force: bool,
    execute: bool,
) -> Move:
    """End the migration. See Migration.finish."""
    with helm.connect(writable=execute) as endpoint:
        now = states.required(helm.look(endpoint))
        if not force:
            helm.own(now)
        to = phases.step("finish", now.phase)
        lines = [] if now.phase is to else [f"{now.phase} becomes {to}: clients write the new names only; no way back"]
        reasons = _reasons(helm, endpoint, now, quiet_for_s)
        if not execute:
            with Removal(helm, endpoint, None, None, drop_differing) as removal:
                found = removal.run()
            if now.phase is to and not found.counts["removed"]:
                return nothing("finish", now, "the old keys are gone")
            lines += [f"{found.counts['removed']:,} old keys would be removed", *_kept(found)]
            lines += [f"it would be refused: {reason}" for reason in reasons]
            code = EXIT_REFUSED if reasons else 0
            return planned("finish", now, to, lines, found.kept, facts=found.to_dict(), exit_code=code)
        with helm.lease("finish") as lease, helm.history(endpoint) as history:
            history.reconcile(now)
            lines += [f"user {one.user} stays fenced: see onetape migrate unfence" for one in saved(history)]
            if reasons and not force:
                raise GateRefused(
                    f"old names are still in use: {'; '.join(reasons)}",
                    hint="nothing was changed; --force goes on all the same", reasons=reasons,
                )  # fmt: skip
            before = now.phase
            if before is not to:
                with helm.connect(writable=False) as reader:
                    now = _close(helm, endpoint, reader, now, to, "; ".join(reasons), lease.check)
            with Removal(helm, endpoint, history, lander(endpoint), drop_differing, lease.check) as removal:
                found = removal.run()
            if not found.counts["kept"]:
                sides_file.remove(sides_file.path_of(helm.ledger_path))
        if before is to and not found.counts["removed"]:
            return nothing("finish", now, "the old keys are gone" if not found.kept else "what is left was kept before")
        lines += [f"{found.counts['removed']:,} old keys were removed", *_kept(found)]
        code = EXIT_SKIPS if found.counts["kept"] else 0
        return done("finish", before, now, lines, found.kept, facts=found.to_dict(), exit_code=code)


def _kept(found: Removed) -> list[str]:
    number = found.counts["kept"]
    return [f"{number:,} old keys stay: nothing says that what they hold is elsewhere"] if number else []


def _reasons(helm: Helm, endpoint: Endpoint, now: State, quiet_for_s: float) -> list[str]:
    reasons = []
    named = {str(facts.get("name")) for facts in helm.clients(endpoint).values() if facts.get("name")}
    try:
        people = census.strangers(endpoint, helm.plan, named)
    except EndpointError as error:
        if error.facts.get("code") != "NOPERM":
            raise
        return [f"nobody may say who is connected: {error.message}"]
    if now.phase is not Phase.FINISHED:
        using = [one.line() for one in people if one.idle_s < quiet_for_s]
        if using:
            reasons.append(f"{len(using)} connections that are not ours use the old databases: {'; '.join(using[:5])}")
    return reasons


def _close(
    helm: Helm, endpoint: Endpoint, reader: Endpoint, now: State, to: Phase, reason: str, check: Callable[[], None]
) -> State:
    """Put down what both sides hold, and change the phase."""
    path = sides_file.path_of(helm.ledger_path)
    sides_file.remove(path)
    twins = Twins(reader, helm.plan)
    with Sides(path) as sides:
        sides.take(reader, twins, check)
        hot = sides.take(reader, twins, check)
        hot = sides.look(reader, hot)  # those that are written all the time: seen once more, right before the change
        sides.look(reader, hot)
    helm.at("sides_taken")
    check()
    found = states.required(helm.look(endpoint))
    return helm.shift(
        endpoint, "finish", found if found.phase is now.phase else now, to, forced=bool(reason), reason=reason
    )


class Removal:
    """Removes old keys, page by page. `history` None: a dry run, which only counts."""

    def __init__(
        self, helm: Helm, endpoint: Endpoint, history: History | None, lander: TickLander | None, drop_differing: bool,
        check: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._plan: Plan = helm.plan
        self._names = helm.names
        self._at = helm.at
        self._endpoint = endpoint
        self._history = history
        self._lander = lander
        self._drop = drop_differing
        self._check = check
        self._comparer = Comparer(endpoint)
        self._reader = helm.connect(writable=False)
        path = sides_file.path_of(helm.ledger_path)
        self._sides = Sides(path) if path.exists() else None
        self._twins = Twins(self._reader, self._plan)
        self._found = Removed()

    def __enter__(self) -> Removal:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._reader.close()
        if self._sides is not None:
            self._sides.close()

    def run(self) -> Removed:
        """Do it. Raises EndpointError, StateMoved."""
        for page in self._twins.old_side():
            for at in range(0, len(page), _AT_ONCE):
                self._check()
                self._remove(self._landed(page[at : at + _AT_ONCE]))
        for index, rule in enumerate(self._plan.rules):
            if rule.kind == "hash_ticks" and not rule.skip:
                for keys in self._keys_of(index, rule):
                    self._check()
                    self._remove_ticks(rule, keys)
        return self._found

    # Twins

    def _landed(self, twins: Sequence[Twin]) -> Sequence[Twin]:
        """Put the last of their ticks and bars on the tape, now that nobody adds any; return those that may go."""
        if self._lander is None:
            return twins
        going = []
        for twin in twins:
            rule = self._plan.rules[twin.rule]
            if rule.kind in ("ticks", "ohlc"):
                land = self._lander.stream if rule.kind == "ticks" else self._lander.ohlc
                result = land(twin.old_key, twin.old_db, rule)
                self._endpoint.db = -1
                if result.outcome in (Outcome.FAILED, Outcome.CHANGED_WHILE_COPYING):
                    self._found.keep(twin.old_db, twin.old_key, f"{NOT_LANDED}{result.error}")
                    continue
            going.append(twin)
        return going

    def _remove(self, twins: Sequence[Twin], attempt: int = 0) -> None:
        if not twins:
            return
        db = twins[0].old_db
        self._watch(db, [twin.old_key for twin in twins])
        codes = self._comparer.codes(db, self._plan.target_db, [(twin.old_key, twin.new_key) for twin in twins])
        going: list[Twin] = []
        kept: list[tuple[Twin, str]] = []
        for place, twin in enumerate(twins):
            code = codes[place : place + 1]
            why = "" if code == compare.EQUAL else self._why_not(twin, code)
            if not why:
                going.append(twin)
            elif why != "gone":
                kept.append((twin, why))
        if self._unlink(db, [twin.old_key for twin in going]):
            self._found.counts["removed"] += len(going)
            for twin, why in kept:
                self._found.keep(twin.old_db, twin.old_key, why)
        elif len(twins) > 1:
            for twin in twins:
                self._remove([twin])
        elif attempt < 5:
            self._remove(twins, attempt + 1)
        else:
            self._found.keep(twins[0].old_db, twins[0].old_key, "somebody writes it all the time")

    def _why_not(self, twin: Twin, code: bytes) -> str:
        """Return why an old key stays, "" if it may go; it is watched."""
        (old,) = read_sides(self._reader, twin.old_db, [twin.old_key])
        if old is None:
            return "gone"
        held = None if self._sides is None else self._sides.find(twin.old)
        there = code != compare.NO_TARGET
        if there and held is not None and old.is_what(*held):
            return ""  # only the new one was written since
        if there and self._twins.equal(twin):
            return ""
        if not self._drop:
            return DIFFERS if there else NO_NEW
        if self._history is not None:
            self._keep_value(twin, old)
        return ""

    def _keep_value(self, twin: Twin, old: Side) -> None:
        assert self._history is not None
        payload = old.payload
        if payload is None:
            self._endpoint.select(twin.old_db)
            payload = self._endpoint.call("DUMP", twin.old_key)
        self._history.keep([("finish", *twin.old, *twin.new, payload, old.expire_ms, False, DIFFERS)])

    # Ticks that are merged

    def _keys_of(self, index: int, rule: Rule) -> Iterator[list[bytes]]:
        matcher = self._plan.matcher(rule.source_db)
        scan = Scan(self._reader, rule.source_db, self._plan.scan_glob(rule.source_db))
        while not scan.done:
            hits = [(key, hit) for key in scan.first() if (hit := matcher.match(key)) is not None]
            typed = [key for key, hit in hits if hit[1].types]
            self._reader.select(rule.source_db)
            kinds = dict(zip(typed, self._reader.pipeline([("TYPE", key) for key in typed]), strict=True))
            keys = []
            for key, first in hits:
                kind = kinds.get(key)
                hit = first if kind is None else matcher.match_type(key, kind.decode())
                if hit is not None and hit[0] == index:
                    keys.append(key)
            if keys:
                yield keys

    def _remove_ticks(self, rule: Rule, keys: list[bytes]) -> None:
        why: dict[bytes, str] = {}
        if self._lander is not None:
            bad = (Outcome.FAILED, Outcome.CHANGED_WHILE_COPYING)
            for result in self._lander.hash_ticks(keys, rule.source_db, rule):
                if result.outcome in bad:
                    why[result.key] = result.error or str(result.outcome)
            self._endpoint.db = -1
        self._watch(rule.source_db, keys)
        ticks, _decoded = HashTickReader(self._reader, self._plan.timezone).read(keys, rule.source_db, rule)
        self._reader.select(self._plan.target_db)
        going: list[bytes] = []
        for stream in dict.fromkeys(tick.stream for tick in ticks):
            some = [tick for tick in ticks if tick.stream == stream and not tick.gone]
            merged = [tick for tick in some if tick.why is None]
            absent = {entry.identity for entry in missing(self._reader, stream, [tick.entry() for tick in merged])}
            for tick in some:
                if tick.why is None and tick.identity not in absent and tick.key not in why:
                    going.append(tick.key)
                else:
                    told = why.get(tick.key) or tick.why or "its tick is not in the stream"
                    self._found.keep(rule.source_db, tick.key, told)
        if self._unlink(rule.source_db, going):
            self._found.counts["removed"] += len(going)
        else:
            for key in going:
                self._found.keep(rule.source_db, key, "it was written meanwhile: run it again")

    # Under WATCH

    def _watch(self, db: int, keys: Sequence[bytes]) -> None:
        if self._history is None:
            return
        commands: list[Sequence[Argument]] = [
            ("UNWATCH",), ("SELECT", self._names.db), ("WATCH", self._names.state), ("GET", self._names.state),
            ("SELECT", db), ("WATCH", *keys),
        ]  # fmt: skip
        replies = self._endpoint.pipeline(commands)
        self._endpoint.db = -1
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise EndpointError(f"WATCH: {reply.message}", code=reply.code)
        if replies[3] is None or decode(replies[3]).phase is not Phase.FINISHED:
            raise EndpointError("the state is not finished any more", hint="look at onetape migrate status")

    def _unlink(self, db: int, keys: Sequence[bytes]) -> bool:
        """Remove watched keys; False where something changed, and then nothing was done."""
        if self._history is None or not keys:
            return True
        commands: list[Sequence[Argument]] = [("SELECT", db), ("MULTI",), ("UNLINK", *keys), ("EXEC",)]
        result = self._endpoint.pipeline(commands)[-1]
        self._endpoint.db = -1
        if isinstance(result, ReplyError):
            raise EndpointError(f"UNLINK: {result.message}", code=result.code)
        self._at("unlinked")
        return result is not None


__all__ = ["Removal", "Removed", "finish"]
