"""The attendant: what a reading client does beside its reads: heartbeats, looks at the state, shadow reads.

Its steps know no connection, like those of reads. It has a connection of its own, so that nothing here can make a
caller wait: what fails is counted, what does not fit the queue is dropped and counted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
from redis.exceptions import ResponseError

from onetape.errors import OnetapeError
from onetape.migrate.reader import reads
from onetape.migrate.reader.core import Core, Job, Mismatch
from onetape.migrate.reader.steps import Ask
from onetape.migrate.reader.switch import can_compare

#: Between heartbeats, s; a client that idles so acknowledges a new version within it.
BEAT_S = 1.0
#: A difference counts if it is still there after this: an expiry at the instant, or a mirror that follows, is none.
AGAIN_S = 0.1
AGAIN_MIRRORED_S = 2.0
#: Differences that wait to be looked at again.
_WAITING_MAX = 100
#: Differing keys that a client records in Redis; from then on it only counts.
_RECORDED_MAX = 10_000


class Wait(NamedTuple):
    """Nothing to do for so many seconds, unless somebody wakes the attendant."""

    seconds: float


Attending = Generator[Ask | Wait, list[Any] | Exception | None, None]


def attend(core: Core) -> Attending:
    """Beat and compare for as long as it is asked for the next step. Is sent replies, or what went wrong."""
    beat_at = 0.0
    clock = _ServerClock()
    waiting: deque[tuple[float, Job]] = deque()
    while True:
        now = time.monotonic()
        if now >= beat_at:
            yield from _beat(core, clock)
            beat_at = time.monotonic() + BEAT_S
        elif waiting and now >= waiting[0][0]:
            yield from _compare(core, waiting.popleft()[1], waiting)
        elif core.jobs:
            yield from _compare(core, core.jobs.popleft(), waiting)
        else:
            until = min(beat_at, waiting[0][0]) if waiting else beat_at
            yield Wait(max(0.001, until - now))


def farewell(core: Core) -> Ask:
    """Return what takes the client's heartbeat out of Redis."""
    return Ask([(core.names.db, ("HDEL", core.names.clients, core.id), {})])


class _ServerClock:
    """The server's time, from when it was last told: heartbeats of several machines are compared by it."""

    def __init__(self) -> None:
        self._offset_ms: float | None = None

    def told(self, reply: Any) -> int | None:
        if not isinstance(reply, list | tuple) or len(reply) != 2:
            return None
        at_ms = int(reply[0]) * 1000 + int(reply[1]) // 1000
        self._offset_ms = at_ms - time.monotonic() * 1000
        return at_ms

    def now_ms(self) -> int | None:
        return None if self._offset_ms is None else round(time.monotonic() * 1000 + self._offset_ms)


def _beat(core: Core, clock: _ServerClock) -> Attending:
    db, names = core.names.db, core.names
    if clock.now_ms() is None:
        replies = yield Ask([(db, ("TIME",), {})])
        if isinstance(replies, list):
            clock.told(replies[0])
    now_ms = clock.now_ms()
    if now_ms is None:
        return
    # The state first: a heartbeat that tells a version has read it.
    replies = yield Ask([(db, ("GET", names.state), {})])
    if not isinstance(replies, list) or isinstance(replies[0], Exception):
        return
    try:
        core.view.take(replies[0])
    except OnetapeError:
        return  # the first read raises it
    replies = yield Ask([(db, ("HSET", names.clients, core.id, core.heartbeat(now_ms)), {}), (db, ("TIME",), {})])
    if isinstance(replies, list):
        clock.told(replies[1])


def _compare(core: Core, job: Job, waiting: deque[tuple[float, Job]]) -> Attending:
    state = core.view.state
    if not can_compare(state) or state is None:
        return
    old, new = job.old, job.new
    replies = yield Ask(
        [(core.names.db, ("TIME",), {}), (old.db, old.args, {}), (new.db, new.args, {})], transaction=True
    )
    if not isinstance(replies, list):
        core.tally.add("failed")
        return
    at, here, there = replies
    errors = [reply for reply in (here, there) if isinstance(reply, Exception)]
    if any(not str(error).startswith("WRONGTYPE") for error in errors):
        core.tally.add("failed")
        return
    if not job.seen:
        core.tally.add("shadow")
    digests = [digest(job.name, reply) for reply in (here, there)]
    if digests[0] == digests[1]:
        if job.seen:
            core.tally.add("healed")
        return
    if not job.seen:
        if len(waiting) >= _WAITING_MAX:
            core.tally.add("dropped")
            return
        pause_s = AGAIN_MIRRORED_S if state.mirrored else AGAIN_S
        waiting.append((time.monotonic() + pause_s, job._replace(seen=1)))
        return
    at_ms = int(at[0]) * 1000 + int(at[1]) // 1000
    core.differ(Mismatch(old.db, old.keys[0], new.keys[0], job.name, digests[0], digests[1], at_ms))
    if core.tally.stats().mismatches <= _RECORDED_MAX:
        why = f"a shadow read: {job.name} gave {digests[0][:12]} on the old side, {digests[1][:12]} on the new one"
        told = msgspec.json.encode({"at_ms": at_ms, "why": why, "by": core.id})
        field = b"%d:%b" % (old.db, old.keys[0])
        yield Ask([(core.names.db, ("HSET", core.names.diverged, field, told), {})])


def digest(name: str, reply: Any) -> str:
    """Return 32 hex digits that are equal for equal answers, in whatever order a server keeps the elements."""
    return blake2b(repr(_canonical(name, reply)).encode(), digest_size=16).hexdigest()


def _canonical(name: str, reply: Any) -> Any:
    if isinstance(reply, ResponseError):
        return "error", str(reply)
    if isinstance(reply, dict):
        return sorted(reply.items())
    if name in reads.PAIRED and isinstance(reply, list):
        return sorted(zip(reply[::2], reply[1::2], strict=True))
    if isinstance(reply, set | frozenset) or (name in reads.UNORDERED and isinstance(reply, list)):
        return sorted(reply)
    return reply


__all__ = ["AGAIN_MIRRORED_S", "AGAIN_S", "BEAT_S", "Attending", "Wait", "attend", "digest", "farewell"]
