"""The supervised task: something that is to run until it is told to end, and is started anew when it ends by itself."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid, OnetapeError
from onetape.sources.source import Backoff

log = logging.getLogger("onetape.daemon")

State = Literal["idle", "starting", "running", "waiting", "stopping", "ended", "failed"]

#: A run of at least this long counts as one that held: the next wait is the shortest again, s.
HELD_S = 60.0
#: How long others wait for a start, s; after that they are started beside it.
START_S = 30.0


class Supervised:
    """One part of the system. `run(up)` calls `up()` when it is ready, and returns or raises when it has ended.

    An end that nobody asked for is waited out and tried again; with `once` a plain return is the end of it (a file that
    was read). What cannot be better the next time (ConfigInvalid) is "failed", and tried again all the same, seldom.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Callable[[], None]], Awaitable[None]],
        *,
        once: bool = False,
        backoff: Backoff | None = None,
    ) -> None:
        self.name = name
        self._run = run
        self._once = once
        self._backoff = backoff or Backoff(0.2, 30.0)
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self.state: State = "idle"
        self.since_ns = now_ns()
        self.trouble: str | None = None
        self.restarts = 0

    def start(self) -> None:
        """Begin; returns at once."""
        if self._task is None:
            self._become("starting")
            self._task = asyncio.get_running_loop().create_task(self._keep(), name=self.name)

    async def settled(self, timeout_s: float = START_S) -> bool:
        """Wait until it runs, or has failed once; return whether it runs."""
        try:
            await asyncio.wait_for(self._ready.wait(), timeout_s)
        except TimeoutError:
            return False
        return self.state in ("running", "ended")

    async def stop(self, timeout_s: float) -> bool:
        """End it; return whether it did in time. What does not is left behind and said."""
        task, self._task = self._task, None
        if task is None:
            return True
        if not task.done():
            self._become("stopping")
            task.cancel()
            _, pending = await asyncio.wait([task], timeout=timeout_s)
            if pending:
                self._become("failed", f"did not end within {timeout_s:g} s")
                log.error("%s did not end within %g s", self.name, timeout_s)
                return False
        if self.state != "failed":
            self._become("ended", None)
        return True

    def status(self) -> dict[str, Any]:
        """Return how it is, as plain data."""
        return {
            "name": self.name,
            "state": self.state,
            "since_ms": self.since_ns // 1_000_000,
            "restarts": self.restarts,
            "trouble": self.trouble,
        }

    def _up(self) -> None:
        self._become("running", None)
        self._ready.set()

    def _become(self, state: State, trouble: str | None = None) -> None:
        if state != self.state:
            self.since_ns = now_ns()
        self.state, self.trouble = state, trouble

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            failed = False
            try:
                await self._run(self._up)
                if self._once:
                    self._become("ended")
                    self._ready.set()
                    log.info("%s has come to its end", self.name)
                    return
                why = "ended by itself"
            except ConfigInvalid as error:
                why, failed = str(error), True
            except OnetapeError as error:
                why = str(error)
            except OSError as error:
                why = str(error) or type(error).__name__
            except Exception as error:  # (one part's defect ends none of the others)
                log.exception("%s: a defect", self.name)
                why = f"{type(error).__name__}: {error}"
            if loop.time() - began >= HELD_S:
                self._backoff.reset()
            wait_s = self._backoff.next_s()
            self.restarts += 1
            self._become("failed" if failed else "waiting", why)
            self._ready.set()
            log.warning("%s: %s; tried again in %.1f s", self.name, why, wait_s)
            await asyncio.sleep(wait_s)


async def in_own_thread(act: Callable[[], None], end: Callable[[], None], name: str) -> None:
    """Run `act` in a thread of its own; cancelled, call `end` and wait until `act` returns. Raises what it raises.

    A daemon thread, not one of a pool: one that hangs keeps neither others waiting nor the process alive.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            act()
        except BaseException as raised:  # noqa: BLE001  (it is raised in the task)
            error = raised
        try:
            loop.call_soon_threadsafe(tell, error)
        except RuntimeError:  # the loop is closed: nobody waits any more
            pass

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        await asyncio.shield(done)
    except asyncio.CancelledError:
        end()
        await done
        raise
