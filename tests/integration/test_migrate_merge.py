"""Ticks that were hashes become one stream in the order of their times, whatever the stream held before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from onetape.embedded import EmbeddedServer
from onetape.errors import EndpointError
from onetape.migrate.keys.stream_state import stream_state
from onetape.migrate.landing import merge as merging
from onetape.migrate.landing.merge import MergeEntry, merge, missing
from onetape.migrate.wire.endpoint import Argument, Endpoint, ReplyError

STREAM = b"ticks:historical:NSE:INFY"


@pytest.fixture
def endpoint(server: EmbeddedServer) -> Iterator[Endpoint]:
    with Endpoint.connect(server.url, db=1) as endpoint:
        yield endpoint


def entry(ms: int, name: str = "", ns: int = 0) -> MergeEntry:
    key = f"realtime:X:{ms}{name}".encode()
    return MergeEntry(ms * 1_000_000 + ns, key, key.ljust(16, b".")[-16:], [b"price", b"%d" % ms, b"\xff", b""])


def counts(result: merging.Merged) -> tuple[int, int, int]:
    return len(result.added), len(result.known), len(result.changed)


def ids(endpoint: Endpoint, key: bytes = STREAM) -> list[bytes]:
    return [entry_id for entry_id, _fields in endpoint.call("XRANGE", key, "-", "+")]


def test_ticks_are_in_order_of_event_time_with_their_own_fields(endpoint: Endpoint) -> None:
    entries = [entry(3000), entry(1000, "b", 5), entry(1000, "a", 5), entry(2000), entry(1000, "z", 1)]
    assert counts(merge(endpoint, STREAM, entries)) == (5, 0, 0)
    stored = endpoint.call("XRANGE", STREAM, "-", "+")
    assert [one[0] for one in stored] == [b"1000-0", b"1000-1", b"1000-2", b"2000-0", b"3000-0"]
    assert [one[1] for one in stored] == [entries[i].stored() for i in (4, 2, 1, 3, 0)]
    assert stored[0][1][:4] == [b"price", b"1000", b"\xff", b""]
    assert endpoint.call("PTTL", STREAM) == -1
    assert missing(endpoint, STREAM, entries) == []


def test_merging_again_changes_nothing(endpoint: Endpoint) -> None:
    entries = [entry(ms) for ms in range(1000, 3500)]
    merge(endpoint, STREAM, entries)
    before = endpoint.call("DUMP", STREAM)
    assert counts(merge(endpoint, STREAM, reversed(entries))) == (0, 2500, 0)
    assert endpoint.call("DUMP", STREAM) == before
    assert endpoint.call("DBSIZE") == 1


def test_late_ticks_keep_entries_ids_groups_consumers_and_pending(endpoint: Endpoint) -> None:
    call = endpoint.call
    for ms in range(1000, 1040, 2):
        call("XADD", STREAM, f"{ms}-7", "n", ms)
    call("XGROUP", "CREATE", STREAM, b"workers\xff", "0")
    call("XGROUP", "CREATE", STREAM, "from the end", "$")
    call("XREADGROUP", "GROUP", b"workers\xff", "ann", "COUNT", 5, "STREAMS", STREAM, ">")
    call("XREADGROUP", "GROUP", b"workers\xff", "bob", "COUNT", 3, "STREAMS", STREAM, ">")
    call("XCLAIM", STREAM, b"workers\xff", "bob", 0, "1002-7", "TIME", 1_700_000_000_123, "RETRYCOUNT", 9)
    call("XGROUP", "CREATECONSUMER", STREAM, b"workers\xff", "idle")
    call("XDEL", STREAM, "1004-7", "1038-7")  # one pending, one at the end
    before = stream_state(endpoint, STREAM, all_times=True)
    kept = call("XRANGE", STREAM, "-", "+")
    assert before is not None

    late = [entry(ms) for ms in (1001, 1004, 1006, 1035, 999)]
    assert counts(merge(endpoint, STREAM, late)) == (5, 0, 0)

    after = stream_state(endpoint, STREAM, all_times=True)
    assert after is not None
    stored = call("XRANGE", STREAM, "-", "+")
    assert [one for one in stored if one in kept] == kept
    new = [one[0] for one in stored if one not in kept]
    assert new == [b"999-0", b"1001-0", b"1004-8", b"1006-8", b"1035-0"]
    assert (after.last_id, after.max_deleted, after.added) == (b"1038-7", b"1038-7", 25)
    ours = {group.name: group for group in after.groups}
    theirs = {group.name: group for group in before.groups}
    for name in theirs:
        assert ours[name].pending == theirs[name].pending
        assert ours[name].consumers == theirs[name].consumers
        assert ours[name].last_delivered == theirs[name].last_delivered
    # 8 were read of what lies up to 1014-7, and 4 of the new ones lie there too
    assert (theirs[b"workers\xff"].entries_read, ours[b"workers\xff"].entries_read) == (8, 12)
    assert call("DBSIZE") == 1
    rest = call("XREADGROUP", "GROUP", b"workers\xff", "ann", "COUNT", 100, "STREAMS", STREAM, ">")
    assert [one[0] for one in rest[0][1]] == [one[0] for one in stored if merging.parse_id(one[0]) > (1014, 7)]


def test_an_expiry_of_the_stream_stays(endpoint: Endpoint) -> None:
    endpoint.call("XADD", STREAM, "2000-0", "a", "b")
    endpoint.call("PEXPIREAT", STREAM, 4_000_000_000_123)
    merge(endpoint, STREAM, [entry(1000), entry(3000)])
    assert ids(endpoint) == [b"1000-0", b"2000-0", b"3000-0"]
    assert endpoint.call("PEXPIRETIME", STREAM) == 4_000_000_000_123


def test_a_key_of_another_type_is_an_error_and_stays(endpoint: Endpoint) -> None:
    endpoint.call("SET", STREAM, "x")
    with pytest.raises(EndpointError, match="WRONGTYPE"):
        merge(endpoint, STREAM, [entry(1000)])
    assert endpoint.call("GET", STREAM) == b"x"
    assert endpoint.call("DBSIZE") == 1


def test_a_live_writer_between_read_and_swap_loses_nothing(
    endpoint: Endpoint, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.call("XADD", STREAM, "2000-0", "a", "b")
    with Endpoint.connect(server.url, db=1) as writer:
        moved = merging._moved
        times: list[object] = []

        def disturbed(*args: object) -> object:
            if len(times) < 2:
                times.append(writer.call("XADD", STREAM, f"{5000 + len(times)}-0", "live", "1"))
            return moved(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(merging, "_moved", disturbed)
        assert counts(merge(endpoint, STREAM, [entry(1000)])) == (1, 0, 0)
    assert ids(endpoint) == [b"1000-0", b"2000-0", b"5000-0", b"5001-0"]
    assert endpoint.call("DBSIZE") == 1


def test_a_writer_that_never_rests_is_told_and_nothing_is_left(
    endpoint: Endpoint, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.call("XADD", STREAM, "2000-0", "a", "b")
    with Endpoint.connect(server.url, db=1) as writer:
        moved = merging._moved

        def disturbed(*args: object) -> object:
            writer.call("XADD", STREAM, "*", "live", "1")
            return moved(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(merging, "_moved", disturbed)
        assert counts(merge(endpoint, STREAM, [entry(1000)])) == (0, 0, 1)
    assert endpoint.call("DBSIZE") == 1
    assert endpoint.pipeline([("MULTI",), ("EXEC",)])[1] == []  # no WATCH is left behind


_VICTIM = """
import sys
from onetape.migrate.wire.endpoint import Endpoint
from onetape.migrate.landing.merge import MergeEntry, merge
endpoint = Endpoint.connect(sys.argv[1], db=1)
print("go", flush=True)
late = [MergeEntry(ms * 1_000_000, b"k%d" % ms, b"%016d" % ms, [b"p", b"1"]) for ms in range(1000, 5000, 2)]
for at in range(0, len(late), 500):
    merge(endpoint, b"s", late[at:at + 500])
