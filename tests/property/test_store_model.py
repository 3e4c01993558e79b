"""The store against a plain list: whatever is done to a tape, in whatever order, it reads back as the list does."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onetape
from onetape import Bar, Tick
from onetape.errors import RecordMissing
from onetape.record import Cancel
from onetape.store import bars, beside, block, chunks, journal, layout, packed, replay, seal, spans
from onetape.store.layout import KIND_TICK
from onetape.tape import sealing

DAY = layout.DAY_NS
#: In 2100, so that what is pruned by these times was appended long before them.
T0 = 4_102_444_800_000_000_000
LAST = 2**63 - 2
SYMBOLS = ("A", "B", "C")
FIELDS = Tick.__struct_fields__


@pytest.fixture(scope="module", autouse=True)
def _small_limits():
    """Limits so low that some dozens of records cross each of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in {
            "SEAL_RECORDS": 12,
            "SEAL_RECORDS_TAIL": 30,
            "SEAL_RECORDS_MAX": 16,
            "DIRECT_RECORDS": 20,
            "SPAN_RECORDS_MAX": 56,
            "CHUNK_RECORDS_MAX": 9,
        }.items():
            for module in (layout, journal, seal, beside, spans, chunks):
                if hasattr(module, name):
                    patch.setattr(module, name, limit)
        patch.setattr(spans, "MERGE_RECORDS", 24)
        patch.setattr(spans, "OWN_FROM", {spans.SEALED: 6, spans.MERGED: 3, spans.COMPACT: 1})
        patch.setattr(sealing, "_COMPACT_RECORDS", 40)
        patch.setattr(replay, "_STEP_RECORDS", 10)
        patch.setattr(replay, "_ROWS_MAX", 3)
        patch.setattr(packed, "_CODEC_FROM", 4)
        patch.setattr(chunks, "_BESIDE_FROM", 25)
        patch.setattr(chunks, "_SHARED_FROM", 15, raising=False)
        yield


