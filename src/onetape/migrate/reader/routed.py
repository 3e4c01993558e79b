"""The routed read: one command on keys that the plan moves, written out for the old and for the new side. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from onetape.errors import CommandUnmapped
from onetape.migrate.reader import reads
from onetape.migrate.reader.switch import Side
from onetape.migrate.report import key_text
from onetape.migrate.routes import Route, Routes

Args = tuple[Any, ...]

#: Reads that are remembered.
_REMEMBERED = 20_000


class Sided(NamedTuple):
    """The command as one side understands it: in that database, with its names for the keys."""

    db: int
    args: Args
    keys: tuple[bytes, ...]


class Read:
    """One read. `old` or `new` is None where that side has the keys in several databases, so that it cannot answer.

    `options` are redis-py's. `at`: the old place of its key, for records of what differs, None for several keys.
    """

    __slots__ = ("at", "given", "name", "new", "old", "options")

    def __init__(
        self, name: str, given: tuple[bytes, ...], old: Sided | None, new: Sided | None, options: dict[str, Any]
    ) -> None:
        self.name = name
        self.given = given
        self.old = old
        self.new = new
        self.options = options
        self.at = (old.db, old.keys[0]) if old is not None and len(old.keys) == 1 else None

    def with_options(self, options: dict[str, Any]) -> Read:
        """Return the read with redis-py's options."""
        return Read(self.name, self.given, self.old, self.new, options) if options else self

    def on(self, side: Side) -> Sided:
        """Return the command for a side. Raises CommandUnmapped where that side cannot answer it."""
        found = self.old if side == "old" else self.new
        if found is None:
            raise CommandUnmapped(
                f"{self.name}: its keys are in several databases on the {side} side, first {key_text(self.given[0])}",
                hint="read them one by one",
                command=self.name,
            )
        return found

    def named(self, reply: Any, side: Side) -> Any:
        """Return the reply with the names that were asked for, where a reply tells names: XREAD."""
        if self.name != "XREAD" or not reply:
            return reply
        names = dict(zip(self.on(side).keys, self.given, strict=True))

        def back(name: Any) -> Any:
            own = names.get(reads.bytes_of(name))
            if own is None:
                return name
            return own if isinstance(name, bytes) else own.decode("utf-8", "surrogateescape")

        if isinstance(reply, dict):
            return {back(name): entries for name, entries in reply.items()}
        return [[back(pair[0]), *pair[1:]] for pair in reply]


class Plain(NamedTuple):
    """A command that goes where the client is, as it was given."""

    db: int
    args: Args
    options: dict[str, Any]


class Split(NamedTuple):
    """A read of several keys that is made key by key; `whole()` puts the replies together."""

    name: str
    parts: list[Read | Plain]

    def whole(self, replies: Sequence[Any]) -> Any:
        """Return the reply of the command that was given, or the first error among the parts."""
        for reply in replies:
            if isinstance(reply, Exception):
                # MGET takes a key of another type for one without a value.
                if self.name == "MGET" and str(reply).startswith("WRONGTYPE"):
                    continue
                return reply
        if self.name == "MGET":
            return [None if isinstance(reply, Exception) else reply for reply in replies]
        return sum(int(reply) for reply in replies)


