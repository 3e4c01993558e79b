"""Rings: packed ticks come back bit for bit, in order, and take little memory."""

import math
import random
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onetape
from onetape import Tick
from onetape.live.ring import Ring, pack, unpack
from onetape.store.block import ABSENT

T0 = 1_700_000_000_000_000_000

_floats = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(10**6), 10**6).map(lambda n: n / 4),
    st.integers(0, 10**7).map(lambda n: n / 100),
    st.sampled_from([0.0, -0.0, 5e-324, 1.7976931348623157e308, -2147483648.0, 2147483647.0, 21474836.47]),
    st.just(math.nan),
)


@settings(max_examples=300)
@given(st.lists(st.tuples(_floats, st.integers(0, 2**63 - 2)), min_size=1, max_size=40), st.integers(1, 50))
def test_what_is_packed_comes_back_bit_for_bit(rows, last):
    columns = {
        "ts_event_ns": np.array([ts for _, ts in rows], dtype="<i8"),
        "price": np.array([price for price, _ in rows], dtype="<f8"),
        "trades": np.array([ABSENT if ts % 3 == 0 else ts for _, ts in rows], dtype="<i8"),
        "flags": np.array([ts % 2**32 for _, ts in rows], dtype="<u4"),
        "side": np.array([ts % 3 - 1 for _, ts in rows], dtype="<i1"),
        "seq": np.arange(1, len(rows) + 1, dtype="<i8"),
    }
    packed = pack(columns)
    for how_many in (None, last):
        found = unpack(packed, how_many)
        for name, column in columns.items():
            expected = column if how_many is None else column[-how_many:]
            assert found[name].dtype == expected.dtype
            if name == "price":
                same = [struct.pack("<d", a) == struct.pack("<d", b) or (a != a and b != b)
                        for a, b in zip(found[name], expected, strict=True)]  # fmt: skip
                assert all(same)
            else:
                assert np.array_equal(found[name], expected)


@settings(max_examples=150)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 40), st.booleans()),
            st.tuples(st.just("ask"), st.integers(1, 30), st.booleans()),
            st.tuples(st.just("cool"), st.integers(1, 5), st.booleans()),
        ),
        max_size=150,
    )
)
def test_a_ring_always_holds_the_newest_in_order_however_late_ticks_come(tmp_path_factory, acts):
    names = None
    ring, model = Ring("A", 16, None, names), []
    for number, (act, value, flag) in enumerate(acts):
        if act == "add":
            tick = Tick("A", T0 + value, price=None if flag else value / 4, bid=1.5, seq=number + 1)
            ring.add(tick, names)
            model = sorted([*model, tick], key=lambda t: (t.ts_event_ns, t.seq))
        elif act == "ask":
            ring.warm(value, names)
            count = min(value, 16)
            assert ring.newest[-count:] == model[-count:]
        else:
            ring.cool(value)
        assert ring.newest[-1:] == model[-1:]
        assert min(16, len(model)) <= len(ring) <= 16 + 8
        assert ring.newest == model[len(model) - len(ring.newest) :]


def test_every_field_of_a_tick_survives_being_packed(tmp_path):
    full = {
        "price": 0.1, "size": 3.0, "bid": -0.25, "ask": 1e-9, "bid_size": 0.0, "ask_size": 7.5, "side": -1,
        "flags": 2**32 - 1, "open": 1.0, "high": 2.0, "low": -3.0, "volume": 1e12, "vwap": 1 / 3, "trades": 2**40,
        "open_interest": 5.0, "source": "feed", "ts_recv_ns": T0 + 5,
    }  # fmt: skip
    with onetape.open(tmp_path / "t.db") as tape:
        tape.append(Tick("A", T0, price=1.0))
        assert tape.latest("A").price == 1.0
        sent = []
        for i in range(300):
            chosen = dict(random.Random(i).sample(sorted(full.items()), 9), bid=float(i))
            sent.append(Tick("A", T0 + i, **chosen, seq=i + 2))
            tape.append(sent[-1])
        assert tape.recent("A", 300) == sent
    with onetape.open(tmp_path / "t.db") as again:
        assert again.recent("A", 300) == sent
        assert again.recent("A", 7) == sent[-7:]