@contextmanager
def sealing_beside(always: bool):
    """Seal beside the appending whatever is due, or never."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealing, "_HURRY_S", 0.0 if always else 1e9)
        patch.setattr(sealing, "_SHORT_RECORDS", 0)
        yield


def shown(records) -> list[str]:
    """Return records so that equal means equal in every bit: repr() tells -0.0 from 0.0 and loses no digit."""
    return [repr(msgspec.structs.astuple(record)) for record in records]


@dataclass
class Model:
    """What a tape was told, as a list in order of position."""

    told: list[Tick | Bar | Cancel] = field(default_factory=list)
    gone: dict[int, int] = field(default_factory=dict)  # position of a tick -> position of its cancel
    pruned_before: int = 0
    frozen: dict[str, list[tuple]] = field(default_factory=dict)  # bars of times that were pruned

    @property
    def head(self) -> int:
        return len(self.told)

    def add(self, records) -> None:
        for record in records:
            self.told.append(msgspec.structs.replace(record, seq=self.head + 1))

    def here(self, record) -> bool:
        return isinstance(record, Bar) or record.ts_event_ns >= self.pruned_before

    def ticks(self, symbol: str, as_of: int | None = None) -> list[Tick]:
        """Return what stands of a symbol, in canonical order, as of a position."""
        upto = self.head if as_of is None else as_of
        found = [
            record
            for record in self.told[:upto]
            if isinstance(record, Tick)
            and record.symbol == symbol
            and self.here(record)
            and self.gone.get(record.seq, upto + 1) > upto
        ]
        return sorted(found, key=lambda tick: (tick.ts_event_ns, tick.seq))

    def bars(self, symbol: str) -> list[tuple]:
        stands = self.ticks(symbol)
        if not stands:
            return self.frozen.get(symbol, [])
        columns = {"symbol": np.zeros(len(stands), "<u4")}
        for name in ("ts_event_ns", "seq", "price", "size", "side"):
            absent = block.absent(KIND_TICK, name)
            values = [getattr(tick, name) for tick in stands]
            columns[name] = np.array([absent if v is None else v for v in values], block.DTYPES[KIND_TICK][name])
        return self.frozen.get(symbol, []) + [
            (m.ts_start_ns, m.open, m.high, m.low, m.close, m.volume, m.vwap, m.trades, m.bid_volume, m.ask_volume)
            for m in bars.of_history(columns)
        ]


def _float(draw: st.DrawFn, least: float | None = None) -> float:
    some = [0.25, 100.5, 1e-8, 0.1, 5e-324, 2.2e-308, 1e300, 0.0, -0.0, 99.99, 7.0]
    return draw(st.sampled_from(some if least is not None else [*some, -3.75, -1e300]))


@st.composite
def ticks(draw: st.DrawFn) -> Tick:
    """A tick: often a plain trade at one of few times, sometimes with anything a tick can have."""
    day = draw(st.sampled_from((0, 0, 0, 0, 1, 2)))
    offset = draw(st.one_of(st.integers(0, 9), st.integers(0, 40).map(lambda n: n * 9_000_000_000)))
    ts = draw(st.sampled_from((T0 + day * DAY + offset,) * 30 + (0, LAST, LAST - 1, T0 + DAY - 1)))
    symbol = draw(st.sampled_from(SYMBOLS))
    how = draw(st.sampled_from(("trade", "trade", "trade", "quote", "any")))
    if how == "trade":
        return Tick(symbol, ts, price=draw(st.integers(-4, 400)) / 4, size=1.0, side=draw(st.sampled_from((0, 1, -1))))
    if how == "quote":
        return Tick(symbol, ts, bid=_float(draw), ask=_float(draw), bid_size=1.0, ask_size=_float(draw, 0))
    values: dict[str, object] = {"price": _float(draw)} if draw(st.booleans()) else {"ask": _float(draw)}
    for name in draw(st.sets(st.sampled_from([n for n in FIELDS if n not in ("symbol", "ts_event_ns", "seq")]))):
        values[name] = (
            draw(st.sampled_from((0, 1, 2**32 - 1, 65_536)))
            if name == "flags"
            else draw(st.sampled_from((0, 1, -1)))
            if name == "side"
            else draw(st.sampled_from((0, 7, 2**62)))
            if name in ("trades", "ts_recv_ns")
            else draw(st.sampled_from(("x", "y")))
            if name == "source"
            else _float(draw, 0 if name in ("size", "bid_size", "ask_size", "volume", "open_interest") else None)
        )
    return Tick(symbol, ts, **values)


given_bars = st.builds(
    lambda symbol, minute, close: Bar(symbol, "1min", T0 + minute * 60_000_000_000, 1.0, 2.0, 0.5, close, source="v"),
    st.sampled_from(SYMBOLS),
    st.integers(0, 3),
    st.sampled_from((1.0, 1.5)),
)
few = st.lists(ticks(), min_size=1, max_size=5)
many = st.lists(ticks(), min_size=3, max_size=8).flatmap(
    lambda some: st.integers(20, 70).map(lambda count: [some[i % len(some)] for i in range(count)])
)
which = st.integers(0, 1)
acts = st.one_of(
    st.tuples(st.just("one"), which, ticks()),
    st.tuples(st.sampled_from(("list", "table", "writer", "awriter", "singly")), which, few),
    st.tuples(st.just("list"), which, st.lists(st.one_of(ticks(), given_bars), min_size=1, max_size=6)),
    st.tuples(st.sampled_from(("list", "table", "writer")), which, many),
    st.tuples(st.sampled_from(("cancel", "cancel again", "revise")), which, st.integers(0, 2**16)),
    st.tuples(st.sampled_from(("seal", "compact", "compact", "reopen", "look")), which, st.just(None)),
)


def as_table(records: list[Tick]) -> dict[str, list]:
    told = {name: [getattr(tick, name) for tick in records] for name in FIELDS if name != "seq"}
    return {name: column for name, column in told.items() if any(value is not None for value in column)}


class Pair:
    """A file open in two tapes, and the list."""

    def __init__(self, path: Path) -> None:
        self.path, self.model = path, Model()
        self.tapes = [self.opened(), self.opened()]

    def opened(self) -> onetape.Tape:
        return onetape.open(self.path, retention_days=None, recent_per_symbol=7)

    def act(self, name: str, which: int, given) -> None:
        tape, model = self.tapes[which], self.model
        if isinstance(given, Tick | list):
            self.append(name, tape, given)
        elif name in ("cancel", "cancel again", "revise"):
            self.correct(name, tape, given)
        elif name == "seal":
            assert tape.seal() == model.head
        elif name == "compact":
            tape.compact()
        elif name == "reopen":
            tape.close()
            self.tapes[which] = self.opened()
        else:
            self.look(which)

    def append(self, name: str, tape: onetape.Tape, given) -> None:
        records = given if isinstance(given, list) else [given]
        head = self.model.head
        if name in ("one", "list"):
            done = tape.append(given)
        elif name == "table":
            done = tape.append_table(as_table(given))
        elif name == "singly":
            done = [tape.append(record) for record in given][-1]._replace(first=head + 1)
        elif name == "writer":
            with tape.writer(max_delay_ms=60_000, max_records=30) as writer:
                for record in given:
                    writer.append(record)
            done = None
        else:

            async def write() -> None:
                async with tape.awriter(max_at_risk=2) as writer:
                    for record in given:
                        await writer.append(record)

            asyncio.run(write())
            done = None
        self.model.add(records)
        if done is not None:
            assert (done.first, done.last) == (head + 1, self.model.head)

    def correct(self, name: str, tape: onetape.Tape, chance: int) -> None:
        model = self.model
        found = [r for r in model.told if isinstance(r, Tick) and model.here(r)]
        if name == "cancel again":
            found = [tick for tick in found if tick.seq in model.gone]
        if not found:
            return
        tick = found[chance % len(found)]
        before = model.gone.get(tick.seq)
        if name == "revise":
            instead = msgspec.structs.replace(tick, price=(chance % 7) / 4, seq=None)
            if before is not None:
                with pytest.raises(RecordMissing):
                    tape.revise(tick, instead)
                return
            done = tape.revise(tick, instead)
            assert (done.first, done.last, done.stored) == (model.head + 1, model.head + 2, 2)
        else:
            instead, done = None, tape.cancel(tick)
            if before is not None:
                assert (done.first, done.stored) == (before, 0)
                return
            assert (done.last, done.stored) == (model.head + 1, 1)
        model.told.append(Cancel(tick.symbol, tick.ts_event_ns, tick.seq, tick.price is not None, model.head + 1))
        model.gone[tick.seq] = model.head
        if instead is not None:
            model.add([instead])

    def prune(self, which: int, days: int) -> None:
        """Prune what is before a day, as a retention of a day does on the day after."""
        model, before = self.model, T0 + days * DAY
        old = {symbol: model.bars(symbol) for symbol in SYMBOLS}
        removed = self.tapes[which].prune(now=before + DAY, retention_days=1)
        assert removed == sum(isinstance(r, Tick) and r.ts_event_ns < before and model.here(r) for r in model.told)
        model.pruned_before = before
        model.frozen = {symbol: [bar for bar in bars if bar[0] < before] for symbol, bars in old.items()}
        for number in (0, 1):  # memory keeps what retention has removed, until the tape is opened again
            self.act("reopen", number, None)

    # what must hold

    def look(self, which: int) -> None:
        """Hold against the list what any moment must hold."""
        tape, model = self.tapes[which], self.model
        self.await_memory(tape)
        for symbol in SYMBOLS:
            stands = model.ticks(symbol)
            assert self.rows(tape.read(symbol)) == shown(stands)
            assert shown(tape.recent(symbol, 5)) == shown(stands[-5:])
            assert shown([tape.latest(symbol)] if stands else []) == shown(stands[-1:])
            assert [self.bar(bar) for bar in self.own_bars(tape, symbol)] == [repr(bar) for bar in model.bars(symbol)]
        self.follow(tape, 0)

    def await_memory(self, tape: onetape.Tape) -> None:
        """Wait until what the other tape appended has reached this one's memory: that takes milliseconds."""
        until = time.monotonic() + 60
        while tape._recent is not None and tape._recent.position < self.model.head:
            assert time.monotonic() < until, "it never came"
            time.sleep(0.001)

    @staticmethod
    def rows(table) -> list[str]:
        return shown(Tick(**row) for row in table.to_pylist())

    @staticmethod
    def own_bars(tape: onetape.Tape, symbol: str) -> list[Bar]:
        return [bar for bar in tape.bar_list(symbol) if bar.source is None]

    @staticmethod
    def bar(bar: Bar) -> str:
        prices = (bar.ts_start_ns, bar.open, bar.high, bar.low, bar.close)
        return repr((*prices, bar.volume, bar.vwap, bar.trades, bar.bid_volume, bar.ask_volume))

    def follow(self, tape: onetape.Tape, position: int, symbol: str | None = None) -> None:
        """Follow to the head: every record once, in order of position, however it is stepped through."""
        model = self.model
        with tape.follow(symbol, from_seq=position) as follower:
            found = []
            while some := follower.take(0):
                found += some
            assert follower.position == model.head
        expected = [record for record in model.told[position:] if symbol is None or record.symbol == symbol]
        assert shown(r for r in found if model.here(r)) == shown(record for record in expected if model.here(record))
        assert all(isinstance(record, Cancel) for record in found if not model.here(record))

    def hold(self, which: int, chance) -> None:
        """Hold everything against the list, at the end."""
        self.look(which)
        tape, model = self.tapes[which], self.model
        counts = {info.symbol: (info.ticks, info.bars) for info in tape.symbols()}
        for symbol in sorted({record.symbol for record in model.told}):
            mine = [r for r in model.told if r.symbol == symbol]
            kept = sum(isinstance(r, Tick) and model.here(r) for r in mine)
            assert counts[symbol] == (kept, sum(isinstance(r, Bar) for r in mine))
            self.sides(tape, symbol, chance)
        several = sorted((t for s in SYMBOLS for t in model.ticks(s)), key=lambda t: (t.ts_event_ns, t.seq))
        assert self.rows(tape.read(list(SYMBOLS))) == shown(several)
        for position in range(1, model.head + 1):
            symbol = chance.choice(SYMBOLS)
            as_of = tape.read(symbol, as_of=position)
            assert self.rows(as_of) == shown(model.ticks(symbol, position)), f"as of {position}"
        if not model.pruned_before:
            for position in chance.sample(range(model.head + 1), min(8, model.head + 1)):
                self.follow(tape, position, chance.choice([None, *SYMBOLS]))
        with tape.follow(from_time=(start := T0 + chance.randint(0, 2) * DAY)) as follower:
            found = []
            while some := follower.take(0):
                found += some
        after = [r for r in model.told if (r.ts_start_ns if isinstance(r, Bar) else r.ts_event_ns) >= start]
        assert shown(r for r in found if model.here(r)) == shown(r for r in after if model.here(r))

    def sides(self, tape: onetape.Tape, symbol: str, chance) -> None:
        """Hold spans of time, choices of columns, and the newest few."""
        stands = self.model.ticks(symbol)
        times = [0, LAST, LAST + 1, T0 + DAY, *(tick.ts_event_ns for tick in stands[:20])]
        for _ in range(3):
            start, end = sorted((chance.choice(times), chance.choice(times)))
            names = chance.sample(FIELDS, chance.randint(1, 4))
            part = [tick for tick in stands if start <= tick.ts_event_ns < end]
            found = tape.read(symbol, start, end, columns=names)
            assert found.column_names == names
            expected = [{name: getattr(tick, name) for name in names} for tick in part]
            assert list(map(repr, found.to_pylist())) == list(map(repr, expected))
        for count in (1, 3, 7, len(stands) + 1, chance.randint(1, 40)):
            assert self.rows(tape.newest(symbol, count)) == shown(stands[-count:])
            assert shown(tape.recent(symbol, count)) == shown(stands[-count:])

    def close(self) -> None:
        for tape in self.tapes:
            tape.close()


