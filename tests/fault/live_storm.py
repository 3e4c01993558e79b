"""Live writers that count, and operators in processes of their own: what tests of faults share.

A writer writes every type of key, and each write carries a counter, so that afterwards a lost one and a doubled one
both show. It does what a careful user does: where it does not know whether a write was done, it looks.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    ConnectionError,
    ExecAbortError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
)  # fmt: skip
from redis.retry import Retry
from tests.unit.migrate.live_system import LIMITS, PLAN, LiveSystem

from onetape.errors import OnetapeError
from onetape.migrate.backfill.fault_point import fault_point
from onetape.migrate.dual import DualRedis
from onetape.migrate.migration import Migration
from onetape.migrate.phases import state as states

#: The operators of these tests lose their lease after this time, ms.
LEASE_MS = 1200
_CAREFUL_S = 40.0
_DONE_LATER = (OutOfMemoryError, ReadOnlyError, ExecAbortError)
_SHARED = "indicators:SHARED"


def dual(port: int, **options: Any) -> DualRedis:
    """Return a client that writes both sides and tries nothing again by itself."""
    settings = {"db": 5, "plan": PLAN, "retry": Retry(NoBackoff(), 0), "socket_timeout": 5.0, **options}
    return DualRedis(port=port, **settings)


class Writer:
    """Writes until told to stop. `did` has how often each kind of write was done; `doubts`: unknown outcomes."""

    def __init__(self, name: str, client: redis.Redis, pause_s: float = 0.001) -> None:
        self.name, self.client, self.pause_s = name, client, pause_s
        self.did = dict.fromkeys((kind.__name__ for kind in self._kinds()), 0)
        self.doubts = self.refused = 0
        self.longest_s = 0.0
        self.error: BaseException | None = None
        self.stop = threading.Event()
        self._n = 0

    def run(self) -> None:
        """Write until `stop` is set; what ends it otherwise is in `error`."""
        try:
            while not self.stop.is_set():
                for kind in self._kinds():
                    began_s = time.monotonic()
                    self._n = self.did[kind.__name__] + 1
                    act, done = kind(self._n)
                    if not self._carefully(act, done):
                        return
                    self.did[kind.__name__] += 1
                    self.longest_s = max(self.longest_s, time.monotonic() - began_s)
                    time.sleep(self.pause_s)
        except BaseException as error:  # noqa: BLE001  (the test looks at it)
            self.error = error

    @property
    def total(self) -> int:
        return sum(self.did.values())

    def _carefully(self, act: Callable[[], object], done: Callable[[], bool]) -> bool:
        """Carry out a write exactly once; False where the test is over and it was not tried, or surely not done."""
        doubtful = False
        until_s = time.monotonic() + _CAREFUL_S
        while True:
            try:
                if doubtful and done():
                    return True
                doubtful = False
                if self.stop.is_set():
                    return False
                act()
                return True
            except (ConnectionError, TimeoutError) as error:
                if not doubtful:
                    self.doubts += 1
                doubtful = True
                if time.monotonic() > until_s:
                    raise AssertionError(f"{self.name}: no answer for {_CAREFUL_S:g} s") from error
            except ResponseError as error:  # the server said no: nothing was done
                if not isinstance(error, _DONE_LATER):
                    raise
                self.refused += 1
                if time.monotonic() > until_s:
                    raise AssertionError(f"{self.name}: refused for {_CAREFUL_S:g} s") from error
            time.sleep(0.01)

    # Kinds of writes: how it is done, and how to see that it was

    def _kinds(self) -> Sequence[Callable[[int], tuple[Callable[[], object], Callable[[], bool]]]]:
        return (
            self.hash_, self.list_, self.stream, self.string, self.sorted_, self.shared_hash, self.shared_list,
            self.both, self.gone, self.fleeting,
        )  # fmt: skip

    def _key(self, kind: str) -> str:
        return f"indicators:{self.name}:{kind}"

    def hash_(self, n: int) -> Any:
        key = self._key("hash")
        return lambda: self.client.hincrby(key, "n", 1), lambda: self.client.hget(key, "n") == b"%d" % n

    def list_(self, n: int) -> Any:
        key = self._key("list")
        return lambda: self.client.rpush(key, n), lambda: self.client.lindex(key, -1) == b"%d" % n

    def stream(self, n: int) -> Any:
        key = self._key("stream")

        def done() -> bool:
            last: Any = self.client.xrevrange(key, count=1)
            return bool(last) and last[0][1][b"n"] == b"%d" % n

        return lambda: self.client.xadd(key, {"n": n}), done

    def string(self, n: int) -> Any:
        return lambda: self.client.set(self._key("string"), n, px=36_000_000), lambda: False  # done twice is done once

    def sorted_(self, n: int) -> Any:
        return lambda: self.client.zadd(self._key("zset"), {f"m{n}": n}), lambda: False

    def shared_hash(self, n: int) -> Any:
        key = f"{_SHARED}:hash"
        return lambda: self.client.hincrby(key, self.name, 1), lambda: self.client.hget(key, self.name) == b"%d" % n

    def shared_list(self, n: int) -> Any:
        key, value = f"{_SHARED}:list", f"{self.name}:{n}"
        return lambda: self.client.rpush(key, value), lambda: value.encode() in self.client.lrange(key, -200, -1)

    def both(self, n: int) -> Any:
        def act() -> None:
            pipe = self.client.pipeline(transaction=True)
            pipe.incr(self._key("one")).incrby(self._key("two"), 2).execute()

        return act, lambda: self.client.get(self._key("one")) == b"%d" % n

    def gone(self, n: int) -> Any:
        key = self._key(f"gone{n % 5}")
        if n % 10 < 5:
            return lambda: self.client.set(key, n), lambda: False
        return lambda: self.client.delete(key), lambda: False

    def fleeting(self, n: int) -> Any:
        return lambda: self.client.set(self._key(f"fleeting{n % 7}"), n, px=1 + n % 23), lambda: False


class Storm:
    """Writers in threads. `client(i)` makes the i-th one's client."""

    def __init__(self, client: Callable[[int], redis.Redis], writers: int = 2, pause_s: float = 0.001) -> None:
        self.writers = [Writer(f"W{i}", client(i), pause_s) for i in range(writers)]
        self._threads = [threading.Thread(target=writer.run, name=writer.name) for writer in self.writers]

    def __enter__(self) -> Storm:
        for thread in self._threads:
            thread.start()
        self.more(3)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.end()

    def more(self, rounds: int = 5, seconds: float = 60.0) -> None:
        """Wait until each writer wrote that many rounds more."""
        for writer, before in [(writer, writer.did["hash_"]) for writer in self.writers]:
            until_s = time.monotonic() + seconds
            while writer.did["hash_"] < before + rounds:
                self.check()
                assert time.monotonic() < until_s, f"{writer.name} stands still: {writer.did}"
                time.sleep(0.005)

    def check(self) -> None:
        """Fail if a writer ended by an error."""
        for writer in self.writers:
            if writer.error is not None:
                raise AssertionError(f"{writer.name} ended: {writer.error!r}") from writer.error

    def end(self) -> None:
        """Stop the writers, after their present write."""
        for writer in self.writers:
            writer.stop.set()
        for thread in self._threads:
            thread.join(_CAREFUL_S + 5)
            assert not thread.is_alive()

    def close(self) -> None:
        """Close the clients."""
        for writer in self.writers:
            writer.client.close()

    def expect(self, side: redis.Redis, names: Callable[[str], str] = lambda name: name) -> None:
        """Fail unless that side holds exactly what was written: nothing lost, nothing doubled."""
        self.check()
        shared = side.hgetall(names(f"{_SHARED}:hash"))
        values = side.lrange(names(f"{_SHARED}:list"), 0, -1)
        for writer in self.writers:
            did, n = writer.did, writer.did["hash_"]
            found = {
                "hash_": int(side.hget(names(writer._key("hash")), "n") or 0),
                "shared_hash": int(shared.get(writer.name.encode(), 0)),
                "both": int(side.get(names(writer._key("one"))) or 0),
                "string": int(side.get(names(writer._key("string"))) or 0),
                "sorted_": side.zcard(names(writer._key("zset"))),
            }
            assert found == {name: did[name] for name in found}, writer.name
            assert int(side.get(names(writer._key("two"))) or 0) == 2 * did["both"]
            for found_list, told in (
                (side.lrange(names(writer._key("list")), 0, -1), did["list_"]),
                ([e[1][b"n"] for e in side.xrange(names(writer._key("stream")))], did["stream"]),
            ):
                assert found_list == [b"%d" % i for i in range(1, told + 1)], writer.name
            mine = writer.name.encode() + b":"
            assert [v for v in values if v.startswith(mine)] == [
                mine + b"%d" % i for i in range(1, did["shared_list"] + 1)
            ]
            gone = did["gone"]
            for at in range(5):
                last = next((i for i in range(gone, 0, -1) if i % 5 == at), None)
                held = side.get(names(writer._key(f"gone{at}")))
                assert held == (b"%d" % last if last and last % 10 < 5 else None), (writer.name, at, held)
            assert n


