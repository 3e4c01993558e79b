"""Following and subscribing: no gap, no duplicate, and no slow subscriber ever in a writer's way."""

import asyncio
import contextlib
import threading
import time
from pathlib import Path

import pytest
from tests.waiting import waited_for

import onetape
from onetape import Tick
from onetape.live import waker as waker_module

T0 = 1_700_000_000_000_000_000


@pytest.fixture
def tape(tmp_path):
    with onetape.open(tmp_path / "t.db") as opened:
        yield opened


def test_follow_goes_from_history_to_live_without_gap_or_duplicate(tape):
    tape.append([Tick("A", T0 + i, price=1.0) for i in range(10_000)])
    for i in range(300):
        tape.append(Tick("B", T0 + i, price=1.0))

    def write():
        for i in range(500):
            tape.append(Tick("C", T0 + i, price=1.0))
            if i % 100 == 0:
                tape.seal()

    writer = threading.Thread(target=write)
    seen = []
    with tape.follow(from_seq=0) as follower:
        writer.start()
        for record in follower:
            seen.append(record.seq)
            if record.seq == 10_800:
                break
    writer.join()
    assert seen == list(range(1, 10_801))


def test_follow_from_now_from_a_position_and_from_a_time(tape):
    tape.append([Tick("A", T0 + i, price=float(i)) for i in range(100)])
    tape.seal()
    tape.append([Tick("A", T0 + 100 + i, price=1.0) for i in range(10)])
    assert [tick.seq for tick in tape.follow(from_seq=95, idle_s=0)] == list(range(96, 111))
    assert [tick.seq for tick in tape.follow(from_time=T0 + 98, idle_s=0)] == list(range(99, 111))
    with tape.follow(idle_s=0.5) as now:
        tape.append(Tick("A", T0 + 5, price=7.0))
        assert [tick.price for tick in now] == [7.0]
    tape.append(Tick("A", T0 + 200, price=8.0))
    assert tape.follow(from_seq=0).take()[-1].seq == 100
    with pytest.raises(onetape.ConfigInvalid):
        tape.follow(from_seq=1, from_time=T0)
    with pytest.raises(onetape.ConfigInvalid):
        tape.follow(from_seq=-1)


def test_follow_takes_symbols_that_are_yet_to_come(tape):
    tape.append(Tick("A", T0, price=1.0))
    with tape.follow(symbols=["new", "A"], idle_s=0.5) as follower:
        tape.append(Tick("other", T0, price=1.0))
        tape.append([Tick("new", T0, price=2.0), Tick("other", T0, price=1.0), Tick("A", T0, price=3.0)])
        assert [(tick.symbol, tick.price) for tick in follower] == [("new", 2.0), ("A", 3.0)]
        assert follower.position == 5
        assert follower.lag == 0


def test_a_position_that_retention_has_removed_is_an_error_not_a_gap(tape):
    tape.append([Tick("A", T0 + i, price=1.0) for i in range(100)])
    tape.seal()
    tape.append([Tick("B", onetape.now_ns() + i, price=1.0) for i in range(100)])
    assert tape.prune(now=onetape.now_ns() + 10**9 * 60, retention_days=30) == 0
    import apsw

    raw = apsw.Connection(str(tape.path))
    raw.execute("UPDATE chunk SET sealed_ns = 0")
    raw.close()
    assert tape.prune(retention_days=30) == 100
    with pytest.raises(onetape.TapeError, match="retention has removed"):
        tape.follow(from_seq=50, idle_s=0).take()
    assert [tick.seq for tick in tape.follow(from_seq=100, idle_s=0)] == list(range(101, 201))
    assert [tick.seq for tick in tape.follow(from_seq=0, idle_s=0)] == list(range(101, 201))


def test_close_from_another_thread_ends_an_iteration(tape):
    follower = tape.follow()
    closer = threading.Timer(0.1, follower.close)
    closer.start()
    assert list(follower) == []
    closer.join()


def test_closing_a_tape_leaves_no_log_no_thread_and_no_open_file(tmp_path):
    def open_files():
        found = []
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the one that lists them
                found.append(str(link.readlink()))
        return found

    path = tmp_path / "t.db"
    threads = threading.active_count()
    for _ in range(3):
        tape = onetape.open(path)
        tape.append(Tick("A", T0, price=1.0))
        tape.latest()
        tape.recent("A")
        tape.read("A")
        tape.subscribe(print)
        follower = tape.follow(from_seq=0)
        follower.take()
        tape.writer()
        tape.append(Tick("A", T0 + 1, price=1.0))
        tape.close()
        assert follower.take(0.1) == []
    waited_for(lambda: threading.active_count() <= threads)
    assert [name.name for name in tmp_path.iterdir()] == ["t.db"]
    assert not [name for name in open_files() if str(tmp_path) in name or "inotify" in name]


