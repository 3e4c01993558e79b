"""The preflight: whether the server is fit for a migration, found out before anything is written.

Every reason against it is told at once. Rights are tried, not guessed: each command is sent for a key that
does not exist, where it changes nothing, under names that the plan's rules would use. The only thing that is written,
where there are values of a module, is the copy of one of them, gone within the transaction that made it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from onetape.errors import EndpointError, PreflightRefused
from onetape.migrate.keys.payload import REFUSED_CONTENT, REFUSED_VERSION
from onetape.migrate.landing.merge import beside
from onetape.migrate.plans.plan import OURS, Plan, Rule
from onetape.migrate.report import key_text
from onetape.migrate.survey.kinds import ReadKeys
from onetape.migrate.survey.listing import SCAN_COUNT, memory_usage
from onetape.migrate.wire.endpoint import Endpoint, ReplyError, parse_info

#: A copy needs the bytes it copies, and writers go on meanwhile.
HEAD_ROOM = 1.3

_SAMPLE_PAGES = 3
_TRIED_BYTES_MAX = 1024 * 1024
#: What a command that is allowed says of a key that does not exist, and RESTORE of a payload that nobody can read.
_NO_KEY = ("no such key", "requires the key to exist", "NOGROUP", REFUSED_CONTENT, REFUSED_VERSION)

Probe = tuple[str, tuple[Any, ...]]  # what it is called, and what is sent
#: What every migration sends besides, whatever its keys.
GENERAL: tuple[Probe, ...] = (
    ("SCAN", ("SCAN", 0, "COUNT", 1)),
    ("DBSIZE", ("DBSIZE",)),
    ("UNWATCH", ("UNWATCH",)),
    ("MULTI", ("MULTI",)),
    ("EXEC", ("EXEC",)),
)


class Preflight(msgspec.Struct, frozen=True):
    """What the checks found: about how many bytes are to be copied and are free, and what is worth a warning.

    `bytes_free` is None where the server has no limit and does not tell the machine's memory.
    """

    bytes_to_copy: int
    bytes_free: int | None
    warnings: tuple[str, ...]


def check(endpoint: Endpoint, plan: Plan) -> Preflight:
    """Check the server; `endpoint` may write, but nothing is left written.

    Raises PreflightRefused with every reason in `facts["reasons"]`, EndpointError when the server is lost.
    """
    reasons: list[str] = []
    warnings: list[str] = []
    info = parse_info(endpoint.call("INFO"))
    check_role(info, reasons, "this")
    if info.get("cluster_enabled") == "1":
        _check_cluster(plan, reasons)
    check_eviction(info, reasons, warnings, "evict live source keys")
    databases = present(endpoint, (*plan.source_dbs(), plan.target_db), reasons)
    _check_rights(endpoint, plan, databases, reasons)
    needed, free = 0, None
    if not reasons:
        found = ReadKeys(endpoint, plan).look()
        reasons += found.hidden()
        _check_modules(endpoint, plan.target_db, found, reasons)
        needed = bytes_to_copy(endpoint, plan)
        free = bytes_free(info)
        check_memory(needed, free, reasons)
    refuse(endpoint.address, reasons)
    return Preflight(needed, free, tuple(warnings))


def refuse(address: str, reasons: list[str]) -> None:
    """Raise PreflightRefused if there is a reason."""
    if reasons:
        raise PreflightRefused(
            f"{address} is not fit for this migration: " + "; ".join(reasons),
            hint="nothing was written",
            reasons=reasons,
        )


def check_role(info: dict[str, str], reasons: list[str], which: str) -> None:
    """A server that is to be written must be a master that has its data."""
    if info.get("loading") == "1":
        reasons.append("the server is still loading its data: wait until it is up")
    if info.get("role") in ("slave", "replica"):
        place = f"{info.get('master_host')}:{info.get('master_port')}"
        reasons.append(f"role: {which} is a replica of {place}: connect to the master")


def _check_cluster(plan: Plan, reasons: list[str]) -> None:
    """One node of a cluster has a part of the keys, and the new name of a key is, as a rule, another node's."""
    if any(db != 0 for db in (plan.target_db, *plan.source_dbs())):
        reasons.append("cluster: a cluster has database 0 only: give a plan with target_db = 0 and new names")
    else:
        reasons.append("cluster: this is a node of a cluster, which has a part of the keys: it can be a --target only")


