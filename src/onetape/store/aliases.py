"""Aliases: further names of symbols, kept on the tape: a broker's token, a vendor's spelling.

An alias names one symbol, whoever sends the record; or only in records of one source, where vendors use one token for
different things. It always names a symbol, never another alias: so there are no chains and no cycles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
import msgspec

from onetape.clock import now_ns
from onetape.errors import ConfigInvalid, NameAmbiguous, NameTaken
from onetape.store.validate import text_problem

#: Stands for "whoever sends it" in the table: no source has an empty name.
ANY = ""


class Alias(msgspec.Struct, frozen=True):
    """A name that stands for a symbol; only in records of `source`, if that is not None."""

    name: str
    symbol: str
    source: str | None
    created_ns: int


def lookup(connection: apsw.Connection, name: str) -> dict[str, str]:
    """Return what an alias stands for, by source; empty if the name is none."""
    rows: list[Any] = connection.execute("SELECT source, symbol FROM alias WHERE name = ?", (name,)).fetchall()
    return dict(rows)


def meaning(connection: apsw.Connection, name: str, source: str | None = None) -> str | None:
    """Return the symbol an alias stands for, in records of `source`; None if the name is no alias of it.

    Without a source, an alias that one or several sources use for one symbol is that symbol. Raises NameAmbiguous.
    """
    found = lookup(connection, name)
    if source is not None and source in found:
        return found[source]
    if ANY in found or not found:
        return found.get(ANY)
    if source is not None:
        return None
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    told = ", ".join(f"{symbol!r} of {sender}" for sender, symbol in sorted(found.items()))
    raise NameAmbiguous(f"{name!r} means several symbols: {told}", hint="name the symbol", name=name)


def listing(connection: apsw.Connection, symbol: str | None = None) -> list[Alias]:
    """Return all aliases, or those of one symbol, by name and source."""
    where, given = ("", ()) if symbol is None else (" WHERE symbol = ?", (symbol,))
    rows: list[Any] = connection.execute(
        f"SELECT name, symbol, source, created_ns FROM alias{where} ORDER BY name, source", given
    ).fetchall()
    return [Alias(name, target, source or None, created) for name, target, source, created in rows]


def is_symbol(connection: apsw.Connection, name: str) -> bool:
    """Return whether a symbol of that very name is on the tape."""
    return connection.execute("SELECT 1 FROM symbol WHERE name = ?", (name,)).get is not None


def is_continuous(connection: apsw.Connection, name: str) -> bool:
    """Return whether a continuous future has that name."""
    return connection.execute("SELECT 1 FROM continuous WHERE name = ? LIMIT 1", (name,)).get is not None


def add(
    connection: apsw.Connection,
    name: str,
    symbol: str,
    source: str | None = None,
    replace: bool = False,
    rename: str | None = None,
) -> tuple[str, bool]:
    """Make `name` an alias, inside the caller's transaction; return the symbol it names, and whether it is new.

    replace: let an alias that names another symbol name this one from now on. rename: the name that a symbol called
    `name` bears from now on. Raises NameTaken, NameAmbiguous, ConfigInvalid.
    """
    needed = [("symbol", name), ("symbol", symbol)]
    if_given = [(what, text) for what, text in (("source", source), ("symbol", rename)) if text is not None]
    for what, text in needed + if_given:
        why = text_problem(what, text)
        if why is not None:
            raise ConfigInvalid(f"cannot make {name!r} an alias of {symbol!r}: {text!r}: {why}")
    target = symbol if is_symbol(connection, symbol) else meaning(connection, symbol, source) or symbol
    if target == name:
        raise ConfigInvalid(f"{name!r} would be an alias of itself", hint=f"{symbol!r} stands for {target!r}")
    for text in (name, target):
        if is_continuous(connection, text):
            raise NameTaken(f"{text!r} is a continuous future", hint="aliases are of symbols; use another name")
    known = lookup(connection, name).get(source or ANY)
    if known == target:
        return target, False
    if known is not None and not replace:
        whose = f" in records of {source}" if source else ""
        raise NameTaken(
            f"{name!r} is an alias of {known!r} already{whose}", hint="replace it explicitly, or remove it first"
        )
    if is_symbol(connection, name):
        _rename(connection, name, rename, target)
    elif rename is not None:
        raise ConfigInvalid(f"there is no symbol {name!r} to rename to {rename!r}")
    elif source is None:  # whoever named it meant it as a symbol: what it stands for now
        connection.execute("UPDATE alias SET symbol = ? WHERE symbol = ?", (target, name))
    connection.execute("INSERT OR REPLACE INTO alias VALUES (?, ?, ?, ?)", (name, source or ANY, target, now_ns()))
    _changed(connection)
    return target, True


def _rename(connection: apsw.Connection, name: str, new: str | None, target: str) -> None:
    if new is None:
        raise NameTaken(
            f"{name!r} is a symbol with records of its own",
            hint=f"keep them under another name (rename={name + '.old'!r}), or leave it a symbol: "
            f"records of {name!r} and {target!r} are not mixed unasked",
        )
    if new == target or is_symbol(connection, new) or is_continuous(connection, new) or lookup(connection, new):
        raise NameTaken(f"cannot rename {name!r} to {new!r}: that name is in use", hint="choose a new name")
    connection.execute("UPDATE symbol SET name = ? WHERE name = ?", (new, name))
    connection.execute("UPDATE alias SET symbol = ? WHERE symbol = ?", (new, name))


def remove(connection: apsw.Connection, name: str, source: str | None = None) -> str:
    """Let a name be none of its symbol's any more, inside the caller's transaction; return the symbol.

    Records stay where they are. Raises ConfigInvalid if there is no such alias.
    """
    found = lookup(connection, name)
    target = found.get(source or ANY)
    if target is None:
        only = ", ".join(sorted(found))
        raise ConfigInvalid(
            f"{name!r} is no alias" + (f" in records of {source}" if source and found else ""),
            hint=f"it is one in records of {only}: say which source" if only else "see onetape alias list",
        )
    connection.execute("DELETE FROM alias WHERE name = ? AND source = ?", (name, source or ANY))
    _changed(connection)
    return target


def add_all(
    connection: apsw.Connection, pairs: Sequence[tuple[str, str]], source: str | None, replace: bool
) -> tuple[int, int]:
    """Make aliases of (name, symbol) pairs, all or none; return how many are new and how many were there already."""
    added = 0
    for name, symbol in pairs:
        added += add(connection, name, symbol, source, replace)[1]
    return added, len(pairs) - added


def _changed(connection: apsw.Connection) -> None:
    connection.execute("UPDATE state SET names = names + 1")
