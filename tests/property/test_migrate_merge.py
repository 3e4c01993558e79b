"""Whatever is merged in whatever portions: each tick once, in order of time, and what was there stays as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onetape.embedded import EmbeddedServer, server_binaries
from onetape.migrate.keys.stream_state import stream_state
from onetape.migrate.landing.merge import IDENTITY_FIELD, MergeEntry, merge, missing, parse_id
from onetape.migrate.wire.endpoint import Endpoint

STREAM = b"ticks:historical:X"

times = st.integers(1_000_000, 12_000_000)  # ns: within twelve milliseconds, so that many share one
ticks = st.lists(st.tuples(times, st.integers(0, 40)), max_size=30)
portions = st.lists(ticks, min_size=1, max_size=4)
base_ids = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3)), unique=True, max_size=12).map(sorted)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    if not server_binaries():
        pytest.skip("no Redis-compatible server on this machine")
    with EmbeddedServer() as server, Endpoint.connect(server.url, db=1) as endpoint:
        yield endpoint


def entry(ns: int, number: int) -> MergeEntry:
    key = b"k%d" % number
    return MergeEntry(ns, key, (b"%d:" % ns + key).ljust(16, b".")[:16], [b"n", b"%d" % number])


@given(portions=portions, base=base_ids, read=st.integers(0, 12), deleted=st.sets(st.integers(0, 11)))
def test_merging_in_any_portions(
    endpoint: Endpoint,
    portions: list[list[tuple[int, int]]],
    base: list[tuple[int, int]],
    read: int,
    deleted: set[int],
) -> None:
    call = endpoint.call
    call("FLUSHALL")
    for ms, n in base:
        call("XADD", STREAM, f"{ms}-{n}", "base", f"{ms}-{n}")
    if base:
        call("XGROUP", "CREATE", STREAM, "g", "0")
        if read:
            call("XREADGROUP", "GROUP", "g", "c", "COUNT", read, "STREAMS", STREAM, ">")
        for place in deleted:
            if place < len(base):
                call("XDEL", STREAM, f"{base[place][0]}-{base[place][1]}")
    kept = call("XRANGE", STREAM, "-", "+")
    before = stream_state(endpoint, STREAM, all_times=True)

    wanted = {}
    for portion in portions:
        entries = [entry(ns, number) for ns, number in portion]
        new = {one.identity for one in entries} - wanted.keys()
        result = merge(endpoint, STREAM, entries)
        assert result.added == new
        assert not result.changed
        wanted.update((one.identity, one) for one in entries)

    stored = call("XRANGE", STREAM, "-", "+")
    merged = [one for one in stored if one[1][-2] == IDENTITY_FIELD]
    assert [one for one in stored if one[1][-2] != IDENTITY_FIELD] == kept
    assert sorted(one[1][-1] for one in merged) == sorted(i.hex().encode() for i in wanted)
    for entry_id, fields in merged:
        tick = wanted[bytes.fromhex(fields[-1].decode())]
        assert parse_id(entry_id)[0] == tick.ms
        assert fields == tick.stored()
    assert missing(endpoint, STREAM, list(wanted.values())) == []
    after = stream_state(endpoint, STREAM, all_times=True)
    if before is not None and after is not None:
        assert [g.pending for g in after.groups] == [g.pending for g in before.groups]
        assert [g.last_delivered for g in after.groups] == [g.last_delivered for g in before.groups]
        assert after.max_deleted == before.max_deleted
        assert before.added is not None
        assert after.added == before.added + len(wanted)
        assert parse_id(after.last_id) >= parse_id(before.last_id)
    assert call("DBSIZE") == (1 if base or wanted else 0)
    again = call("DUMP", STREAM) if stored else None
    merge(endpoint, STREAM, list(wanted.values()))
    assert (call("DUMP", STREAM) if stored else None) == again


@given(portion=ticks)
def test_ticks_merged_at_once_are_in_order_of_time_and_key(endpoint: Endpoint, portion: list[tuple[int, int]]) -> None:
    endpoint.call("FLUSHALL")
    entries = [entry(ns, number) for ns, number in portion]
    merge(endpoint, STREAM, entries)
    stored = [one[1] for one in endpoint.call("XRANGE", STREAM, "-", "+")]
    ordered = sorted({one.identity: one for one in entries}.values(), key=MergeEntry.order)
    assert stored == [one.stored() for one in ordered]
