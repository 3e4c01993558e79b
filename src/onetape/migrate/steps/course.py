"""The course: the commands that only change the state: start, switch-reads, and the settings. And steps on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from onetape.errors import ConfigInvalid, PhaseRefused, StateLost, StateMoved
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.phases import phase as phases
from onetape.migrate.phases import state as states
from onetape.migrate.phases.helm import Helm
from onetape.migrate.phases.history import DONE, History
from onetape.migrate.phases.move import Move
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import State
from onetape.migrate.routes import Routes
from onetape.migrate.steps import again
from onetape.migrate.steps.owned import Owned
from onetape.migrate.throttling.throttle import Settings
from onetape.migrate.verifying.twins import Twin, Twins
from onetape.migrate.verifying.verdict import LISTED, Finding, Verification
from onetape.migrate.wire.endpoint import Endpoint

_ATTEMPTS = 8
#: Said where a migration begins again with a ledger that knows nothing of its earlier time.
STRANGE = (
    "both sides were written before, and this ledger knows nothing of it: give the one of that time (--ledger), "
    "if it is there; else a new key without an old one may be one that was deleted meanwhile"
)
#: What a verify may list without a reader of the new names being told something else than a reader of the old ones:
#: rules that skip, ticks that no tape can hold, and keys of the target that never had a source.
HARMLESS = frozenset({Finding.SKIPPED, Finding.LATER, Finding.NOT_A_TICK, Finding.EXTRA})


def start(helm: Helm, *, mirrored: bool | None, execute: bool) -> Move:
    """Begin the live migration: from now on clients write both sides. Or write back a state that the server forgot."""
    Routes(helm.plan)  # raises ConfigInvalid for names that cannot be turned round
    with helm.connect(writable=execute) as endpoint:
        try:
            now = helm.look(endpoint)
        except StateLost as lost:
            return _restore(helm, endpoint, lost, mirrored, execute)
        before = Phase.PLANNED if now is None else now.phase
        strange = now is not None and not helm.knows()
        if before is not Phase.PLANNED:
            helm.own(now)
        to = phases.step("start", before)
        wanted = (now.mirrored if now else False) if mirrored is None else mirrored
        if now is not None and now.phase is to and now.mirrored == wanted and not again.due(helm):
            return nothing("start", now, "both sides are written already")
        lines = [
            f"from now on every client of onetape writes old and new names in one transaction: {before} becomes {to}",
            "the old names stay the truth; readers see no difference",
        ]
        merged = sorted({rule.step for rule in helm.plan.rules if rule.kind == "hash_ticks" and not rule.skip})
        if merged:
            lines.append(
                f"keys of {', '.join(merged)} that are merged into streams are brought over by the backfill alone"
            )
        if wanted:
            lines.append("there are writers that cannot be changed: run onetape migrate mirror beside them")
        if again.due(helm):
            lines.append("new keys of an earlier time of dual writing are made what their old ones are now")
        warnings = [STRANGE] if strange else []
        if not execute:
            return planned("start", now, to, lines, warnings)
        with helm.lease("start") as lease:
            if now is not None and strange:
                _adopt(helm, endpoint, now)
            _note_found(helm, endpoint)
            after = helm.shift(endpoint, "start", now, to, mirrored=wanted)
            if again.due(helm):
                with helm.history(endpoint) as history:
                    followed = again.follow(helm, endpoint, history, lease.check)
                lines += followed.lines("new")
                warnings += followed.failed
        return done("start", before, after, lines, warnings)


def _adopt(helm: Helm, endpoint: Endpoint, now: State) -> None:
    """Put down that this is not the first time of dual writing, which this ledger does not know of."""
    with helm.history(endpoint) as history:
        history.end(history.intend("start", now.phase, now.phase, states.operator(), STRANGE, False), now)


def _note_found(helm: Helm, endpoint: Endpoint) -> None:
    """Before the first write to both sides: put down new keys that are there and that no backfill of ours made.

    Afterwards nothing could tell them from those that our clients write, and an undo must not take them.
    """
    with helm.history(endpoint) as history:
        if any(transition.outcome == DONE for transition in history.transitions()):
            return
    endpoint.select(helm.plan.target_db)
    if not endpoint.call("DBSIZE"):
        return
    with helm.connect(writable=False) as reader, Ledger.open(helm.ledger_path, mode="r") as ledger:
        owned, twins = Owned(ledger), Twins(reader, helm.plan)
        with helm.history(endpoint) as history:
            for pages in (twins.old_side(), twins.without_old()):
                for page in pages:
                    there = twins.there([twin.new for twin in page])
                    strange = [twin.new for twin in page if twin.new in there and not made_by_us(owned, twin)]
                    history.note_found(strange)
            history.note_found([(helm.plan.target_db, one.new_key) for one in twins.unplaced])
        owned.close()


def made_by_us(owned: Owned, twin: Twin) -> bool:
    """Return whether the ledger says that we made the new key."""
    known = owned.find(twin)
    return known is not None and known[2]


def _restore(helm: Helm, endpoint: Endpoint, lost: StateLost, mirrored: bool | None, execute: bool) -> Move:
    known = Phase(lost.facts["phase"])
    if known is Phase.CUT_OVER:
        raise lost
    to = known if known in (Phase.FINISHED, Phase.PLANNED) else Phase.DUAL_WRITING
    lines = [lost.message, f"the state is written anew as {to}, with a version that no client can know yet"]
    if to is Phase.DUAL_WRITING:
        lines.append("data of the target may be gone with it: backfill, verify and switch again")
    if not execute:
        return planned("start", None, to, lines, before=known)
    with helm.lease("start"):
        found = states.load(endpoint, helm.plan)
        floor = helm.restored_floor(endpoint)
        fields: dict[str, Any] = {} if mirrored is None else {"mirrored": mirrored}
        reason = f"written anew: {lost.message}"
        after = helm.shift(
            endpoint, "start", found, to, floor=floor, read_share=0.0, shadow_share=0.0, reason=reason, **fields
        )  # fmt: skip
    return done("start", known, after, lines)


def switch_reads(helm: Helm, *, share: float | None, shadow: float | None, execute: bool) -> Move:
    """Let readers ask the new names first, for a share of reads; compare a share of reads with the other side."""
    for name, value in (("share", share), ("shadow", shadow)):
        if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
            raise ConfigInvalid(f"{name} = {value}", hint="a share from 0 to 1")
    with helm.connect(writable=execute) as endpoint:
        now = states.required(helm.look(endpoint))
        helm.own(now)
        to = phases.step("switch-reads", now.phase)
        share = now.read_share if share is None else share
        shadowed = now.shadow_share if shadow is None else shadow
        if now.phase is to and (now.read_share, now.shadow_share) == (share, shadowed):
            return nothing("switch-reads", now, f"{share:.0%} of reads go to the new names first already")
        lines = [f"{share:.0%} of reads go to the new names first, and to the old ones where there is no new key"]
        if shadowed:
            lines.append(f"{shadowed:.0%} of reads are compared with the other side, behind their callers' backs")
        if now.phase is not to:
            lines.append(f"{now.phase} becomes {to}")
        warnings = []
        diverged = len(helm.diverged(endpoint))
        if diverged:
            warnings.append(f"{diverged:,} keys diverged since: onetape migrate verify --repair settles them")
        if not execute:
            return planned("switch-reads", now, to, lines, warnings)
        with helm.lease("switch-reads"):
            after = helm.shift(endpoint, "switch-reads", now, to, read_share=share, shadow_share=shadowed)
        return done("switch-reads", now.phase, after, lines, warnings)


def advance(helm: Helm, endpoint: Endpoint, command: str, since: State) -> State:
    """Move to the phase that a command leads to, as its work is done; settings changed meanwhile stay.

    `since`: the state that the work began with. Raises StateMoved where the phase was left since, even if it is back.
    """
    for attempt in range(_ATTEMPTS):
        now = states.required(helm.look(endpoint))
        to = phases.step(command, now.phase)
        if now.phase is to:
            return now
        if now.entered != since.entered:
            raise StateMoved(
                f"the phase {now.phase} was left and entered again while this was at work",
                hint=f"what it found is not of this time: onetape migrate {command} again",
            )
        try:
            return helm.shift(endpoint, command, now, to)
        except StateMoved:
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def harmful(result: Verification, *, again: bool = False) -> dict[str, int]:
    """Return finding → keys, of what a verify lists and what a reader of the new names would notice.

    `again`: both sides were written before, and then the old one alone: so a new key without an old one may be one that
    was deleted meanwhile.
    """
    found: dict[str, int] = {}
    harmless = HARMLESS - {Finding.EXTRA} if again else HARMLESS
    for counts in result.counts.values():
        for name, number in counts.items():
            if Finding(name) in LISTED - harmless and number:
                found[name] = found.get(name, 0) + number
    return found


def proven(result: Verification, *, again: bool = False) -> bool:
    """Return whether a verify proves that readers may go to the new names. `again`: as of harmful()."""
    return not result.sampled and result.exit_code in (0, 3) and not harmful(result, again=again)


def was_left(history: History) -> bool:
    """Return whether both sides were written before, and a way back led to the start."""
    return any(one.outcome == DONE and one.after == Phase.PLANNED for one in history.transitions())


def setting(helm: Helm, command: str, line: str, **fields: Any) -> Move:
    """Change settings of the state at once: they bind nobody, and can be changed back."""
    with helm.connect() as endpoint:
        before = states.required(helm.look(endpoint))
        if before.phase is Phase.FINISHED:
            raise PhaseRefused("the migration is finished: there is nothing to set", phase=str(before.phase))
        after = helm.set(endpoint, **fields)
        if after.version == before.version:
            return nothing(command, after, line)
        return done(command, before.phase, after, [line])


def throttle(helm: Helm, settings: Mapping[str, Any], *, clear: bool) -> Move:
    """Change the throttle's settings; one that is None is taken out."""
    with helm.connect() as endpoint:
        now = states.required(helm.look(endpoint))
    merged = {**({} if clear else now.throttle), **settings}
    kept = {name: value for name, value in merged.items() if value is not None}
    throttle_settings(kept)
    told = ", ".join(f"{name} = {value}" for name, value in sorted(kept.items())) or "no settings: as fast as it may"
    return setting(helm, "throttle", f"throttle: {told}", throttle=kept)


