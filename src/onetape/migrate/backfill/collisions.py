"""Collisions: two keys that would become one, found on the real keys before anything is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import apsw

from onetape.errors import PlanCollision, PlanInvalid
from onetape.migrate.plans.pattern import glob_pattern
from onetape.migrate.plans.plan import Plan, Rule
from onetape.migrate.wire.endpoint import Endpoint, ReplyError


def check_collisions(reader: Endpoint, plan: Plan) -> None:
    """Raise PlanCollision, naming both keys, if two source keys would land on one target.

    Raises PlanInvalid if a key would land where a glob takes it up again, which no look at the rules tells.

    Only rules whose targets are not proved apart by their form are looked at (Plan.unproved), on disk.
    """
    doubtful = plan.unproved()
    if not doubtful:
        return
    globs = [rule.glob for rule in plan.rules if rule.glob and rule.source_db == plan.target_db and not rule.skip]
    onward = [(glob, glob_pattern(glob.encode())) for glob in globs]
    db = apsw.Connection("")
    try:
        db.execute("CREATE TABLE claim(target BLOB PRIMARY KEY, db INTEGER, key BLOB) WITHOUT ROWID")
        for source_db in dict.fromkeys(plan.rules[index].source_db for index in sorted(doubtful)):
            for key, target, rule in _claims(reader, plan, source_db, doubtful):
                if onward and (source_db, key) != (plan.target_db, target):
                    _refuse_onward(plan, key, target, onward)
                held = list(db.execute("SELECT db, key FROM claim WHERE target = ?", (target,)))
                if held and held[0] != (source_db, key):
                    _raise_collision(plan, target, held[0], (source_db, key), rule)
                if not held:
                    db.execute("INSERT INTO claim VALUES(?,?,?)", (target, source_db, key))
    finally:
        db.close()


def _refuse_onward(plan: Plan, key: bytes, target: bytes, onward: list[tuple[str, re.Pattern[bytes]]]) -> None:
    for glob, pattern in onward:
        if pattern.fullmatch(target):
            names = [name.decode("utf-8", "backslashreplace") for name in (key, target)]
            raise PlanInvalid(
                f"{names[0]!r} would become {names[1]!r} in db {plan.target_db}, which {glob!r} matches as well: "
                "each run would copy it on",
                hint="give names that the glob does not match, or another database; nothing was written",
            )


def _claims(
    reader: Endpoint, plan: Plan, source_db: int, doubtful: frozenset[int]
) -> Iterator[tuple[bytes, bytes, Rule]]:
    matcher = plan.matcher(source_db)
    globs = {plan.rules[i].prefix_glob for i in doubtful if plan.rules[i].source_db == source_db}
    glob = globs.pop() if len(globs) == 1 else b"*"
    reader.select(source_db)
    cursor = b"0"
    while True:
        cursor, keys = reader.call("SCAN", cursor, "MATCH", glob, "COUNT", 1000)
        hits = [(key, hit) for key in keys if (hit := matcher.match(key)) is not None]
        typed = [key for key, hit in hits if hit[1].types]
        kinds = dict(zip(typed, reader.pipeline([("TYPE", key) for key in typed]), strict=True))
        for key, first in hits:
            kind = kinds.get(key)
            hit = first if kind is None else matcher.match_type(key, _text(kind))
            if hit is not None and hit[0] in doubtful:
                yield key, hit[2], hit[1]
        if cursor == b"0":
            return


def _text(kind: Any) -> str:
    return "none" if isinstance(kind, ReplyError) else kind.decode()


def _raise_collision(plan: Plan, target: bytes, one: tuple[int, bytes], other: tuple[int, bytes], rule: Rule) -> None:
    names = [f"db {db} {key.decode('utf-8', 'backslashreplace')!r}" for db, key in (one, other)]
    shown = target.decode("utf-8", "backslashreplace")
    raise PlanCollision(
        f"{names[0]} and {names[1]} would both become {shown!r} in db {plan.target_db}",
        hint="give one of their rules another target, or skip it; nothing was written",
        keys=(one, other),
        target=target,
        rule=rule.pattern,
    )
