"""The plan: what it matches, what it proves, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetape.errors import PlanInvalid
from onetape.migrate import Plan
from onetape.migrate.plans.pattern import glob_pattern

HEAD = 'name = "p"\ntarget_db = 1\n'
RULE = '[[rule]]\nstep = "s"\nsource_db = 2\n'


def _target(plan: Plan, db: int, key: bytes) -> bytes | None:
    hit = plan.matcher(db).match(key)
    return None if hit is None else hit[2]


@pytest.mark.parametrize(
    ("db", "old", "new"),
    [
        (2, b"volume_state:12345", b"vol:state:12345"),
        (2, b"volume_averages:NFO:NIFTY25NOVFUT", b"vol:baseline:NFO:NIFTY25NOVFUT"),
        (2, b"volume_profile:patterns:NSE:INFY:5min", b"vol:profile:NSE:INFY:5min"),
        (2, b"volume:baseline:INFY", b"volume:baseline:INFY"),
        (2, b"ohlc_latest:INFY", b"ohlc_latest:INFY"),
        (2, b"ohlc:INFY:1", b"ohlc:INFY:1"),
        (2, b"ohlc_stats:INFY", b"ohlc_stats:INFY"),
        (2, b"realtime:NFO:X:1700000000", b"ticks:historical:NFO:X"),
        (2, b"ticks:NFO:X", b"ticks:NFO:X"),
        (0, b"ticks:NFO:X", b"ticks:NFO:X"),
        (0, b"tick:NFO:X", b"ticks:historical:NFO:X"),
        (0, b"session:a:b", b"sys:session:a:b"),
        (0, b"session:", b"sys:session:"),
        (0, b"system:x", b"sys:system:x"),
        (0, b"health:x", b"sys:health:x"),
        (5, b"indicators:NFO:NIFTY25NOVFUT:rsi", b"ind:ta:NFO:NIFTY25NOVFUT:rsi"),
        (5, b"indicators:A:macd", b"ind:ta:A:macd"),
        (5, b"indicators:A:delta", b"ind:greeks:A:delta"),
        (5, b"indicators:A:iv", b"ind:greeks:A:iv"),
        (5, b"indicators:A:volume_ratio", b"ind:volume:A:ratio"),
        (5, b"indicators:A:volume_ratio_ma_5", b"ind:volume:A:ratio_ma_5"),
        (5, b"indicators:A:volume_", b"ind:volume:A:"),
        (5, b"indicators:A:never_heard_of", b"ind:other:A:never_heard_of"),
        (5, b"indicators:\xff:\x00:rsi", b"ind:ta:\xff:\x00:rsi"),
        (5, b"indicators:rsi", None),
        (5, b"indicators", None),
        (5, b"", None),
        (0, b"indicators:A:rsi", None),
        (2, b"volume_statistics", None),
        (3, b"session:1", None),
    ],
)
def test_the_documented_layout(db: int, old: bytes, new: bytes | None) -> None:
    assert _target(Plan.load(), db, old) == new


def test_the_six_steps_are_in_the_documented_order() -> None:
    assert Plan.load().steps == ("volume", "indicators", "system", "ticks", "ohlc", "baselines")
    assert Plan.load().target_db == 1
    assert Plan.load().timezone == "Asia/Kolkata"


@given(st.binary(max_size=30), st.binary(max_size=30), st.sampled_from([0, 2, 5]))
def test_what_is_proved_one_to_one_is(first: bytes, second: bytes, db: int) -> None:
    plan = Plan.load()
    matcher, proved = plan.matcher(db), set(range(len(plan.rules))) - plan.unproved()
    for prefix in (b"indicators:", b"session:", b"ohlc:", b"volume_profile:patterns:", b"volume_averages:"):
        hits = [matcher.match(prefix + rest) for rest in (first, second)]
        if first != second and all(hit is not None and hit[0] in proved for hit in hits):
            assert hits[0] is not None and hits[1] is not None and hits[0][2] != hits[1][2]


def test_only_rules_that_could_meet_are_left_to_the_real_keys() -> None:
    plan = Plan.load()
    streams = {"ticks:historical:{symbol}", "ticks:{symbol}"}  # of databases 0 and 2
    assert {plan.rules[i].pattern for i in plan.unproved()} == streams
    one = plan.with_source("ticks", 1)
    assert {one.rules[i].pattern for i in one.unproved()} <= streams
    assert plan.only(["volume", "indicators", "system", "ohlc", "baselines"]).unproved() == frozenset()


def test_the_first_rule_that_fits_decides() -> None:
    special = RULE + 'pattern = "volume:baseline:{x}"\ntarget = "b:{x}"\n'
    general = RULE + 'pattern = "volume:{x}"\ntarget = "v:{x}"\n'
    assert _target(Plan.parse(HEAD + special + general), 2, b"volume:baseline:1") == b"b:1"
    assert _target(Plan.parse(HEAD + general + special), 2, b"volume:baseline:1") == b"v:baseline:1"


def test_a_rule_can_take_some_types_only() -> None:
    text = HEAD + RULE + 'pattern = "a:{x}"\ntypes = ["stream"]\n' + RULE + 'pattern = "a:{x}"\ntarget = "b:{x}"\n'
    matcher = Plan.parse(text).matcher(2)
    streams, others = matcher.match_type(b"a:1", "stream"), matcher.match_type(b"a:1", "hash")
    assert streams is not None and streams[2] == b"a:1"
    assert others is not None and others[2] == b"b:1"


def test_patterns_can_have_suffixes_more_parts_and_any_order() -> None:
    text = HEAD + RULE + 'pattern = "{a}/{b}-{c}.x"\ntarget = "{c}|{a}|{b}%"\n'
    plan = Plan.parse(text)
    assert _target(plan, 2, b"1/2/3-4-5.x") == b"5|1/2|3-4%"
    assert _target(plan, 2, b"1/2.x") is None
    assert _target(plan, 2, b".x") is None
    assert plan.unproved() == {0}  # not one to one by its form: the real keys decide


def test_the_hash_is_that_of_the_content() -> None:
    one = HEAD + RULE + 'pattern = "a:{x}"\ntarget = "b:{x}"\n'
    same = "# a comment\n" + one.replace("target_db = 1\n", "target_db   =   1\n")
    assert Plan.parse(one).hash == Plan.parse(same, origin="elsewhere").hash
    assert Plan.parse(one).hash != Plan.parse(one.replace("b:", "c:")).hash
    assert Plan.parse(one).hash != Plan.parse(one).with_target(3).hash
    assert Plan.load().hash == Plan.load().hash != Plan.load().with_source("ticks", 1).hash


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name = ", "not TOML"),
        ('name = "p"\n', "no [[rule]]"),
        ("rule = 3\n", "no [[rule]]"),
        (RULE + 'pattern = "a:{x}"\n', "name"),
        (HEAD + "color = 3\n" + RULE + 'pattern = "a:{x}"\n', "color"),
        (HEAD + 'timezone = "Mars/Base"\n' + RULE + 'pattern = "a:{x}"\n', "Mars/Base"),
        (HEAD + RULE, "rule 1 (): pattern is empty"),
        (HEAD + RULE + 'pattern = "a"\n', "rule 1 (a): 'a' has no {part}"),
        (HEAD + RULE + 'pattern = "a:{X}"\n', "a part is written {name}"),
        (HEAD + RULE + 'pattern = "a:{x"\n', "a part is written {name}"),
        (HEAD + RULE + 'pattern = "a:{x}:{x}"\n', "has a part twice"),
        (HEAD + RULE + 'pattern = "a:{x}{y}"\n', "nothing between them"),
        (HEAD + RULE + 'pattern = "a:{x}"\ntarget = "b:{z}"\n', "{z}, which is not in the pattern"),
        (HEAD + RULE + 'pattern = "a:{x}:{y}"\ntarget = "b:{x}"\n', "drops {y}"),
        (HEAD + RULE + 'pattern = "a:{x}"\nkind = "magic"\n', "kind"),
        (HEAD + RULE + 'pattern = "a:{x}"\ntypes = ["dict"]\n', "types"),
        (HEAD + RULE + 'pattern = "a:{x}"\nsorce_db = 2\n', "sorce_db"),
        (HEAD + RULE + 'pattern = "a:{x}"\nglob = "*"\n', "made in code"),
        (HEAD + RULE + 'pattern = "a:{x}"\nkind = "hash_ticks"\ntarget = "t:{x}"\n', "needs a {symbol}"),
        (HEAD + RULE.replace("2", "-2") + 'pattern = "a:{x}"\n', "not a database"),
        (HEAD + (RULE + 'pattern = "a:{x}"\n') * 2, "would never match"),
        (HEAD + RULE + 'pattern = "a:{x}"\n[[rule.case]]\npart = "y"\nprefix = "1"\ntarget = "b:{x}"\n', "no part {y}"),
        (HEAD + RULE + 'pattern = "a:{x}"\n[[rule.case]]\npart = "x"\ntarget = "b:{x}"\n', "values or a prefix"),
        (
            HEAD + RULE + 'pattern = "a:{x}"\n' + '[[rule.case]]\npart = "x"\nvalues = ["1"]\ntarget = "b:{x}"\n' * 2,
            "there twice",
        ),
        (
            HEAD + RULE.replace("2", "1") + 'pattern = "a:{x}"\ntarget = "b:{x}"\n'
            + RULE.replace("2", "1") + 'pattern = "b:{x}"\ntarget = "c:{x}"\n',
            "copied on and on",
        ),
    ],
)  # fmt: skip
def test_a_damaged_plan_is_refused_in_one_line(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(PlanInvalid) as caught:
        Plan.load(path)
    said = str(caught.value)
    assert why in said and str(path) in said and "\n" not in said and caught.value.hint


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for path, why in (
        (tmp_path / "none.toml", "No such file"),
        (tmp_path / "binary.toml", "UTF-8"),
        (tmp_path, "directory"),
    ):
        with pytest.raises(PlanInvalid, match=why):
            Plan.load(path)


def test_one_value_can_have_a_target_of_its_own() -> None:
    text = HEAD + RULE + 'pattern = "a:{s}:{n}"\n[[rule.case]]\npart = "n"\nvalues = ["last"]\ntarget = "latest:{s}"\n'
    plan = Plan.parse(text)
    assert _target(plan, 2, b"a:X:last") == b"latest:X"
    assert _target(plan, 2, b"a:X:first") == b"a:X:first"


@pytest.mark.parametrize(
    ("glob", "key", "fits"),
    [
        (b"a:*", b"a:\n:x", True),
        (b"a:*", b"b:a:", False),
        (b"a.?", b"a.x", True),
        (b"a.?", b"abx", False),
        (b"[ab]*", b"bx", True),
        (b"[^ab]*", b"bx", False),
        (b"[a-c]", b"b", True),
        (b"\\*x", b"*x", True),
        (b"\\*x", b"yx", False),
        (b"[open", b"[open", True),
        (b"\xff*", b"\xff\x00", True),
    ],
)
def test_a_glob_is_matched_as_redis_does(glob: bytes, key: bytes, fits: bool) -> None:
    assert bool(glob_pattern(glob).fullmatch(key)) == fits


@pytest.mark.parametrize("given", [None, "text"])
def test_a_transform_that_gives_no_bytes_is_refused_by_name(given: object) -> None:
    plan = Plan.of_glob("a:*", 0, transform=lambda key: given)  # type: ignore[arg-type, return-value]
    with pytest.raises(PlanInvalid, match="b'a:1'"):
        plan.matcher(0).match(b"a:1")