def check_eviction(info: dict[str, str], reasons: list[str], warnings: list[str], harm: str) -> None:
    """A server that evicts when it is full would do harm without an error."""
    policy = info.get("maxmemory_policy", "noeviction")
    if policy.startswith("allkeys-"):
        reasons.append(
            f"maxmemory-policy {policy}: a copy could {harm} without an error: "
            "CONFIG SET maxmemory-policy noeviction first"
        )
    elif policy.startswith("volatile-") and info.get("maxmemory", "0") != "0":
        warnings.append(f"maxmemory-policy {policy}: under pressure the server evicts keys that have an expiry")


def check_memory(needed: int, free: int | None, reasons: list[str]) -> None:
    """What is to be copied must fit, with room for what writers add meanwhile."""
    if free is not None and needed * HEAD_ROOM > free:
        reasons.append(
            f"memory: about {_mib(needed)} to copy need {_mib(int(needed * HEAD_ROOM))} of head-room, "
            f"and {_mib(free)} are free: raise maxmemory, or migrate some steps at a time"
        )


def present(endpoint: Endpoint, dbs: Iterable[int], reasons: list[str]) -> list[int]:
    """Return the databases that are there; a missing one is a reason."""
    there = []
    for db in dict.fromkeys(dbs):
        try:
            endpoint.select(db)
            there.append(db)
        except EndpointError as error:
            code = error.facts.get("code")
            if code == "NOPERM":
                reasons.append("rights: SELECT is not allowed to this user")
            elif code == "ERR":
                reasons.append(f"database {db} does not exist: raise `databases`, or change the plan")
            else:
                raise
    return there


def _check_rights(endpoint: Endpoint, plan: Plan, databases: list[int], reasons: list[str]) -> None:
    mark = b"onetape-probe-" + secrets.token_hex(8).encode()
    probes: list[Probe] = []
    for db in databases:
        probes.append(("SELECT", ("SELECT", db)))
        for rule in plan.rules:
            if rule.source_db != db or rule.skip or rule.glob:
                continue
            source = rule.sample(mark)
            target = rule.target_of(source) or source
            probes += read_probes(rule, source)
            if rule.kind != "hash_ticks" and (db, source) != (plan.target_db, target):
                probes.append(("COPY", ("COPY", source, target, "DB", plan.target_db)))
        if db == plan.target_db:
            merging = [rule for rule in plan.rules if rule.kind == "hash_ticks" and not rule.skip]
            probes += [probe for rule in merging for probe in merge_probes(rule, mark)]
    try_all(endpoint, [*probes, *GENERAL], reasons)


def read_probes(rule: Rule, key: bytes) -> list[Probe]:
    """Return what is sent to read a source key of a rule."""
    probes: list[Probe] = [(name, (name, key)) for name in ("DUMP", "PEXPIRETIME", "TYPE", "WATCH")]
    probes.append(("MEMORY USAGE", ("MEMORY", "USAGE", key)))
    if rule.kind == "hash_ticks":
        probes.append(("HGETALL", ("HGETALL", key)))
    return probes


def try_all(endpoint: Endpoint, probes: Sequence[Probe], reasons: list[str], whose: str = "") -> None:
    """Send what a migration would send, for keys that there are not; each command that is refused is a reason."""
    missing: dict[str, str] = {}
    for (name, _), reply in zip(probes, endpoint.pipeline([args for _, args in probes]), strict=True):
        if isinstance(reply, ReplyError) and not any(told in reply.message for told in _NO_KEY):
            missing.setdefault(name, _why_not(name, reply, endpoint))
    reasons += [whose + why for why in missing.values() if why]
    if "UNWATCH" not in missing:
        endpoint.call("UNWATCH")


def merge_probes(rule: Rule, mark: bytes) -> list[Probe]:
    """Return what a merge sends, for a stream that does not exist and so is left as it is."""
    source = rule.sample(mark)
    stream = rule.target_of(source) or source
    temporary = beside(stream, mark)
    probes: list[Probe] = [
        *((name, (name, stream)) for name in ("WATCH", "EXISTS", "XLEN")),
        ("XRANGE", ("XRANGE", stream, "-", "+")),
        ("XINFO", ("XINFO", "STREAM", stream)),
        ("RENAME", ("RENAME", temporary, stream)),
    ]
    for key in (stream, temporary):
        probes.append(("XADD", ("XADD", key, "NOMKSTREAM", "*", "a", "b")))
    return [
        *probes,
        ("XSETID", ("XSETID", temporary, "0-1")),
        ("XGROUP", ("XGROUP", "CREATE", temporary, "a", "0")),
        ("XCLAIM", ("XCLAIM", temporary, "a", "b", 0, "0-1", "JUSTID")),
        ("XPENDING", ("XPENDING", stream, "a")),
        ("XDEL", ("XDEL", temporary, "0-1")),
        ("PEXPIRE", ("PEXPIRE", temporary, 1)),
        ("PEXPIREAT", ("PEXPIREAT", temporary, 4_000_000_000_000)),
        ("PERSIST", ("PERSIST", temporary)),
        ("UNLINK", ("UNLINK", temporary)),
    ]


