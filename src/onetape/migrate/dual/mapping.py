"""The mapping: which keys of a command the plan moves, and what the command is called on either side. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, get_args

from onetape.errors import CommandUnmapped
from onetape.migrate.dual.commands import COMMANDS, Command, Way, find, word
from onetape.migrate.plans.plan import RedisType
from onetape.migrate.report import key_text
from onetape.migrate.routes import Route, Routes

Side = Literal["old", "new"]
OnUnmapped = Literal["refuse", "pass"]

#: `both`: written to both sides. `old`: it stays on the old side until the end (ticks that are merged). `given`: a
#: read that only some keys of are the plan's, sent as it is. `joined`: see Route. `pass`: cannot be mapped, and the
#: caller wants it done all the same. `raw`: none of its keys is the plan's.
Form = Literal["both", "old", "given", "joined", "pass", "raw"]


class Key(NamedTuple):
    """One key of a command: its place among the arguments, its route, and whether it is written."""

    at: int
    route: Route
    writes: bool


class Part:
    """A command, or the part of one that concerns one key, mapped. Immutable.

    `ask_type`: the rule of its first key takes some types only, and the command implies none: the key's type decides.
    """

    __slots__ = ("_names", "args", "ask_type", "command", "db", "form", "given", "keys", "way")

    def __init__(
        self,
        command: Command | None,
        args: Sequence[Any],
        db: int,
        form: Form,
        way: Way = "plain",
        given: Side = "old",
        keys: tuple[Key, ...] = (),
        ask_type: bool = False,
    ) -> None:
        self.command, self.args, self.db, self.form, self.way = command, args, db, form, way
        self.given, self.keys, self.ask_type = given, keys, ask_type
        self._names: tuple[int, Sequence[Any], int, Sequence[Any]] | None = None

    @property
    def reads(self) -> bool:
        """Return whether it changes nothing."""
        return self.way in ("read", "plain")

    def on(self, side: Side) -> tuple[int, Sequence[Any]]:
        """Return the database and the arguments of this command on one side."""
        names = self._names
        if names is None:
            first = self.keys[0].route
            args = self.args
            if len(self.keys) == 1 and self.keys[0].at == 1:
                old: Sequence[Any] = (args[0], first.old_key, *args[2:])
                new: Sequence[Any] = (args[0], first.new_key, *args[2:])
            else:
                old, new = list(args), list(args)
                for at, route, _ in self.keys:
                    old[at], new[at] = route.old_key, route.new_key
            names = self._names = (first.old_db, old, first.new_db, new)
        return (names[0], names[1]) if side == "old" else (names[2], names[3])

    def written(self) -> list[Route]:
        """Return the routes of the keys that it writes."""
        return [key.route for key in self.keys if key.writes]


class Mapped(NamedTuple):
    """A command of the caller: one part, or one for each key and the way to put their replies together."""

    parts: tuple[Part, ...]
    join: Callable[[list[Any]], Any] | None = None

    @property
    def reads(self) -> bool:
        """Return whether nothing of it writes."""
        return all(part.reads for part in self.parts)


class Mapper:
    """Maps the commands of a client of database `db`."""

    def __init__(self, routes: Routes, db: int, encode: Callable[[Any], bytes], on_unmapped: OnUnmapped) -> None:
        self._routes, self.db, self._encode = routes, db, encode
        self._pass = on_unmapped == "pass"
        self.ours = db in routes.dbs
        self._typed = any(rule.types for rule in routes.plan.rules)

    def map(self, args: Sequence[Any]) -> Mapped | None:
        """Return the command mapped, None where no key of it is the plan's. Raises CommandUnmapped."""
        command = COMMANDS.get(args[0])
        if command is None:
            command, args = find(args)
            if command is None:
                return self._of_unknown(args)
        if not command.keys:
            if command.way == "flush" and (self.ours or command.name != "FLUSHDB"):
                raise CommandUnmapped(
                    f"{command.name}: it would remove keys of the plan from one side, and none could be named",
                    hint="nothing was sent; delete keys by name, or use a plain client and onetape migrate verify",
                    command=command.name,
                )
            return None
        if not self.ours:
            return None
        try:
            if command.single:
                key = self._encode(args[1])
                route = self._routes.of(self.db, key, command.kind)
                if route is None:
                    return None
                return Mapped((self._of_one(command, args, key, route),))
            return self._of_many(command, args)
        except (IndexError, ValueError, TypeError, StopIteration):
            return None  # malformed: the server says how

    def ends(self, keys: Sequence[Any]) -> list[tuple[int, bytes]]:
        """Return the places of keys of any type: both of a key of the plan, the one of another."""
        found: dict[tuple[int, bytes], None] = {}
        for key in map(self._encode, keys):
            found[self.db, key] = None
            for kind in (None, *get_args(RedisType)) if self._typed else (None,):
                route = self._routes.of(self.db, key, kind)
                if route is not None:
                    found[route.new_db, route.new_key] = None
                    if route.old_key:
                        found[route.old_db, route.old_key] = None
        return list(found)

    def typed(self, part: Part, kind: str | None) -> Part | None:
        """Return a part whose `ask_type` was answered mapped by that type, None for one that is no longer the plan's.

        None for a kind: there is no such key, so that the first rule whose pattern fits decides.
        """
        command = part.command
        assert command is not None
        if kind is None:
            return Part(command, part.args, part.db, part.form, part.way, part.given, part.keys)
        mapped = self._of_many(command._replace(kind=kind), part.args)
        if mapped is None:
            return None
        found = mapped.parts[0]
        return Part(command, found.args, found.db, found.form, found.way, found.given, found.keys)

    def _of_one(self, command: Command, args: Sequence[Any], key: bytes, route: Route) -> Part:
        way = command.choose(args) if command.choose is not None else command.way
        given: Side = "old" if route.old_key == key and route.old_db == self.db else "new"
        form: Form = "both"
        if route.merged:
            form = "old"
        elif route.shared:
            form = "given" if way == "read" else self._unmapped(command, key, "several old names become this new one")
        elif route.joined and way != "read":
            form = "joined"
        elif way == "refuse":
            form = self._unmapped(command, key, "what it does cannot be made on both sides")
        elif command.name in ("SORT", "SORT_RO") and self._sorts_by_others(args):
            form = "given"  # both sides are written, so the names that were given are right until finish
        return Part(
            command, args, self.db, form, way, given, (Key(1, route, way != "read"),),
            self._typed and command.kind is None and given == "old" and bool(route.rule.types),
        )  # fmt: skip

    def _of_many(self, command: Command, args: Sequence[Any]) -> Mapped | None:
        found = [
            (at, key := self._encode(args[at]), self._routes.of(self.db, key, command.kind), writes)
            for at, writes in command.places(args)
        ]
        routes = [route for _, _, route, _ in found if route is not None]
        if not routes:
            return None
        first = routes[0]
        alike = len(routes) == len(found) and all(
            route.old_db == first.old_db and not route.merged and not route.shared and not route.joined
            and not (command.kind is None and route.rule.types)
            for route in routes
        )  # fmt: skip
        if command.split and len(found) > 1 and not alike:
            return self._split(command, args)
        way = command.choose(args) if command.choose is not None else command.way
        given: Side = "old"
        for _, key, route, _ in found:
            if route is not None and not (route.old_key == key and route.old_db == self.db):
                given = "new"
        keys = tuple(Key(at, route, writes and way != "read") for at, _, route, writes in found if route is not None)
        name = found[0][1]
        form: Form = "both"
        if len(found) == 1:
            part = self._of_one(command, args, name, first)
            keys = (Key(found[0][0], first, part.keys[0].writes),)
            return Mapped((Part(command, args, self.db, part.form, way, part.given, keys, part.ask_type),))
        if command.name == "SORT" and self._sorts_by_others(args):
            self._refuse("SORT", name, "its BY or GET patterns name keys that cannot be told beforehand", passes=False)
        if way == "refuse":
            form = self._unmapped(command, name, "what it does cannot be made on both sides")
        elif way == "read":
            form = "both" if len(keys) == len(found) and all(k.route.old_db == first.old_db for k in keys) else "given"
            if any(key.route.merged or key.route.shared for key in keys):
                form = "given"
        elif len(keys) < len(found):
            form = self._unmapped(command, name, "only some of its keys are the plan's")
        elif any(key.route.old_db != first.old_db for key in keys):
            form = self._unmapped(command, name, "its keys come from several databases")
        elif all(key.route.merged for key in keys):
            form = "old"
        elif any(key.route.merged or key.route.shared or key.route.joined for key in keys):
            form = self._unmapped(command, name, "one of its keys is merged into a stream")
        ask = self._typed and command.kind is None and given == "old" and bool(first.rule.types)
        return Mapped((Part(command, args, self.db, form, way, given, keys, ask),))

    def _split(self, command: Command, args: Sequence[Any]) -> Mapped:
        parts = []
        for at in range(1, len(args), command.split):
            one = (args[0], *args[at : at + command.split])
            mapped = self._of_many(command, one)
            parts.append(Part(command, one, self.db, "raw") if mapped is None else mapped.parts[0])
        return Mapped(tuple(parts), _JOINS[command.name])

    def _unmapped(self, command: Command, key: bytes, why: str) -> Form:
        if not self._pass:
            self._refuse(command.name, key, why)
        return "pass"

    def _sorts_by_others(self, args: Sequence[Any]) -> bool:
        return any(b"*" in self._encode(arg) for arg in args[2:])

    def _of_unknown(self, args: Sequence[Any]) -> Mapped | None:
        """Return a command that is not known as one that is passed: what looks like a key may be one."""
        if not self.ours:
            return None
        keys, given = [], "old"
        for at, arg in enumerate(args[1:], 1):
            try:
                key = self._encode(arg)
            except Exception:  # noqa: BLE001, S112  (no text: no key)
                continue
            route = self._routes.of(self.db, key)
            if route is None:
                continue
            if not self._pass:
                self._refuse(word(args[0]), key, "this command is not known")
            keys.append(Key(at, route, True))
            if not (route.old_key == key and route.old_db == self.db):
                given = "new"
        if not keys:
            return None
        return Mapped((Part(None, args, self.db, "pass", "copy", "new" if given == "new" else "old", tuple(keys)),))

    def _refuse(self, name: str, key: bytes, why: str, *, passes: bool = True) -> NoReturn:
        way = ', or on_unmapped="pass", which does it on one side and copies' if passes else ""
        raise CommandUnmapped(
            f"{name} of {key_text(key)}: {why}", hint=f"nothing was sent; use other commands{way}", command=name
        )


def _sum(replies: list[Any]) -> Any:
    return sum(replies)


def _concat(replies: list[Any]) -> Any:
    return [one for reply in replies for one in reply]


def _first(replies: list[Any]) -> Any:
    return replies[0]


_JOINS: dict[str, Callable[[list[Any]], Any]] = {
    "DEL": _sum, "UNLINK": _sum, "EXISTS": _sum, "TOUCH": _sum, "MGET": _concat, "MSET": _first,
}  # fmt: skip

__all__ = ["Key", "Mapped", "Mapper", "OnUnmapped", "Part", "Side"]
