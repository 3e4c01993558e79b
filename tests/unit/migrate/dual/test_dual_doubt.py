"""What a dual-writing client does where it can no longer be sure: of a write, of a pair, of the state."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.unit.migrate.dual.rig import rigged

from onetape.embedded import EmbeddedServer
from onetape.errors import StateMoved
from onetape.migrate.dual.lane import Lane
from onetape.migrate.endpoint import Endpoint
from onetape.migrate.phase import Phase


def _until(holds: Callable[[], bool]) -> bool:
    for _ in range(100):
        if holds():
            return True
        time.sleep(0.05)
    return False


def test_a_write_that_was_carried_out_is_not_sent_again_because_its_repair_was_cut(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rigged(server) as rig:
        dual = rig.dual(retry=Retry(NoBackoff(), 3))
        dual.incr("a:n")
        rig.new.set("n:n", 100)  # somebody else's
        heal = dual.dual.exchange.heal
        cut: list[bool] = []

        def cut_off(lane: Lane, routes: Any, why: str) -> Any:
            if not cut:
                cut.append(True)
                lane.connection._sock.shutdown(socket.SHUT_RDWR)
            return heal(lane, routes, why)

        monkeypatch.setattr(dual.dual.exchange, "heal", cut_off)
        assert dual.incr("a:n") == 2
        assert cut and rig.old.get("a:n") == b"2"
        # What could not be repaired then is repaired, and recorded, without another write.
        assert _until(lambda: rig.new.get("n:n") == b"2" and list(rig.diverged()) == [b"5:a:n"])


def test_pairs_are_not_taken_to_be_equal_after_the_server_came_back_with_what_it_had_saved() -> None:
    options = {"save": "3600 1000000", "appendonly": "no", "dbfilename": "saved.rdb"}
    with EmbeddedServer(options=options) as server, rigged(server) as rig:
        rig.old.hset("a:h", mapping={"x": 1, "y": 2})
        redis.Redis(port=server.port).save()
        dual = rig.dual()
        dual.hset("a:h", "f", 1)
        assert rig.differing() == []
        server.kill()
        server.start()
        rig.endpoint = Endpoint.connect(server.url)
        assert rig.old.hlen("a:h") == 2 and not rig.new.exists("n:h")  # before the first dual write
        dual.hset("a:h", "g", 1)
        assert rig.differing() == [] and rig.new.hlen("n:h") == 3


def test_what_relied_on_a_command_that_failed_in_the_same_pipeline_is_made_equal(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        for name in ("a:h", "a:i"):
            rig.old.hset(name, mapping={"x": 1, "y": 2})
        pipe = dual.pipeline()
        pipe.execute_command("SETEX", "a:h", 0, "v")
        pipe.hset("a:h", "f", 1)
        replies = pipe.execute(raise_on_error=False)
        assert isinstance(replies[0], redis.ResponseError) and replies[1] == 1
        pipe.execute_command("SET", "a:i", "v", "EX", "no number")
        pipe.delete("a:i")
        pipe.hset("a:i", "f", 1)
        assert pipe.execute(raise_on_error=False)[1:] == [1, 1]
        assert rig.differing() == []
        assert b"5:a:i" not in rig.diverged()  # it was deleted on both sides before it was written


def test_a_transaction_of_watched_keys_with_nothing_in_it_is_carried_out(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        pipe = rig.dual().pipeline()
        pipe.watch("a:k")
        pipe.multi()
        assert pipe.execute() == []


def test_a_key_that_gets_its_new_name_while_it_is_read_is_read(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rigged(server, Phase.READS_SWITCHED) as rig:
        rig.go(Phase.READS_SWITCHED, read_share=1.0)
        dual = rig.dual()
        rig.old.set("a:k", "v")
        dual.get("a:none")
        exchange, copied = Lane.exchange, []

        def slowly(lane: Lane, send: Any) -> list[Any]:
            """Send it command by command, and copy the key in the middle."""
            if b"EXISTS" not in send.packed or copied:
                return exchange(lane, send)
            commands = [b"*" + part for part in send.packed.split(b"*")[1:]]
            replies: list[Any] = []
            for at, command in enumerate(commands):
                replies += exchange(lane, send._replace(packed=command, before=1, decoded=0, after=0))
                if at == 0:
                    copied.append(rig.old.copy("a:k", "n:k", destination_db=1))
            return replies

        monkeypatch.setattr(Lane, "exchange", slowly)
        assert dual.get("a:k") == b"v"
        assert copied == [True]


def test_a_state_that_cannot_be_read_stops_writes_before_they_are_sent(server: EmbeddedServer) -> None:
    with rigged(server) as rig:
        dual = rig.dual()
        dual.incr("a:n")
        rig.new.set(rig.names.state, "not a state")
        for _ in range(3):
            with pytest.raises(StateMoved, match="cannot be read"):
                dual.incr("a:n")
        assert (rig.old.get("a:n"), rig.new.get("n:n")) == (b"1", b"1")
