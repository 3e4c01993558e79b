"""The plan: which key goes where. Rules written as TOML, checked, hashed, and compiled to fast byte matchers.

    name = "my_system"
    target_db = 1
    timezone = "Asia/Kolkata"           # of times that are written without an offset

    [[rule]]
    step = "indicators"                  # groups counts and progress; done in the order of the file
    source_db = 5
    pattern = "indicators:{symbol}:{name}"
    target = "ind:other:{symbol}:{name}" # left out: the key keeps its name
      [[rule.case]]                      # other targets for some values of one part; then prefixes
      part = "name"
      values = ["delta", "gamma"]
      target = "ind:greeks:{symbol}:{name}"
      [[rule.case]]
      part = "name"
      prefix = "volume_"                 # taken off the part
      target = "ind:volume:{symbol}:{name}"

Further fields of a rule: `kind` ("copy"; "ticks": a stream, copied and put on the tape; "hash_ticks": hashes,
merged into the stream that `target` names and put on the tape; "ohlc": copied and put on the tape as bars),
`types` (only keys of these Redis types) and `skip = true` (listed, never copied).

Keys are bytes and may be any bytes. In a pattern with several parts the first one is greedy and may contain
the separator, the others may not: in `indicators:NFO:NIFTY25NOVFUT:rsi` the symbol is `NFO:NIFTY25NOVFUT`.
Within a source database the first rule of the file that matches decides.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NoReturn
from zoneinfo import ZoneInfo

import msgspec

from onetape.errors import PlanInvalid
from onetape.migrate.plans.finder import finder
from onetape.migrate.plans.pattern import Pattern, PatternError, Template

Kind = Literal["copy", "ticks", "hash_ticks", "ohlc"]
RedisType = Literal["string", "hash", "list", "set", "zset", "stream"]

DOCUMENTED = "trading_system"

#: What keys of our own begin with: the state of a migration, copies on their way. No rule takes or gives them.
OURS = b"onetape:"


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Another target for some values of one part of a rule's pattern."""

    part: str
    target: str
    values: tuple[str, ...] = ()
    prefix: str = ""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One rule: where keys of one shape come from and where they go. An empty target keeps the key's name.

    `glob` and `transform` are for rules made in code (`Plan.of_glob`): a Redis glob instead of a pattern, and
    a function from the old key to the new one. They cannot be written in a file.
    """

    step: str
    source_db: int
    pattern: str = ""
    target: str = ""
    kind: Kind = "copy"
    types: tuple[RedisType, ...] = ()
    skip: bool = False
    case: tuple[Case, ...] = ()
    glob: str = ""
    transform: Callable[[bytes], bytes] | None = None

    def parts(self, key: bytes) -> dict[str, bytes] | None:
        """Return the named parts of a key, or None if the key does not fit the pattern."""
        route = _route(self)
        values = route.pattern.split(key)
        return None if values is None else dict(zip(route.pattern.names, values, strict=True))

    @property
    def prefix_glob(self) -> bytes:
        """A Redis glob that every key of the rule matches."""
        if self.glob:
            return self.glob.encode()
        return re.sub(rb"([\\*?\[\]^])", rb"\\\1", _route(self).pattern.prefix) + b"*"

    def sample(self, mark: bytes) -> bytes:
        """Return a key that the pattern fits, with `mark` for each part."""
        return _route(self).own.fill((mark,) * len(_route(self).pattern.names))

    def target_of(self, key: bytes) -> bytes | None:
        """Return the key's name in the target database, or None if the key does not fit the pattern."""
        return _route(self).resolve(key)


