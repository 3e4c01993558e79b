"""A mirror at work beside a test: started, watched, stopped; and what a test asks of both sides."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onetape.migrate.mirror import Mirror, MirrorStatus, Options
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import change, load
from onetape.migrate.plans.plan import Plan
from onetape.migrate.verifying.verify import verify
from onetape.migrate.wire.endpoint import Endpoint

PLAN = Plan.parse(
    """
name = "mirrored"
target_db = 1
[[rule]]
step = "values"
source_db = 5
pattern = "old:{name}"
target = "new:{name}"
[[rule]]
step = "values"
source_db = 2
pattern = "state:{name}"
target = "st:{name}"
[[rule]]
step = "ticks"
source_db = 0
pattern = "ticks:{symbol}"
kind = "ticks"
types = ["stream"]
[[rule]]
step = "ticks"
source_db = 0
pattern = "tick:{symbol}"
target = "ticks:{symbol}"
kind = "hash_ticks"
types = ["hash"]
""",
    origin="mirrored.toml",
)


class Running:
    """A mirror in a thread. `statuses`: what it told; `error`: what it ended with."""

    def __init__(self, mirror: Mirror, statuses: list[MirrorStatus]) -> None:
        self.statuses = statuses
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._mirror = mirror
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.statuses.append(self._mirror.run(self.stop))
        except BaseException as error:  # noqa: BLE001  (the test looks at it)
            self.error = error

    @property
    def now(self) -> MirrorStatus:
        return self.statuses[-1]

    def end(self) -> None:
        self.stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def until(self, true: Callable[[], Any], seconds: float = 60.0) -> None:
        """Wait until something is true; fail if it does not come, or the mirror ended."""
        deadline_s = time.monotonic() + seconds
        while not true():
            assert self.error is None, self.error
            assert time.monotonic() < deadline_s, self.statuses[-1:]
            time.sleep(0.01)

    def swept(self) -> None:
        """Wait for a sweep that began after now."""
        self.until(lambda: self.statuses)
        before = self.now.sweeps
        self.until(lambda: self.now.sweeps >= before + 2)


def begin(url: str, plan: Plan = PLAN, phase: Phase = Phase.DUAL_WRITING) -> None:
    """Put the migration into a phase."""
    with Endpoint.connect(url) as endpoint:
        found = load(endpoint, plan)
        change(endpoint, plan, 0 if found is None else found.version, phase=phase)


@contextmanager
def mirroring(url: str, place: Path, plan: Plan = PLAN, **options: Any) -> Iterator[Running]:
    """Run a mirror; in the body it listens, and its first sweep is over."""
    statuses: list[MirrorStatus] = []
    settings = Options(**{"sweep_every_s": 0.3, **options})
    mirror = Mirror(
        url, plan, place / "memory", ledger_path=place / "ledger", options=settings, on_status=statuses.append
    )
    running = Running(mirror, statuses)
    try:
        running.until(lambda: statuses and statuses[-1].sweeps > 0)
        yield running
    finally:
        running.end()
    assert running.error is None, running.error


def once(url: str, place: Path, plan: Plan = PLAN, **options: Any) -> MirrorStatus:
    """Run a mirror until everything is followed."""
    return Mirror(
        url, plan, place / "memory", ledger_path=place / "ledger", options=Options(once=True, **options)
    ).run()


def differences(url: str, plan: Plan = PLAN) -> list[str]:
    """Return what a verify finds different, [] where both sides are equal."""
    with Endpoint.connect(url, writable=False) as endpoint:
        found = verify(endpoint, plan, pause_s=0.2)
        return [line for line in (*found.differences, *found.skips) if "onetape:" not in line]
