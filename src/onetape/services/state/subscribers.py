"""Subscribers: each gets every event once and in order, in a thread of its own, however the others behave."""

from __future__ import annotations

import asyncio
import inspect
import logging
import queue
import threading
from collections.abc import Callable

from onetape.services.state.file import Event

_log = logging.getLogger("onetape.state")

Callback = Callable[[Event], object]
#: What may wait for one subscriber; beyond it the oldest is dropped and counted.
QUEUE_EVENTS = 10_000


class Subscriber:
    """One callback, plain or a coroutine function. A coroutine runs on the loop that subscribed, else on its own."""

    def __init__(self, callback: Callback, loop: asyncio.AbstractEventLoop | None) -> None:
        self.callback, self._loop = callback, loop
        self.delivered = self.errors = self.dropped = 0
        self._queue: queue.Queue[Event | None] = queue.Queue(QUEUE_EVENTS)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="state-subscriber", daemon=True)
        self._thread.start()

    def put(self, event: Event | None) -> None:
        """Hand over an event without ever waiting."""
        while True:
            try:
                self._queue.put_nowait(event)
                return
            except queue.Full:
                try:
                    self._queue.get_nowait()
                    self.dropped += 1
                except queue.Empty:
                    pass

    def close(self) -> None:
        """Call it no more. A call that is under way goes on."""
        self._closed.set()
        self.put(None)

    def finish(self) -> None:
        """Give it what waits, and then end it; see wait()."""
        self.put(None)

    def wait(self, timeout_s: float) -> None:
        """Wait until it has ended. From its own callback, or from the event loop that it needs, there is no waiting."""
        if self._thread is threading.current_thread() or (self._loop is not None and _running() is self._loop):
            return
        self._thread.join(max(0.0, timeout_s))

    def _run(self) -> None:
        while (event := self._queue.get()) is not None and not self._closed.is_set():
            try:
                result = self.callback(event)
                if inspect.iscoroutine(result):
                    self._finish(result)
                self.delivered += 1
            except Exception:  # noqa: BLE001  (one bad event must not silence the rest; the log has the reason)
                self.errors += 1
                _log.exception("a subscriber failed on event %d", event.event_id)

    def _finish(self, result: object) -> None:
        if self._loop is None or self._loop.is_closed():
            asyncio.run(_awaited(result))
            return
        done = asyncio.run_coroutine_threadsafe(_awaited(result), self._loop)
        while not self._closed.is_set():
            try:
                done.result(0.5)
                return
            except TimeoutError:
                if done.done() or self._loop.is_closed():
                    raise
        done.cancel()


async def _awaited(result: object) -> None:
    if inspect.isawaitable(result):
        await result


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