class Plan(msgspec.Struct, frozen=True, kw_only=True, dict=True, weakref=True):
    """A migration's rules. Immutable; `with_source` and `with_target` return changed copies.

    `target_db` is where everything goes, `timezone` the zone of times written without one. `origin` is the
    file it came from, for error messages; it is not part of what the plan says, and not of its hash.
    """

    name: str
    target_db: int
    timezone: str
    rules: tuple[Rule, ...]
    origin: str = ""

    @classmethod
    def load(cls, source: str | Path = DOCUMENTED) -> Plan:
        """Return a shipped plan by its name, or the plan in a file. Raises PlanInvalid."""
        shipped = resources.files("onetape.migrate.plans") / f"{source}.toml"
        if isinstance(source, str) and "/" not in source and shipped.is_file():
            return cls.parse(shipped.read_text("utf-8"), origin=f"{source}.toml")
        path = Path(source)
        try:
            return cls.parse(path.read_bytes().decode(), origin=str(path))
        except OSError as error:
            raise PlanInvalid(
                f"plan {source}: {error.strerror}", hint=f"give a file, or the shipped plan {DOCUMENTED!r}"
            ) from error
        except UnicodeDecodeError as error:
            raise PlanInvalid(
                f"plan {source}: not UTF-8 text at byte {error.start}", hint="save it as UTF-8"
            ) from error

    @classmethod
    def parse(cls, text: str, origin: str = "plan") -> Plan:
        """Return the plan that a TOML text says. Raises PlanInvalid naming file, rule and reason."""
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise PlanInvalid(f"{origin}: not TOML: {error}", hint="correct the file; nothing was done") from error
        rules = raw.pop("rule", [])
        if not isinstance(rules, list) or not rules:
            raise PlanInvalid(f"{origin}: no [[rule]]", hint="a plan needs at least one rule")
        try:
            head = msgspec.convert(raw, _Head)
        except msgspec.ValidationError as error:
            raise PlanInvalid(f"{origin}: {error}", hint="see the head of onetape/migrate/plan.py") from error
        plan = cls(
            name=head.name,
            target_db=head.target_db,
            timezone=head.timezone,
            rules=tuple(_convert_rule(origin, index, rule) for index, rule in enumerate(rules)),
            origin=origin,
        )
        plan.validate()
        return plan

    @classmethod
    def of_glob(
        cls,
        glob: str,
        source_db: int,
        *,
        target_db: int = 1,
        transform: Callable[[bytes], bytes] | None = None,
        step: str = "copy",
        timezone: str = "UTC",
    ) -> Plan:
        """Return a plan of one rule: all keys that match a Redis glob, renamed by `transform` (None: not
        renamed).
        """
        rule = Rule(step=step, source_db=source_db, glob=glob, transform=transform)
        plan = cls(name=f"glob {glob}", target_db=target_db, timezone=timezone, rules=(rule,), origin=f"glob {glob}")
        plan.validate()
        return plan

    def with_source(self, step: str, db: int) -> Plan:
        """Return the plan with all rules of `step` reading from database `db`; equal rules become one."""
        self._known([step])
        moved = (msgspec.structs.replace(rule, source_db=db) if rule.step == step else rule for rule in self.rules)
        return self._replaced(rules=tuple(dict.fromkeys(moved)))

    def with_target(self, db: int) -> Plan:
        """Return the plan with another target database."""
        return self._replaced(target_db=db)

    def only(self, steps: Iterable[str]) -> Plan:
        """Return the plan with the rules of these steps only.

        Raises PlanInvalid for a step it does not have.
        """
        wanted = list(steps)
        self._known(wanted)
        return self._replaced(rules=tuple(rule for rule in self.rules if rule.step in wanted))

    def _replaced(self, **changes: Any) -> Plan:
        plan = msgspec.structs.replace(self, **changes)
        plan.validate()
        return plan

    def _known(self, steps: list[str]) -> None:
        for step in steps:
            if step not in self.steps:
                raise PlanInvalid(f"{self.origin}: no step {step!r}", hint="steps are " + ", ".join(self.steps))

    @cached_property
    def steps(self) -> tuple[str, ...]:
        """The steps in the order of the file."""
        return tuple(dict.fromkeys(rule.step for rule in self.rules))

    @cached_property
    def hash(self) -> str:
        """The sha256 of what the plan says, in hex: equal for equal rules, however the file is laid out."""
        rules = [{**msgspec.structs.asdict(rule), "transform": _name_of(rule.transform)} for rule in self.rules]
        content = {"name": self.name, "target_db": self.target_db, "timezone": self.timezone, "rules": rules}
        return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()

    def source_dbs(self) -> tuple[int, ...]:
        """Return the source databases in the order in which the steps first need them."""
        return tuple(dict.fromkeys(rule.source_db for rule in self.rules))

    def matcher(self, db: int) -> Matcher:
        """Return the matcher of one source database."""
        return Matcher([(i, rule) for i, rule in enumerate(self.rules) if rule.source_db == db])

    def scan_glob(self, db: int) -> bytes | None:
        """Return the glob that a SCAN of the database may be narrowed to, or None when all keys are looked
        at.
        """
        globs = {rule.glob for rule in self.rules if rule.source_db == db}
        return globs.pop().encode() if len(globs) == 1 and "" not in globs else None

    def unproved(self) -> frozenset[int]:
        """Return the rules whose targets could meet: those to be checked on the real keys.

        All others are proved: their target is one to one by its form, and no other target begins like it.
        """
        routes = [(i, t) for i, r in enumerate(self.rules) if _lands_apart(r) for t in _route(r).templates]
        doubtful = {i for i, template in routes if not template.one_to_one}
        for at, (i, one) in enumerate(routes):
            for j, other in routes[at + 1 :]:
                if one.prefix.startswith(other.prefix) or other.prefix.startswith(one.prefix):
                    doubtful |= {i, j}
        return frozenset(doubtful)

    def validate(self) -> None:
        """Raise PlanInvalid, naming file, rule and reason, if the plan cannot work on any keys."""
        try:
            ZoneInfo(self.timezone)
        except Exception as error:
            raise PlanInvalid(
                f"{self.origin}: timezone {self.timezone!r} is not known", hint='such as "Asia/Kolkata"'
            ) from error
        if self.target_db < 0:
            self._invalid(None, f"target_db = {self.target_db} is not a database")
        seen: dict[tuple[int, str, tuple[str, ...]], int] = {}
        for index, rule in enumerate(self.rules):
            self._validate_rule(index, rule)
            earlier = seen.setdefault((rule.source_db, rule.pattern or rule.glob, rule.types), index)
            if earlier != index:
                self._invalid(index, f"has the database and pattern of rule {earlier + 1}: it would never match")
        self._refuse_chains()

    def _validate_rule(self, index: int, rule: Rule) -> None:
        if rule.source_db < 0:
            self._invalid(index, f"source_db = {rule.source_db} is not a database")
        if not rule.step:
            self._invalid(index, "step is empty")
        if bool(rule.pattern) == bool(rule.glob):
            self._invalid(index, "pattern is empty")
        try:
            route = _route(rule)
        except PatternError as error:
            self._invalid(index, str(error))
        if rule.kind == "hash_ticks":
            if "symbol" not in route.pattern.names or not rule.target:
                self._invalid(index, "hash_ticks needs a {symbol} in its pattern and a target")
            return
        for template in route.templates:
            if template.prefix.startswith(OURS):
                self._invalid(index, f"target {template.text!r}: names that begin with {OURS.decode()} are onetape's")
            if template.dropped:
                self._invalid(
                    index,
                    f"target {template.text!r} drops {{{template.dropped[0]}}}: such keys would collide",
                )

    def _refuse_chains(self) -> None:
        """A target that another rule takes as its source would be copied on, by the next run at the latest."""
        matcher = self.matcher(self.target_db)
        for index, rule in enumerate(self.rules):
            if rule.skip or rule.glob:
                continue
            for template in _route(rule).templates:
                sample = template.sample()
                for hit, other in matcher.candidates(sample):
                    onward = other.target_of(sample)
                    onward = None if other.skip or other.kind == "hash_ticks" else onward
                    if onward not in (None, sample):
                        self._invalid(
                            index,
                            f"its target {template.text!r} is a source of rule {hit + 1} "
                            f"({other.pattern!r}): keys would be copied on and on",
                        )

    def _invalid(self, index: int | None, why: str) -> NoReturn:
        where = "" if index is None else f" rule {index + 1} ({self.rules[index].pattern or self.rules[index].glob}):"
        raise PlanInvalid(
            f"{self.origin}:{where} {why}",
            hint="correct the plan; nothing was done",
            rule=index,
        )


