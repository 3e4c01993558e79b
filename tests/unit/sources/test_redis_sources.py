"""Redis streams and channels as sources: each entry once, what is lost is said, and a migration's places are kept."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

import onetape
from onetape.embedded import EmbeddedServer
from onetape.errors import ConfigInvalid, OnetapeError
from onetape.sources import redis_pubsub, redis_stream, registry
from onetape.sources.feed import Feed
from onetape.sources.source import Backoff

PATIENCE_S = 60.0
MS = 1_700_000_000_000


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[onetape.Tape]:
    with onetape.open(tmp_path / "t.db") as tape:
        yield tape


@contextmanager
def running(tape: onetape.Tape, **options: Any) -> Iterator[Feed]:
    source = registry.make(options)
    source._backoff = Backoff(0.02, 0.1)  # type: ignore[attr-defined]
    feed = Feed(source, tape)
    thread = threading.Thread(target=feed.run)
    thread.start()
    try:
        wait_for(lambda: feed.stats.state in ("live", "failed"))
        yield feed
    finally:
        feed.close()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def wait_for(what: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.01)


def streams(port: int, **options: Any) -> dict[str, Any]:
    given = {"streams": ["ticks:historical:{symbol}"], "rescan_s": 0.2}
    return {"kind": "redis_stream", "url": f"redis://127.0.0.1:{port}", **given, **options}


def add(client: redis.Redis, symbol: str, *numbers: int, **more: Any) -> None:
    for n in numbers:
        client.xadd(f"ticks:historical:{symbol}", {"price": f"{n}.5", "qty": 1}, id=f"{MS + n}-0", **more)


def prices(tape: onetape.Tape, symbol: str = "A") -> list[float]:
    return [price - 0.5 for price in tape.read(symbol, 0, 2**62, ["price"])["price"].to_pylist()]


def missing(tape: onetape.Tape, symbol: str = "A") -> list[tuple[int, int]]:
    start, end = MS * 1_000_000 - 10**9, time.time_ns()
    spans = tape.coverage(symbol, start, end)
    return [(span.start_ns, span.end_ns) for span in spans if span.state == "missing" and span.by]


def test_entries_of_many_streams_and_of_new_ones_land_once_over_restarts(
    server: EmbeddedServer, tape: onetape.Tape
) -> None:
    client = redis.Redis(port=server.port)
    add(client, "A", *range(50))
    add(client, "NFO:B", 1, 2)
    with running(tape, **streams(server.port)) as feed:
        wait_for(lambda: len(prices(tape)) == 50 and len(prices(tape, "NFO:B")) == 2)
        add(client, "C", 7)
        wait_for(lambda: prices(tape, "C") == [7.0])
        assert feed.stats.facts["streams"] == 3
    add(client, "A", *range(50, 60))
    with running(tape, **streams(server.port)) as feed:
        wait_for(lambda: len(prices(tape)) >= 60)
        assert feed.stats.stored == 10 and feed.stats.gaps == 0
    assert prices(tape) == [float(n) for n in range(60)]
    assert tape.cursor("redis:ticks:historical:A") == f"{MS + 59}-0"
    client.close()


def test_where_a_migration_has_landed_a_stream_it_is_gone_on_from(server: EmbeddedServer, tape: onetape.Tape) -> None:
    from onetape.migrate.landing.ticks import Lander
    from onetape.migrate.plans.plan import Plan
    from onetape.migrate.wire.endpoint import Endpoint

    client = redis.Redis(port=server.port)
    add(client, "A", 1, 2, 3)
    endpoint = Endpoint.connect(f"redis://127.0.0.1:{server.port}")
    rule = next(rule for rule in Plan.load().rules if rule.parts(b"ticks:historical:A") is not None)
    Lander(endpoint, 0, tape, "UTC").stream(b"ticks:historical:A", 0, rule)
    endpoint.close()
    assert prices(tape) == [1.0, 2.0, 3.0]
    add(client, "A", 4, 5)
    with running(tape, **streams(server.port)):
        wait_for(lambda: prices(tape)[-2:] == [4.0, 5.0])
    assert prices(tape) == [1.0, 2.0, 3.0, 4.0, 5.0]
    client.close()


def test_what_was_trimmed_away_while_nobody_read_is_missing_and_counted(
    server: EmbeddedServer, tape: onetape.Tape
) -> None:
    client = redis.Redis(port=server.port)
    add(client, "A", 1, 2)
    with running(tape, **streams(server.port)):
        wait_for(lambda: len(prices(tape)) == 2)
    add(client, "A", *range(3, 20), maxlen=5, approximate=False)
    with running(tape, **streams(server.port)) as feed:
        wait_for(lambda: prices(tape)[-1:] == [19.0])
        assert feed.stats.gaps == 1
    assert prices(tape) == [1.0, 2.0, 15.0, 16.0, 17.0, 18.0, 19.0]
    ((start_ns, end_ns),) = missing(tape)
    assert start_ns == (MS + 2) * 1_000_000 and end_ns == (MS + 15) * 1_000_000
    client.close()


def test_a_stream_trimmed_to_its_last_entry_after_all_was_read_has_no_gap(
    server: EmbeddedServer, tape: onetape.Tape
) -> None:
    client = redis.Redis(port=server.port)
    with running(tape, **streams(server.port)) as feed:
        for n in range(1, 6):
            add(client, "A", n, maxlen=1, approximate=False)
            wait_for(lambda n=n: prices(tape)[-1:] == [float(n)])
        assert (feed.stats.gaps, feed.stats.dropped) == (0, 0)
    assert missing(tape) == []
    client.close()


def test_entries_that_are_no_ticks_are_counted_and_named_and_stop_nothing(
    server: EmbeddedServer, tape: onetape.Tape
) -> None:
    client = redis.Redis(port=server.port)
    add(client, "A", 1)
    client.xadd("ticks:historical:A", {"colour": "red"}, id=f"{MS + 2}-0")
    client.xadd("ticks:historical:A", {"price": "nan"}, id=f"{MS + 3}-0")
    add(client, "A", 4)
    with running(tape, **streams(server.port)) as feed:
        wait_for(lambda: prices(tape) == [1.0, 4.0])
        wait_for(lambda: feed.stats.refused == 2)
        assert "no price" in feed.stats.facts["first_refused"]
    client.close()


def test_a_server_that_comes_back_without_its_data_is_a_gap_and_reading_goes_on(
    fresh_server: EmbeddedServer, tape: onetape.Tape
) -> None:
    with redis.Redis(port=fresh_server.port) as client:
        add(client, "A", 1, 2, 3)
        with running(tape, **streams(fresh_server.port)) as feed:
            wait_for(lambda: len(prices(tape)) == 3)
            client.flushall()  # as a restart from an older snapshot: the ids go back
            add(client, "A", 1)
            wait_for(lambda: feed.stats.gaps == 1)
            add(client, "A", 2, 9)
            wait_for(lambda: prices(tape)[-1:] == [9.0])
            assert "the server has lost data" in feed.stats.facts["last_gap"]
    assert prices(tape).count(2.0) == 2 and prices(tape).count(1.0) == 1
    assert missing(tape)


def test_a_server_that_is_killed_and_comes_back_empty_is_read_again_from_its_new_entries(
    fresh_server: EmbeddedServer, tape: onetape.Tape
) -> None:
    with redis.Redis(port=fresh_server.port) as client:
        add(client, "A", 1, 2)
        with running(tape, **streams(fresh_server.port)) as feed:
            wait_for(lambda: len(prices(tape)) == 2)
            fresh_server.kill()
            wait_for(lambda: feed.stats.state in ("waiting", "connecting"))
            port = fresh_server.port
            fresh_server.start()
            if fresh_server.port != port:
                pytest.skip("the server came back on another port")
            add(client, "A", 3, 4)
            wait_for(lambda: prices(tape) == [1.0, 2.0, 3.0, 4.0])
            assert feed.stats.reconnects >= 1 and feed.stats.last_error is None


def test_a_connection_that_was_cut_loses_and_doubles_nothing(server: EmbeddedServer, tape: onetape.Tape) -> None:
    client = redis.Redis(port=server.port)
    with running(tape, **streams(server.port)) as feed:
        for n in range(30):
            add(client, "A", n)
            if n % 10 == 5:
                seen = feed.stats.reconnects
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                wait_for(lambda seen=seen: feed.stats.reconnects > seen)
        wait_for(lambda: len(prices(tape)) >= 30)
        assert feed.stats.gaps == 0
    assert prices(tape) == [float(n) for n in range(30)]
    client.close()


def test_what_is_trimmed_away_while_a_restarted_source_catches_up_is_said(
    server: EmbeddedServer, tape: onetape.Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = redis.Redis(port=server.port)
    add(client, "A", 0)
    with running(tape, **streams(server.port)):
        wait_for(lambda: prices(tape) == [0.0])
    with client.pipeline(transaction=False) as pipeline:
        add(pipeline, "A", *range(1, 300))
        pipeline.execute()
    monkeypatch.setattr(redis_stream, "_PAGE", 100)
    catch_up = redis_stream.Track.catch_up

    def and_trim_behind_the_first_page(track: redis_stream.Track, info: Any, entries: Any) -> Any:
        gone = catch_up(track, info, entries)
        if track.at == f"{MS + 100}-0":
            client.xtrim(track.key, maxlen=50, approximate=False)
        return gone

    monkeypatch.setattr(redis_stream.Track, "catch_up", and_trim_behind_the_first_page)
    with running(tape, **streams(server.port)) as feed:
        wait_for(lambda: prices(tape)[-1:] == [299.0])
        wait_for(lambda: feed.stats.gaps == 1)
    assert prices(tape) == [*map(float, range(101)), *map(float, range(250, 300))]
    ((start_ns, end_ns),) = missing(tape)
    assert (start_ns, end_ns) == ((MS + 100) * 1_000_000, (MS + 250) * 1_000_000)
    client.close()


@given(
    st.booleans(), st.lists(st.tuples(st.sampled_from(["add", "trim", "read", "look"]), st.integers(1, 9)), max_size=60)
)
def test_whatever_is_trimmed_before_it_was_read_is_told_and_from_the_end_on_counted(
    from_before: bool, steps: list[tuple[str, int]]
) -> None:
    """A stream as a list; the track reads pages of it and looks at it in any order with its growing and trimming."""
    there = [1, 2, 3] if from_before else []
    added, lost, told, gaps = len(there), 0, 0, 0
    track = redis_stream.Track(b"s", "A", "c", "1-0" if from_before else None)
    if not from_before:
        track.absent()

    def at() -> int:
        return 0 if track.at is None else int(track.at.partition("-")[0])

    def info() -> list[Any]:
        first = [b"first-entry", [f"{there[0]}-0".encode(), []] if there else None]
        return [b"last-generated-id", f"{added}-0".encode(), b"entries-added", added, *first]

    for step, many in [*steps, ("add", 1), ("read", 10**6), ("read", 10**6), ("look", 1), ("look", 1)]:
        if step == "add":
            there += range(added + 1, added + many + 1)
            added += many
        elif step == "trim":
            lost += sum(number > at() for number in there[:many])
            del there[:many]
        else:
            page = [(f"{number}-0".encode(), []) for number in there if number > at()][:many]
            was_caught_up, found = track.caught_up, []
            if step == "read" and not was_caught_up:
                found = track.catch_up(info(), page)
            elif step == "read" and page:
                track.read(page)
            elif step == "look" and was_caught_up:
                found = track.settle(info())
            gaps, told = gaps + len(found), told + sum(gone for gone, _span in found)
            assert told <= lost
    assert gaps or not lost
    assert from_before or told == lost


def test_a_key_that_is_no_stream_is_said_and_the_streams_beside_it_are_read(
    server: EmbeddedServer, tape: onetape.Tape
) -> None:
    client = redis.Redis(port=server.port)
    client.hset("ticks:hash", "price", 1)
    add(client, "A", 1)
    add(client, "B", 1)
    with running(tape, **streams(server.port, streams=["ticks:historical:{symbol}", "ticks:hash"])) as feed:
        wait_for(lambda: "ticks:hash is a hash" in (feed.stats.trouble or ""))
        wait_for(lambda: prices(tape) == [1.0] and prices(tape, "B") == [1.0])
        client.delete("ticks:historical:B")
        client.set("ticks:historical:B", "no stream")
        wait_for(lambda: "ticks:historical:B is a string" in (feed.stats.trouble or ""))
        client.delete("ticks:historical:B")
        add(client, "A", 2)
        add(client, "B", 2)
        wait_for(lambda: prices(tape) == [1.0, 2.0] and prices(tape, "B") == [1.0, 2.0])
        assert feed.stats.last_error is None
    client.close()


def test_pages_are_small_where_streams_are_many_or_their_entries_large(
    server: EmbeddedServer, tape: onetape.Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_stream, "_ENTRIES_MAX", 40)
    monkeypatch.setattr(redis_stream, "_BYTES_MAX", 100_000)
    client = redis.Redis(port=server.port)
    for symbol in "ABCD":
        add(client, symbol, *range(30))
    for n in range(30, 130):
        client.xadd("ticks:historical:A", {"price": f"{n}.5", "note": "x" * 20_000}, id=f"{MS + n}-0")
    pages: list[int] = []
    read = redis_stream.Track.read

    def noted(track: redis_stream.Track, entries: Any) -> None:
        pages.append(len(entries) if len(entries[-1][1][-1]) < 1000 else 1000 + len(entries))
        read(track, entries)

    monkeypatch.setattr(redis_stream.Track, "read", noted)
    with running(tape, **streams(server.port)):
        wait_for(lambda: all(len(prices(tape, symbol)) == (130 if symbol == "A" else 30) for symbol in "ABCD"))
    assert max(size for size in pages if size < 1000) <= 40
    assert max([size for size in pages if size > 1000][1:]) <= 1005, "of large entries a page has few"
    client.close()


def test_closing_ends_a_source_whose_server_stopped_answering(
    fresh_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_stream, "_TIMEOUT_S", 600.0)
    source = registry.make(streams(fresh_server.port))
    thread = threading.Thread(target=lambda: list(source), daemon=True)
    thread.start()
    wait_for(lambda: source.stats.state == "live")
    os.kill(fresh_server.pid, signal.SIGSTOP)
    try:
        time.sleep(0.6)
        source.close()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    finally:
        os.kill(fresh_server.pid, signal.SIGCONT)


def pubsub(port: int, **options: Any) -> dict[str, Any]:
    return {"kind": "redis_pubsub", "url": f"redis://127.0.0.1:{port}", "channels": ["t:{symbol}"], **options}


def test_messages_of_channels_land_by_usual_and_by_mapped_names(server: EmbeddedServer, tape: onetape.Tape) -> None:
    client = redis.Redis(port=server.port)
    with running(
        tape, **pubsub(server.port, channels=["t:{symbol}", "own"], fields={"price": "x"}, symbol="O")
    ) as feed:
        client.publish("t:NFO:A", msgspec.json.encode({"last_price": 1.5, "timestamp": MS}))
        client.publish("t:B", msgspec.msgpack.encode({"x": 2.5, "timestamp": MS}))
        client.publish("own", msgspec.json.encode([{"x": 3.5}, {"x": 4.5}]))
        client.publish("own", b"\xc1 torn")
        wait_for(lambda: feed.stats.stored == 4 and feed.stats.refused == 1)
    assert tape.recent("NFO:A", 1)[0].price == 1.5
    assert tape.recent("B", 1)[0].ts_event_ns == MS * 1_000_000
    assert [tick.price for tick in tape.recent("O", 9)] == [3.5, 4.5]
    client.close()


def test_what_is_published_while_a_listener_is_cut_off_is_said_to_be_missing(
    server: EmbeddedServer, tape: onetape.Tape
) -> None:
    client = redis.Redis(port=server.port)
    with running(tape, **pubsub(server.port)) as feed:
        client.publish("t:A", b'{"price": 1.5}')
        wait_for(lambda: feed.stats.stored == 1)
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        wait_for(lambda: feed.stats.gaps == 1)
        wait_for(lambda: feed.stats.state == "live")
        client.publish("t:A", b'{"price": 2.5}')
        wait_for(lambda: feed.stats.stored == 2)
        assert feed.stats.reconnects >= 1
    assert len(missing(tape)) == 1
    client.close()


def test_a_server_that_stops_answering_is_noticed_though_the_connection_stands(
    fresh_server: EmbeddedServer, tape: onetape.Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_pubsub, "_ASK_NS", 100_000_000)
    monkeypatch.setattr(redis_pubsub, "_LOST_NS", 1_000_000_000)
    with redis.Redis(port=fresh_server.port) as client, running(tape, **pubsub(fresh_server.port)) as feed:
        client.publish("t:A", b'{"price": 1.5}')
        wait_for(lambda: feed.stats.stored == 1)
        os.kill(fresh_server.pid, signal.SIGSTOP)
        try:
            wait_for(lambda: feed.stats.state in ("waiting", "connecting"))
        finally:
            os.kill(fresh_server.pid, signal.SIGCONT)
        wait_for(lambda: feed.stats.gaps == 1)
    assert len(missing(tape)) == 1


def test_a_message_that_is_nested_without_end_is_refused_and_stops_nothing(
    server: EmbeddedServer, tape: onetape.Tape
) -> None:
    client = redis.Redis(port=server.port)
    with running(tape, **pubsub(server.port)) as feed:
        for message in (b'{"price":' + b"[" * 100_000, b'{"price":[1]}', b'{"price":1e400}', b"", b'{"price":9.5}'):
            client.publish("t:A", message)
        wait_for(lambda: feed.stats.stored == 1 and feed.stats.refused == 4)
    assert tape.recent("A", 1)[0].price == 9.5
    client.close()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
@pytest.mark.parametrize("kind", ["redis_pubsub", "redis_stream"])
def test_a_server_that_is_no_redis_is_said_and_ends_no_process(
    kind: str, answer: bytes, tape: onetape.Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_pubsub, "_LOST_NS", 300_000_000)
    monkeypatch.setattr(redis_stream, "_TIMEOUT_S", 0.5)
    listener = socket.create_server(("127.0.0.1", 0))

    def talk() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken, _ = listener.accept()
                with taken:
                    while taken.recv(65536) and answer:
                        taken.sendall(answer)

    threading.Thread(target=talk, daemon=True).start()
    port = listener.getsockname()[1]
    source = registry.make(streams(port) if kind == "redis_stream" else pubsub(port))
    source._backoff = Backoff(0.02, 0.1)  # type: ignore[attr-defined]
    told: list[BaseException] = []

    def run() -> None:
        try:
            for _ in source:
                pass
        except BaseException as error:  # noqa: BLE001
            told.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: told or source.stats.reconnects >= 2)
        assert all(isinstance(error, OnetapeError) for error in told)
    finally:
        source.close()
        thread.join(PATIENCE_S)
        listener.close()
        assert not thread.is_alive()


def test_no_part_of_a_password_is_told() -> None:
    for kind, names in (("redis_stream", {"streams": ["a"]}), ("redis_pubsub", {"channels": ["a"]})):
        source = registry.make({"kind": kind, "url": "redis://user:zqx/zqy@127.0.0.1:1", **names})
        with pytest.raises(ConfigInvalid) as told:
            next(iter(source))
        text = f"{told.value} {told.value.__cause__} {source.stats.trouble}"
        assert "zq" not in text


def test_what_cannot_be_read_is_said() -> None:
    for wrong in ({"kind": "redis_stream", "streams": []}, {"kind": "redis_pubsub", "channels": []}):
        with pytest.raises(ConfigInvalid, match="is empty"):
            registry.make(wrong)
    with pytest.raises(ConfigInvalid, match="colour"):
        registry.make({"kind": "redis_pubsub", "channels": ["a"], "fields": {"colour": "c"}})