"""


def test_a_kill_at_any_moment_leaves_a_whole_stream_and_a_second_run_completes_it(
    server: EmbeddedServer,
) -> None:
    with Endpoint.connect(server.url, db=1) as endpoint:
        for ms in range(1001, 5001, 2):
            endpoint.call("XADD", "s", f"{ms}-0", "base", ms)
        base = ids(endpoint, b"s")
        for delay_s in (0.0, 0.02, 0.05, 0.11, 0.3):
            victim = subprocess.Popen(
                [sys.executable, "-c", _VICTIM, server.url], stdout=subprocess.PIPE, env=dict(os.environ)
            )
            assert victim.stdout is not None
            victim.stdout.readline()
            time.sleep(delay_s)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            victim.stdout.close()
            found = ids(endpoint, b"s")
            assert [one for one in found if one in set(base)] == base
            assert len(set(found)) == len(found)
        late = [MergeEntry(ms * 1_000_000, b"k%d" % ms, b"%016d" % ms, [b"p", b"1"]) for ms in range(1000, 5000, 2)]
        result = merge(endpoint, b"s", late)
        assert sum(counts(result)[:2]) == len(late)
        assert [merging.parse_id(one)[0] for one in ids(endpoint, b"s")] == list(range(1000, 5000))
        left = [key for key in endpoint.call("KEYS", "*") if key != b"s"]
        assert all(key.startswith(merging.TEMPORARY) for key in left)
        assert all(0 < endpoint.call("PTTL", key) <= 3_600_000 for key in left)
        assert endpoint.call("PTTL", "s") == -1


def test_two_that_merge_into_one_stream_at_once_lose_nothing(
    endpoint: Endpoint, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ms in range(2000, 2100):
        endpoint.call("XADD", STREAM, f"{ms}-0", "a", "b")
    kept = endpoint.call("XRANGE", STREAM, "-", "+")
    with Endpoint.connect(server.url, db=1) as other:
        moved = merging._moved
        times: list[object] = []

        def disturbed(*args: object) -> object:
            if not times:
                times.append(1)
                assert counts(merge(other, STREAM, [entry(1500)])) == (1, 0, 0)
            return moved(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(merging, "_moved", disturbed)
        assert counts(merge(endpoint, STREAM, [entry(1000)])) == (1, 0, 0)
    assert ids(endpoint) == [b"1000-0", b"1500-0", *(one[0] for one in kept)]
    assert (endpoint.call("DBSIZE"), endpoint.call("PTTL", STREAM)) == (1, -1)


def test_a_temporary_stream_of_another_merge_is_left_alone(endpoint: Endpoint) -> None:
    endpoint.call("XADD", STREAM, "2000-0", "a", "b")
    endpoint.call("XADD", merging.TEMPORARY + STREAM, "1-0", "not", "ours")
    merge(endpoint, STREAM, [entry(1000)])
    assert endpoint.call("XLEN", merging.TEMPORARY + STREAM) == 1


def test_a_writer_between_the_reading_of_the_last_id_and_of_the_entries_means_another_attempt(
    endpoint: Endpoint, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.call("XADD", STREAM, "2000-0", "a", "b")
    with Endpoint.connect(server.url, db=1) as writer:
        read = merging._entries
        times: list[object] = []

        def grown(*args: object) -> object:
            if not times:
                times.append(writer.call("XADD", STREAM, "5000-0", "live", "1"))
            return read(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(merging, "_entries", grown)
        assert counts(merge(endpoint, STREAM, [entry(1000)])) == (1, 0, 0)
    assert ids(endpoint) == [b"1000-0", b"2000-0", b"5000-0"]
    assert endpoint.call("DBSIZE") == 1


def test_an_expiry_stays_on_a_server_that_cannot_tell_it_absolutely(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Endpoint.pipeline

    def before_7(self: Endpoint, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        if commands and commands[0][0] == "PEXPIRETIME":
            return [ReplyError("ERR unknown command 'PEXPIRETIME'")]
        return asked(self, commands)

    endpoint.call("XADD", STREAM, "2000-0", "a", "b")
    endpoint.call("PEXPIRE", STREAM, 500_000)
    monkeypatch.setattr(Endpoint, "pipeline", before_7)
    merge(endpoint, STREAM, [entry(1000)])
    assert ids(endpoint) == [b"1000-0", b"2000-0"]
    assert 400_000 < endpoint.call("PTTL", STREAM) <= 500_100


def test_an_earlier_tick_of_a_key_is_none_where_the_tick_itself_is_there(endpoint: Endpoint) -> None:
    old, new = (MergeEntry(ms * 10**6, b"k", b"samehalf" + b"%08d" % ms, [b"p", b"1"]) for ms in (1000, 2000))
    merge(endpoint, STREAM, [old])
    assert merging.earlier_of(endpoint, STREAM, new.identity)
    merge(endpoint, STREAM, [new])
    assert not merging.earlier_of(endpoint, STREAM, new.identity)