def new_name(name: str) -> str:
    """Return the new name of a key of these writers."""
    return "ind" + name.removeprefix("indicators")


@contextmanager
def storming(live: LiveSystem, writers: int = 2, **options: Any) -> Iterator[Storm]:
    """Writers at work in the body, which ends after a few more rounds; then they stop."""
    storm = Storm(lambda i: dual(live.server.port, name=f"W{i}", **options), writers)
    try:
        with storm:
            yield storm
            storm.more()
        storm.check()
    finally:
        storm.close()


def settle(live: LiveSystem, storm: Storm) -> None:
    """After the writers stopped: fail unless both sides hold exactly what was written, and are equal."""
    time.sleep(0.03)  # the last fleeting ones
    storm.expect(live.old)
    storm.expect(live.new, new_name)
    assert unequal(live) == []


def unequal(live: LiveSystem) -> list[str]:
    """Return the names whose two sides are not the same."""
    found = []
    for old_db, mine, theirs in ((5, b"indicators:", b"ind:"), (2, b"session:", b"sess:")):
        old, new = live.dump(old_db), live.dump(1)
        names = {key.removeprefix(mine) for key in old if key.startswith(mine)}
        names |= {key.removeprefix(theirs) for key in new if key.startswith(theirs)}
        for name in sorted(names):
            one, other = old.get(mine + name), new.get(theirs + name)
            if one != other and not _same_value(live, old_db, mine + name, theirs + name):
                found.append(repr(name))
    return found


