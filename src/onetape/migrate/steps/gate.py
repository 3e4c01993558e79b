"""The gate: whether a cutover is safe now, and every reason why it is not, each with its numbers. Writes nothing.

Who wants to go on all the same overrides the reasons, and they are in the history.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from onetape.errors import EndpointError
from onetape.migrate.mirror.status import decode_status
from onetape.migrate.phases import state as states
from onetape.migrate.phases.helm import Helm
from onetape.migrate.phases.history import History
from onetape.migrate.phases.state import State
from onetape.migrate.report import key_text
from onetape.migrate.routes import Routes
from onetape.migrate.steps import census
from onetape.migrate.steps.reverse import pending
from onetape.migrate.verifying.twins import Twin, Twins
from onetape.migrate.wire.endpoint import Endpoint, parse_info

#: A client that said nothing for longer stands still: it says something every second.
FRESH_MS = 10_000
_ACKNOWLEDGE_S = 5.0
_DIVERGED_MAX = 10_000
_NAMED = 5
_MEMORY_MAX = 0.95


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate asks for.

    `fallback_max`: share of reads that may fall back to the old names, over `fallback_for_s` (readers tell of 60 and
    600 s). `quiet_for_s`: so long nobody but our clients has written old names. `verified_within_s`: so old may the
    last proven verify be. `lag_max_ms`: of the mirror. `volatile_ok`: the server may keep nothing on disk. `save`: let
    it save a snapshot now, where it does not log.
    """

    fallback_max: float = 0.05
    fallback_for_s: float = 60.0
    quiet_for_s: float = 300.0
    verified_within_s: float = 3600.0
    lag_max_ms: float = 1000.0
    volatile_ok: bool = False
    save: bool = False


class Gated(msgspec.Struct):
    """What the gate found. `settled`: diverged keys that are equal again, with what was told of them."""

    reasons: list[str] = []
    warnings: list[str] = []
    settled: dict[bytes, dict[str, Any]] = {}


def look(helm: Helm, endpoint: Endpoint, now: State, limits: Limits) -> Gated:
    """Return every reason against a cutover. `endpoint` may be one that cannot write."""
    found = Gated()
    at_ms = states.server_ms(endpoint)
    _switches(helm, now, found)
    _verified(helm, endpoint, limits, at_ms, found)
    _clients(helm, endpoint, now, limits, found)
    _writers(helm, endpoint, limits, found)
    if now.mirrored:
        _mirror(helm, endpoint, limits, at_ms, found)
    _memory(endpoint, found)
    _durable(helm, endpoint, limits, found)
    return found


def _switches(helm: Helm, now: State, found: Gated) -> None:
    if now.postponed:
        found.reasons.append("the cutover is postponed: onetape migrate cutover --unpostpone")
    if now.paused:
        found.reasons.append("the migration is paused: onetape migrate resume")
    if now.read_share < 1:
        found.reasons.append(f"only {now.read_share:.0%} of reads go to the new names first, not all")
    if pending(helm, now):
        found.reasons.append("a rollback was not finished: onetape migrate rollback --execute ends it")


def _verified(helm: Helm, endpoint: Endpoint, limits: Limits, at_ms: int, found: Gated) -> None:
    verdict, verified_ms, proven = None, 0, False
    if helm.ledger_path.exists():
        with History(helm.ledger_path, mode="r") as history:
            verdict = history.value("verdict")
            verified_ms = int(history.value("verified_ms") or 0)
            proven = history.value("verified") == "1"
    age_s = (at_ms - verified_ms) / 1000
    if not verified_ms:
        found.reasons.append("the ledger knows of no verify since the migration began, or came back from a cutover")
    elif not proven:
        found.reasons.append(f"the last verify, {age_s:,.0f} s ago, did not prove that both sides are equal: {verdict}")
    elif age_s > limits.verified_within_s:
        found.reasons.append(f"the last verify is {age_s:,.0f} s old, more than {limits.verified_within_s:,.0f} s")
    _diverged(helm, endpoint, verified_ms, found)


def settled(helm: Helm, endpoint: Endpoint) -> dict[bytes, dict[str, Any]]:
    """Return the keys on the list of those that diverged that are equal again, with what was told of them."""
    found = Gated()
    _diverged(helm, endpoint, 0, found)
    return found.settled


