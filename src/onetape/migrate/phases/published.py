"""What a command at work tells of its progress, under a key of the migration that goes by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import msgspec

from onetape.errors import EndpointError
from onetape.migrate.phases.state import Names, server_ms
from onetape.migrate.wire.endpoint import Endpoint
from onetape.progress import Progress

#: How long a told progress outlives the command that told it, ms.
ALIVE_MS = 5_000
_EVERY_S = 0.5
_AGAIN_S = 5.0
_JOIN_S = 2.0


class At(msgspec.Struct, frozen=True, kw_only=True):
    """Where a command is. `step` of the plan, `done` of `total` keys, `rate_per_s` keys a second over the last seconds,
    `left_s` None where it is not known; `reason`: why it is slowed down or stands still, None where it is not;
    `waited`: seconds waited so far, by reason. `at_ms`: the server's time.
    """

    command: str
    step: str
    done: int
    total: int
    elapsed_s: float
    rate_per_s: float
    left_s: float | None
    reason: str | None = None
    waited: dict[str, float] = {}
    at_ms: int = 0


class Slowed(Protocol):
    """What knows why a command is slowed down: a pace."""

    @property
    def reason(self) -> str | None:
        """Why it is slowed down now, None where it is not."""

    def waited(self) -> dict[str, float]:
        """Return the seconds waited so far, by reason."""


def key_of(names: Names) -> bytes:
    """Return the key under which progress is told."""
    return names.state + b":progress"


def publish(endpoint: Endpoint, names: Names, at: At) -> None:
    """Tell where a command is. The endpoint's database is then the target's. Raises EndpointError."""
    endpoint.select(names.db)
    told = msgspec.structs.replace(at, at_ms=server_ms(endpoint))
    endpoint.call("SET", key_of(names), msgspec.json.encode(told), "PX", ALIVE_MS)


def read(endpoint: Endpoint, names: Names) -> At | None:
    """Return where a command is, None where none is at work. The endpoint's database is then the target's."""
    endpoint.select(names.db)
    raw = endpoint.call("GET", key_of(names))
    try:
        return None if raw is None else msgspec.json.decode(raw, type=At)
    except msgspec.DecodeError:
        return None


class Publisher:
    """Tells a command's progress twice a second, from a thread and on a connection of its own. Use it in `with`.

    It is told of progress as `on_progress` of a backfill is, and goes on telling while the command stands still. What
    cannot be told is left out: nobody's copy waits for whoever watches.
    """

    def __init__(
        self, connect: Callable[[], Endpoint], names: Names, command: str, slowed: Slowed | None = None
    ) -> None:
        self._connect = connect
        self._names = names
        self._command = command
        self._slowed = slowed
        self._last = Progress("", 0, 0, 0.0, 0.0, None)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="onetape-progress", daemon=True)

    def __call__(self, progress: Progress) -> None:
        self._last = progress

    def __enter__(self) -> Publisher:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._done.set()
        self._thread.join(_JOIN_S)

    def _tell(self) -> None:
        endpoint: Endpoint | None = None
        pause_s = 0.0
        while not self._done.wait(pause_s):
            pause_s = _EVERY_S
            try:
                endpoint = endpoint or self._connect()
                publish(endpoint, self._names, self._at())
            except EndpointError:
                if endpoint is not None:
                    endpoint.close()
                endpoint, pause_s = None, _AGAIN_S  # not allowed, or away: the command itself will say so
        if endpoint is not None:
            try:
                endpoint.select(self._names.db)
                endpoint.call("UNLINK", key_of(self._names))
            except EndpointError:
                pass  # it goes by itself
            endpoint.close()

    def _at(self) -> At:
        progress, slowed = self._last, self._slowed
        return At(
            command=self._command,
            step=progress.step,
            done=progress.done,
            total=progress.total,
            elapsed_s=round(progress.elapsed_s, 2),
            rate_per_s=round(progress.rate_per_s, 1),
            left_s=None if progress.left_s is None else round(progress.left_s, 1),
            reason=None if slowed is None else slowed.reason,
            waited={} if slowed is None else {why: round(s, 1) for why, s in slowed.waited().items()},
        )


__all__ = ["At", "Publisher", "key_of", "publish", "read"]
