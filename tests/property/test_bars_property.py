"""Bars of every kind equal those of a plain model, whatever the order of arrival, live as from history."""

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.bar_model import DAY, Model

import onetape
from onetape import Bar, Tick
from onetape.clock import to_ns

#: A Tuesday in winter: New York opens at 14:30 UTC.
T0 = to_ns("2025-01-14T14:27")
NEW_YORK = ("America/New_York", "09:30", "09:36")
SESSION = "America/New_York 09:30-09:36"

RULES = [
    ("1min", None, "trade"),
    ("5min", None, "trade"),
    ("1d", None, "trade"),
    ("90s", None, "trade"),
    ("250ms", SESSION, "trade"),
    ("4min", SESSION, "trade"),
    ("1d", SESSION, "trade"),
    ("3tick", None, "trade"),
    ("2tick", SESSION, "trade"),
    ("1volume", SESSION, "trade"),
    ("7volume", None, "trade"),
    ("100value", SESSION, "trade"),
    ("0.5range", SESSION, "trade"),
    ("3range", None, "trade"),
    ("1min", SESSION, "mid"),
    ("30s", None, "bid"),
    ("3tick", SESSION, "ask"),
]

times = st.builds(
    lambda day, offset: T0 + day * DAY + offset, st.integers(0, 2), st.integers(0, 60).map(lambda i: i * 10_250_000_000)
)
prices = st.one_of(
    st.floats(-1e6, 1e6), st.integers(390, 410).map(lambda i: i / 4), st.sampled_from([0.1, 0.2, -0.0, 1e15])
)
sizes = st.one_of(st.none(), st.integers(0, 9).map(float), st.sampled_from([0.1, 0.3, 1e-8, 1e16, -0.0]))
ticks = st.one_of(
    st.builds(
        Tick,
        symbol=st.sampled_from(["A", "B"]),
        ts_event_ns=times,
        price=prices,
        size=sizes,
        side=st.sampled_from([-1, 0, 1]),
    ),
    st.builds(Tick, symbol=st.just("A"), ts_event_ns=times, bid=prices, ask=st.one_of(st.none(), prices)),
)
batches = st.lists(st.lists(ticks, min_size=1, max_size=6), min_size=1, max_size=8)


def put(bars):
    """Make bars comparable: NaN is equal to NaN, and bytes decide."""
    return [msgspec.json.encode([repr(value) for value in msgspec.structs.astuple(bar)]) for bar in bars]


class Played:
    """A tape and its model, taken through the same events."""

    def __init__(self, path, chance):
        self.path, self.chance, self.model = path, chance, Model()
        self.tape = onetape.open(path, retention_days=None)

    def append(self, batch):
        done = self.tape.append(batch)
        self.model.ticks += [msgspec.structs.replace(t, seq=done.first + i) for i, t in enumerate(batch)]

    def shake(self):
        """Seal, compact, restart, take back, revise, or nothing."""
        act = self.chance.choice(["seal", "compact", "restart", "cancel", "revise", "", "", ""])
        standing = [t for t in self.model.ticks if t.seq not in self.model.gone]
        if act == "seal":
            self.tape.seal()
        elif act == "compact":
            self.tape.seal()
            self.tape.compact()
        elif act == "restart":
            self.tape.close()
            self.tape = onetape.open(self.path, retention_days=None)
        elif act == "cancel" and standing:
            one = self.chance.choice(standing)
            self.tape.cancel(one)
            self.model.gone.add(one.seq)
        elif act == "revise" and standing:
            one = self.chance.choice(standing)
            other = msgspec.structs.replace(one, price=101.25, size=2.0, seq=None)
            done = self.tape.revise(one, other)
            self.model.gone.add(one.seq)
            self.model.ticks.append(msgspec.structs.replace(other, seq=done.last))


