"""The known: which pairs a client may take to be equal. Bounded; forgetting costs a copy, never a write."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from onetape.migrate.routes import Route

#: Keys that a client remembers, about 200 bytes each.
KNOWN_MAX = 100_000

Pair = tuple[int, bytes]


def pair(route: Route) -> Pair:
    """Return what a route is known by: its old database and key."""
    return route.old_db, route.old_key


class Known:
    """The pairs that are equal because this client made them so, or saw them so.

    True as long as every writer of both sides dual-writes. What is added is told with the generation in which the
    transaction began: if everything was forgotten meanwhile, it is not remembered.
    """

    def __init__(self, limit: int = KNOWN_MAX) -> None:
        self._limit = limit
        self._pairs: dict[Pair, None] = {}
        self.generation = 0
        self.trusted = True

    def __contains__(self, route: Route) -> bool:
        return (route.old_db, route.old_key) in self._pairs

    @property
    def pairs(self) -> Collection[Pair]:
        """The pairs, as of now."""
        return self._pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def add(self, routes: Iterable[Route], generation: int) -> None:
        """Remember pairs that a transaction left equal, unless everything was forgotten since `generation`."""
        pairs = self._pairs  # before the look at the generation: what is forgotten meanwhile is another one
        if generation != self.generation or not self.trusted:
            return
        if len(pairs) >= self._limit:
            pairs.clear()
        for route in routes:
            pairs[route.old_db, route.old_key] = None

    def drop(self, routes: Iterable[Route]) -> None:
        """Forget some pairs."""
        for route in routes:
            self._pairs.pop((route.old_db, route.old_key), None)

    def forget(self, *, trusted: bool = True) -> None:
        """Forget everything: the state changed, a connection was lost, a database was emptied.

        `trusted`: whether anything is remembered from here on. Not where the state is gone: a database that is emptied
        once more would not be noticed.
        """
        self.trusted = trusted
        self.generation += 1
        self._pairs = {}


__all__ = ["KNOWN_MAX", "Known", "Pair", "pair"]
