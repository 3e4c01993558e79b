"""A mirror that stands still at any point while the phase changes under it writes nothing of a phase that is over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from tests import mirroring
from tests.mirroring import PLAN

from onetape.embedded import EmbeddedServer
from onetape.migrate.mirror import Mirror, Options
from onetape.migrate.phases.phase import Phase


@pytest.mark.parametrize("point", ["read", "intended", "acted", "recorded"])
@pytest.mark.parametrize("to", [Phase.CUT_OVER, Phase.PLANNED, Phase.FINISHED])
@pytest.mark.parametrize("server_of_session", ["valkey"], indirect=True)
def test_a_mirror_that_stood_still_while_the_phase_changed_overwrites_nothing(
    server: EmbeddedServer, tmp_path: Path, point: str, to: Phase
) -> None:
    old, new = redis.Redis(port=server.port, db=5), redis.Redis(port=server.port, db=1)
    old.mset({f"old:{i}": "before" for i in range(50)})
    mirroring.begin(server.url)
    acts: list[Callable[[], object]] = []
    stop = threading.Event()

    def meanwhile() -> None:
        mirroring.begin(server.url, phase=to)
        new.mset({f"new:{i}": "newer" for i in range(50)})

    def at(passed: str) -> None:
        if passed == point and acts:
            acts.pop()()

    statuses: list[object] = []
    mirror = Mirror(
        server.url, PLAN, tmp_path / "memory", ledger_path=tmp_path / "ledger",
        options=Options(sweep_every_s=0.2), on_status=statuses.append, at=at,
    )  # fmt: skip
    running = mirroring.Running(mirror, statuses)  # type: ignore[arg-type]
    try:
        running.until(lambda: statuses and running.now.sweeps > 0)
        acts.append(meanwhile)
        old.mset({f"old:{i}": "written in the phase before" for i in range(50)})
        running.until(lambda: not acts)
        if to is Phase.CUT_OVER:
            running.until(lambda: running.now.back)
            running.swept()
        else:
            for _ in range(50):
                if running.error is not None:
                    break
                stop.wait(0.02)
    finally:
        stop.set()
        running.end()
    assert {new.get(f"new:{i}") for i in range(50)} == {b"newer"}
    if to is not Phase.CUT_OVER:
        assert {old.get(f"old:{i}") for i in range(50)} == {b"written in the phase before"}