@settings(max_examples=60)
@given(batches, st.sampled_from(RULES), st.randoms(use_true_random=False))
def test_bars_equal_the_model_after_any_sequence_of_appends_seals_corrections_and_restarts(
    tmp_path_factory, appends, rule, chance: random.Random
):
    interval, session, price = rule
    played = Played(tmp_path_factory.mktemp("bars") / "t.db", chance)
    hours = NEW_YORK if session else None
    for batch in appends:
        played.append(batch)
        played.shake()
    for symbol in ("A", "B"):
        found = played.tape.bar_list(symbol, interval, session=session, price=price)
        assert put(found) == put(played.model.bars(symbol, interval, hours, price))
        if found:  # the same bars, whatever span is asked for
            start, end = sorted(chance.choice(found).ts_start_ns + chance.choice([0, 1]) for _ in range(2))
            part = played.tape.bar_list(symbol, interval, start, end, session=session, price=price)
            assert put(part) == put(bar for bar in found if start <= bar.ts_start_ns < end)
    both = played.tape.bar_list(["B", "A"], interval, session=session, price=price)
    one_by_one = [bar for name in "BA" for bar in played.tape.bar_list(name, interval, session=session, price=price)]
    assert put(both) == put(one_by_one)
    table = played.tape.bars(["B", "A"], interval, session=session, price=price)
    for row, bar in zip(table.to_pylist(), both, strict=True):
        assert repr(row) == repr({name: getattr(bar, name) for name in row})
    played.tape.close()


@settings(max_examples=80)
@given(batches, st.sampled_from(RULES), st.randoms(use_true_random=False))
def test_what_a_follower_gave_last_of_each_bar_is_what_history_gives(
    tmp_path_factory, appends, rule, chance: random.Random
):
    interval, session, price = rule
    played = Played(tmp_path_factory.mktemp("bars") / "t.db", chance)
    shown: dict[tuple, Bar] = {}
    reader = onetape.open(played.path, mode="r")
    options = {"session": session, "price": price}
    follower = reader.follow_bars(None, interval, from_seq=0, **options)
    resumed = False
    for batch in appends:
        played.append(batch)
        played.shake()
        if chance.random() < 0.3:  # a follower that goes on where another was, with what that one showed
            position, resumed = follower.position, True
            follower.close()
            follower = reader.follow_bars(None, interval, from_seq=position, **options)
        while found := follower.take() if chance.random() < 0.7 else []:
            _show(shown, found, resumed)
    while found := follower.take():
        _show(shown, found, resumed)
    for symbol in ("A", "B"):
        bars = played.tape.bar_list(symbol, interval, **options)
        last = [bar for bar in shown.values() if bar.symbol == symbol]
        if interval.endswith(("tick", "volume", "value", "range")):
            last.sort(key=lambda bar: (bar.ts_end_ns, bar.ts_start_ns, bar.number))
            bars.sort(key=lambda bar: (bar.ts_end_ns, bar.ts_start_ns, bar.number))
        else:
            last.sort(key=lambda bar: bar.ts_start_ns)
        assert put(last) == put(bars)
    reader.close()
    played.tape.close()


def _show(shown, found, resumed):
    assert len({_key(bar) for bar in found}) == len(found)
    for bar in found:
        if bar.trades == 0:
            assert resumed or _key(bar) in shown
            shown.pop(_key(bar), None)
        else:
            before = shown.get(_key(bar))
            assert before is None or resumed or put([bar]) != put([before])
            shown[_key(bar)] = bar


def _key(bar):
    day = (bar.session or bar.ts_start_ns // DAY) if bar.number is not None else bar.ts_start_ns
    return bar.symbol, day, bar.number


@settings(max_examples=40)
@given(batches, st.sampled_from(RULES), st.integers(1, 40), st.randoms(use_true_random=False))
def test_bars_as_of_a_position_are_what_they_were_then(tmp_path_factory, appends, rule, at, chance: random.Random):
    interval, session, price = rule
    played = Played(tmp_path_factory.mktemp("bars") / "t.db", chance)
    options = {"session": session, "price": price}
    then = {}
    for batch in appends:
        played.append(batch)
        played.shake()
        head = played.tape.stats().head
        then[head] = put(_plain(played.tape.bar_list(["A", "B"], interval, **options)))
    for head, bars in then.items():
        assert put(_plain(played.tape.bar_list(["A", "B"], interval, as_of=head, **options))) == bars
    played.tape.close()


def _plain(bars):
    """Leave revisions out: kept minutes count what was late for any trade of the tape, however much later that was."""
    return [msgspec.structs.replace(bar, revision=0) for bar in bars]


def test_bars_of_volume_are_not_made_of_quotes(tmp_path):
    with onetape.open(tmp_path / "t.db") as tape, pytest.raises(onetape.ConfigInvalid, match="quotes have no volume"):
        tape.bars("A", "5volume", price="mid")
