"""Origins: from a key of the target database back to the source keys that a plan would have made it from."""

from __future__ import annotations

from typing import NamedTuple

from onetape.migrate.pattern import Pattern, PatternError
from onetape.migrate.plan import Plan, Rule


class Origin(NamedTuple):
    """One source key that gives the target key, and its rule. `key` None: one of many, as for merged ticks."""

    source_db: int
    key: bytes | None
    rule: Rule


class _Way(NamedTuple):
    """One template of a rule, turned round: parts of the target's name, and how they make the source's."""

    target: Pattern
    rule: Rule
    part: str  # of a case: the part it looks at
    values: tuple[bytes, ...]
    prefix: bytes


class Origins:
    """A plan turned round. Rules made in code with a transform cannot be, and give no origins."""

    def __init__(self, plan: Plan) -> None:
        self._matchers = {db: plan.matcher(db) for db in plan.source_dbs()}
        self._target_db = plan.target_db
        self._by_head: dict[bytes, list[_Way]] = {}
        self._open: list[_Way] = []
        for rule in plan.rules:
            if rule.skip or rule.transform is not None:
                continue
            for way in _ways(rule):
                head = _head(way.target.prefix)
                (self._by_head.setdefault(head, []) if head else self._open).append(way)

    def of(self, target: bytes) -> list[Origin]:
        """Return every origin that the plan allows a target key to have, in the order of the rules."""
        found: list[Origin] = []
        for way in (*self._by_head.get(_head(target), ()), *self._open):
            values = way.target.split(target)
            if values is None:
                continue
            if way.rule.kind == "hash_ticks":
                found.append(Origin(way.rule.source_db, None, way.rule))
                continue
            parts = dict(zip(way.target.names, values, strict=True))
            for key in _source_keys(way, parts):
                match = self._matchers[way.rule.source_db].match(key)
                in_place = way.rule.source_db == self._target_db and key == target
                if match is not None and not in_place and way.rule.target_of(key) == target:
                    found.append(Origin(way.rule.source_db, key, way.rule))
        return found


def _ways(rule: Rule) -> list[_Way]:
    ways: list[tuple[str, str, tuple[str, ...], str]] = [(rule.target or rule.pattern or "{key}", "", (), "")]
    ways += [(case.target, case.part, case.values, case.prefix) for case in rule.case]
    found = []
    for text, part, values, prefix in ways:
        try:
            target = Pattern(text)
        except PatternError:
            continue  # a target without parts: one key, which the other direction checks
        found.append(_Way(target, rule, part, tuple(v.encode() for v in values), prefix.encode()))
    return found


def _source_keys(way: _Way, parts: dict[str, bytes]) -> list[bytes]:
    if way.rule.glob:
        return [parts["key"]]
    if way.part and way.part in parts:
        value = parts[way.part]
        if way.values and value not in way.values:
            return []
        choices = [way.prefix + value]
    else:
        choices = list(way.values)  # the target does not write the part: any of the case's values made it
    keys = []
    for value in choices or [b""]:
        filled = {**parts, way.part: value} if way.part else parts
        keys.append(_filled(Pattern(way.rule.pattern), filled))
    return keys


def _filled(pattern: Pattern, parts: dict[str, bytes]) -> bytes:
    key = pattern.prefix
    for i, name in enumerate(pattern.names):
        key += parts[name] + (pattern.separators[i] if i < len(pattern.separators) else b"")
    return key + pattern.suffix


def _head(key: bytes) -> bytes:
    return key[: key.find(b":") + 1]