def test_a_packed_ring_takes_a_tenth_of_what_its_records_take(tmp_path):
    with onetape.open(tmp_path / "t.db") as tape:
        tape.append(
            [
                Tick("A", T0 + i * 1_000_000, 6000 + i % 7 / 4, 1.0, 6000.0, 6000.25, 10.0 + i % 9, 12.0, 1)
                for i in range(1000)
            ]
        )
        assert tape.latest("A") is not None
        [told] = tape.memory()
        assert told.symbol == "A"
        assert told.records == 1000
        assert told.bytes < 40_000
        assert len(tape.recent("A", 1000)) == 1000
        [warm] = tape.memory()
        assert warm.objects == 1000
        assert warm.bytes > 300_000


def test_a_long_append_of_another_process_is_taken_in_without_a_record_for_each_tick(tmp_path, monkeypatch):
    from onetape.store import replay

    path, made = tmp_path / "t.db", []
    real = replay.records

    def records(*args):
        out = real(*args)
        made.append(len(out))
        return out

    with onetape.open(path, recent_per_symbol=50) as tape, onetape.open(path, retention_days=None) as other:
        other.append([Tick(symbol, T0, price=1.0) for symbol in "AB"])
        assert tape.latest("A") and tape.latest("B")
        monkeypatch.setattr(replay, "records", records)
        chance = random.Random(5)
        ticks = [Tick("ABC"[i % 3], T0 + chance.randrange(10**6), price=float(i)) for i in range(60_000)]
        other.append(ticks)
        expected = sorted(
            (tick.ts_event_ns, i + 3) for i, tick in enumerate(ticks) if tick.symbol == "A"
        )[-50:]  # fmt: skip
        deadline = time.monotonic() + 60
        while tape.recent("A", 50)[-1].seq != expected[-1][1] and time.monotonic() < deadline:
            time.sleep(0.005)
        assert [(tick.ts_event_ns, tick.seq) for tick in tape.recent("A", 50)] == expected
        assert max(made) <= 200


@pytest.fixture
def many(tmp_path):
    with onetape.open(tmp_path / "t.db") as tape:
        tape.append([Tick(f"S{i % 30:02}", T0 + i, price=i / 7) for i in range(30 * 200)])
    return tmp_path / "t.db"


def test_memory_is_capped_in_bytes_and_what_was_let_go_is_read_again(many):
    with onetape.open(many, memory_bytes=20_000) as tape:
        expected = tape.latest()
        assert len(expected) == 30
        assert sum(told.bytes for told in tape.memory()) < 40_000
        for _ in range(3):
            for symbol, tick in expected.items():
                assert tape.latest(symbol) == tick
                assert [t.seq for t in tape.recent(symbol, 3)] == [tick.seq - 60, tick.seq - 30, tick.seq]
        tape.append(Tick("S03", T0 * 2, price=9.0))
        assert tape.latest("S03").price == 9.0
        assert tape.recent("S03", 2)[0] == expected["S03"]


def test_memory_stays_small_while_ticks_come_one_by_one(tmp_path):
    with onetape.open(tmp_path / "t.db", retention_days=None, recent_per_symbol=200) as tape:
        for i in range(6000):
            tape.append(Tick(f"S{i % 10}", T0 + i * 10**6, 6000 + i % 9 / 4, 1.0, 6000.0, 6000.25, 3.0, 4.0, 1))
            if i == 50:
                assert len(tape.latest()) == 10
        told = tape.memory()
        assert all(200 <= one.records <= 300 for one in told)
        assert sum(one.bytes for one in told) / sum(one.records for one in told) < 110
        newest = tape.recent("S3", 200)
        assert [tick.seq for tick in newest] == [i + 1 for i in range(6000) if i % 10 == 3][-200:]


def test_symbols_that_are_asked_for_again_and_again_stay_in_memory(many):
    with onetape.open(many, memory_bytes=20_000) as tape:
        loaded = []
        real = tape.latest("S00") and tape._recent._ring

        def ring(symbol):
            if symbol not in tape._recent._held:
                loaded.append(symbol)
            return real(symbol)

        tape._recent._ring = ring
        for i in range(30):
            tape.latest(f"S{i:02}")
            tape.latest("S00")
        assert loaded.count("S00") <= 3
