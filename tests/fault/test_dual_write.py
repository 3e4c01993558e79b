"""Dual write under faults: phases that change in a storm of writers, kills, stops, cuts, a full server, restarts."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, OutOfMemoryError, RedisError
from redis.retry import Retry
from tests.conftest import ROOT
from tests.unit.migrate.dual.rig import rigged
from tests.waiting import waited_for

from onetape.embedded import EmbeddedServer, server_binaries
from onetape.migrate.dual import DualRedis
from onetape.migrate.phases.phase import Phase

# Counts in several ways and tells what was acknowledged, a line a write.
WRITER = """
import sys
from redis.backoff import NoBackoff
from redis.retry import Retry
from onetape.migrate.dual import DualRedis
from tests.unit.migrate.dual.rig import PLAN
port, name, writes = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
dual = DualRedis(port=port, db=5, plan=PLAN, retry=Retry(NoBackoff(), 0), name=name)
for at in range(writes):
    dual.incr(f"a:count:{name}")
    dual.hset("a:shared", f"{name}:{at % 20}", at)
    dual.xadd(f"a:log:{name}", {"at": at}, maxlen=50)
    pipe = dual.pipeline()
    pipe.rpush("a:all", f"{name}:{at}").sadd(f"a:set:{name}", at).expire(f"a:set:{name}", 1000)
    pipe.execute()
    if at % 3 == 0:
        dual.spop(f"a:set:{name}")
    print(at, flush=True)
    if dual.exists("stop"):
        break
dual.close()
"""


@pytest.fixture(params=["valkey", "redis"])
def alone(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    binaries = server_binaries()
    if request.param not in binaries:
        pytest.skip(f"no {request.param} server on this machine")
    with EmbeddedServer(binaries[request.param], {"appendonly": "yes", "appendfsync": "no"}) as server:
        yield server


def _writer(server: EmbeddedServer, name: str, writes: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(server.port), name, str(writes)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def _ended(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_nothing_is_lost_and_no_side_is_written_out_of_its_phase_while_phases_change(alone: EmbeddedServer) -> None:
    with rigged(alone, Phase.PLANNED) as rig:
        writers = [_writer(alone, f"w{i}", 100_000) for i in range(3)]
        try:
            assert all(writer.stdout is not None and writer.stdout.readline() for writer in writers)
            for phase in (
                Phase.DUAL_WRITING, Phase.BACKFILLED, Phase.VERIFIED, Phase.READS_SWITCHED, Phase.CUT_OVER,
                Phase.READS_SWITCHED, Phase.CUT_OVER, Phase.DUAL_WRITING, Phase.PLANNED, Phase.DUAL_WRITING,
            ):  # fmt: skip
                rig.go(phase)
                if phase is Phase.PLANNED:  # from this instant on nobody touches the new side
                    before = [rig.content(1, key.decode()) for key in sorted(rig.new.keys("n:*"))]
                    time.sleep(0.1)
                    after = [rig.content(1, key.decode()) for key in sorted(rig.new.keys("n:*"))]
                    assert before == after != []
                time.sleep(0.1)
            counted = [int(rig.old.get(f"a:count:w{i}")) for i in range(3)]
            for i, count in enumerate(counted):  # each writes its keys once more, after the last change
                waited_for(lambda i=i, count=count: int(rig.old.get(f"a:count:w{i}")) > count + 20, "it is written")
            rig.old.set("stop", 1)
            counts = []
            for writer in writers:
                out, _ = writer.communicate(timeout=100)
                assert writer.returncode == 0
                counts.append(int(out.splitlines()[-1]) + 1)
        finally:
            _ended(writers)
        for i in range(3):
            assert rig.old.get(f"a:count:w{i}") == b"%d" % counts[i]
        every = rig.old.lrange("a:all", 0, -1)
        assert sorted(every) == sorted(f"w{i}:{at}".encode() for i in range(3) for at in range(counts[i]))
        assert rig.differing(1) == [] and rig.diverged() == {}


def test_a_writer_that_was_stopped_does_not_write_in_the_phase_it_knew(alone: EmbeddedServer) -> None:
    with rigged(alone, Phase.DUAL_WRITING) as rig:
        writer = _writer(alone, "w", 100_000)
        try:
            assert writer.stdout is not None and writer.stdout.readline()
            for _ in range(10):
                writer.send_signal(signal.SIGSTOP)
                time.sleep(0.05)  # what it had sent before is done by now
                rig.go(Phase.PLANNED)
                before = {key: rig.content(1, key.decode()) for key in rig.new.keys("n:*")}
                written = rig.old.get("a:count:w")
                writer.send_signal(signal.SIGCONT)
                waited_for(lambda written=written: rig.old.get("a:count:w") != written, "it goes on")
                assert {key: rig.content(1, key.decode()) for key in rig.new.keys("n:*")} == before
                rig.go(Phase.DUAL_WRITING)
                time.sleep(random.random() * 0.05)
        finally:
            _ended([writer])


def test_writers_killed_at_any_moment_leave_both_sides_equal(alone: EmbeddedServer) -> None:
    with rigged(alone, Phase.DUAL_WRITING) as rig:
        for at in range(5):
            rig.go(Phase.CUT_OVER if at % 2 else Phase.DUAL_WRITING)
            writers = [_writer(alone, f"w{at}{i}", 100_000) for i in range(2)]
            try:
                assert all(writer.stdout is not None and writer.stdout.readline() for writer in writers)
                time.sleep(random.random() * 0.2)
                for writer in writers:
                    os.kill(writer.pid, signal.SIGKILL)
            finally:
                _ended(writers)
            assert rig.differing(1) == [] and rig.diverged() == {}


def test_a_server_that_is_killed_and_comes_back_has_both_sides_or_none(alone: EmbeddedServer) -> None:
    with rigged(alone, Phase.DUAL_WRITING) as rig:
        dual = rig.dual(retry=Retry(NoBackoff(), 0))
        failed = 0
        for turn in range(3):
            killer = threading.Timer(0.15, alone.kill)
            killer.start()
            while killer.is_alive():
                try:
                    dual.incr("a:n")
                    dual.rpush("a:l", turn)
                except RedisError:
                    failed += 1
                    time.sleep(0.01)
            alone.start()
            rig.endpoint = type(rig.endpoint).connect(alone.url)
            assert rig.differing() == []
            dual.incr("a:n")
            assert rig.differing() == []
        assert failed


class Cutter:
    """A proxy that cuts connections after some bytes, in the middle of whatever is on the way."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.left = 1 << 60
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                part = data[: max(0, self.left)]
                self.left -= len(data)
                other.sendall(part)
                if self.left < 0:
                    break
        except OSError:
            pass
        for each in (one, other):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            each.close()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()


