"""The ledger counts each key once, in whatever form its batches are kept."""

from __future__ import annotations

from pathlib import Path

from onetape.migrate.ledger.entry import CODES, Outcome, key_hash
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.plans.plan import Plan

PLAN = Plan.load()


def test_packs_and_single_entries_of_one_run_do_not_take_one_anothers_places(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.bind(PLAN, address="here", run_id="1")
        ledger.begin_run("backfill")
        packed = [b"volume_state:%d" % n for n in range(50)]
        single = [b"volume_averages:%d" % n for n in range(30)]
        for _again in range(2):
            batch = ledger.intend_open(2, [0] * len(packed), packed, packed)
            ledger.settle_open([(batch, ())])
            ledger.record(
                [(1, 2, key, key, None, None, -1, CODES[Outcome.SKIPPED], None, key_hash(2, key)) for key in single]
            )
        assert ledger.counts() == {"volume": {"copied": 50, "skipped": 30}}
        assert [entry.outcome for entry in ledger.why(packed[0])] == [Outcome.COPIED] * 2
        assert [entry.outcome for entry in ledger.why(single[-1])] == [Outcome.SKIPPED] * 2
    with Ledger.open(tmp_path / "ledger.db", mode="r") as ledger:
        assert ledger.counts() == {"volume": {"copied": 50, "skipped": 30}}