def _same_value(live: LiveSystem, old_db: int, old: bytes, new: bytes) -> bool:
    """Equal by content: the bytes of a DUMP tell of the history of a value too."""
    from onetape.migrate.keys.content import read_content
    from onetape.migrate.wire.endpoint import Endpoint

    with Endpoint.connect(live.server.url, writable=False) as endpoint:
        endpoint.select(old_db)
        one = read_content(endpoint, old)
        endpoint.select(1)
        other = read_content(endpoint, new)
    return one is not None and other is not None and one.equals(other, 0)


# A writer in a process of its own


def main(host: str, port: int, name: str) -> None:
    """Write until standard input ends; tell each round on standard output, as JSON."""
    writer = Writer(name, dual(port, host=host, name=name, socket_timeout=0.5, socket_connect_timeout=0.5))
    thread = threading.Thread(target=writer.run, daemon=True)
    thread.start()
    threading.Thread(target=lambda: (sys.stdin.read(), writer.stop.set()), daemon=True).start()
    while thread.is_alive():
        thread.join(0.05)
        print(json.dumps({"did": writer.did, "doubts": writer.doubts}), flush=True)
    writer.client.close()
    if writer.error is not None:
        raise writer.error


# Operators in processes of their own


def _command(migration: Migration, command: str) -> object:
    if command == "backfill":
        return migration.backfill()
    if command == "verify":
        return migration.verify(pause_s=0)
    if command == "cutover":
        return migration.cutover(limits=LIMITS, execute=True)
    if command == "finish":
        return migration.finish(quiet_for_s=0.0, execute=True)
    if command.startswith("rollback"):
        return migration.rollback(to=command.partition(" ")[2] or None, execute=True)
    return getattr(migration, command.replace("-", "_"))(execute=True)


