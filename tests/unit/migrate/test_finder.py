"""The short ways of matching, forward and back, say what splitting a key into its parts says."""

from __future__ import annotations

from itertools import product

import pytest

from onetape.migrate.plans.origin import Origins
from onetape.migrate.plans.plan import Plan, Rule

_KEYS = [
    begin + middle + end
    for begin in (b"", b"a:", b"a:b:", b"x", b"t:", b"c:")
    for middle in (b"", b"v", b"w", b"p_v", b"p_:w", b"s:v", b"s:p_w:v", b"::", b"s-v:w", b"\xff\x00:w")
    for end in (b"", b":", b":z")
]
_RULES = [
    ('pattern = "a:{n}"\ntarget = "t:{n}"', ""),
    ('pattern = "a:b:{s}:{n}"\ntarget = "t:{s}:{n}"', ""),
    ('pattern = "a:{s}:{n}"\ntarget = "t:{s}-{n}"', ""),
    ('pattern = "a:{s}:{m}:{n}"\ntarget = "t:{s}:{m}:{n}"', ""),
    ('pattern = "a:{s}:{n}:z"\ntarget = "t:{s}:{n}"', ""),
    ('pattern = "x{n}"\ntarget = "t:{n}"', ""),
    ('pattern = "a:{s}:{n}"\ntarget = "t:{s}:{n}"', "values"),
    ('pattern = "a:{s}:{n}"\ntarget = "t:{s}:{n}"', "prefix"),
    ('pattern = "a:{s}:{n}"\ntarget = "t:{s}:{n}"', "both"),
    ('pattern = "a:{s}:{n}"\ntypes = ["hash"]\ntarget = "t:{s}:{n}"', "values"),
]
_CASES = {
    "": "",
    "values": '\n[[rule.case]]\npart = "n"\nvalues = ["v", "w"]\ntarget = "c:{s}:{n}"',
    "prefix": '\n[[rule.case]]\npart = "n"\nprefix = "p_"\ntarget = "c:{s}:{n}"',
}
_CASES["both"] = _CASES["values"] + _CASES["prefix"].replace('"c:', '"d:')


def _plan(*chosen: tuple[str, str]) -> Plan:
    rules = [f'[[rule]]\nstep = "s"\nsource_db = {db}\n{text}{_CASES[case]}' for db, (text, case) in enumerate(chosen)]
    return Plan.parse('name = "p"\ntarget_db = 9\n' + "\n".join(rules))


def _slowly(rule: Rule, key: bytes) -> bytes | None:
    """Return a key's target from its parts."""
    values = rule.parts(key)
    if values is None:
        return None
    target = rule.target or rule.pattern
    for case in rule.case:
        value = values[case.part]
        if value in [one.encode() for one in case.values]:
            target = case.target
            break
        if case.prefix and value.startswith(case.prefix.encode()):
            values = {**values, case.part: value[len(case.prefix) :]}
            target = case.target
            break
    text = target.encode()
    for name in values:
        text = text.replace(b"{%b}" % name.encode(), b"\x01%b\x02" % name.encode())
    for name, value in values.items():
        text = text.replace(b"\x01%b\x02" % name.encode(), value)
    return text


@pytest.mark.parametrize("rule", _RULES)
def test_a_target_found_by_slices_is_the_one_that_the_parts_give(rule: tuple[str, str]) -> None:
    plan = _plan(rule)
    matcher = plan.matcher(0)
    fits = 0
    for key in _KEYS:
        target = _slowly(plan.rules[0], key)
        fits += target is not None
        assert matcher.match(key) == (None if target is None else (0, plan.rules[0], target)), key
        assert matcher.match_all([key]) == [None if target is None else (0, target)], key
    assert fits > 3


@pytest.mark.parametrize("rules", list(product(_RULES, _RULES[:3])))
def test_every_target_leads_back_to_all_keys_that_give_it_and_to_each_once(
    rules: tuple[tuple[str, str], tuple[str, str]],
) -> None:
    plan = _plan(*rules)
    origins = Origins(plan)
    made: dict[bytes, set[tuple[int, bytes]]] = {}
    for db, key in product((0, 1), _KEYS):
        target = _slowly(plan.rules[db], key)
        if target is not None:
            made.setdefault(target, set()).add((db, key))
    for target, sources in made.items():
        found = [(origin.source_db, origin.key) for origin in origins.of(target)]
        assert len(found) == len(set(found))
        assert sources <= set(found), target
        for db, source in found:
            assert source is not None and _slowly(plan.rules[db], source) == target
