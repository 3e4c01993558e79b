"""The fan-out's parts: what changed since a version, frames, rates, rows."""

import asyncio
import json

import pytest
from websockets.frames import Frame, Opcode

from onetape.record import Bar, Tick
from onetape.web.channel import Channel
from onetape.web.fanout import Fanout
from onetape.web.messages import Refused, Subscribe, parse
from onetape.web.protocol import framed
from onetape.web.pump import News
from onetape.web.rates import Rates
from onetape.web.rows import Last, bar_row, last_of


def row(start, close=1.0, revision=0):
    return [start, 1.0, 2.0, 0.5, close, 3.0, revision, True]


def told(channel, since):
    return json.loads(b"{" + channel.since(since) + b"}")[channel.symbol]


def last(at, price):
    return last_of([Tick("A", at * 1_000_000, price=price, size=1.0)])


def test_a_channel_tells_what_changed_since_any_version_once_and_as_it_is_now():
    channel = Channel("A", "1min", 1)
    channel.bars(2, [row(1), row(2)])
    channel.tick(2, 5, last(2, 7.0))
    channel.bars(3, [row(2, 9.0)])
    channel.tick(4, 2, last(3, 8.0))
    assert told(channel, 1) == {"bars": [row(1), row(2, 9.0)], "last": last(3, 8.0).row(), "n": 7, "revised": []}
    assert told(channel, 2)["bars"] == [row(2, 9.0)] and told(channel, 2)["n"] == 2
    assert told(channel, 4) == {"bars": [], "last": last(3, 8.0).row(), "n": 0, "revised": []}


def test_a_channel_marks_revised_bars_only_while_their_revision_is_news():
    channel = Channel("A", "1min", 1)
    channel.bars(2, [row(1), row(2)])
    channel.bars(3, [row(1, 5.0, revision=1)])
    channel.bars(4, [row(1, 6.0, revision=1)])
    assert told(channel, 2)["revised"] == [1] and told(channel, 3)["revised"] == []


def test_a_channel_says_what_it_has_forgotten():
    channel = Channel("A", "1s", 1)
    for version in range(2, 2002):
        channel.bars(version, [row(version)])
    assert channel.lost == 977 and len(told(channel, channel.lost)["bars"]) == 1024


def test_late_ticks_do_not_become_the_last():
    found = last_of([Tick("A", 5, price=2.0), Tick("A", 3, price=1.0), Tick("A", 4, bid=1.5, ask=2.5)])
    assert (found.price, found.bid) == (2.0, 1.5)
    found.join(Last())
    assert found.price == 2.0


def test_a_bar_that_was_taken_back_is_a_row_without_prices():
    nan = float("nan")
    assert bar_row(Bar("A", "1min", 60 * 10**9, nan, nan, nan, nan, trades=0, revision=3))[:5] == [60000] + [None] * 4


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 100_000])
def test_a_frame_is_what_the_websockets_library_makes_of_it(size):
    message = b"x" * size
    assert framed(message) == Frame(Opcode.TEXT, message).serialize(mask=False)


def test_a_rate_allows_a_burst_then_so_many_a_second_and_keeps_little():
    now = [0.0]
    rates = Rates(2.0, 4.0, lambda: now[0])
    assert [rates.take("a") for _ in range(4)] == [0.0] * 4
    assert rates.take("a") == pytest.approx(0.5)
    assert rates.take("b") == 0.0
    now[0] = 0.5
    assert rates.take("a") == 0.0
    rates.charge("a", 1000)
    assert rates.take("a") == pytest.approx(2.5)
    for number in range(20_000):
        rates.take(str(number))
    assert len(rates) <= 10_000


def test_messages_are_checked():
    assert parse('{"op":"subscribe","symbols":["A"],"from":7}') == Subscribe(["A"], from_=7)
    for text in ('{"op":"subscribe","symbols":["A"],"from":-1}', '{"symbols":[]}', "[]", "1", '{"op":1}'):
        with pytest.raises(Refused):
            parse(text)


class Heard:
    """A client that keeps what it is sent, and is behind when it is told to be."""

    def __init__(self, version):
        self.seen, self.behind, self.frames, self.again = version, False, [], []

    def write(self, message):
        self.frames.append(json.loads(message))

    def frame(self, framed_):
        self.frames.append(json.loads(framed_))

    def anew(self, keys):
        self.again += keys


def test_clients_that_want_the_same_share_frames_and_a_slow_one_gets_the_newest_state_once():
    async def story():
        fanout = Fanout(20, lambda message: message)
        fanout.channel(("A", "1min"))
        group = fanout.group([("A", "1min")])
        quick, slow = Heard(fanout.version), Heard(fanout.version)
        fanout.join(quick, group)
        fanout.join(slow, group)
        slow.behind = True
        for at in range(1, 6):
            fanout.take(News({"A": (1, last(at, float(at)))}, {"1min": {"A": [row(at)]}}, {"1min": at}))
            await asyncio.sleep(0.06)
        assert slow.frames == [] and sum(frame["symbols"]["A"]["n"] for frame in quick.frames) == 5
        slow.behind = False
        fanout.nudge([group])
        await asyncio.sleep(0.06)
        (frame,) = slow.frames
        assert frame["position"] == 5 and frame["symbols"]["A"]["n"] == 5
        assert [bar[0] for bar in frame["symbols"]["A"]["bars"]] == [1, 2, 3, 4, 5]
        assert len(quick.frames) <= 5 and fanout.counts.made < fanout.counts.frames + 5
        fanout.close()

    asyncio.run(story())


def test_a_client_that_missed_more_than_is_remembered_is_given_the_bars_anew():
    async def story():
        fanout = Fanout(20, lambda message: message)
        fanout.channel(("A", "1s"))
        group = fanout.group([("A", "1s")])
        slow = Heard(fanout.version)
        fanout.join(slow, group)
        slow.behind = True
        for at in range(2000):
            fanout.take(News(bars={"1s": {"A": [row(at)]}}, positions={"1s": at}))
        slow.behind = False
        fanout.nudge([group])
        await asyncio.sleep(0.06)
        assert slow.frames == [] and slow.again == [("A", "1s")]
        fanout.close()

    asyncio.run(story())


def test_groups_and_channels_end_with_their_last_client():
    async def story():
        fanout = Fanout(20, lambda message: message)
        key = ("A", "1min")
        fanout.channel(key)
        one = Heard(fanout.version)
        group = fanout.group([key])
        fanout.join(one, group)
        fanout.part(one, group)
        assert fanout.release(key) and not fanout.channels and not fanout.groups
        fanout.take(News({"A": (1, last(1, 1.0))}))
        assert one.frames == []

    asyncio.run(story())