class Matcher:
    """The rules of one source database, compiled. `match` is called once a key, so it does little."""

    def __init__(self, rules: list[tuple[int, Rule]]) -> None:
        self._rules = rules
        #: Whether there are rules for which a key's type counts.
        self.by_type = any(rule.types for _, rule in rules)
        # Most patterns begin with a word and a colon: that word picks the few rules worth trying.
        self._open = [item for item in rules if b":" not in _route(item[1]).pattern.prefix]
        heads = {_head(_route(rule).pattern.prefix) for _, rule in rules} - {b""}
        self._by_head = {
            head: [item for item in rules if item in self._open or _head(_route(item[1]).pattern.prefix) == head]
            for head in heads
        }
        self._chains = {
            head: [(i, rule, _route(rule).finder(head)) for i, rule in items] for head, items in self._by_head.items()
        }
        self._open_chain = [(i, rule, _route(rule).resolve) for i, rule in self._open]
        self._finders = {head: _first_of(chain) for head, chain in self._chains.items()}
        self._find_open = _first_of(self._open_chain)
        self._by_head[OURS], self._chains[OURS], self._finders[OURS] = [], [], _first_of([])

    def candidates(self, key: bytes) -> list[tuple[int, Rule]]:
        """Return the rules whose pattern fits the key, in order; types are not looked at."""
        items = self._by_head.get(_head(key), self._open)
        return [(i, rule) for i, rule in items if _route(rule).resolve(key) is not None]

    def match_all(self, keys: list[bytes]) -> list[tuple[int, bytes] | None]:
        """Return for each key (rule's index, target key) of the first rule that fits, or None, as match() does."""
        get, find_open = self._finders.get, self._find_open
        return [get(key[: key.find(b":") + 1], find_open)(key) for key in keys]

    def match(self, key: bytes) -> tuple[int, Rule, bytes] | None:
        """Return (rule's index, rule, target key) of the first rule that fits, or None.

        Types are not looked at.
        """
        for index, rule, resolve in self._chains.get(key[: key.find(b":") + 1], self._open_chain):
            target = resolve(key)
            if target is not None:
                return index, rule, target
        return None

    def match_type(self, key: bytes, redis_type: str) -> tuple[int, Rule, bytes] | None:
        """Return what match() does, of the rules that take this type."""
        for index, rule, resolve in self._chains.get(key[: key.find(b":") + 1], self._open_chain):
            if not rule.types or redis_type in rule.types:
                target = resolve(key)
                if target is not None:
                    return index, rule, target
        return None


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    target_db: int = 1
    timezone: str = "UTC"