def _diverged(helm: Helm, endpoint: Endpoint, verified_ms: int, found: Gated) -> None:
    """Look at the keys that diverged: those that are equal again count no more."""
    diverged = helm.diverged(endpoint)
    twins, routes = Twins(endpoint, helm.plan), Routes(helm.plan)
    newest_ms, unequal = 0, []
    if len(diverged) > _DIVERGED_MAX:
        found.reasons.append(
            f"{len(diverged):,} keys diverged, of which {_DIVERGED_MAX:,} were looked at: verify again"
        )
    for field, facts in list(diverged.items())[:_DIVERGED_MAX]:
        twin = twin_of(routes, field)
        if twin is None or not twins.unequal([twin]):
            found.settled[field] = facts
            continue
        unequal.append(key_text(field))
        at_ms = facts.get("at_ms")
        newest_ms = max(newest_ms, at_ms if isinstance(at_ms, int) else 0)
    if unequal:
        after = " after the last verify" if newest_ms > verified_ms else ""
        found.reasons.append(f"{len(unequal):,} keys diverged{after} and differ now: {_some(unequal)}")


def twin_of(routes: Routes, field: bytes) -> Twin | None:
    """Return the pair that a field of the diverged keys names, b"DB:OLD KEY", None where it names none."""
    db, _, key = field.partition(b":")
    route = routes.of(int(db), key) if db.isdigit() else None
    if route is None or route.merged or route.shared:
        return None
    index = routes.plan.rules.index(route.rule)
    return Twin(route.old_db, route.old_key, route.new_db, route.new_key, index, route.joined)


def _clients(helm: Helm, endpoint: Endpoint, now: State, limits: Limits, found: Gated) -> None:
    until_s = time.monotonic() + _ACKNOWLEDGE_S
    while True:
        clients = helm.clients(endpoint)
        at_ms = states.server_ms(endpoint)
        live = {id: facts for id, facts in clients.items() if at_ms - _number(facts.get("at_ms")) <= FRESH_MS}
        late = {id: facts for id, facts in live.items() if _number(facts.get("version")) < now.version}
        if not late or time.monotonic() > until_s:
            break
        time.sleep(0.2)
    for id, facts in late.items():
        found.reasons.append(
            f"{_who(id, facts)} goes by version {facts.get('version')} of the state, not {now.version}"
        )  # fmt: skip
    names = _connected(endpoint)
    for id, facts in clients.items():
        if id in live:
            continue
        age_s = (at_ms - _number(facts.get("at_ms"))) / 1000
        if names is not None and any(id in name for name in names):
            found.reasons.append(
                f"{_who(id, facts)} is connected and has said nothing for {age_s:,.0f} s: it stands still"
            )
        else:
            found.warnings.append(f"{_who(id, facts)} ended without a word, {age_s:,.0f} s ago")
    _fallbacks(live, limits, found)
    if not live:
        found.warnings.append("no client of onetape says that it is at work")


def _fallbacks(live: dict[str, dict[str, Any]], limits: Limits, found: Gated) -> None:
    rate = "fallback_rate_60s" if limits.fallback_for_s <= 60 else "fallback_rate_600s"
    over = [
        f"{_who(id, facts)}: {facts[rate]:.1%}"
        for id, facts in live.items()
        if isinstance(facts.get(rate), int | float) and facts[rate] > limits.fallback_max
    ]
    if over:
        span = 60 if rate == "fallback_rate_60s" else 600
        found.reasons.append(
            f"more than {limits.fallback_max:.1%} of reads fell back to old names within {span} s: {_some(over)}"
        )
    mismatches = sum(_number(facts.get("mismatches")) for facts in live.values())
    if mismatches:
        found.warnings.append(f"shadow reads found {mismatches:,} mismatches since their readers began")


def _writers(helm: Helm, endpoint: Endpoint, limits: Limits, found: Gated) -> None:
    named = {str(facts.get("name")) for facts in helm.clients(endpoint).values() if facts.get("name")}
    try:
        people = census.watched(endpoint, helm.plan, named)
    except EndpointError as error:
        if error.facts.get("code") != "NOPERM":
            raise
        found.reasons.append(f"nobody may say who is connected: {error.message}")
        people = []
    writing = [one for one in people if one.writes and one.idle_s < limits.quiet_for_s]
    if writing:
        found.reasons.append(
            f"{len(writing)} connections that are not ours wrote, or may have written, on the old databases within "
            f"{limits.quiet_for_s:,.0f} s: {_some([one.line() for one in writing])}"
        )
    others = [one for one in people if one not in writing]
    if others:
        found.warnings.append(
            f"{len(others)} connections that are not ours are on the old databases, and none was seen to write: "
            + _some([one.line() for one in others])
        )
    sampled = census.touched(endpoint, helm.plan, within_s=limits.quiet_for_s)
    if sampled.different:
        found.reasons.append(
            f"of {sampled.pairs:,} pairs looked at now, {sampled.different:,} differ: {_some(list(sampled.first))}"
        )
    if sampled.touched:
        found.warnings.append(
            f"of {sampled.pairs:,} pairs looked at, {sampled.touched:,} old keys were touched within "
            f"{limits.quiet_for_s:,.0f} s and their new ones were not: {_some(list(sampled.first_touched))}"
        )


