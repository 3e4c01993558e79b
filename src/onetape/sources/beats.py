"""Beats: what a live source covers while it is connected, said to the tape once a second."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from onetape.errors import OnetapeError

log = logging.getLogger("onetape.sources")

_EVERY_NS = 1_000_000_000
#: Of more symbols than these none further is covered by beats.
SYMBOLS_MAX = 10_000


class Beats:
    """The coverage of one source. What cannot be said is not said: coverage is never claimed by a guess."""

    def __init__(self, tape: Any, source: str) -> None:
        self._tape, self._source = tape, source
        self._heart: Any = None
        self._symbols: dict[str, None] = {}
        self._reconnects = 0
        self._last_ns = 0

    def see(self, symbols: Iterable[str]) -> None:
        """Cover these symbols too, from the last beat on."""
        for symbol in symbols:
            if symbol not in self._symbols and len(self._symbols) < SYMBOLS_MAX:
                self._symbols[symbol] = None
                if self._heart is not None:
                    self._heart.add(symbol)

    def beat(self, at_ns: int, live: bool, reconnects: int) -> None:
        """Say that all received up to `at_ns` is stored; of a source not live, or connected anew, nothing between."""
        if not live or reconnects != self._reconnects:
            self._heart, self._reconnects = None, reconnects
        if not live or not self._symbols or (at_ns - self._last_ns < _EVERY_NS and self._heart is not None):
            return
        try:
            if self._heart is None:
                self._heart = self._tape.heartbeat(self._source, list(self._symbols), at_ns)
            else:
                self._heart.alive(at_ns)
        except OnetapeError as error:
            log.debug("coverage of %s is not said: %s", self._source, error)
            self._heart = None
        self._last_ns = at_ns

    def resume(self, since_ns: int) -> None:
        """Say that something is missing up to `since_ns`: no beat covers it."""
        if self._heart is not None:
            try:
                self._heart.resume(since_ns)
            except OnetapeError:
                self._heart = None