class _Route:
    """A rule compiled: the pattern, and from its parts the target."""

    def __init__(self, rule: Rule) -> None:
        self.pattern = Pattern("{key}" if rule.glob else rule.pattern)
        self._transform = rule.transform
        self.own = Template(self.pattern.text, self.pattern)  # writes the key itself
        self._default = Template(rule.target or self.pattern.text, self.pattern)
        self._exact: dict[bytes, Template] = {}
        self._prefixes: list[tuple[bytes, Template]] = []
        self._part = 0
        self.templates = [self._default]
        if len({case.part for case in rule.case}) > 1:
            raise PatternError("all cases of a rule must look at the same part")
        for case in rule.case:
            self._add_case(case)
        if rule.transform is not None:
            self._default.one_to_one = False
            self.resolve = self._transformed
        elif not rule.case:
            self.resolve = self._plain
        else:
            self.resolve = self._by_case

    def _add_case(self, case: Case) -> None:
        if case.part not in self.pattern.names:
            raise PatternError(f"case: the pattern has no part {{{case.part}}}")
        if bool(case.values) == bool(case.prefix):
            raise PatternError(f"case {case.target!r}: give either values or a prefix")
        self._part = self.pattern.names.index(case.part)
        template = Template(case.target, self.pattern)
        if len(case.values) == 1 and template.dropped == (case.part,):
            template.dropped = ()  # one value, so nothing is lost by not writing it
        self.templates.append(template)
        for value in case.values:
            if self._exact.setdefault(value.encode(), template) is not template:
                raise PatternError(f"case: the value {value!r} is there twice")
        if case.prefix:
            self._prefixes.append((case.prefix.encode(), template))

    resolve: Callable[[bytes], bytes | None]

    def finder(self, head: bytes) -> Callable[[bytes], bytes | None]:
        """Return what resolve() does, perhaps faster, for keys that begin with `head`."""
        if self._transform is not None:
            return self.resolve
        return finder(self.pattern, head, self._default, self._exact, self._prefixes, self._part) or self.resolve

    def _plain(self, key: bytes) -> bytes | None:
        values = self.pattern.split(key)
        return None if values is None else self._default.fill(values)

    def _by_case(self, key: bytes) -> bytes | None:
        values = self.pattern.split(key)
        if values is None:
            return None
        value = values[self._part]
        template = self._exact.get(value)
        if template is not None:
            return template.fill(values)
        for prefix, template in self._prefixes:
            if value.startswith(prefix):
                changed = list(values)
                changed[self._part] = value[len(prefix) :]
                return template.fill(tuple(changed))
        return self._default.fill(values)

    def _transformed(self, key: bytes) -> bytes | None:
        assert self._transform is not None
        target: object = self._transform(key)
        if not isinstance(target, bytes):
            raise PlanInvalid(
                f"glob {self.pattern.text}: the transform of {key!r} gave {target!r}, not bytes".replace("{key} ", ""),
                hint="return the key's new name, or the key itself to keep it; nothing was done",
            )
        return target


