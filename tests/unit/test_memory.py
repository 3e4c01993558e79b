"""Latest and recent: in memory, in canonical order, the same after a restart for every symbol."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onetape
from onetape import Tick

T0 = 1_700_000_000_000_000_000


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db", recent_per_symbol=10) as opened:
        yield opened


def test_late_data_never_becomes_the_latest(tape):
    tape.append(Tick("A", T0 + 10, price=1.0))
    assert tape.latest("A").price == 1.0
    tape.append(Tick("A", T0, price=2.0))
    assert tape.latest("A").price == 1.0
    tape.append([Tick("A", T0 + 10, price=3.0)])
    assert tape.latest("A").price == 3.0


def test_recent_is_the_newest_ascending_and_more_than_memory_holds_comes_from_the_file(tape):
    for i in range(50):
        tape.append(Tick("A", T0 + i, price=float(i)))
        tape.recent("A", 3)
    assert [tick.price for tick in tape.recent("A", 3)] == [47.0, 48.0, 49.0]
    assert [tick.price for tick in tape.recent("A", 10)] == [float(i) for i in range(40, 50)]
    assert [tick.price for tick in tape.recent("A", 45)] == [float(i) for i in range(5, 50)]
    assert len(tape.recent("A", 1000)) == 50


def test_every_symbol_is_there_after_a_restart(tape):
    for i in range(200):
        tape.append(Tick(f"S{i % 40:02}", T0 + i, price=float(i)))
    before = tape.latest(), {name: tape.recent(name, 10) for name in tape.latest()}
    path = tape.path
    tape.close()
    with onetape.open(path, recent_per_symbol=10) as again:
        assert len(again.latest()) == 40
        assert (again.latest(), {name: again.recent(name, 10) for name in again.latest()}) == before


def test_unknown_symbols(tape):
    assert tape.latest("nope") is None
    assert tape.latest() == {}
    assert tape.recent("nope") == []
    assert tape.read("nope").num_rows == 0
    assert tape.bars("nope").num_rows == 0
    tape.append(Tick("nope", T0, price=1.0))
    assert tape.latest("nope").price == 1.0
    with pytest.raises(onetape.ConfigInvalid):
        tape.recent("nope", 0)


def test_what_another_process_appends_is_seen(tape):
    tape.append(Tick("A", T0, price=1.0))
    assert tape.latest("A").price == 1.0
    with onetape.open(tape.path) as other:  # another connection: the tape cannot tell it from another process
        other.append(Tick("A", T0 + 1, price=2.0))
        deadline = time.monotonic() + 60
        while tape.latest("A").price != 2.0 and time.monotonic() < deadline:
            time.sleep(0.001)
    assert [tick.price for tick in tape.recent("A")] == [1.0, 2.0]
    tape.append(Tick("A", T0 + 2, price=3.0))
    assert [tick.price for tick in tape.recent("A")] == [1.0, 2.0, 3.0]


def test_memory_is_bounded(tape):
    tape.append(Tick("A", T0, price=1.0))
    tape.latest("A")
    for i in range(500):
        tape.append(Tick("A", T0 + i, price=1.0))
    tape.latest("A")
    assert tape.stats().recent_records <= 20


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("AB"), st.integers(0, 30), st.integers(1, 6), st.sampled_from(["here", "there", "ask"])
        ),
        max_size=40,
    ),
    st.randoms(use_true_random=False),
)
def test_memory_and_file_always_agree_with_a_plain_list(tmp_path_factory, acts, chance: random.Random):
    path = tmp_path_factory.mktemp("memory") / "t.db"
    model: list[Tick] = []
    with onetape.open(path, recent_per_symbol=5) as tape, onetape.open(path) as other:
        for symbol, offset, count, who in acts:
            if who == "ask":
                tape.latest(symbol)
                continue
            ticks = [
                Tick(symbol, T0 + offset + chance.randint(0, 3), price=float(len(model) + i)) for i in range(count)
            ]
            target = tape if who == "here" else other
            done = target.append(ticks if chance.random() < 0.7 or count > 1 else ticks[0])
            for seq, tick in zip(range(done.first, done.last + 1), ticks, strict=True):
                model.append(Tick(tick.symbol, tick.ts_event_ns, tick.price, seq=seq))
            if chance.random() < 0.2:
                other.seal()
        tape.append(Tick("end", T0, price=1.0))
        other.append(Tick("end", T0, price=1.0))
        time.sleep(0.01)
        tape.append(Tick("end", T0, price=1.0))
        for symbol in "AB":
            expected = sorted((t for t in model if t.symbol == symbol), key=lambda t: (t.ts_event_ns, t.seq))
            assert tape.recent(symbol, 5) == expected[-5:]
            assert tape.recent(symbol, 100) == expected
            assert other.recent(symbol, 5) == expected[-5:]
            assert tape.latest(symbol) == (expected[-1] if expected else None)
            assert tape.read(symbol, columns=["seq"]).column("seq").to_pylist() == [t.seq for t in expected]
            start, end = T0 + 5, T0 + 20
            inside = [t.seq for t in expected if start <= t.ts_event_ns < end]
            assert tape.read(symbol, start, end, ["seq"]).column("seq").to_pylist() == inside
        assert list(tape.follow(symbols=["A", "B"], from_seq=0, idle_s=0)) == model
