"""The view: the migration's state as one client last saw it, and when it must look again."""

from __future__ import annotations

import logging
import time
from typing import Any

from onetape.errors import EndpointError, StateMoved
from onetape.migrate.phases.state import State, decode, without
from onetape.migrate.plans.plan import Plan

#: No read goes by a state that was seen longer ago.
REFRESH_S = 0.25

_log = logging.getLogger("onetape.migrate.reader")


class View:
    """What holds, as far as this client knows.

    `state`: the state that reads go by, None where there is none. `seen`: whether Redis was asked at all. `trouble`:
    why the state in Redis cannot be taken over, "" where it can; reads then go on by the last one that could.
    `absent`: what holds where no migration was started.
    """

    def __init__(self, plan: Plan, absent: State | None = None) -> None:
        self._plan = plan
        self._absent = absent
        self._until = 0.0
        self.state = absent
        self.seen = False
        self.version = 0
        self.changes = 0
        self.trouble = ""

    def due(self) -> bool:
        """Return whether the state must be asked for with the next packet."""
        return time.monotonic() >= self._until

    def take(self, raw: Any) -> None:
        """Take over what GET gave: bytes, text, None, or the error. Raises StateMoved, EndpointError the first time.

        Later a state that is unreadable or of another plan changes nothing: reads go on in the last phase that was
        known, and status and heartbeat say so. So does one that is gone, but that the old side counts again.
        """
        try:
            found = self._read(raw)
        except (StateMoved, EndpointError) as error:
            if not self.seen:
                raise
            self._stay(error.message)
            return
        if found is None and self.version:
            if self.state is not None:
                self.state = without(self.state)
            self._stay("the state is gone from Redis: it was flushed, swapped or deleted")
            return
        self._until = time.monotonic() + REFRESH_S
        self.seen, self.trouble = True, ""
        if found is None:
            return
        if found.version != self.version:
            self.changes += 1
        self.state, self.version = found, found.version

    def _read(self, raw: Any) -> State | None:
        if raw is None:
            return None
        if isinstance(raw, Exception):
            raise EndpointError(
                f"the migration's state cannot be read: {raw}",
                hint="this user must be allowed to GET keys that begin with onetape:migration:",
            ) from raw
        if not isinstance(raw, bytes | str):
            raise StateMoved("the migration's state is no string", hint="it was written by something else")
        found = decode(raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogateescape"))
        if found.plan_hash != self._plan.hash:
            raise StateMoved(
                f"the migration {self._plan.name!r} on this server goes by another plan: {found.plan_hash[:12]}, "
                f"not {self._plan.hash[:12]}",
                hint="give the reader the plan that the migration was started with",
            )
        return found

    def _stay(self, why: str) -> None:
        self._until = time.monotonic() + REFRESH_S
        if why != self.trouble:
            self.trouble = why
            phase = self.state.phase if self.state is not None else "planned"
            _log.warning("%s; reads go on in the phase %s", why, phase)


__all__ = ["REFRESH_S", "View"]
