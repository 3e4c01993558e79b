"""The reference of plan files: its plan is one, its fields are all there are, what it says is refused is refused."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from tests.conftest import ROOT

from onetape.errors import PlanInvalid
from onetape.migrate.plans.plan import Case, Kind, Plan, RedisType, Rule

PAGE = (ROOT / "docs" / "plan_files.md").read_text()


def test_the_plan_of_the_page_is_a_plan() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    plan = Plan.parse(example)
    assert plan.steps == ("indicators", "ticks", "scratch")
    assert plan.rules[0].target_of(b"indicators:NFO:X:volume_ratio") == b"ind:volume:NFO:X:ratio"


def test_every_field_kind_and_type_is_on_the_page() -> None:
    in_code_only = {"glob", "transform", "case"}
    for field in {*Rule.__struct_fields__, *Plan.__struct_fields__} - in_code_only - {"rules", "origin"}:
        assert f"| `{field}` |" in PAGE, field
    for name in (*Case.__struct_fields__, *get_args(Kind), *get_args(RedisType)):
        assert f"`{name}`" in PAGE, name


def _rule(target: str, pattern: str, db: int = 5) -> str:
    return f'[[rule]]\nstep = "s"\nsource_db = {db}\npattern = "{pattern}"\ntarget = "{target}"\n'


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ("", "no \\[\\[rule\\]\\]"),
        (_rule("n:{a}", "o:{a}") + 'colour = "red"\n', "unknown field `colour`"),
        (_rule("n:{a}", "o:{a}:{b}"), "drops {b}: such keys would collide"),
        (_rule("n:{c}", "o:{a}"), "uses {c}, which is not in the pattern"),
        (_rule("n:{a}{b}", "o:{a}{b}"), "two parts with nothing between them"),
        (_rule("n:{a}", "o:{a}:{a}"), "a part twice"),
        (_rule("n", "o"), "has no {part}"),
        (_rule("n:{a}", "o:{a}") * 2, "rule 2 .* would never match"),
        (_rule("m:{a}", "o:{a}") + _rule("z:{a}", "m:{a}", 1), "copied on and on"),
        (_rule("onetape:{a}", "o:{a}"), "begin with onetape:"),
    ],
)
def test_what_the_page_says_is_refused_is_refused_by_name(rules: str, told: str) -> None:
    with pytest.raises(PlanInvalid, match=told):
        Plan.parse(f'name = "x"\ntarget_db = 1\n{rules}', "plan.toml")