@settings(max_examples=70)
@given(st.lists(acts, min_size=3, max_size=14), st.booleans(), st.randoms(use_true_random=False))
def test_any_sequence_of_acts_reads_back_as_a_plain_list(steps, by_thread, chance):
    with tempfile.TemporaryDirectory() as folder, sealing_beside(by_thread):
        pair = Pair(Path(folder) / "t.db")
        try:
            for name, number, given in steps:
                pair.act(name, number, given)
            pair.hold(0, chance)
            pair.tapes[1].compact()
            pair.hold(1, chance)
            assert pair.tapes[0].compact().spans == 0, "compacting again found something to do"
        finally:
            pair.close()


@settings(max_examples=30)
@given(
    st.lists(acts, min_size=2, max_size=8),
    st.integers(0, 3),
    st.lists(acts, max_size=5),
    st.booleans(),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_what_retention_leaves_reads_back_as_the_list_without_what_was_removed(
    steps, days, later, compact, by_thread, chance
):
    with tempfile.TemporaryDirectory() as folder, sealing_beside(by_thread):
        pair = Pair(Path(folder) / "t.db")
        try:
            for name, number, given in steps:
                pair.act(name, number, given)
            if compact:
                pair.tapes[0].compact()
            pair.prune(1, days)
            pair.hold(0, chance)
            for name, number, given in later:
                if isinstance(given, Tick):
                    given = msgspec.structs.replace(given, ts_event_ns=max(given.ts_event_ns, T0 + days * DAY))
                elif isinstance(given, list):
                    given = [
                        r if isinstance(r, Bar) or r.ts_event_ns >= T0 + days * DAY
                        else msgspec.structs.replace(r, ts_event_ns=T0 + days * DAY)
                        for r in given
                    ]  # fmt: skip
                pair.act(name, number, given)
            pair.tapes[1].compact()
            pair.hold(0, chance)
        finally:
            pair.close()