def test_a_connection_cut_at_any_byte_leaves_both_sides_equal_and_is_told(server: EmbeddedServer) -> None:
    with rigged(server, Phase.DUAL_WRITING) as rig:
        cutter = Cutter(server.port)
        dual = DualRedis(port=cutter.port, db=5, plan=rig.plan, retry=Retry(NoBackoff(), 0))
        cut = acknowledged = 0
        for at in range(120):
            if at % 2:
                cutter.left = random.randrange(1, 900)
            try:
                dual.rpush("a:l", at)
                acknowledged += 1
                pipe = dual.pipeline()
                pipe.incr("a:n").hset(f"a:h{at % 7}", "f", at).xadd("a:s", {"at": at})
                pipe.execute()
            except ConnectionError:
                cut += 1
            cutter.left = 1 << 60
        time.sleep(0.05)
        assert rig.differing(1) == [] and rig.diverged() == {}
        assert cut > 20 and dual.dual.status().lost > 20
        assert acknowledged <= rig.old.llen("a:l") <= 120
        dual.close()
        cutter.close()


def test_a_full_server_takes_a_write_on_both_sides_or_on_none(alone: EmbeddedServer) -> None:
    with rigged(alone, Phase.DUAL_WRITING) as rig:
        dual = rig.dual()
        used = int(rig.old.info("memory")["used_memory"])
        rig.old.config_set("maxmemory", used + 1_500_000)
        refused = 0
        for at in range(3000):
            try:
                if at % 3 == 0:
                    dual.hset(f"a:h{at}", "f", "x" * 500)
                elif at % 3 == 1:
                    dual.rpush("a:l", "y" * 500)
                else:
                    dual.xadd("a:s", {"f": "z" * 500})
            except OutOfMemoryError:
                refused += 1
                if refused > 50:
                    break
        assert refused > 50
        rig.old.config_set("maxmemory", 0)
        assert rig.differing(1) == [] and rig.diverged() == {}
        dual.delete("a:l")
        assert rig.differing(1) == []


def test_keys_that_expire_while_they_are_written_are_equal_on_both_sides(server: EmbeddedServer) -> None:
    with rigged(server, Phase.DUAL_WRITING) as rig:
        dual = rig.dual()
        until = time.monotonic() + 3
        at = 0
        while time.monotonic() < until:
            at += 1
            key = f"a:{at % 9}"
            dual.hincrby(key, "n", 1)
            dual.pexpire(key, 1 + at % 4)
            dual.set(f"a:s{at % 9}", at, px=1 + at % 5)
            dual.incr(f"a:s{at % 9}")
            dual.getex(f"a:s{at % 9}", px=2)
        time.sleep(0.1)
        assert rig.diverged() == {}
        assert rig.differing() == []


def test_two_clients_that_meet_a_key_for_the_first_time_agree(server: EmbeddedServer) -> None:
    with rigged(server, Phase.DUAL_WRITING) as rig:
        for at in range(300):
            rig.old.hset(f"a:{at}", mapping={"was": at, "n": 0})
        clients = [rig.dual() for _ in range(3)]

        def write(dual: redis.Redis) -> None:
            for at in range(300):
                dual.hincrby(f"a:{at}", "n", 1)

        threads = [threading.Thread(target=write, args=(dual,)) for dual in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(rig.new.hget(f"n:{at}", "n") == b"3" for at in range(300))
        assert rig.differing() == [] and rig.diverged() == {}


def test_a_fork_has_connections_of_its_own(server: EmbeddedServer) -> None:
    with rigged(server, Phase.DUAL_WRITING) as rig:
        code = """
import os, sys
from onetape.migrate.dual import DualRedis
from tests.unit.migrate.dual.rig import PLAN
dual = DualRedis(port=int(sys.argv[1]), db=5, plan=PLAN)
dual.incr("a:n")
child = os.fork()
for _ in range(200):
    dual.incr("a:n")
if child:
    assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""
        subprocess.run([sys.executable, "-c", code, str(server.port)], check=True, cwd=ROOT, timeout=60)
        assert rig.old.get("a:n") == rig.new.get("n:n") == b"401"