class Router:
    """Finds the two sides of commands. For clients; raises CommandUnmapped for what it will not let through."""

    def __init__(self, routes: Routes, encoding: str = "utf-8", errors: str = "strict") -> None:
        self._routes = routes
        self._dbs = routes.dbs
        self._encoding, self._errors = encoding, errors
        self._known: dict[tuple[int, str | bytes, str | bytes], Read | Split | None] = {}

    def of(self, db: int, args: Sequence[Any], options: dict[str, Any]) -> Read | Split | None:
        """Return the read that the arguments are, None for one that concerns no key of the plan, or no read.

        Reads with nothing but a key, the most frequent ones, are remembered; they carry no options.
        """
        if db not in self._dbs:
            return None
        if len(args) != 2 or type(args[1]) not in (str, bytes):
            return self._find(db, args, options)
        try:
            return self._known[db, args[0], args[1]]
        except KeyError:
            found = self._find(db, args, {})
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[db, args[0], args[1]] = found
            return found

    def _find(self, db: int, args: Sequence[Any], options: dict[str, Any]) -> Read | Split | None:
        found = reads.find(args)
        if found is None:
            return None
        keys = [reads.bytes_of(args[place], self._encoding, self._errors) for place in found.places]
        found_routes = [self._route(db, key, found.kind) for key in keys]
        if not any(found_routes):
            return None
        if found.name in reads.ONE_BY_ONE and len(keys) > 1:
            return self._split(found.name, db, keys, found_routes, options)
        if found.name in ("SORT", "SORT_RO") and any(b"*" in reads.bytes_of(arg) for arg in args[2:]):
            raise CommandUnmapped(
                f"{found.name} {key_text(keys[0])}: its BY or GET patterns name keys that cannot be told beforehand",
                hint="sort in the client, or read with a plain client",
                command=found.name,
            )
        return self._read(found, db, args, keys, found_routes, options)

    def touches(self, db: int, args: Sequence[Any]) -> Route | None:
        """Return the route of a key of the plan among the arguments, None if there is none: then nothing is refused."""
        if db not in self._dbs or reads.name_of(args) in reads.KEYLESS:
            return None
        for arg in args[1:]:
            if isinstance(arg, str | bytes | bytearray | memoryview):
                route = self._routes.of(db, reads.bytes_of(arg, self._encoding, "surrogateescape"))
                if route is not None:
                    return route
        return None

    def empties(self, db: int, args: Sequence[Any]) -> bool:
        """Return whether the arguments are a command that takes away all keys of a database of the plan."""
        name = reads.name_of(args)
        return name in ("FLUSHALL", "SWAPDB") or (name == "FLUSHDB" and db in self._dbs)

    def _route(self, db: int, key: bytes, kind: str | None) -> Route | None:
        route = self._routes.of(db, key, kind)
        return None if route is None or route.merged or route.shared else route

    def _split(
        self, name: str, db: int, keys: list[bytes], routes: list[Route | None], options: dict[str, Any]
    ) -> Split:
        one = reads.ONE_BY_ONE[name]
        parts: list[Read | Plain] = []
        for key, route in zip(keys, routes, strict=True):
            if route is None:
                parts.append(Plain(db, (one, key), {}))
            else:
                old = Sided(route.old_db, (one, route.old_key), (route.old_key,))
                new = Sided(route.new_db, (one, route.new_key), (route.new_key,))
                parts.append(Read(one, (key,), old, new, {}))
        return Split(name, parts)

    def _read(
        self,
        found: reads.Found,
        db: int,
        args: Sequence[Any],
        keys: list[bytes],
        routes: list[Route | None],
        options: dict[str, Any],
    ) -> Read:
        olds = [(db, key) if route is None else (route.old_db, route.old_key)
                for key, route in zip(keys, routes, strict=True)]  # fmt: skip
        news = [(db, key) if route is None else (route.new_db, route.new_key)
                for key, route in zip(keys, routes, strict=True)]  # fmt: skip
        return Read(
            found.name, tuple(keys), _sided(args, found.places, olds), _sided(args, found.places, news), options
        )


def _sided(args: Sequence[Any], places: Sequence[int], where: list[tuple[int, bytes]]) -> Sided | None:
    db = where[0][0]
    if any(other != db for other, _key in where):
        return None
    written = list(args)
    for place, (_db, key) in zip(places, where, strict=True):
        written[place] = key
    return Sided(db, tuple(written), tuple(key for _db, key in where))


__all__ = ["Args", "Plain", "Read", "Router", "Sided", "Split"]
