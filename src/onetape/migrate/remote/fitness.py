"""The fitness of two servers for a migration from one to the other, found out before anything is written.

Every reason against it is told at once. What the target would refuse of the source's values is asked of the target
itself, with a payload that no server can restore: see payload.py.
"""

from __future__ import annotations

import secrets

from onetape.migrate.keys.payload import REFUSED_VERSION, probe
from onetape.migrate.plans.plan import OURS, Plan
from onetape.migrate.remote.bridge import OTHER_SERVER, Bridge
from onetape.migrate.remote.cluster import Cluster
from onetape.migrate.report import key_text
from onetape.migrate.survey import preflight
from onetape.migrate.survey.kinds import ReadKeys, modules_of
from onetape.migrate.survey.preflight import Preflight
from onetape.migrate.wire.endpoint import Endpoint, ReplyError, parse_info


def check_both(bridge: Bridge, plan: Plan) -> Preflight:
    """Check both servers; `plan` is as seen through the bridge, whose target may be written. Nothing is written.

    Raises PreflightRefused with every reason in `facts["reasons"]`, EndpointError when a server is lost.
    """
    reasons: list[str] = []
    warnings: list[str] = []
    source, target, target_db = bridge.source, bridge.target, plan.target_db % OTHER_SERVER
    _check_source(source, reasons, warnings)
    infos = [parse_info(node.call("INFO")) for node in _nodes(target)]
    for info in infos:
        _check_target(target, info, reasons, warnings)
    sources = preflight.present(source, plan.source_dbs(), reasons)
    if preflight.present(target, [target_db], reasons):
        target.select(target_db)
        _check_target_rights(target, plan, reasons)
    _check_source_rights(source, plan, sources, reasons)
    needed, free = 0, None
    if not reasons:
        found = ReadKeys(source, plan).look()
        reasons += found.hidden()
        _check_modules(source, target, found.of_modules, reasons, warnings)
        _check_versions(source, target, found.versions, reasons)
        needed = preflight.bytes_to_copy(bridge, plan)
        free = _bytes_free(infos)
        preflight.check_memory(needed, free, reasons)
    preflight.refuse(bridge.address, reasons)
    return Preflight(needed, free, tuple(dict.fromkeys(warnings)))


def _nodes(target: Endpoint) -> list[Endpoint]:
    return target.masters() if isinstance(target, Cluster) else [target]


def _check_source(source: Endpoint, reasons: list[str], warnings: list[str]) -> None:
    info = parse_info(source.call("INFO"))
    if info.get("loading") == "1":
        reasons.append("the source is still loading its data: wait until it is up")
    if info.get("cluster_enabled") == "1":
        reasons.append("cluster: the source is a node of a cluster: only a target can be one")
    if info.get("role") in ("slave", "replica"):
        warnings.append("the source is a replica: what its master has not sent it yet is not there to be copied")


def _check_target(target: Endpoint, info: dict[str, str], reasons: list[str], warnings: list[str]) -> None:
    preflight.check_role(info, reasons, "the target")
    preflight.check_eviction(info, reasons, warnings, "evict what was just copied")
    if info.get("cluster_enabled") == "1" and not isinstance(target, Cluster):
        reasons.append("cluster: the target is a node of a cluster: give --target cluster://HOST:PORT")


def _check_source_rights(source: Endpoint, plan: Plan, databases: list[int], reasons: list[str]) -> None:
    mark = b"onetape-probe-" + secrets.token_hex(8).encode()
    for db in databases:
        source.select(db)
        probes: list[preflight.Probe] = []
        for rule in plan.rules:
            if rule.source_db == db and not rule.skip and not rule.glob:
                probes += preflight.read_probes(rule, rule.sample(mark))
        preflight.try_all(source, [*probes, *preflight.GENERAL], reasons, "source: ")


def _check_target_rights(target: Endpoint, plan: Plan, reasons: list[str]) -> None:
    mark = b"onetape-probe-" + secrets.token_hex(8).encode()
    probes: list[preflight.Probe] = []
    for rule in plan.rules:
        if rule.skip or rule.glob:
            continue
        if rule.kind == "hash_ticks":
            probes += preflight.merge_probes(rule, mark)
            continue
        source = rule.sample(mark)
        key = rule.target_of(source) or source
        probes += [(name, (name, key)) for name in ("DUMP", "PEXPIRETIME", "TYPE", "WATCH")]
        probes.append(("RESTORE", ("RESTORE", key, 0, probe(1), "ABSTTL")))
    preflight.try_all(target, [*probes, *preflight.GENERAL], reasons, "target: ")


def _check_modules(
    source: Endpoint,
    target: Endpoint,
    found: dict[str, list[tuple[int, bytes]]],
    reasons: list[str],
    warnings: list[str],
) -> None:
    if not found:
        return
    here, there = modules_of(source), modules_of(_nodes(target)[0])
    for kind, keys in sorted(found.items()):
        told = preflight.told_of(kind, keys)
        if here and there and here <= there:
            warnings.append(f"modules: {told}: the target has the modules of the source, so they are tried")
        else:
            missing = ", ".join(sorted(here - there)) or "the module"
            reasons.append(f"modules: {told}: the target lacks {missing}: load it there, or skip them in the plan")


def _check_versions(source: Endpoint, target: Endpoint, versions: dict[int, bytes], reasons: list[str]) -> None:
    """Ask the target whether it takes the versions of the format that the source's values come in."""
    for version, key in versions.items():
        reply = target.pipeline([("RESTORE", OURS + b"probe:" + secrets.token_hex(8).encode(), 0, probe(version))])[0]
        if isinstance(reply, ReplyError) and REFUSED_VERSION in reply.message:
            names = [f"{one.server.title()} {'.'.join(map(str, one.version))}" for one in (source, target)]
            reasons.append(
                f"format: {names[1]} refuses values of RDB version {version}, which {names[0]} writes (such as "
                f"{key_text(key)!r}): the target must be as new as the source, and of its kind"
            )


def _bytes_free(infos: list[dict[str, str]]) -> int | None:
    free = [preflight.bytes_free(info) for info in infos]
    return None if None in free else sum(one or 0 for one in free)


__all__ = ["check_both"]
