"""A heartbeat: the word of a live source that it is recording."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from onetape.clock import Time, now_ns, to_ns


class Heartbeat:
    """A source's word that it is recording: what lies between two beats is covered. Made by Tape.heartbeat().

    It begins where it is made: the time between the death of a process and its next start is never covered by it.
    """

    def __init__(self, beat: Callable[[int, int, dict[str, int]], None], symbols: Iterable[str], since_ns: int) -> None:
        self._beat = beat
        self._rows = dict.fromkeys(symbols, -1)
        self._until_ns = since_ns

    def alive(self, until: Time | None = None) -> None:
        """Say that everything up to `until` (now, if left out) was received and appended. One transaction.

        Going back in time says nothing.
        """
        until_ns = now_ns() if until is None else to_ns(until, "until")
        if until_ns > self._until_ns:
            self._beat(self._until_ns, until_ns, self._rows)
            self._until_ns = until_ns

    def resume(self, since: Time | None = None) -> None:
        """Say that there was an outage, and that recording goes on from `since` (now, if left out)."""
        self._until_ns = now_ns() if since is None else to_ns(since, "since")
        self._rows = dict.fromkeys(self._rows, -1)

    def add(self, symbol: str) -> None:
        """Beat for one more symbol, from the last beat on."""
        self._rows.setdefault(symbol, -1)
