"""The pace: when a copy may send its next keys: throttle, memory governor and the operator's state in one.

It looks at the server through a connection of its own, a few times a second, and at the latency of others through a
program of its own. All waiting is in wait(), and all of it is counted by its reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from onetape import clock
from onetape.errors import ConfigInvalid, EndpointError
from onetape.migrate.phases.state import State, load
from onetape.migrate.plans.plan import Plan
from onetape.migrate.throttling.governor import Governor, Memory
from onetape.migrate.throttling.latency import Latency
from onetape.migrate.throttling.load import Load
from onetape.migrate.throttling.throttle import Felt, Settings, Throttle, settings
from onetape.migrate.wire.endpoint import Endpoint, ReplyError, is_lost, parse_info

#: Between two looks: as long as a p99 takes to be told.
LOOK_S = 0.5
STATE_S = 1.0

_STILL_S = 0.1
_TELL_S = 0.2
#: A sleep shorter than this is made up for by the next one.
_SLEEP_MIN_S = 0.0005
#: No rate is judged by less than this of the time since the last look.
_USED_SHARE = 0.7


class Pace:
    """Implements Pacing. Close it, or use it in `with`; may be used again and again until then, by one thread.

    `connect`: makes a connection to the server that others use. `plan`: whose state in Redis is followed (None: no
    state is). `memory`: makes one to the server that the copies go to, None where that is the same. `govern`: stop
    before the server's memory ends. `seconds`: how long it waited, by the kind of reason.
    """

    def __init__(
        self,
        connect: Callable[[], Endpoint],
        plan: Plan | None = None,
        *,
        throttle: Settings | None = None,
        memory: Callable[[], Endpoint] | None = None,
        govern: bool = True,
        now_ns: Callable[[], int] = clock.now_ns,
    ) -> None:
        self._connect = connect
        self._connect_memory = memory
        self._plan = plan
        self._base = throttle or Settings()
        self._throttle = Throttle(self._base)
        self._governor = Governor() if govern else None
        self._whole: int | None = None  # bytes of the data copied from, as it began
        self._latency: Latency | None = None
        self._load = Load()
        self._now_ns = now_ns
        self._endpoint: Endpoint | None = None
        self._memory: Endpoint | None = None
        self._state: State | None = None
        self._looked_s = self._stated_s = self._told_s = float("-inf")
        self._free_s = 0.0  # when the next keys may go, by the rate
        self._free_bytes_s = 0.0
        self._waited_s = 0.0  # by the rate, since the last look
        self._told: str | None = None
        self.own_calls = 0
        self.seconds: dict[str, float] = {}
        self.note: str | None = None
        self.left = 0
        self.on_wait: Callable[[], None] | None = None
        self.on_stop: Callable[[], None] | None = None

    # What others are told

    @property
    def reason(self) -> str | None:
        """Why it is slower than it could be, its kind first ("latency: ..."), None for nothing."""
        return self._told or self._throttle.reason

    @property
    def batch_keys(self) -> int | None:
        """How many keys should be sent together at most, None where it does not matter."""
        return self._throttle.batch_keys

    @property
    def rate(self) -> float | None:
        """Keys a second at the moment, None for as fast as it goes."""
        return self._throttle.rate

    @property
    def forecast_bytes(self) -> int | None:
        """How many bytes the keys to go will need, None before that can be said."""
        return None if self._governor is None else self._governor.forecast_bytes

    def waited(self) -> dict[str, float]:
        """Return the seconds waited by the kind of reason, most first."""
        most = sorted(self.seconds.items(), key=lambda item: -item[1])
        return {kind: round(seconds, 3) for kind, seconds in most}

    # Waiting

    def wait(self, keys: int, size: int = 0, *, work: float | None = None) -> None:
        """Return when the next keys may be sent; see Pacing. Raises MemoryShort, and StateMoved for another plan's."""
        now_s = time.monotonic()
        due = now_s - self._looked_s >= LOOK_S
        if self._governor is not None:
            self._governor.sent(keys, size)
            due = due or self._governor.is_due
        if due:
            self._look(now_s, size)
        self._stand_still(size)
        self._hold(keys if work is None else work, keys, size)

    def _stand_still(self, size: int) -> None:
        """Wait as long as nothing may be sent at all."""
        stopped = False
        while (why := self._throttle.still or self._unready()) is not None:
            if not stopped and self._throttle.still is not None and self.on_stop is not None:
                stopped = True
                self.on_stop()
            self._told = why
            began_s = time.monotonic()
            time.sleep(_STILL_S if self._throttle.still is not None else _SLEEP_MIN_S * 10)
            now_s = time.monotonic()
            self._count(why, now_s - began_s)
            if now_s - self._looked_s >= LOOK_S:
                self._look(now_s, size)
            self._tell(now_s)
        self._told = None

    def _unready(self) -> str | None:
        """Return why the first keys wait: what is quiet is measured before."""
        if self._latency is None or self._throttle.quiet(self._latency.poll()):
            return None
        return "latency: measuring how it is before anything is sent"

    def _hold(self, work: float, keys: int, size: int) -> None:
        rate, limit = self._throttle.rate, self._throttle.settings.keys_per_s
        if rate is not None and limit is not None and rate == limit:
            work = float(keys)  # a limit that was asked for is one of keys
        now_s = time.monotonic()
        until_s = now_s
        if rate is not None:
            until_s = self._free_s = max(self._free_s, now_s - _SLEEP_MIN_S) + work / rate
        bytes_per_s = self._throttle.settings.bytes_per_s
        by_bytes = False
        if not size and self._governor is not None:
            size = int(keys * self._governor.key_bytes)
        if bytes_per_s is not None and size:
            self._free_bytes_s = max(self._free_bytes_s, now_s - _SLEEP_MIN_S) + size / bytes_per_s
            by_bytes = self._free_bytes_s > until_s
            until_s = max(until_s, self._free_bytes_s)
        while (left_s := until_s - time.monotonic()) > _SLEEP_MIN_S:
            why = f"rate: the limit of {bytes_per_s:,.0f} bytes/s" if by_bytes else self._throttle.reason
            self._told = why
            began_s = time.monotonic()
            time.sleep(min(left_s, _STILL_S))
            now_s = time.monotonic()
            self._waited_s += now_s - began_s
            if why is not None:
                self._count(why, now_s - began_s)
            if now_s - self._looked_s >= LOOK_S:
                self._look(now_s, size)
                if self._throttle.still is not None:
                    self._stand_still(size)
                    break
            if left_s > _STILL_S:
                self._tell(now_s)
        self._told = None

    def _count(self, why: str, seconds: float) -> None:
        kind = why.partition(":")[0]
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds

    def _tell(self, now_s: float) -> None:
        if self.on_wait is not None and now_s - self._told_s >= _TELL_S:
            self._told_s = now_s
            self.on_wait()

    # Looking

    def _look(self, now_s: float, size: int = 0) -> None:
        since_s = now_s - self._looked_s
        self._looked_s = now_s
        try:
            self._look_at_server(now_s, since_s, size)
        except EndpointError as error:
            if not is_lost(error):
                raise
            self.drop()  # the copy itself finds out whether the server is gone for good

    def _look_at_server(self, now_s: float, since_s: float, size: int) -> None:
        throttle = self._throttle
        endpoint = self._endpoint = self._endpoint or self._connect()
        if self._plan is not None and now_s - self._stated_s >= STATE_S:
            self._stated_s = now_s
            self._take(load(endpoint, self._plan))
        throttle.clock(self._now_ns())
        p99_ms = None
        if throttle.settings.feels_latency:
            self._latency = self._latency or Latency(self._connect)
            self._latency.poll()
            p99_ms = self._latency.p99_ms()
        elif self._latency is not None:
            self._latency.close()
            self._latency = None
        info = _info(endpoint, "memory", "stats", "replication", "persistence")
        calls = None if throttle.settings.others_per_s is None else _info(endpoint, "commandstats")
        seen = self._load.seen(info, calls, now_s, self.own_calls)
        self.own_calls = 0
        used = self._waited_s > 0.02 * since_s  # else the copy itself was slower than it might have been
        self._waited_s = 0.0
        throttle.feel(Felt(p99_ms, *seen), used=used)
        if self._governor is not None:
            if self._whole is None and "used_memory" in info:
                self._whole = Memory.of(info).held
            if self._connect_memory is not None:
                self._memory = self._memory or self._connect_memory()
                info = _info(self._memory, "memory", "stats")
            self._governor.look(info, self.left, size, self._whole)

    def _take(self, state: State | None) -> None:
        self._state = state
        throttle = self._throttle
        if state is None:
            throttle.pause = None
            return
        why = f": {state.reason}" if state.reason else ""
        throttle.pause = f"paused: by {state.changed_by or 'an operator'}{why}" if state.paused else None
        try:
            wanted = settings(state.throttle, self._base)
        except ConfigInvalid as error:  # it was checked where it was set; what a newer one means is not known here
            self.note = error.message
            return
        if wanted != throttle.settings:
            throttle.change(wanted)

    def drop(self) -> None:
        """Let go of the connections; the next look makes new ones."""
        for endpoint in (self._endpoint, self._memory):
            if endpoint is not None:
                endpoint.close()
        self._endpoint = self._memory = None

    def close(self) -> None:
        """Close connections and end the program. May be called twice."""
        self.drop()
        if self._latency is not None:
            self._latency.close()
            self._latency = None

    def __enter__(self) -> Pace:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _info(endpoint: Endpoint, *sections: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for reply in endpoint.pipeline([("INFO", section) for section in sections]):
        if not isinstance(reply, ReplyError):  # a user who may not ask is not governed by it
            found.update(parse_info(reply))
    return found


__all__ = ["Pace"]