def _check_modules(endpoint: Endpoint, target_db: int, found: ReadKeys, reasons: list[str]) -> None:
    """Whether values of a module can be copied, only the module knows: one is, and is gone within the transaction."""
    for kind, keys in sorted(found.of_modules.items()):
        for db, key in keys:
            endpoint.select(db)
            size = memory_usage(endpoint, db, [key])[0]
            if size <= _TRIED_BYTES_MAX:
                trial = OURS + b"probe:" + secrets.token_hex(8).encode()
                act = [("MULTI",), ("COPY", key, trial, "DB", target_db), ("SELECT", target_db), ("UNLINK", trial)]
                reply = endpoint.pipeline([*act, ("SELECT", db), ("EXEC",)])[-1]
                refused = reply if isinstance(reply, ReplyError) else reply[0]
                if not isinstance(refused, ReplyError):
                    break
                reasons.append(f"modules: {told_of(kind, keys)}: COPY says: {refused.message}: skip them in the plan")
                break
        else:
            reasons.append(f"modules: {told_of(kind, keys)}: all are too big to try a copy: skip them in the plan")


def told_of(kind: str, keys: list[tuple[int, bytes]]) -> str:
    """Return in words which keys of a module's type there are."""
    db, key = keys[0]
    return f"{len(keys):,} keys of the module type {kind!r}, the first {key_text(key)!r} in db {db}"


def _why_not(name: str, reply: ReplyError, endpoint: Endpoint) -> str:
    if "NOPERM" in reply.message:  # EXEC wraps it
        return f"rights: {name} is not allowed to this user ({reply.message})"
    if "unknown command" in reply.message:
        if name == "COPY":
            return "COPY is not known: it needs Redis 6.2 or Valkey, and not to be renamed or disabled"
        # Without PEXPIRETIME (Redis before 7.0) the time left and the server's clock do.
        if name == "PEXPIRETIME" and not endpoint.has_expire_time:
            return ""
        return f"{name} is not known to this server, or was renamed"
    if reply.code == "OOM":
        return "memory: the server is at its maxmemory and refuses writes"
    return f"{name}: {reply.message}"


def bytes_free(info: dict[str, str]) -> int | None:
    """Return how many bytes a server may still take, None where it does not tell."""
    limit = int(info.get("maxmemory", "0"))
    if limit:
        return limit - int(info.get("used_memory", "0"))
    system = int(info.get("total_system_memory", "0"))
    return system - int(info.get("used_memory_rss", "0")) if system else None


def bytes_to_copy(endpoint: Endpoint, plan: Plan) -> int:
    """Estimate from a few thousand keys of each source database: their size, and how many lack a target yet."""
    total = 0.0
    for db in plan.source_dbs():
        endpoint.select(db)
        size = int(endpoint.call("DBSIZE"))
        matcher = plan.matcher(db)
        cursor, seen, found, todo = b"0", 0, [], 0
        for _page in range(_SAMPLE_PAGES):
            cursor, keys = endpoint.call("SCAN", cursor, "COUNT", SCAN_COUNT)
            seen += len(keys)
            found += [(key, hit[2]) for key in keys if (hit := matcher.match(key)) and not hit[1].skip]
            if cursor == b"0":
                break
        if not found:
            continue
        sizes = memory_usage(endpoint, db, [key for key, _ in found])
        endpoint.select(plan.target_db)
        there = endpoint.pipeline([("EXISTS", target) for _, target in found])
        todo = sum(n for n, exists in zip(sizes, there, strict=True) if exists == 0)
        total += todo * max(1.0, size / max(1, seen))
    return int(total)


def _mib(number: int) -> str:
    return f"{number / 2**20:,.1f} MiB"
