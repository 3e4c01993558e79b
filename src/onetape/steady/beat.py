"""The heartbeat of a source on a steady tape: the word that it is recording, while there is a tape to take it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from onetape.clock import Time, now_ns
from onetape.errors import TapeError
from onetape.tape import Tape
from onetape.tape.heartbeat import Heartbeat


class SteadyBeat:
    """As tape.heartbeat.Heartbeat. Time in which the tape was away is covered by nobody: it begins anew after it."""

    def __init__(
        self, tape: Callable[[], Tape | None], source: str | None, symbols: Iterable[str], since: Time | None
    ) -> None:
        self._tape, self._source = tape, source
        self._symbols = dict.fromkeys(symbols)
        self._since: Time | None = now_ns() if since is None else since
        self._on: Tape | None = None
        self._inner: Heartbeat | None = None

    def alive(self, until: Time | None = None) -> None:
        """Say that everything up to `until` (now, if left out) was received."""
        tape = self._tape()
        if tape is None or tape is not self._on:
            self._inner, self._on = None, tape
            if tape is None:
                self._since = None
                return
        try:
            if self._inner is None:
                self._inner = tape.heartbeat(self._source, self._symbols, self._since)
                self._since = None
            self._inner.alive(until)
        except TapeError:
            self._inner, self._on, self._since = None, None, None

    def resume(self, since: Time | None = None) -> None:
        """Say that there was an outage of the source, and that it goes on from `since` (now)."""
        if self._inner is not None:
            self._inner.resume(since)
        else:
            self._since = since

    def add(self, symbol: str) -> None:
        """Beat for one more symbol."""
        self._symbols.setdefault(symbol)
        if self._inner is not None:
            self._inner.add(symbol)
