"""Origins: from a key of the target database back to the source keys that a plan would have made it from."""

from __future__ import annotations

from typing import NamedTuple

from onetape.migrate.plans.pattern import Pattern, PatternError
from onetape.migrate.plans.plan import Plan, Rule


class Origin(NamedTuple):
    """One source key that gives the target key, and its rule. `key` None: one of many, as for merged ticks."""

    source_db: int
    key: bytes | None
    rule: Rule


class _Way:
    """One template of a rule, turned round: the parts of the target's name fill the pattern of the source's."""

    def __init__(self, rule: Rule, text: str, part: str, values: tuple[str, ...], prefix: str) -> None:
        self.rule = rule
        self.target = Pattern(text)
        source = Pattern("{key}" if rule.glob else rule.pattern)
        literals = [source.prefix, *source.separators, source.suffix]
        self._format = b"%b".join(literal.replace(b"%", b"%%") for literal in literals)
        names = self.target.names
        # Parts that the target does not write are those of a case, appended to the values one by one.
        self._order = [names.index(name) if name in names else -1 for name in source.names]
        self._in_order = self._order == list(range(len(source.names))) and not part
        self._part = names.index(part) if part in names else -1
        self._choices = tuple(value.encode() for value in values)
        self._prefix = prefix.encode()
        # Where both sides write the same parts between the same separators, what lies after the beginning is the same.
        same = self.target.names == source.names and self.target.separators == source.separators and not prefix
        self.source_prefix = source.prefix if same and not source.suffix and not self.target.suffix else None
        self.start = len(self.target.prefix)

    def source_keys(self, values: tuple[bytes, ...]) -> list[bytes]:
        """Return the source keys that the parts of a target's name can stand for."""
        if self._in_order:
            return [self._format % values]
        if self._part < 0:
            choices = self._choices or (b"",)
        else:
            value = values[self._part]
            if self._choices and value not in self._choices:
                return []
            choices = (self._prefix + value,)
        return [self._format % tuple([self._value(values, at, one) for at in self._order]) for one in choices]

    def _value(self, values: tuple[bytes, ...], at: int, chosen: bytes) -> bytes:
        return chosen if at == -1 or at == self._part else values[at]


class Origins:
    """A plan turned round. Rules made in code with a transform cannot be, and give no origins."""

    def __init__(self, plan: Plan) -> None:
        matchers = {db: plan.matcher(db) for db in plan.source_dbs()}
        self._target_db = plan.target_db
        ways = [
            (way.target.prefix, way, matchers[rule.source_db], rule.types[0] if rule.types else "")
            for rule in plan.rules
            if not rule.skip and rule.transform is None
            for way in _ways(rule)
        ]
        # A key's first word picks the few ways worth trying; those that begin with none are always tried.
        heads = {_head(prefix) for prefix, *_rest in ways} | {b""}
        self._by_head = {head: [way for way in ways if _head(way[0]) in (head, b"")] for head in heads}

    def of(self, target: bytes) -> list[Origin]:
        """Return every origin that the plan allows a target key to have, in the order of the rules."""
        found: list[Origin] = []
        for prefix, way, matcher, kind in self._by_head.get(target[: target.find(b":") + 1]) or self._by_head[b""]:
            if not target.startswith(prefix):
                continue
            if way.source_prefix is not None and not kind and way.rule.kind != "hash_ticks":
                key = way.source_prefix + target[way.start :]
                # Forward again: that looks for the separators, and whether another rule or case takes the key.
                match = matcher.match_type(key, kind) if matcher.by_type else matcher.match(key)
                in_place = key == target and way.rule.source_db == self._target_db
                if match is not None and match[1] is way.rule and match[2] == target and not in_place:
                    origin = Origin(way.rule.source_db, key, way.rule)
                    if not found or origin not in found:  # two cases may have one template
                        found.append(origin)
                continue
            values = way.target.split(target)
            if values is None:
                continue
            rule = way.rule
            if rule.kind == "hash_ticks":
                found.append(Origin(rule.source_db, None, rule))
                continue
            for key in way.source_keys(values):
                match = matcher.match_type(key, kind)
                in_place = key == target and rule.source_db == self._target_db
                if match is not None and match[1] is rule and match[2] == target and not in_place:
                    origin = Origin(rule.source_db, key, rule)
                    if origin not in found:
                        found.append(origin)
        return found


def _ways(rule: Rule) -> list[_Way]:
    ways: list[tuple[str, str, tuple[str, ...], str]] = [(rule.target or rule.pattern or "{key}", "", (), "")]
    ways += [(case.target, case.part, case.values, case.prefix) for case in rule.case]
    found = []
    for way in ways:
        try:
            found.append(_Way(rule, *way))
        except PatternError:
            continue  # a target without parts: one key, which the other direction checks
    return found


def _head(key: bytes) -> bytes:
    return key[: key.find(b":") + 1]