def _operate(url: str, ledger: str, command: str, point: str, how: str, pipe: Any) -> None:
    """Run one command in this process; at `point` ("name:n") be killed or stopped."""
    states.LEASE_MS = LEASE_MS
    os.environ["ONETAPE_KILL_AT"] = point if how == "kill" else ""
    at: Callable[[str], None] = fault_point()
    if how == "stop":
        wanted, _, number = point.partition(":")
        left = [int(number or 1)]

        def at(passed: str) -> None:
            if passed == wanted:
                left[0] -= 1
                if left[0] == 0:
                    pipe.send("stopping")
                    os.kill(os.getpid(), signal.SIGSTOP)

    try:
        result = _command(Migration(url, plan=PLAN, ledger_path=Path(ledger), at=at, timeout_s=4.0), command)
        pipe.send(("done", getattr(result, "exit_code", None), str(getattr(result, "lines", ""))))
    except OnetapeError as error:
        pipe.send((type(error).__name__, 1, str(error)))
    pipe.close()


_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.fault.live_storm"])


class Operator:
    """One command in a process of its own, which may be killed or stopped at a point."""

    def __init__(
        self, live: LiveSystem, command: str, point: str = "", how: str = "kill", *, url: str = "", ledger: str = ""
    ) -> None:
        self._pipe, theirs = _PROCESSES.Pipe()
        arguments = (url or live.server.url, ledger or str(live.ledger_path), command, point, how, theirs)
        self.process = _PROCESSES.Process(target=_operate, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.result: tuple[str, int, str] | None = None

    def stopped(self, seconds: float = 120.0) -> bool:
        """Wait until it stops at its point; False where it came to its end without passing it."""
        assert self._pipe.poll(seconds), "neither stopped nor done"
        told = self._pipe.recv()
        if told != "stopping":
            self.result = told
            return False
        until_s = time.monotonic() + 60
        while self._status() != "T":
            assert time.monotonic() < until_s
            time.sleep(0.005)
        return True

    def _status(self) -> str:
        text = Path(f"/proc/{self.process.pid}/stat").read_text()
        return text.rpartition(")")[2].split()[0]

    def go_on(self) -> None:
        """Let it go on after a stop."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def join(self, seconds: float = 120.0) -> tuple[str, int, str]:
        """Wait for its end; return ("done" or the error's name, exit code, lines), ("killed", -9, "") after a kill."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "it does not end"
        if self.process.exitcode < 0:
            return "killed", self.process.exitcode, ""
        with suppress(EOFError):
            while self.result is None and self._pipe.poll(1):
                told = self._pipe.recv()
                if told != "stopping":
                    self.result = told
        assert self.result is not None, f"it ended with {self.process.exitcode} and no word"
        return self.result

    def end(self) -> None:
        """End it, whatever it does."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


@contextmanager
def operating(live: LiveSystem, command: str, point: str = "", how: str = "kill", **options: str) -> Iterator[Operator]:
    """One operator that is gone at the end of the body."""
    operator = Operator(live, command, point, how, **options)
    try:
        yield operator
    finally:
        operator.end()


class Interceptor:
    """A proxy that waits for the n-th EXEC of its clients, and then does one thing to that connection.

    `how`: "lost": the server gets all of it and nobody its reply. "torn": the server gets all but the last bytes of the
    EXEC. "kill": as "lost", and `victim()` is called before anything comes back.
    """

    def __init__(self, port: int, nth: int, how: str, victim: Callable[[], object] = lambda: None) -> None:
        self._to, self._left, self._how, self._victim = port, nth, how, victim
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.struck = False
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            muted = threading.Event()
            for one, other, asks in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass, args=(one, other, asks, muted), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, asks: bool, muted: threading.Event) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 18):
                if asks and (end := self._hit(data)) is not None:
                    if self._how == "torn":
                        other.sendall(data[: end - 6])
                        break
                    muted.set()
                    other.sendall(data[:end])
                    time.sleep(0.05)  # the server has done it
                    if self._how == "kill":
                        self._victim()
                    break
                if not asks and muted.is_set():
                    return  # the other thread closes both, in its own time
                other.sendall(data)
        for sock in (one, other):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _hit(self, data: bytes) -> int | None:
        with self._lock:
            at = -1
            while not self.struck and (at := data.find(b"$4\r\nEXEC\r\n", at + 1)) >= 0:
                self._left -= 1
                if self._left == 0:
                    self.struck = True
                    return at + 10
        return None

    def __enter__(self) -> Interceptor:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listener.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
