"""The page on migrating: its plan is a plan, and its commands, outcomes and verdicts are the real ones."""

import re

from tests.conftest import ROOT

from onetape.migrate.ledger.entry import Outcome
from onetape.migrate.plans.plan import Plan
from onetape.migrate.verifying.verdict import EXIT_CODES

PAGE = (ROOT / "docs" / "migration.md").read_text()


def test_the_plan_of_the_page_is_a_plan(tmp_path):
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    path = tmp_path / "plan.toml"
    path.write_text(example)
    plan = Plan.load(path)
    assert plan.name == "my_system"
    assert [rule.kind for rule in plan.rules] == ["copy", "ticks", "hash_ticks", "ohlc", "copy"]


def test_every_outcome_and_verdict_is_on_the_page():
    for outcome in Outcome:
        if outcome is not Outcome.INTENDED:
            assert f"| `{outcome.value}` |" in PAGE
    for verdict, code in EXIT_CODES.items():
        assert f"| {verdict} | {code} |" in PAGE


def test_every_command_of_the_page_exists():
    from typer.main import get_command

    from onetape.cli.app import app

    known = get_command(app).commands["migrate"].commands
    for name in set(re.findall(r"onetape migrate (\w+)", PAGE)):
        assert name in known