def throttle_settings(given: Mapping[str, Any]) -> Settings:
    """Return settings of the throttle. Raises ConfigInvalid, naming the one that cannot be."""
    try:
        return msgspec.convert({name: value for name, value in given.items() if value is not None}, Settings)
    except (msgspec.ValidationError, ValueError) as error:
        names = ", ".join(Settings.__struct_fields__)
        raise ConfigInvalid(f"throttle: {error}", hint=f"settings are {names}") from error


def nothing(command: str, now: State | None, line: str) -> Move:
    """Return the move of a command that finds everything as it would make it."""
    phase = Phase.PLANNED if now is None else now.phase
    version = 0 if now is None else now.version
    return Move(
        command=command, before=str(phase), after=str(phase), executed=True, changed=False, version=version,
        lines=(f"nothing to change: {line}",),
    )  # fmt: skip


def planned(
    command: str, now: State | None, to: Phase, lines: list[str], warnings: list[str] | None = None,
    *, before: Phase | None = None, facts: dict[str, Any] | None = None, exit_code: int = 0,
) -> Move:  # fmt: skip
    """Return the move of a dry run."""
    phase = before or (Phase.PLANNED if now is None else now.phase)
    return Move(
        command=command, before=str(phase), after=str(to), executed=False, changed=True,
        version=0 if now is None else now.version, lines=tuple(lines), warnings=tuple(warnings or ()),
        facts=facts or {}, exit_code=exit_code,
    )  # fmt: skip


def done(
    command: str, before: Phase, after: State, lines: list[str], warnings: list[str] | None = None,
    *, facts: dict[str, Any] | None = None, exit_code: int = 0,
) -> Move:  # fmt: skip
    """Return the move of what was carried out."""
    return Move(
        command=command, before=str(before), after=str(after.phase), executed=True, changed=True, version=after.version,
        lines=tuple(lines), warnings=tuple(warnings or ()), facts=facts or {}, exit_code=exit_code,
    )  # fmt: skip


__all__ = ["HARMLESS", "advance", "done", "harmful", "nothing", "planned", "proven", "setting", "start", "switch_reads",
           "was_left"]  # fmt: skip
