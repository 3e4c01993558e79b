"""The cutover: the new names become the truth, for all clients at one instant, once the gate finds nothing against it.

Everything that can fail comes before the change of the state, which is one transaction under its version; what was set
up for it (a fence) is taken down where it is not made.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from onetape.errors import EndpointError, GateRefused, PhaseRefused
from onetape.migrate.phases import phase as phases
from onetape.migrate.phases import state as states
from onetape.migrate.phases.helm import Helm
from onetape.migrate.phases.history import History
from onetape.migrate.phases.move import Move
from onetape.migrate.phases.state import State
from onetape.migrate.report import EXIT_REFUSED
from onetape.migrate.steps import fence as fences
from onetape.migrate.steps import gate as gates
from onetape.migrate.steps.course import done, nothing, planned
from onetape.migrate.steps.gate import Gated, Limits
from onetape.migrate.wire.endpoint import Endpoint, ReplyError, parse_info

_SAVE_S = 600.0
_AOF_MS = 10_000
_DURABLE_MS = 60_000


def cutover(
    helm: Helm, *, limits: Limits, users: Sequence[str], force: bool, execute: bool, force_reason: str = ""
) -> Move:
    """Make the new names the truth. See Migration.cutover."""
    with helm.connect(writable=execute) as endpoint:
        now = states.required(helm.look(endpoint))
        helm.own(now)
        to = phases.step("cutover", now.phase)
        if now.phase is to:
            return nothing("cutover", now, "the new names are the truth already")
        lines = [
            f"{now.phase} becomes {to}: the new names are the truth, from one instant on, for all clients",
            "every write goes to the new name first and on to the old one, until finish: a rollback loses nothing",
        ]
        if not execute:
            return _dry(helm, endpoint, now, limits, users, lines)
        with helm.lease("cutover") as lease, helm.history(endpoint) as history:
            history.reconcile(now)
            if users and not force:  # a fence stops writers: only where nothing else speaks against the cutover
                fences.plan_fence(endpoint, helm.plan, users)
                early = gates.look(helm, endpoint, now, limits)
                if early.reasons:
                    raise _refused(early)
            warnings = _fence(helm, endpoint, history, users, lines)
            try:
                if limits.save:
                    _save(endpoint)
                gated = gates.look(helm, endpoint, now, limits)
                _durable(helm, endpoint, limits, gated)
                if gated.reasons and not force:
                    raise _refused(gated)
                lease.check()
                reason = force_reason
                if gated.reasons:
                    reason = "; ".join(filter(None, [force_reason, "forced against: " + "; ".join(gated.reasons)]))
                now = _same_phase(helm, endpoint, now)
                after = helm.shift(endpoint, "cutover", now, to, forced=bool(gated.reasons), reason=reason)
            except BaseException:
                _unfence(helm, endpoint, history)
                raise
            helm.at("cut_over")
            warnings += [*gated.warnings, *(f"overridden: {reason}" for reason in gated.reasons)]
            warnings += _tidy(helm, endpoint, gated, limits)
        return done("cutover", now.phase, after, lines, warnings, facts={"overridden": gated.reasons})


def _dry(helm: Helm, endpoint: Endpoint, now: State, limits: Limits, users: Sequence[str], lines: list[str]) -> Move:
    gated = gates.look(helm, endpoint, now, limits)
    if users:
        try:
            fenced, warnings = fences.plan_fence(endpoint, helm.plan, users)
            gated.warnings += warnings
            lines += [f"user {one.user} could no longer write old names" for one in fenced]
        except GateRefused as refused:
            gated.reasons += refused.facts["reasons"]
    lines.append("the gate is open" if not gated.reasons else "it would be refused:")
    lines += [f"  {reason}" for reason in gated.reasons]
    code = EXIT_REFUSED if gated.reasons else 0
    facts = {"reasons": gated.reasons}
    return planned("cutover", now, phases.Phase.CUT_OVER, lines, gated.warnings, facts=facts, exit_code=code)


def _refused(gated: Gated) -> GateRefused:
    return GateRefused(
        f"the cutover is not safe yet: {'; '.join(gated.reasons)}",
        hint="nothing was changed; --force goes on all the same, and says so in the history",
        reasons=gated.reasons,
    )


def _same_phase(helm: Helm, endpoint: Endpoint, before: State) -> State:
    """Return the state as it is now, where only settings were changed meanwhile that do not speak against it."""
    now = states.required(helm.look(endpoint))
    mattering = ("phase", "postponed", "read_share", "paused", "mirrored")
    if any(getattr(now, name) != getattr(before, name) for name in mattering):
        raise PhaseRefused(
            "the migration's state was changed while the gate was looked at", hint="run it again", phase=str(now.phase)
        )
    return now


def _fence(helm: Helm, endpoint: Endpoint, history: History, users: Sequence[str], lines: list[str]) -> list[str]:
    if not users:
        return []
    fenced, warnings = fences.plan_fence(endpoint, helm.plan, users)
    fences.put_up(endpoint, history, fenced)
    helm.at("fenced")
    lines += [f"user {one.user} can no longer write old names; a rollback gives it its rights back" for one in fenced]
    return warnings


def _unfence(helm: Helm, endpoint: Endpoint, history: History) -> None:
    """Take the fence down after a cutover that was not made, on a new connection where the old one is lost."""
    if not fences.saved(history):
        return
    if not endpoint.closed:
        fences.unfence(endpoint, history)
        return
    with helm.connect() as again:
        fences.unfence(again, history)


def _save(endpoint: Endpoint) -> None:
    """Let the server save a snapshot, and wait for it. Raises EndpointError."""
    info = parse_info(endpoint.call("INFO", "persistence"))
    if info.get("aof_enabled") == "1":
        return
    before = int(info.get("rdb_last_save_time", "0"))
    until_s = time.monotonic() + _SAVE_S
    while int(states.server_ms(endpoint)) // 1000 <= before:
        time.sleep(0.05)  # LASTSAVE is in whole seconds: a save within the same one could not be told
    reply = endpoint.pipeline([("BGSAVE", "SCHEDULE")])[0]
    if isinstance(reply, ReplyError) and "in progress" not in reply.message:
        raise EndpointError(f"BGSAVE: {reply.message}", hint="nothing was changed")
    while time.monotonic() < until_s:
        info = parse_info(endpoint.call("INFO", "persistence"))
        if info.get("rdb_bgsave_in_progress") == "0":
            if info.get("rdb_last_bgsave_status") != "ok":
                raise EndpointError("the snapshot could not be saved", hint="see the server's log; nothing was changed")
            if int(info.get("rdb_last_save_time", "0")) > before:
                return
        time.sleep(0.1)
    raise EndpointError(f"the snapshot was not saved within {_SAVE_S:.0f} s", hint="nothing was changed")


def _durable(helm: Helm, endpoint: Endpoint, limits: Limits, gated: Gated) -> None:
    """Where the server logs, wait until all that was written up to now is on its disk."""
    if limits.volatile_ok or parse_info(endpoint.call("INFO", "persistence")).get("aof_enabled") != "1":
        return
    told = _wait_aof(helm, endpoint)
    if told:
        gated.warnings.append(told)
    elif told is None:
        gated.reasons.append(f"durability: the append-only file was not on disk within {_AOF_MS // 1000} s")


def _wait_aof(helm: Helm, endpoint: Endpoint) -> str | None:
    """Return "" once a write made now, and so all before it, is on disk; None in vain; or why it cannot be known."""
    endpoint.select(helm.names.db)
    key = helm.names.state + b":durable"  # WAITAOF waits for writes of its own connection
    replies = endpoint.pipeline([("SET", key, "1", "PX", _DURABLE_MS), ("WAITAOF", 1, 0, _AOF_MS)])
    if isinstance(replies[0], ReplyError):
        return f"durability: {replies[0].message}"
    if isinstance(replies[1], ReplyError):
        if "unknown command" in replies[1].message:
            return "this server cannot say when its append-only file is on disk (WAITAOF comes with 7.2)"
        return f"WAITAOF: {replies[1].message}"
    return "" if replies[1][0] >= 1 else None


def _tidy(helm: Helm, endpoint: Endpoint, gated: Gated, limits: Limits) -> list[str]:
    """After the change: nothing here may undo it, so what fails is told."""
    try:
        helm.forget_diverged(endpoint, gated.settled)
        if not limits.volatile_ok and parse_info(endpoint.call("INFO", "persistence")).get("aof_enabled") == "1":
            told = _wait_aof(helm, endpoint)
            return ["the new state is not on the server's disk yet"] if told is None else []
    except EndpointError as error:
        return [f"after the change: {error.message}"]
    return []


__all__ = ["cutover"]
