"""The listing and the endpoint: every key once while the table grows, and pipelines of any size."""

from __future__ import annotations

import random
import threading

import pytest
import redis

from onetape.embedded import EmbeddedServer
from onetape.errors import ConfigInvalid, EndpointError
from onetape.migrate.plans.plan import Plan
from onetape.migrate.survey.listing import MIXED_PAGES, Listing, _Repeats, mixed
from onetape.migrate.wire.endpoint import Endpoint, ReplyError, is_read, pack


def test_every_key_is_listed_once_while_the_table_grows_and_shrinks(server: EmbeddedServer) -> None:
    client = redis.Redis(port=server.port, db=5)
    pipe = client.pipeline()
    for i in range(6000):
        pipe.set(f"indicators:S{i}:rsi", 1)
    pipe.execute()
    with Endpoint.connect(server.url, writable=False) as endpoint:
        listing = Listing(endpoint, Plan.load())
        seen: list[bytes] = []
        for number, page in enumerate(listing.pages("indicators")):
            seen += page.keys
            if number > 4:
                continue
            pipe = client.pipeline()
            for _ in range(8000):
                pipe.set(f"noise:{random.random()}", 1)
            pipe.execute()
        listing.close()
    assert len(seen) == len(set(seen)) >= 6000


def test_what_is_taken_for_a_repeat_is_decided_by_fingerprint() -> None:
    repeats = _Repeats(10)
    repeats._bits = repeats._bits[:2]  # sixteen bits for thousands of keys: nearly all are suspects
    repeats._mask = repeats._mask.__class__(15)
    keys = [b"key-%d" % i for i in range(3000)]
    listed: list[bytes] = []
    for start in range(0, 3000, 100):
        listed += repeats.fresh(keys[start : start + 100])
        listed += repeats.fresh(keys[start : start + 30])  # again
    listed += repeats.resolved()
    repeats.close()
    assert sorted(listed) == sorted(keys)


def test_a_database_is_scanned_once_for_all_its_steps(server: EmbeddedServer) -> None:
    client = redis.Redis(port=server.port, db=2)
    for i in range(50):
        client.mset({f"volume_state:{i}": 1, f"ohlc:{i}": 1, f"volume:baseline:{i}": 1, f"else:{i}": 1})
    client.config_resetstat()
    with Endpoint.connect(server.url, writable=False) as endpoint:
        listing = Listing(endpoint, Plan.load(), ("volume", "ohlc", "baselines"))
        counts = {step: sum(len(p.keys) for p in listing.pages(step)) for step in ("volume", "ohlc", "baselines")}
        assert counts == {"volume": 50, "ohlc": 50, "baselines": 50}
        assert listing.unmatched[2].count == 50 and listing.total == 200
        listing.close()
    assert client.info("commandstats")["cmdstat_scan"]["calls"] == 1


def test_pages_are_mixed_and_every_key_is_given_once() -> None:
    for number in (0, 1, 5, MIXED_PAGES, 3 * MIXED_PAGES + 1):
        pages = [[b"%d:%d" % (page, at) for at in range(1000 if page % 7 else 3)] for page in range(number)]
        out = list(mixed(iter(pages)))
        keys = [key for page in out for key in page]
        assert len(keys) == len(set(keys)) and sorted(keys) == sorted(key for page in pages for key in page)
        assert all(out)
    # In full swing the keys of a batch come from many pages of SCAN.
    middle = out[len(out) // 2]
    assert len({key.partition(b":")[0] for key in middle}) > MIXED_PAGES // 2


def test_a_page_asked_for_ahead_reaches_its_own_database(server: EmbeddedServer) -> None:
    client = redis.Redis(port=server.port)
    for db, name in ((5, "indicators:S%d:rsi"), (2, "volume_state:%d")):
        client.select(db)
        client.mset({name % i: 1 for i in range(20_000)})
    with Endpoint.connect(server.url, writable=False) as endpoint:
        listing = Listing(endpoint, Plan.load(), ahead=True)
        turns = {step: listing.pages(step) for step in ("indicators", "volume")}
        found: dict[str, list[bytes]] = {step: [] for step in turns}
        while turns:
            for step, pages in list(turns.items()):
                page = next(pages, None)
                if page is None:
                    del turns[step]
                else:
                    found[step] += page.keys
        listing.close()
    assert sorted(found["indicators"]) == sorted(b"indicators:S%d:rsi" % i for i in range(20_000))
    assert sorted(found["volume"]) == sorted(b"volume_state:%d" % i for i in range(20_000))


def test_a_pipeline_bigger_than_all_buffers_does_not_block(server: EmbeddedServer) -> None:
    with Endpoint.connect(server.url) as endpoint:
        value = random.randbytes(3_000_000)
        packed = (pack("SET", "big", value) + pack("GET", "big")) * 20
        done: list[int] = []
        thread = threading.Thread(target=lambda: done.append(len(endpoint.exchange(packed, 40))), daemon=True)
        thread.start()
        thread.join(60)
        assert done == [40]


def test_replies_keep_their_shape_and_errors_their_place(server: EmbeddedServer) -> None:
    with Endpoint.connect(server.url) as endpoint:
        got = endpoint.pipeline(
            [("SET", "a", 1.5), ("LPUSH", "a", 1), ("GET", b"a"), ("GET", "no"), ("XRANGE", "s", "-", "+")]
        )
        assert isinstance(got[1], ReplyError) and got[1].code == "WRONGTYPE"
        assert [got[0], *got[2:]] == [b"OK", b"1.5", None, []]
        with pytest.raises(EndpointError, match="LPUSH: WRONGTYPE"):
            endpoint.call("LPUSH", "a", 1)
        assert endpoint.pipeline([]) == []


def test_the_server_is_known_by_name_and_version(server: EmbeddedServer) -> None:
    with Endpoint.connect(server.url, db=3) as endpoint:
        assert endpoint.server == ("valkey" if "valkey" in server.binary.name else "redis")
        assert endpoint.version >= (6, 2) and endpoint.db == 3 and len(endpoint.run_id) == 40


@pytest.mark.parametrize("url", ["http://x", "redis://x:port", "nonsense", "redis://u:secret@x:port"])
def test_an_url_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        Endpoint.connect(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["SET", "DEL", "COPY", "RESTORE", "GETEX", "GETDEL", "SORT", "EVAL", "XREADGROUP", "CONFIG"]
)
def test_what_can_write_is_no_read(name: str) -> None:
    assert not is_read((name, "x", "y"))


def test_a_unix_socket_will_do(fresh_server: EmbeddedServer) -> None:
    path = fresh_server.directory / "s.sock"
    with EmbeddedServer(fresh_server.binary, {"unixsocket": str(path)}), Endpoint.connect(f"unix://{path}") as endpoint:
        assert endpoint.call("PING") == b"PONG"
