"""Routes: both names of a key, from either side."""

from __future__ import annotations

import pytest

from onetape.errors import PlanInvalid
from onetape.migrate.phases.state import Names
from onetape.migrate.plans.plan import Plan
from onetape.migrate.routes import Routes

ROUTES = Routes(Plan.load())


def test_an_old_name_and_its_new_name_give_the_same_route() -> None:
    for db, old, new in [
        (5, b"indicators:NFO:NIFTY25NOVFUT:rsi", b"ind:ta:NFO:NIFTY25NOVFUT:rsi"),
        (5, b"indicators:X:volume_ratio", b"ind:volume:X:ratio"),
        (2, b"volume_state:\xff\x00", b"vol:state:\xff\x00"),
        (0, b"session:a:b", b"sys:session:a:b"),
    ]:
        route = ROUTES.of(db, old)
        assert route is not None
        assert (route.old_db, route.old_key, route.new_db, route.new_key) == (db, old, 1, new)
        assert ROUTES.of(1, new) == route


def test_a_key_that_the_plan_does_not_move_has_no_route() -> None:
    assert ROUTES.of(5, b"other:X") is None
    assert ROUTES.of(7, b"indicators:X:rsi") is None
    assert ROUTES.of(1, b"onetape:migration:trading_system") is None


def test_the_type_that_a_command_implies_decides_where_rules_ask_for_types() -> None:
    stream = ROUTES.of(2, b"ticks:X", "stream")
    assert stream is not None and stream.new_key == b"ticks:X"
    assert ROUTES.of(2, b"ticks:X", "hash") is None


def test_a_tick_hash_is_merged_and_a_name_of_several_sources_is_not_turned_round() -> None:
    tick = ROUTES.of(0, b"tick:X", "hash")
    assert tick is not None and tick.merged and tick.new_key == b"ticks:historical:X"
    historical = ROUTES.of(0, b"ticks:historical:X", "stream")
    assert historical is not None and historical.joined and not historical.shared
    stream = ROUTES.of(1, b"ticks:X")
    assert stream is not None and stream.shared and stream.old_key == b""


def test_keys_of_our_own_are_taken_by_no_rule_and_given_by_none() -> None:
    rules = '[[rule]]\nstep = "all"\nsource_db = 1\npattern = "{key}"\n'
    plan = Plan.parse(f'name = "all"\ntarget_db = 2\n{rules}')
    matcher = plan.matcher(1)
    assert matcher.match(b"onetape:migration:all") is None
    assert matcher.match_type(b"onetape:migration:all", "string") is None
    assert matcher.candidates(b"onetape:merge:x") == []
    assert matcher.match(b"onetape") is not None
    with pytest.raises(PlanInvalid, match="begin with onetape:"):
        Plan.parse(f'name = "all"\ntarget_db = 2\n{rules}target = "onetape:{{key}}"\n')


def test_names_of_migrations_cannot_be_taken_for_one_anothers_keys() -> None:
    plans = [
        Plan.parse(f'name = "{n}"\n[[rule]]\nstep="s"\nsource_db=5\npattern="a:{{b}}"\n') for n in ("x", "x:clients")
    ]
    one, other = (Names.of(plan) for plan in plans)
    assert one.clients != other.state


def test_only_streams_that_ticks_are_merged_into_are_joined() -> None:
    for db, key in [(2, b"ticks:X"), (5, b"indicators:X:rsi"), (2, b"ohlc_latest:X")]:
        route = ROUTES.of(db, key)
        assert route is None or not route.joined
