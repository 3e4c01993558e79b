"""The core of a reading client: what it knows, counts and owes, whatever kind of connection it has."""

from __future__ import annotations

import os
import random
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from onetape.errors import ConfigInvalid
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import Names, State
from onetape.migrate.plans.plan import DOCUMENTED, Plan
from onetape.migrate.reader.routed import Router, Sided
from onetape.migrate.reader.switch import Side
from onetape.migrate.reader.tally import ReadStats, Tally
from onetape.migrate.reader.view import View
from onetape.migrate.routes import Routes

#: Shadow reads that may wait; more are dropped and counted.
JOBS_MAX = 1000
#: Comparisons a second: each takes the time of several reads from the process it is made in.
JOBS_A_SECOND = 200
#: Replies larger than this are not read a second and a third time for a comparison.
COMPARED_BYTES_MAX = 1_000_000
COMPARED_ELEMENTS_MAX = 10_000
#: Mismatches kept in memory.
MISMATCHES_KEPT = 100
#: Cursors of scans whose side is remembered.
_PINS_MAX = 10_000

OnWrite = Literal["refuse", "pass"]
WithoutState = Literal["old", "new_first"]


class Job(NamedTuple):
    """A read to be made again on both sides, to compare them. `seen`: how often they differed already."""

    name: str
    old: Sided
    new: Sided
    seen: int = 0


class Mismatch(msgspec.Struct, frozen=True):
    """A read that both sides answered differently, twice. Digests are 32 hex digits of the canonical reply."""

    db: int
    key: bytes
    new_key: bytes
    command: str
    old: str
    new: str
    at_ms: int


class Status(msgspec.Struct, frozen=True):
    """A reader as of now. `version` is that of the state it goes by, 0 for none; `trouble` why it cannot go by the
    present one; `fallback_rate` the share of the last 60 s; `mismatches` the first 100.
    """

    name: str
    version: int
    phase: Phase
    stats: ReadStats
    fallback_rate: float
    trouble: str
    mismatches: tuple[Mismatch, ...]


class Core:
    """One client's memory. Reads may come from many threads; jobs are worked off by one attendant."""

    def __init__(
        self,
        plan: Plan | str | Path | None,
        *,
        name: str,
        on_write: OnWrite,
        without_state: WithoutState,
        chance: Callable[[], float] | None = None,
        encoding: str = "utf-8",
        errors: str = "strict",
    ) -> None:
        if on_write not in ("refuse", "pass"):
            raise ConfigInvalid(f"on_write = {on_write!r}", hint="'refuse' or 'pass'")
        if without_state not in ("old", "new_first"):
            raise ConfigInvalid(f"without_state = {without_state!r}", hint="'old' or 'new_first'")
        self.plan = plan if isinstance(plan, Plan) else Plan.load(DOCUMENTED if plan is None else plan)
        self.names = Names.of(self.plan)
        self.router = Router(Routes(self.plan), encoding, errors)
        self.view = View(self.plan, _new_first(self.plan) if without_state == "new_first" else None)
        self.tally = Tally()
        self.on_write: OnWrite = on_write
        self.chance = chance or random.random
        self.name = name
        self.id = _id()
        self.jobs: deque[Job] = deque()
        self.mismatches: list[Mismatch] = []
        self.pins: dict[tuple[bytes, str], Side] = {}
        self.wake: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._second = self._offered = 0

    def forked(self) -> None:
        """Begin anew in a process that was forked: another client, with nothing to do yet."""
        self.id = _id()
        self.jobs.clear()

    def offer(self, job: Job, reply: Any) -> None:
        """Queue a comparison, or count it as dropped. Never waits."""
        if isinstance(reply, Exception) or _large(reply):
            return
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._offered = second, 0
        self._offered += 1
        if len(self.jobs) >= JOBS_MAX or self._offered > JOBS_A_SECOND:
            self.tally.add("dropped")
            return
        self.jobs.append(job)
        self.wake()

    def pin(self, place: tuple[bytes, str], side: Side) -> None:
        """Remember the side that gave a scan's cursor."""
        with self._lock:
            if len(self.pins) >= _PINS_MAX:
                self.pins.pop(next(iter(self.pins)))
            self.pins[place] = side

    def differ(self, mismatch: Mismatch) -> None:
        """Keep a mismatch, of the first ones."""
        self.tally.add("mismatches")
        if len(self.mismatches) < MISMATCHES_KEPT:
            self.mismatches.append(mismatch)

    @property
    def phase(self) -> Phase:
        """Return the phase that reads go by."""
        return Phase.PLANNED if self.view.state is None else self.view.state.phase

    def status(self) -> Status:
        """Return what is known now."""
        return Status(
            self.id,
            self.view.version,
            self.phase,
            self.tally.stats(),
            self.tally.fallback_rate(),
            self.view.trouble,
            tuple(self.mismatches),
        )

    def heartbeat(self, at_ms: int) -> bytes:
        """Return what others read of this client, as JSON."""
        stats = self.tally.stats()
        return msgspec.json.encode(
            {
                "name": self.name,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "kind": "reader",
                "version": self.view.version,
                "phase": str(self.phase),
                "writes": 0,
                "reads": stats.reads,
                "divergences": stats.mismatches,
                "passed": stats.passed,
                "at_ms": at_ms,
                "lib": "onetape",
                "new_reads": stats.new_reads,
                "old_fallbacks": stats.old_fallbacks,
                "misses": stats.misses,
                "shadow": stats.shadow,
                "mismatches": stats.mismatches,
                "dropped": stats.dropped,
                "fallback_rate_60s": self.tally.fallback_rate(60),
                "fallback_rate_600s": self.tally.fallback_rate(600),
                "switched_60s": sum(self.tally.switched(60)),
                "trouble": self.view.trouble,
            }
        )


def _id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def _new_first(plan: Plan) -> State:
    """Return what holds without a state for readers that ask new names first: nobody has ever written it to Redis."""
    return State(
        version=0, phase=Phase.READS_SWITCHED, plan_name=plan.name, plan_hash=plan.hash, target_db=plan.target_db,
        read_share=1.0,
    )  # fmt: skip


def _large(reply: Any) -> bool:
    if isinstance(reply, bytes | str):
        return len(reply) > COMPARED_BYTES_MAX
    return isinstance(reply, list | tuple | dict | set) and len(reply) > COMPARED_ELEMENTS_MAX


__all__ = ["JOBS_MAX", "Core", "Job", "Mismatch", "OnWrite", "Status", "WithoutState"]