def test_without_kernel_hints_it_polls(tape, monkeypatch):
    monkeypatch.setattr(waker_module, "_watch", lambda path: None)
    with onetape.open(tape.path) as other, tape.follow(idle_s=2.0) as follower:
        other.append(Tick("A", T0, price=5.0))
        assert next(follower).price == 5.0


def test_subscribers_get_every_record_once_and_in_order(tape):
    got: list[int] = []
    subscription = tape.subscribe(lambda record: got.append(record.seq), when_slow="block")
    for i in range(500):
        tape.append(Tick("A", T0 + i, price=1.0))
    waited_for(lambda: len(got) == 500)
    assert got == list(range(1, 501))
    subscription.close()
    tape.append(Tick("A", T0, price=1.0))
    time.sleep(0.05)
    assert len(got) == 500
    assert tape.stats().subscriptions == []


def test_a_subscriber_in_another_process_position_can_resume(tape):
    tape.append([Tick("A", T0 + i, price=1.0) for i in range(10)])
    got: list[int] = []
    subscription = tape.subscribe(lambda record: got.append(record.seq), from_seq=4, when_slow="block")
    waited_for(lambda: len(got) == 6)
    assert got == [5, 6, 7, 8, 9, 10]
    assert subscription.position == 10


class Slow:
    """A callback that is stuck on its first record until it is let go."""

    def __init__(self):
        self.go = threading.Event()
        self.got = []

    def __call__(self, record):
        self.got.append(record)
        self.go.wait(60)


def test_a_stuck_subscriber_never_stops_a_writer_or_another_subscriber(tape):
    stuck = [Slow() for _ in range(4)]
    policies = ["block", "drop_oldest", "conflate", "disconnect"]
    for slow, policy in zip(stuck, policies, strict=True):
        tape.subscribe(slow, when_slow=policy, queue_records=10)
    quick: list[int] = []
    tape.subscribe(lambda record: quick.append(record.seq), when_slow="block")
    for i in range(2000):
        tape.append(Tick("A", T0 + i, price=1.0))
    waited_for(lambda: len(quick) == 2000)
    for slow in stuck:
        slow.go.set()


def test_drop_oldest_keeps_the_newest_and_counts(tape):
    slow = Slow()
    subscription = tape.subscribe(slow, when_slow="drop_oldest", queue_records=10)
    tape.append(Tick("A", T0, price=0.0))
    waited_for(lambda: slow.got)
    for i in range(1, 101):
        tape.append(Tick("A", T0 + i, price=float(i)))
    assert subscription.stats(101).lag >= 90
    time.sleep(0.02)
    slow.go.set()
    waited_for(lambda: slow.got[-1].price == 100.0)
    assert [tick.price for tick in slow.got[-10:]] == [float(i) for i in range(91, 101)]
    assert len(slow.got) + subscription.dropped == 101
    assert subscription.dropped >= 80


def test_conflate_gives_the_newest_of_each_symbol_and_late_data_does_not_replace_it(tape):
    slow = Slow()
    subscription = tape.subscribe(slow, when_slow="conflate")
    tape.append(Tick("first", T0, price=0.0))
    waited_for(lambda: slow.got)
    for i in range(50):
        tape.append(Tick("A", T0 + i, price=float(i)))
        tape.append(Tick("B", T0 + i, price=float(i)))
    tape.append(Tick("A", T0 - 5, price=-1.0))
    time.sleep(0.02)
    slow.go.set()
    waited_for(lambda: len(slow.got) == 3)
    assert {tick.symbol: tick.price for tick in slow.got[1:]} == {"A": 49.0, "B": 49.0}
    assert subscription.dropped == 99


def test_disconnect_ends_the_slow_one_and_says_why(tape):
    slow = Slow()
    subscription = tape.subscribe(slow, when_slow="disconnect", queue_records=10)
    tape.append(Tick("A", T0, price=0.0))
    waited_for(lambda: slow.got)
    tape.append([Tick("A", T0 + i, price=1.0) for i in range(50)])
    time.sleep(0.02)
    slow.go.set()
    waited_for(lambda: not subscription.active)
    assert isinstance(subscription.error, onetape.SubscriberTooSlow)


def test_block_gets_everything_however_late(tape):
    slow = Slow()
    subscription = tape.subscribe(slow, when_slow="block", queue_records=10)
    for i in range(300):
        tape.append(Tick("A", T0 + i, price=float(i)))
    slow.go.set()
    waited_for(lambda: len(slow.got) == 300)
    assert [tick.price for tick in slow.got] == [float(i) for i in range(300)]
    assert subscription.dropped == 0


