"""The demo's legacy system: every family, type and trap is there, and its writers count truly and never outlive it."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import pytest
import redis
from tests.waiting import waited_for

from onetape.demo import families, legacy, market
from onetape.demo.legacy_ticks import stream_db
from onetape.demo.writers import Orders, Writers
from onetape.embedded import EmbeddedServer
from onetape.migrate.plans.plan import Plan

Client = redis.Redis


def client(server: EmbeddedServer, db: int) -> Client:
    return redis.Redis(port=server.port, db=db)


@pytest.fixture
def instruments() -> list[market.Instrument]:
    return market.gather(4_000, 50, 1, None)


def test_every_family_type_and_trap_is_there(server: EmbeddedServer, instruments: list[market.Instrument]) -> None:
    told = legacy.fill(server.url, instruments, 1)
    found = legacy.survey(server.url)
    keys = {db: set(client(server, db).scan_iter(count=1000)) for db in legacy.SOURCE_DBS}
    assert told["ticks in streams"] + told["ticks in hashes"] == 4_000
    assert told["ticks in streams"] == found.entries > 3 * told["ticks in hashes"] > 0
    assert found.keys == {db: len(names) for db, names in keys.items()}
    assert set(found.types) == {"string", "hash", "list", "set", "zset", "stream"}
    assert found.groups > 50 and found.pending > 500

    plan = Plan.load("trading_system")
    used: Counter[str] = Counter()
    unmatched: dict[int, set[bytes]] = {}
    for db, names in keys.items():
        matcher = plan.matcher(db)
        kinds = dict(zip(names, client_types(server, db, names), strict=True))
        for name in names:
            match = matcher.match(name)
            if match is not None and match[1].types:
                match = matcher.match_type(name, kinds[name])
            if match is None:
                unmatched.setdefault(db, set()).add(name)
            else:
                used[f"{db} {match[1].pattern}"] += 1
                used[match[2].partition(b"{")[0].decode("utf-8", "replace").rpartition(":")[0]] += 1
    assert unmatched == {db: set(names) for db, names in legacy.UNMATCHED.items()}
    unused = {f"{rule.source_db} {rule.pattern}" for rule in plan.rules} - set(used)
    assert unused == {f"{db} ticks:historical:{{symbol}}" for db in (0, 2)}, "streams that have the new name already"
    targets = " ".join(used)
    for family in ("ind:ta", "ind:greeks", "ind:volume", "ind:other", "vol:state", "vol:baseline", "vol:profile"):
        assert family in targets


def client_types(server: EmbeddedServer, db: int, names: set[bytes]) -> list[str]:
    pipe = client(server, db).pipeline(transaction=False)
    for name in names:
        pipe.type(name)
    return [kind.decode() for kind in pipe.execute()]


def test_values_are_binary_empty_pickled_compressed_and_big(
    server: EmbeddedServer, instruments: list[market.Instrument]
) -> None:
    legacy.fill(server.url, instruments, 1)
    system, volume, indicators = (client(server, db) for db in legacy.SOURCE_DBS)
    symbol = instruments[0].symbol
    assert ":" in symbol
    assert [system.get(key) for key in families.EMPTY_KEYS] == [b"", b""]
    assert system.scard(families.BIG_KEY) == 100_000
    assert isinstance(pickle.loads(volume.get(f"volume_profile:patterns:{symbol}:20d")), dict)
    assert zlib.decompress(indicators.get(f"indicators:{symbol}:regime")).startswith(b"[")
    assert all(volume.exists(key) for key in families.BINARY_KEYS)
    assert indicators.get(f"indicators:{symbol}:volume_note") == b""


def test_part_of_the_keys_expires_and_none_during_the_demo(
    server: EmbeddedServer, instruments: list[market.Instrument]
) -> None:
    legacy.fill(server.url, instruments, 1)
    found = legacy.survey(server.url)
    assert 0.1 < found.expiring / sum(found.keys.values()) < 0.9
    for db in legacy.SOURCE_DBS:
        connection = client(server, db)
        assert all(ttl == -1 or ttl > 600 for ttl in map(connection.ttl, connection.scan_iter(count=1000)))


def orders_of(server: EmbeddedServer, instruments: list[market.Instrument], parent: int) -> Orders:
    streams = [(one.symbol, stream_db(at)) for at, one in enumerate(instruments[:6])]
    symbols = [one.symbol for one in instruments]
    return Orders(server.url, parent, 1, streams, symbols[6:9], symbols[:4])


def test_what_the_writers_say_they_wrote_is_what_is_there(
    server: EmbeddedServer, instruments: list[market.Instrument]
) -> None:
    hashes = [one.symbol for one in instruments[6:9]]
    legacy.fill(server.url, instruments, 1, hashes)
    writers = Writers(orders_of(server, instruments, os.getpid()))
    # The third stream that is listed in the middle, so all that they do was done more than once.
    waited_for(lambda: client(server, 0).exists("ticks:NFO:LIVE03NOVFUT"))
    tally = writers.stop()
    connections = {db: client(server, db) for db in legacy.SOURCE_DBS}
    place = {one.symbol: stream_db(at) for at, one in enumerate(instruments)}
    assert tally.created and tally.deleted and any(key.startswith("ticks:") for key in tally.created)
    assert 0 < tally.writes / tally.seconds < 500
    for key, count in tally.streams.items():
        entries = connections[place.get(key.partition(":")[2], 0)].xrange(key)
        assert [int(flat[b"trade_count"]) for _id, flat in entries if b"trade_count" in flat] == [*range(1, count + 1)]
    for key, count in tally.hashes.items():
        assert int(connections[0].hget(key, "trade_count")) == count
    for key, count in tally.indicators.items():
        value = connections[5].get(key)
        assert value is not None and int(re.findall(rb'"n":(\d+)', value)[0]) == count
    assert not list(connections[5].scan_iter("lock:*"))


def test_the_writers_die_with_their_parent(server: EmbeddedServer, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    code = (
        "import os, sys, time\n"
        "from onetape.demo.writers import Orders, Writers\n"
        "orders = Orders(sys.argv[1], os.getpid(), 1, [('A', 0)], ['B'], ['C'])\n"
        "writers = Writers(orders)\n"
        "open(sys.argv[2] + '.new', 'w').write(str(writers.pid))\n"
        "os.rename(sys.argv[2] + '.new', sys.argv[2])\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, server.url, str(told)])
    try:
        waited_for(told.exists)
        pid = int(told.read_text())
        waited_for(lambda: client(server, 0).exists("ticks:A") == 1)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    waited_for(lambda: not alive(pid))


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
