"""Snapshots: names for positions, with a digest that holds whatever is appended, sealed, compacted or pruned later."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onetape
from onetape import Bar, Tick

T0 = 1_700_000_000_000_000_000
DAY = 86_400_000_000_000


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as opened:
        yield opened


def _fill(tape, start, count, symbols="AB"):
    tape.append(
        [Tick(symbols[i % len(symbols)], T0 + (start + i) * 10**6, i / 4, 1.0, source="feed") for i in range(count)]
    )


def test_a_snapshot_names_the_last_position_and_tells_what_it_covers(tape):
    _fill(tape, 0, 10)
    taken = tape.snapshot("eod-2026-11-20", note="after the close")
    assert (taken.name, taken.seq, taken.records, taken.note) == ("eod-2026-11-20", 10, 10, "after the close")
    assert len(taken.digest) == 64
    assert tape.snapshots() == [taken]
    assert tape.as_of("eod-2026-11-20") == 10


def test_a_snapshot_holds_while_late_data_seals_and_more_symbols_come(tape):
    _fill(tape, 100, 50)
    tape.append([Bar("A", "1d", T0 // DAY * DAY, 1.0, 2.0, 0.5, 1.5, source="vendor")])
    taken = tape.snapshot("one")
    assert taken.records == 51
    _fill(tape, 0, 5000, "CAB")
    tape.seal()
    proof = tape.verify_snapshot("one")
    assert proof.holds
    assert proof.found.records == 51
    assert tape.snapshot("two").digest != taken.digest
    assert [known.name for known in tape.snapshots()] == ["one", "two"]


def test_a_digest_is_of_the_content_and_not_of_how_it_is_kept(tmp_path):
    ticks = [Tick(f"S{i % 3}", T0 + (i * 7919) % 1000 * 10**6, i / 4, bid=None if i % 2 else 1.0) for i in range(900)]
    digests = set()
    for number, parts in enumerate(([900], [1] * 900, [450, 450], [10] * 90)):
        with onetape.open(tmp_path / f"{number}.db", retention_days=None) as tape:
            at = 0
            for size in parts:
                tape.append(ticks[at : at + size])
                at += size
                if number > 1:
                    tape.seal()
            digests.add(tape.digest())
    assert len(digests) == 1


@pytest.mark.parametrize(
    "other",
    [
        Tick("A", T0, price=0.0),
        Tick("A", T0, price=-0.0),
        Tick("A", T0, bid=0.0),
        Tick("A", T0 + 1, price=0.0),
        Tick("B", T0, price=0.0),
        Tick("A", T0, price=0.0, size=0.0),
        Tick("A", T0, price=0.0, flags=1),
        Tick("A", T0, price=0.0, side=1),
        Tick("A", T0, price=0.0, trades=0),
        Tick("A", T0, price=0.0, source="x"),
        Tick("A", T0, price=0.0, source="y"),
    ],
)
def test_every_bit_of_every_field_counts(tmp_path, other, request):
    with onetape.open(tmp_path / "t.db") as tape:
        tape.append(other)
        seen = request.config.stash.setdefault(_SEEN, {})
        digest = tape.digest().digest
        assert seen.setdefault(digest, other) is other


_SEEN = pytest.StashKey[dict]()


def test_a_name_that_is_taken_is_refused_and_nothing_changes(tape):
    _fill(tape, 0, 4)
    first = tape.snapshot("eod")
    _fill(tape, 10, 4)
    with pytest.raises(onetape.SnapshotExists, match="'eod' already, of position 4") as caught:
        tape.snapshot("eod")
    assert caught.value.hint
    assert tape.snapshots() == [first]


@pytest.mark.parametrize("name", ["", " eod", "a\nb", "x" * 201, "2026-11-20", "1700000000000000000", 7, "a\0b"])
def test_what_cannot_be_told_from_a_time_or_printed_is_no_name(tape, name):
    _fill(tape, 0, 1)
    with pytest.raises(onetape.ConfigInvalid):
        tape.snapshot(name)
    assert tape.snapshots() == []


def test_a_snapshot_that_is_not_there(tape):
    _fill(tape, 0, 1)
    tape.snapshot("one")
    for act in (tape.verify_snapshot, tape.delete_snapshot):
        with pytest.raises(onetape.SnapshotMissing, match="no snapshot 'two'") as caught:
            act("two")
        assert "one" in caught.value.hint


def test_a_snapshot_of_an_empty_tape_covers_nothing(tape):
    assert tape.snapshot("empty").records == 0
    _fill(tape, 0, 5)
    assert tape.verify_snapshot("empty").holds


def test_deleting_frees_the_name(tape):
    _fill(tape, 0, 3)
    tape.snapshot("eod")
    assert tape.delete_snapshot("eod").seq == 3
    _fill(tape, 5, 3)
    assert tape.snapshot("eod").seq == 6


def test_a_snapshot_whose_maker_died_says_so_and_can_be_taken_again(tape, monkeypatch):
    _fill(tape, 0, 3)
    with monkeypatch.context() as patched:
        patched.setattr(tape, "_digest", lambda seq: (_ for _ in ()).throw(KeyboardInterrupt))
        patched.setattr(tape, "_drop_snapshot", lambda name: None)
        with pytest.raises(KeyboardInterrupt):
            tape.snapshot("eod")
    [left] = tape.snapshots()
    assert left.digest is None
    with pytest.raises(onetape.ConfigInvalid, match="never finished"):
        tape.verify_snapshot("eod")
    with pytest.raises(onetape.SnapshotExists) as caught:
        tape.snapshot("eod")
    assert "never finished" in caught.value.hint
    tape.delete_snapshot("eod")
    assert tape.snapshot("eod").digest


def test_a_digest_that_fails_leaves_no_snapshot(tape, monkeypatch):
    _fill(tape, 0, 3)
    monkeypatch.setattr(tape, "_digest", lambda seq: (_ for _ in ()).throw(onetape.ChunkCorrupt("chunk 1")))
    with pytest.raises(onetape.ChunkCorrupt):
        tape.snapshot("eod")
    assert tape.snapshots() == []


def test_as_of_takes_positions_names_and_times_of_appending(tape):
    before = onetape.now_ns()
    time.sleep(0.02)
    _fill(tape, 0, 3)
    time.sleep(0.02)
    between = onetape.now_ns()
    time.sleep(0.02)
    _fill(tape, 5, 2)
    tape.snapshot("all")
    assert tape.as_of(2) == 2
    assert tape.as_of("all") == 5
    assert tape.as_of("2200-01-01") == 5
    from onetape.clock import to_text

    assert tape.as_of(to_text(between)) == 3
    with pytest.raises(onetape.ConfigInvalid, match="before the first record"):
        tape.as_of(to_text(before))
    with pytest.raises(onetape.ConfigInvalid, match="before the first record"):
        tape.as_of(0)
    with pytest.raises(onetape.ConfigInvalid, match="last position is 5"):
        tape.as_of(6)
    with pytest.raises(onetape.ConfigInvalid, match="neither a snapshot nor a time"):
        tape.as_of("eod-yesterday")
    with pytest.raises(onetape.ConfigInvalid):
        tape.as_of(True)


def test_reading_as_of_a_snapshot_gives_what_was_known_then(tape):
    _fill(tape, 100, 20)
    before = tape.read("A").to_pylist()
    tape.snapshot("eod")
    _fill(tape, 0, 9000)
    tape.seal()
    assert tape.read("A", as_of="eod").to_pylist() == before
    assert tape.read("A").num_rows == 4510
    with pytest.raises(onetape.ConfigInvalid, match="neither a snapshot nor a time"):
        tape.read("A", as_of="eod-2")


def test_retention_leaves_what_a_snapshot_covers_until_it_is_deleted(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None) as tape:
        _fill(tape, 0, 100)
        taken = tape.snapshot("eod")
        _fill(tape, 1000, 60)
        tape.seal()
        later = onetape.now_ns() + 90 * DAY
        plan = tape.prune_plan(now=later, retention_days=30)
        assert (plan.ticks, plan.ticks_held, plan.held) == (60, 100, {"eod": 100})
        assert tape.prune(now=later, retention_days=30) == 60
        assert tape.verify_snapshot("eod").holds
        assert tape.read("A").num_rows == 50
        tape.delete_snapshot("eod")
        assert tape.prune_plan(now=later, retention_days=30).held == {}
        assert tape.prune(now=later, retention_days=30) == 100
        assert tape.read("A").num_rows == 0
        assert [info.ticks for info in tape.symbols()] == [0, 0]
        assert tape.bars("A").num_rows > 0
        assert taken.records == 100


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.sampled_from(["append", "late", "seal", "snap", "bulk"]), st.integers(1, 60)),
        min_size=1,
        max_size=14,
    )
)
def test_every_snapshot_holds_after_any_history(tmp_path_factory, acts):
    with onetape.open(tmp_path_factory.mktemp("s") / "t.db", retention_days=None) as tape:
        at = 0
        for number, (act, count) in enumerate(acts):
            if act == "append":
                _fill(tape, at, count)
                at += count
            elif act == "late":
                _fill(tape, max(0, at - 2 * count), count, "BAC")
            elif act == "seal":
                tape.seal()
            elif act == "bulk":
                _fill(tape, at, 9000, "ABCD")
                at += 9000
            else:
                tape.snapshot(f"snap-{number}")
        for taken in tape.snapshots():
            assert tape.verify_snapshot(taken.name).holds