def test_an_exception_in_a_callback_is_counted_and_the_feed_goes_on(tape, caplog):
    got = []

    def callback(record):
        got.append(record.price)
        if record.price == 1.0:
            raise ValueError("a bug of the subscriber")

    subscription = tape.subscribe(callback)
    for i in range(3):
        tape.append(Tick("A", T0 + i, price=float(i)))
    waited_for(lambda: len(got) == 3)
    waited_for(lambda: subscription.delivered == 3)
    assert subscription.errors == 1
    assert "a bug of the subscriber" in caplog.text


def test_wrong_options_of_a_subscription(tape):
    with pytest.raises(onetape.ConfigInvalid):
        tape.subscribe(print, when_slow="panic")
    with pytest.raises(onetape.ConfigInvalid):
        tape.subscribe(print, queue_records=0)


def test_asyncio_twins(tape):
    async def story():
        await tape.aappend(Tick("A", T0, price=1.0))
        await tape.aappend_table({"symbol": "A", "ts_event_ns": [T0 + 1], "price": [2.0]})
        assert (await tape.aread("A")).num_rows == 2
        assert (await tape.abars("A")).num_rows == 1
        seen = []
        async for record in tape.afollow(from_seq=0, idle_s=0.2):
            seen.append(record.price)
            if len(seen) == 2:
                await tape.aappend(Tick("A", T0 + 2, price=3.0))
        return seen

    assert asyncio.run(story()) == [1.0, 2.0, 3.0]


def test_a_writer_groups_commits_and_flush_makes_them_durable(tape):
    with tape.writer(max_delay_ms=1000) as writer:
        for i in range(100):
            writer.append(Tick("A", T0 + i, price=float(i)))
        assert len(writer.pending) == 100
        writer.flush()
        assert writer.pending == []
        assert tape.read("A").num_rows == 100
        writer.append(Tick("A", T0 + 100, price=1.0))
    assert tape.read("A").num_rows == 101
    assert [tick.seq for tick in tape.recent("A", 1000)] == list(range(1, 102))


def test_a_writer_stores_within_its_delay_by_itself(tape):
    with tape.writer(max_delay_ms=2) as writer:
        writer.append(Tick("A", T0, price=1.0))
        waited_for(lambda: tape.latest("A") is not None)


def test_a_writer_refuses_an_invalid_tick_at_once_and_keeps_the_rest(tape):
    with tape.writer(max_delay_ms=1000) as writer:
        writer.append(Tick("A", T0, price=1.0))
        with pytest.raises(onetape.InvalidRecord, match="price = nan"):
            writer.append(Tick("A", T0, price=float("nan")))
        with pytest.raises(onetape.InvalidRecord, match="symbol"):
            writer.append(Tick("", T0, price=1.0))
    assert tape.read("A").num_rows == 1


def test_a_writer_keeps_what_a_failed_commit_could_not_store(tmp_path):
    import apsw

    path = tmp_path / "t.db"
    with onetape.open(path, busy_timeout_ms=20) as tape:
        holder = apsw.Connection(str(path))
        writer = tape.writer(max_delay_ms=1)
        writer.append(Tick("A", T0, price=1.0))
        writer.flush()
        holder.execute("BEGIN IMMEDIATE")
        writer.append(Tick("A", T0 + 1, price=2.0))
        with pytest.raises(onetape.TapeBusy):
            writer.flush()
        assert [tick.price for tick in writer.pending] == [2.0]
        with pytest.raises(onetape.TapeBusy):
            writer.close()
        assert [tick.price for tick in writer.pending] == [2.0]
        holder.execute("ROLLBACK")
        holder.close()
        writer.close()
        assert [tick.price for tick in tape.recent("A")] == [1.0, 2.0]
        with pytest.raises(onetape.TapeClosed):
            writer.append(Tick("A", T0, price=1.0))


def test_many_threads_share_one_tape(tape):
    def work(name):
        for i in range(200):
            tape.append(Tick(name, T0 + i, price=float(i)))
            tape.latest(name)
            tape.read(name, T0, T0 + 10)

    threads = [threading.Thread(target=work, args=(f"T{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(info.ticks == 200 for info in tape.symbols())
    assert sorted(tick.seq for tick in tape.follow(from_seq=0, idle_s=0)) == list(range(1, 1201))


def test_the_head_is_the_newest_position_of_any_process(tmp_path):
    with onetape.open(tmp_path / "t.db") as tape, onetape.open(tmp_path / "t.db") as other:
        assert tape.head == 0
        other.append([Tick("A", T0, 1.0), Tick("A", T0, 2.0)])
        assert tape.head == other.head == tape.stats().head == 2
        tape.seal()
        assert tape.head == 2