@lru_cache(maxsize=4096)
def _route(rule: Rule) -> _Route:
    return _Route(rule)


_Chain = list[tuple[int, Rule, Callable[[bytes], bytes | None]]]


def _first_of(chain: _Chain) -> Callable[[bytes], tuple[int, bytes] | None]:
    """Return what gives (rule's index, target) of the first of these rules that fits a key."""
    if len(chain) == 1:
        ((only, _, find_only),) = chain
        return lambda key: None if (target := find_only(key)) is None else (only, target)

    def find(key: bytes) -> tuple[int, bytes] | None:
        for index, _, resolve in chain:
            target = resolve(key)
            if target is not None:
                return index, target
        return None

    return find


def _lands_apart(rule: Rule) -> bool:
    """Return whether each key of the rule must have a target of its own: hash ticks are merged on purpose."""
    return not rule.skip and rule.kind != "hash_ticks"


def _head(key: bytes) -> bytes:
    return key[: key.find(b":") + 1]


def _name_of(function: Callable[..., Any] | None) -> str:
    if function is None:
        return ""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', repr(function))}"


def _convert_rule(origin: str, index: int, raw: Any) -> Rule:
    try:
        if isinstance(raw, dict) and {"glob", "transform"} & raw.keys():
            raise msgspec.ValidationError("glob and transform are for rules made in code")
        return msgspec.convert(raw, Rule)
    except msgspec.ValidationError as error:
        name = raw.get("pattern", "") if isinstance(raw, dict) else ""
        why = re.sub(r" - at `\$\.?(.*)`$", lambda m: f" in {m[1]}" if m[1] else "", str(error))
        raise PlanInvalid(
            f"{origin}: rule {index + 1} ({name}): {why}",
            hint="a rule has step, source_db, pattern, target, kind, types, skip, case",
            rule=index,
        ) from error
