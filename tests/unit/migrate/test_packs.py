"""Whole batches as one row of the ledger: what was written is what is read, packed or not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from onetape.migrate import Ledger, Plan
from onetape.migrate.ledger.entry import CODES, OPEN, Outcome, key_hash
from onetape.migrate.ledger.pack import Pack, packed_names, packed_rules, sealed

_PLAN = Plan.parse('name = "p"\n[[rule]]\nstep = "one"\nsource_db = 3\npattern = "a:{x}"\ntarget = "b:{x}"')
_SEAL = b"0123456789"


def _keys(count: int, at: int = 0) -> tuple[list[bytes], list[bytes]]:
    keys = [b"a:%d" % n for n in range(at, at + count)]
    return keys, [b"b" + key[1:] for key in keys]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger.open(tmp_path / "ledger")
    made.bind(_PLAN, address="here:1", run_id="x")
    made.begin_run("backfill")
    return made


def test_a_pack_gives_back_names_of_any_bytes_and_lengths() -> None:
    chance = random.Random(5)
    keys = [chance.randbytes(chance.choice([0, 1, 7, 300])) for _ in range(500)]
    targets = [chance.randbytes(chance.choice([0, 2, 90])) for _ in keys]
    rules = [chance.randrange(60_000) for _ in keys]
    known = [(chance.randbytes(10), chance.choice([-1, 2**45])) for _ in keys]
    pack = Pack(17, 4, 1, packed_rules(rules), packed_names(keys, targets), sealed(known))
    expected = zip(range(17, 517), rules, keys, targets, known, strict=True)
    assert list(pack.lines()) == [(id, rule, key, target, *one) for id, rule, key, target, one in expected]


def test_keys_in_packs_are_found_like_others_once_a_later_run_asks(ledger: Ledger, tmp_path: Path) -> None:
    keys, targets = _keys(1000)
    batch = ledger.intend_open(3, [0] * 1000, keys, targets)
    ledger.settle_open([(batch, [5, 999])])
    row = (0, 3, keys[5], targets[5], b"r" * 16, b"w" * 16, -1, CODES[Outcome.COPIED], None, key_hash(3, keys[5]))
    ledger.record([row])
    assert ledger.find(3, keys) == {}  # of this run
    ledger.end_run()
    with Ledger.open(tmp_path / "ledger", mode="r") as reading:
        packed = reading.find(3, keys)
    ledger.begin_run("backfill")
    unpacked = ledger.find(3, keys)
    assert packed == unpacked
    assert unpacked[keys[5]].written == b"w" * 16 and not unpacked[keys[5]].is_open
    assert keys[999] not in unpacked  # nothing was done with it
    assert unpacked[keys[0]].is_open and unpacked[keys[0]].target == targets[0]
    assert ledger.find(4, keys) == {}  # another database's
    ledger.close()


def test_what_a_verify_found_is_known_and_the_counts_tell_of_what_was_done(ledger: Ledger) -> None:
    keys, targets = _keys(10)
    ledger.settle_open([(ledger.intend_open(3, [0] * 10, keys, targets), [])])
    assert ledger.digests_open
    ledger.begin_run("digests")
    more, others = _keys(2, at=10)
    ledger.record_equal(3, [0] * 12, keys + more, targets + others, [(_SEAL, n) for n in range(12)])
    ledger.set_state(digests_open="")
    assert ledger.counts() == {"one": {"copied": 10, "unchanged": 2}}
    ledger.begin_run("backfill")
    known = ledger.find(3, [keys[7]])[keys[7]]
    assert (known.read, known.written, known.expire_ms) == (_SEAL, _SEAL, 7)
    assert ledger.counts() == {"one": {"copied": 10, "unchanged": 2}}
    assert [entry.written for entry in ledger.why(keys[3])] == [OPEN, _SEAL]
    assert ledger.find_now(3, keys[3]) == ledger.find(3, [keys[3]])[keys[3]]
    ledger.close()


def test_entries_come_in_the_order_in_which_they_were_written_packed_or_not(ledger: Ledger) -> None:
    for at in range(0, 30, 10):
        keys, targets = _keys(10, at)
        ledger.settle_open([(ledger.intend_open(3, [0] * 10, keys, targets), [])])
        row = (0, 3, b"a:x%d" % at, b"b:x", None, None, -1, CODES[Outcome.FAILED], "why", 0)
        ledger.record([row])
    before = list(ledger.entries())
    assert [entry.id for entry in before] == sorted(entry.id for entry in before)
    assert len(before) == 33
    ledger.begin_run("backfill")
    ledger.find(3, [b"a:1"])
    assert list(ledger.entries()) == before
    assert list(ledger.entries(step="two")) == []
    ledger.close()


def test_a_batch_that_was_never_settled_is_taken_up_key_by_key(ledger: Ledger, tmp_path: Path) -> None:
    keys, targets = _keys(10)
    ledger.settle_open([(ledger.intend_open(3, [0] * 10, keys, targets), [])])
    batch = ledger.intend_open(3, [0] * 10, *_keys(10, at=10))
    ledger.close()  # killed
    with Ledger.open(tmp_path / "ledger", mode="r") as reading:
        assert reading.counts() == {"one": {"copied": 10, "intended": 10}}
    with Ledger.open(tmp_path / "ledger") as again:
        found = again.unsettled()
        assert {number for number, _ in found} == {batch}
        assert [entry.key for _, entry in found] == _keys(10, at=10)[0]
        assert all(entry.is_open and entry.outcome is Outcome.COPIED for _, entry in found)
        again.settle(batch, [None] * 9)
        assert again.unsettled() == []
        assert again.begin_run("backfill") and len(again.find(3, keys)) == 10


def test_a_ledger_whose_last_batch_came_to_nothing_goes_on(ledger: Ledger, tmp_path: Path) -> None:
    keys, targets = _keys(3)
    ledger.settle_open([(ledger.intend_open(3, [0] * 3, keys, targets), [0, 1, 2])])
    ledger.begin_run("backfill")
    assert ledger.find(3, keys) == {}
    ledger.close()
    with Ledger.open(tmp_path / "ledger") as again:
        again.begin_run("backfill")
        again.settle_open([(again.intend_open(3, [0] * 3, keys, targets), [])])
        assert again.counts() == {"one": {"copied": 3}}
