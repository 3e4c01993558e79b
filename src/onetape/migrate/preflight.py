"""The preflight: whether the server is fit for a migration, found out before anything is written.

Every reason against it is told at once. Rights are tried, not guessed: each command is sent for a key that
does not exist, where it changes nothing, under names that the plan's rules would use.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from onetape.errors import EndpointError, PreflightRefused
from onetape.migrate.endpoint import Endpoint, ReplyError, parse_info
from onetape.migrate.listing import SCAN_COUNT, memory_usage
from onetape.migrate.merge import TEMPORARY
from onetape.migrate.plan import Plan, Rule

#: A copy needs the bytes it copies, and writers go on meanwhile.
HEAD_ROOM = 1.3

_SAMPLE_PAGES = 3
#: What a command that is allowed says of a key that does not exist.
_NO_KEY = ("no such key", "requires the key to exist", "NOGROUP")


class Preflight(msgspec.Struct, frozen=True):
    """What the checks found: about how many bytes are to be copied and are free, and what is worth a warning.

    `bytes_free` is None where the server has no limit and does not tell the machine's memory.
    """

    bytes_to_copy: int
    bytes_free: int | None
    warnings: tuple[str, ...]


def check(endpoint: Endpoint, plan: Plan) -> Preflight:
    """Check the server; `endpoint` may write, but nothing is written.

    Raises PreflightRefused with every reason in `facts["reasons"]`, EndpointError when the server is lost.
    """
    reasons: list[str] = []
    warnings: list[str] = []
    info = parse_info(endpoint.call("INFO"))
    _check_role(info, plan, reasons)
    _check_eviction(info, reasons, warnings)
    databases = _check_databases(endpoint, plan, reasons)
    _check_rights(endpoint, plan, databases, reasons)
    needed, free = 0, None
    if not reasons:
        needed = _bytes_to_copy(endpoint, plan)
        free = _bytes_free(info)
        if free is not None and needed * HEAD_ROOM > free:
            reasons.append(
                f"memory: about {_mib(needed)} to copy need {_mib(int(needed * HEAD_ROOM))} of head-room, "
                f"and {_mib(free)} are free: raise maxmemory, or migrate some steps at a time"
            )
    if reasons:
        raise PreflightRefused(
            f"{endpoint.address} is not fit for this migration: " + "; ".join(reasons),
            hint="nothing was written",
            reasons=reasons,
        )
    return Preflight(needed, free, tuple(warnings))


def _check_role(info: dict[str, str], plan: Plan, reasons: list[str]) -> None:
    if info.get("loading") == "1":
        reasons.append("the server is still loading its data: wait until it is up")
    if info.get("role") in ("slave", "replica"):
        reasons.append(
            f"role: this is a replica of {info.get('master_host')}:{info.get('master_port')}: connect to the master"
        )
    if info.get("cluster_enabled") == "1" and any(db != 0 for db in (plan.target_db, *plan.source_dbs())):
        reasons.append("cluster: a cluster has database 0 only: give a plan with target_db = 0 and new names")


def _check_eviction(info: dict[str, str], reasons: list[str], warnings: list[str]) -> None:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy.startswith("allkeys-"):
        reasons.append(
            f"maxmemory-policy {policy}: a copy could evict live source keys without an error: "
            "CONFIG SET maxmemory-policy noeviction first"
        )
    elif policy.startswith("volatile-") and info.get("maxmemory", "0") != "0":
        warnings.append(f"maxmemory-policy {policy}: under pressure the server evicts keys that have an expiry")


def _check_databases(endpoint: Endpoint, plan: Plan, reasons: list[str]) -> list[int]:
    """Return the databases of the plan that are there; a missing one is a reason."""
    there = []
    for db in dict.fromkeys((*plan.source_dbs(), plan.target_db)):
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
    missing: dict[str, str] = {}
    for db in databases:
        endpoint.select(db)
        probes: list[tuple[str, tuple[Any, ...]]] = []
        for rule in plan.rules:
            if rule.source_db != db or rule.skip or rule.glob:
                continue
            source = rule.sample(mark)
            target = rule.target_of(source) or source
            probes += [(name, (name, source)) for name in ("DUMP", "PEXPIRETIME", "TYPE", "WATCH")]
            probes.append(("MEMORY USAGE", ("MEMORY", "USAGE", source)))
            if rule.kind == "hash_ticks":
                probes.append(("HGETALL", ("HGETALL", source)))
            elif (db, source) != (plan.target_db, target):
                probes.append(("COPY", ("COPY", source, target, "DB", plan.target_db)))
        if db == plan.target_db:
            merging = [rule for rule in plan.rules if rule.kind == "hash_ticks" and not rule.skip]
            probes += [probe for rule in merging for probe in _merge_probes(rule, mark)]
        probes += [("SCAN", ("SCAN", 0, "COUNT", 1)), ("DBSIZE", ("DBSIZE",)), ("UNWATCH", ("UNWATCH",))]
        probes += [("MULTI", ("MULTI",)), ("EXEC", ("EXEC",))]
        for (name, _), reply in zip(probes, endpoint.pipeline([args for _, args in probes]), strict=True):
            if isinstance(reply, ReplyError) and not any(told in reply.message for told in _NO_KEY):
                missing.setdefault(name, _why_not(name, reply, endpoint))
    reasons += [why for why in missing.values() if why]
    endpoint.call("UNWATCH")


def _merge_probes(rule: Rule, mark: bytes) -> list[tuple[str, tuple[Any, ...]]]:
    """Return what a merge sends, for a stream that does not exist and so is left as it is."""
    source = rule.sample(mark)
    stream = rule.target_of(source) or source
    temporary = TEMPORARY + mark + b":" + stream
    probes: list[tuple[str, tuple[Any, ...]]] = [
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


def _why_not(name: str, reply: ReplyError, endpoint: Endpoint) -> str:
    if reply.code == "NOPERM":
        return f"rights: {name} is not allowed to this user ({reply.message})"
    if "unknown command" in reply.message:
        if name == "COPY":
            return "COPY is not known: it needs Redis 6.2 or Valkey"
        # Without PEXPIRETIME (Redis before 7.0) the time left and the server's clock do.
        return "" if name == "PEXPIRETIME" else f"{name} is not known to this server, or was renamed"
    if reply.code == "OOM":
        return "memory: the server is at its maxmemory and refuses writes"
    return f"{name}: {reply.message}"


def _bytes_free(info: dict[str, str]) -> int | None:
    limit = int(info.get("maxmemory", "0"))
    if limit:
        return limit - int(info.get("used_memory", "0"))
    system = int(info.get("total_system_memory", "0"))
    return system - int(info.get("used_memory_rss", "0")) if system else None


def _bytes_to_copy(endpoint: Endpoint, plan: Plan) -> int:
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
