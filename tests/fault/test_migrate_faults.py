"""What goes wrong while keys move: writers that race, connections that break, memory that ends, and bad servers."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest
import redis
from tests.legacy_keys import clients, content, differences, fill

from onetape.embedded import EmbeddedServer, free_port
from onetape.errors import EndpointError, LedgerBusy, LedgerUnusable, OnetapeError, PreflightRefused
from onetape.migrate import Endpoint, Ledger, Migration, Plan
from onetape.migrate.copying.copy import Copier
from onetape.migrate.copying.lane import Batch


def _migration(server: EmbeddedServer, directory: Path, **options: object) -> Migration:
    return Migration(server.url, ledger_path=directory / "ledger.db", **options)  # type: ignore[arg-type]


def one_line(error: BaseException) -> str:
    """Return what a user sees of an error, after asserting that it is one line and says what to do."""
    assert isinstance(error, OnetapeError)
    assert "\n" not in str(error) and error.hint, str(error)
    return str(error)


# Writers that race


@pytest.mark.parametrize("point", ["read", "intended"])
def test_a_writer_racing_with_every_batch_loses_nothing(server: EmbeddedServer, tmp_path: Path, point: str) -> None:
    client = clients(server.port)
    fill(client)
    times = itertools.count()

    def race(passed: str) -> None:
        n = next(times)
        if passed == point and n < 400:
            client[5].append(
                f"indicators:NFO:SYM{n % 500}:{('rsi', 'delta', 'volume_ratio', 'unheard_of')[n % 4]}", "!"
            )
            client[2].rpush(f"volume_averages:NFO:S{n % 40}", n)

    report = _migration(server, tmp_path, at=race).backfill()
    assert report.exit_code == 0, report.errors
    later = _migration(server, tmp_path).backfill()  # what moved after it was copied
    assert later.exit_code == 0
    assert differences(client) == []


def test_a_key_that_never_holds_still_is_counted_and_the_rest_is_copied(server: EmbeddedServer, tmp_path: Path) -> None:
    client = clients(server.port)
    fill(client)

    def race(passed: str) -> None:
        if passed == "intended":
            client[5].incr("indicators:BUSY:ema")

    client[5].set("indicators:BUSY:ema", 1)
    report = _migration(server, tmp_path, at=race).backfill()
    assert report.totals["changed_while_copying"] == 1
    assert report.exit_code == 1
    assert [error.key for error in report.errors] == [b"indicators:BUSY:ema"]
    client[5].delete("indicators:BUSY:ema")
    assert differences(client) == []
    history = _migration(server, tmp_path).why("indicators:BUSY:ema")
    assert history[-1].outcome == "changed_while_copying" and "10 times" in str(history[-1].error)


def test_a_key_that_changes_its_type_while_it_is_copied_arrives_as_what_it_became(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    client = clients(server.port)
    fill(client, 50)
    changed = []

    def change(passed: str) -> None:
        if passed == "intended" and not changed:
            changed.append(1)
            client[2].delete("volume_state:1")
            client[2].rpush("volume_state:1", "now", "a", "list")

    assert _migration(server, tmp_path, at=change).backfill().exit_code == 0
    assert client[1].lrange("vol:state:1", 0, -1) == [b"now", b"a", b"list"]


def test_a_key_that_goes_while_it_is_copied_counts_as_expired(server: EmbeddedServer, tmp_path: Path) -> None:
    client = clients(server.port)
    fill(client, 50)
    gone = []

    def remove(passed: str) -> None:
        if passed == "read" and not gone:
            gone.append(1)
            client[2].delete("volume_state:1")

    report = _migration(server, tmp_path, at=remove).backfill()
    assert report.exit_code == 0
    assert report.totals["expired"] == 1
    assert not client[1].exists("vol:state:1")


def test_a_target_written_between_intent_and_act_is_kept(server: EmbeddedServer, tmp_path: Path) -> None:
    client = clients(server.port)
    fill(client, 50)
    written = []

    def write(passed: str) -> None:
        if passed == "intended" and not written:
            written.append(1)
            client[1].set("vol:state:1", "by a new writer")

    report = _migration(server, tmp_path, at=write).backfill()
    assert report.totals["newer_target_kept"] == 1
    assert client[1].get("vol:state:1") == b"by a new writer"


# Connections that break


class _Cutter:
    """A proxy that cuts every connection for good after so many bytes from the server, a number of times."""

    def __init__(self, port: int, after_bytes: int, times: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}"
        self._port, self._left, self._after, self._times = port, after_bytes, after_bytes, times
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                inner, _ = self.listener.accept()
                outer = socket.create_connection(("127.0.0.1", self._port))
                self._open += [inner, outer]
                threading.Thread(target=self._pump, args=(inner, outer, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(outer, inner, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                if counted and self._times:
                    self._left -= len(data)
                    if self._left <= 0:
                        self._times -= 1
                        self._left = self._after
                        sink.sendall(data[: len(data) // 2])
                        for sock in self._open:
                            with contextlib.suppress(OSError):
                                sock.shutdown(socket.SHUT_RDWR)
                        return
                sink.sendall(data)

    def close(self) -> None:
        self.listener.close()


@pytest.mark.parametrize("after_bytes", [9_000, 20_000, 45_000, 70_000])
def test_a_connection_cut_in_a_pipeline_ends_in_a_clean_error_or_is_survived(
    server: EmbeddedServer, tmp_path: Path, after_bytes: int
) -> None:
    client = clients(server.port)
    fill(client)
    cutter = _Cutter(server.port, after_bytes, times=1)
    try:
        report = Migration(cutter.url, ledger_path=tmp_path / "ledger.db", checks=False).backfill()
        assert report.exit_code == 0, report.errors
    except EndpointError as error:  # the connection that lists was the one: run again
        assert "again" in one_line(error)
    finally:
        cutter.close()
    # The same server by another address, as after a move.
    assert _migration(server, tmp_path).backfill().exit_code == 0
    assert differences(client) == []


def test_a_server_that_dies_leaves_a_ledger_to_resume_from(tmp_path: Path) -> None:
    with EmbeddedServer(options={"appendonly": "yes", "appendfsync": "always"}) as server:
        client = clients(server.port)
        fill(client)
        passed = itertools.count()

        def die(point: str) -> None:
            if point == "intended" and next(passed) == 3:
                server.kill()

        with pytest.raises(EndpointError) as caught:
            _migration(server, tmp_path, at=die).backfill()
        one_line(caught.value)
        server.start()
        while redis.Redis(port=server.port).info("persistence")["loading"]:
            time.sleep(0.05)
        assert _migration(server, tmp_path).backfill().exit_code == 0
        assert differences(clients(server.port)) == []


# Servers that are not fit


def _refusal(server: EmbeddedServer, directory: Path) -> str:
    with pytest.raises(PreflightRefused) as caught:
        _migration(server, directory).backfill()
    assert "db1" not in redis.Redis(port=server.port).info("keyspace")
    assert not (directory / "ledger.db").exists()
    return one_line(caught.value)


def test_an_allkeys_policy_is_refused(fresh_server: EmbeddedServer, tmp_path: Path) -> None:
    fill(clients(fresh_server.port), 10)
    redis.Redis(port=fresh_server.port).config_set("maxmemory-policy", "allkeys-lru")
    assert "allkeys-lru" in _refusal(fresh_server, tmp_path)


def test_too_little_head_room_is_refused(fresh_server: EmbeddedServer, tmp_path: Path) -> None:
    client = redis.Redis(port=fresh_server.port, db=5)
    for i in range(400):
        client.set(f"indicators:S{i}:rsi", "x" * 20_000)
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 6_000_000)
    assert "head-room" in _refusal(fresh_server, tmp_path)


def test_a_replica_is_refused(fresh_server: EmbeddedServer, tmp_path: Path) -> None:
    master = redis.Redis(port=fresh_server.port)
    with EmbeddedServer(fresh_server.binary) as replica:
        client = redis.Redis(port=replica.port)
        client.replicaof("127.0.0.1", fresh_server.port)
        deadline = time.monotonic() + 60
        while client.info("replication")["master_link_status"] != "up" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "replica" in _refusal(replica, tmp_path)
    master.close()


def test_a_missing_database_is_refused_by_number(tmp_path: Path) -> None:
    with EmbeddedServer(options={"databases": "3"}) as server:
        assert "database 5 does not exist" in _refusal(server, tmp_path)


def test_all_reasons_are_told_at_once(tmp_path: Path) -> None:
    with EmbeddedServer(options={"databases": "3", "maxmemory-policy": "allkeys-random"}) as server:
        said = _refusal(server, tmp_path)
        assert "database 5" in said and "allkeys-random" in said


def test_a_missing_right_is_refused_by_the_command_s_name(fresh_server: EmbeddedServer, tmp_path: Path) -> None:
    client = redis.Redis(port=fresh_server.port)
    fill(clients(fresh_server.port), 5)
    client.execute_command("ACL", "SETUSER", "weak", "on", ">pw", "~*", "+@all", "-copy", "-dump", "&*")
    url = fresh_server.url.replace("redis://", "redis://weak:pw@")
    with pytest.raises(PreflightRefused) as caught:
        Migration(url, ledger_path=tmp_path / "ledger.db").backfill()
    said = one_line(caught.value)
    assert "COPY" in said and "DUMP" in said
    assert redis.Redis(port=fresh_server.port, db=1).dbsize() == 0


def test_a_cluster_node_is_refused_with_a_hint_to_database_0(tmp_path: Path) -> None:
    with EmbeddedServer(options={"cluster-enabled": "yes"}) as server:
        assert "target_db = 0" in _refusal(server, tmp_path)


def test_a_wrong_password_is_one_line(fresh_server: EmbeddedServer, tmp_path: Path) -> None:
    redis.Redis(port=fresh_server.port).config_set("requirepass", "right")
    for url in (fresh_server.url, fresh_server.url.replace("redis://", "redis://:wrong@")):
        with pytest.raises(EndpointError) as caught:
            Migration(url, ledger_path=tmp_path / "ledger.db").backfill()
        assert "password" in one_line(caught.value)
        assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
    good = fresh_server.url.replace("redis://", "redis://:right@")
    assert Migration(good, ledger_path=tmp_path / "ledger.db").backfill().exit_code == 0


def test_an_unreachable_server_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EndpointError) as caught:
        Migration(f"redis://127.0.0.1:{free_port()}", ledger_path=tmp_path / "ledger.db").backfill()
    assert "cannot be reached" in one_line(caught.value)


def test_a_server_that_says_nothing_times_out_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EndpointError) as caught:
            Migration(url, ledger_path=tmp_path / "ledger.db", timeout_s=0.2).backfill()
        assert "no answer" in one_line(caught.value)


def test_something_that_is_not_redis_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            peer, _ = other.accept()
            peer.recv(1000)
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            peer.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(EndpointError) as caught:
            Migration(f"redis://127.0.0.1:{other.getsockname()[1]}", ledger_path=tmp_path / "l.db").backfill()
        assert "Redis protocol" in one_line(caught.value)


# A target that is full


def test_a_full_target_fails_key_by_key_and_resumes_when_there_is_room(
    fresh_server: EmbeddedServer, tmp_path: Path
) -> None:
    client = clients(fresh_server.port)
    fill(client, 200)
    for i in range(50):
        client[5].set(f"indicators:BIG{i}:rsi", bytes([i]) * 100_000)
    client[0].config_set("maxmemory-policy", "noeviction")
    client[0].config_set("maxmemory", client[0].info("memory")["used_memory"] + 1_500_000)
    report = _migration(fresh_server, tmp_path, checks=False).backfill()
    assert report.exit_code == 1
    assert report.totals["failed"] > 0
    told = {error.error for error in report.errors}
    assert all("OOM" in why or "EXECABORT" in why for why in told), told
    client[0].config_set("maxmemory", 0)
    assert _migration(fresh_server, tmp_path).backfill().exit_code == 0
    assert differences(client) == []


# Ledgers


@pytest.fixture
def done(server: EmbeddedServer, tmp_path: Path) -> Iterator[Callable[..., Migration]]:
    fill(clients(server.port), 20)
    _migration(server, tmp_path).backfill()
    yield lambda **options: _migration(server, tmp_path, **options)


def test_a_damaged_ledger_is_one_line(done: Callable[..., Migration], tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database, " * 1000)
    for call in (lambda: done().backfill(), lambda: done().status(), lambda: done().why("x")):
        with pytest.raises(LedgerUnusable) as caught:
            call()
        assert "ledger.db" in one_line(caught.value)


def test_a_ledger_with_a_torn_page_is_one_line(done: Callable[..., Migration], tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with contextlib.closing(apsw.Connection(str(path))) as db:
        db.pragma("wal_checkpoint(truncate)")
    data = bytearray(path.read_bytes())
    data[100:] = b"\xff" * (len(data) - 100)
    path.write_bytes(data)
    with pytest.raises(LedgerUnusable) as caught:
        done().backfill()
    one_line(caught.value)


def test_another_database_is_no_ledger(done: Callable[..., Migration], tmp_path: Path) -> None:
    with contextlib.closing(apsw.Connection(str(tmp_path / "other.db"))) as db:
        db.execute("CREATE TABLE t(x)")
    with pytest.raises(LedgerUnusable, match="not a ledger") as caught:
        Ledger.open(tmp_path / "other.db")
    one_line(caught.value)


def test_a_ledger_from_a_newer_version_is_refused(done: Callable[..., Migration], tmp_path: Path) -> None:
    with contextlib.closing(apsw.Connection(str(tmp_path / "ledger.db"))) as db:
        db.pragma("user_version", 99)
    with pytest.raises(LedgerUnusable, match="newer") as caught:
        done().backfill()
    one_line(caught.value)


def test_a_second_migrator_is_told_that_one_is_at_work(done: Callable[..., Migration], tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db"), pytest.raises(LedgerBusy) as caught:
        done().backfill()
    one_line(caught.value)
    assert done().backfill().exit_code == 0


def test_the_ledger_of_another_plan_is_refused(done: Callable[..., Migration]) -> None:
    with pytest.raises(LedgerUnusable, match="another plan") as caught:
        done(plan=Plan.load().with_source("ticks", 1)).backfill()
    one_line(caught.value)


def test_the_ledger_of_another_server_is_refused(
    done: Callable[..., Migration], fresh_server: EmbeddedServer, tmp_path: Path
) -> None:
    with pytest.raises(LedgerUnusable, match="another server") as caught:
        _migration(fresh_server, tmp_path).backfill()
    one_line(caught.value)


@pytest.mark.parametrize("path", ["missing/dir/ledger.db", "."])
def test_a_ledger_that_cannot_be_made_is_one_line(server: EmbeddedServer, tmp_path: Path, path: str) -> None:
    with pytest.raises(LedgerUnusable) as caught:
        Migration(server.url, ledger_path=tmp_path / path).backfill()
    one_line(caught.value)
    assert redis.Redis(port=server.port, db=1).dbsize() == 0


def test_a_full_disk_under_the_ledger_stops_before_the_act(server: EmbeddedServer, tmp_path: Path) -> None:
    client = clients(server.port)
    fill(client)
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.bind(Plan.load(), address="here", run_id="x")
        ledger.begin_run("backfill")
        ledger._db.pragma("max_page_count", ledger._db.pragma("page_count") + 8)
        copied: list[int | None] = []
        copier = Copier(
            lambda: Endpoint.connect(server.url), ledger, 1, lambda batch, outcomes, errors: copied.extend(outcomes)
        )
        keys = sorted(client[5].keys())
        with pytest.raises(LedgerUnusable, match="disk is full") as caught:
            for at in range(0, len(keys), 50):
                some = keys[at : at + 50]
                copier.put(Batch(5, some, [b"new:" + key for key in some], [3] * len(some)))
            copier.flush()
        copier.close()
        one_line(caught.value)
    # Whatever is in the target, the ledger had it as intended before.
    with Ledger.open(tmp_path / "ledger.db", mode="r") as ledger:
        intended = {entry.target for entry in ledger.entries()}
    assert set(client[1].keys()) <= intended
    assert content(client[1], b"new:" + keys[0]) == content(client[5], keys[0])