def _mirror(helm: Helm, endpoint: Endpoint, limits: Limits, at_ms: int, found: Gated) -> None:
    endpoint.select(helm.names.db)
    status = decode_status(endpoint.call("GET", helm.names.mirror))
    if status is None or at_ms - status.at_ms > FRESH_MS:
        found.reasons.append("the mirror says nothing: run onetape migrate mirror, for there are writers that need it")
        return
    if status.lag_ms is None or status.lag_ms > limits.lag_max_ms:
        lag = "unknown, no hints come in" if status.lag_ms is None else f"{status.lag_ms:,.0f} ms"
        found.reasons.append(f"the mirror's lag is {lag}, and may be {limits.lag_max_ms:,.0f} ms")
    if status.failed or status.kept:
        found.reasons.append(f"the mirror left {status.kept:,} keys as they are, and failed {status.failed:,} times")
    if status.foreign_writes_at_ms is not None:
        quiet_s = (at_ms - status.foreign_writes_at_ms) / 1000
        if quiet_s < limits.quiet_for_s:
            found.reasons.append(
                f"the mirror followed a write to old names alone {quiet_s:,.0f} s ago, less than "
                f"{limits.quiet_for_s:,.0f} s: after the cutover it would be lost"
            )


def _memory(endpoint: Endpoint, found: Gated) -> None:
    info = _info(endpoint, "memory")
    limit, used = int(info.get("maxmemory", "0") or 0), int(info.get("used_memory", "0") or 0)
    policy = info.get("maxmemory_policy", "noeviction")
    if limit and used > _MEMORY_MAX * limit:
        found.reasons.append(f"memory: {used / limit:.0%} of maxmemory is used, and may be {_MEMORY_MAX:.0%}")
    if limit and policy.startswith("allkeys-"):
        found.reasons.append(f"maxmemory-policy {policy}: it may evict new keys without an error")


def _durable(helm: Helm, endpoint: Endpoint, limits: Limits, found: Gated) -> None:
    info = _info(endpoint, "persistence")
    if info.get("aof_enabled") == "1":
        if info.get("aof_last_write_status", "ok") != "ok":
            found.reasons.append("durability: the last write of the append-only file failed")
        return  # whether it is on disk is waited for when the cutover is made
    if limits.volatile_ok:
        return
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        found.reasons.append("durability: the last save of a snapshot failed")
    if limits.save:
        return  # made before the change
    verified_ms = 0
    if helm.ledger_path.exists():
        with History(helm.ledger_path, mode="r") as history:
            verified_ms = int(history.value("verified_ms") or 0)
    saved_s = int(info.get("rdb_last_save_time", "0") or 0)
    if int(info.get("rdb_saves", "1") or 0) == 0 or saved_s * 1000 < verified_ms:
        changes = int(info.get("rdb_changes_since_last_save", "0") or 0)
        found.reasons.append(
            f"durability: no append-only file, and {changes:,} changes since the last snapshot, which is older than "
            "the last verify: --save makes one, --volatile-ok does without"
        )


def _info(endpoint: Endpoint, section: str) -> dict[str, str]:
    try:
        return parse_info(endpoint.call("INFO", section))
    except EndpointError as error:
        if error.facts.get("code") != "NOPERM":
            raise
        return {}


def _connected(endpoint: Endpoint) -> list[str] | None:
    """Return the names of all connections, None where nobody may say."""
    try:
        listed = endpoint.call("CLIENT", "LIST").decode("utf-8", "backslashreplace")
    except EndpointError as error:
        if error.facts.get("code") != "NOPERM":
            raise
        return None
    return [part[5:] for line in listed.splitlines() for part in line.split(" ") if part.startswith("name=")]


def _who(id: str, facts: dict[str, Any]) -> str:
    where = f" on {facts['host']}" if facts.get("host") else ""
    pid = f" process {facts['pid']}" if facts.get("pid") else ""
    return f"{facts.get('kind', 'client')} {facts.get('name') or id}{where}{pid}"


def _number(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _some(lines: list[str]) -> str:
    more = f" and {len(lines) - _NAMED:,} more" if len(lines) > _NAMED else ""
    return "; ".join(lines[:_NAMED]) + more


__all__ = ["Gated", "Limits", "look", "settled", "twin_of"]
