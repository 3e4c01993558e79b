"""The catalog: the names of symbols and sources and their ids, which are given once and never change."""

from __future__ import annotations

from collections.abc import Iterable

import apsw


class Catalog:
    """Names to ids and back, remembered in memory; what other processes add is looked up when it is met."""

    def __init__(self) -> None:
        self.symbol_ids: dict[str, int] = {}
        self.source_ids: dict[str | None, int] = {None: 0}
        self._symbols: dict[int, str] = {}
        self._sources: dict[int, str | None] = {0: None}

    def load(self, connection: apsw.Connection) -> None:
        """Read names that were added since the last time."""
        for symbol_id, name in connection.execute(
            "SELECT id, name FROM symbol WHERE id > ?", (max(self._symbols, default=0),)
        ):
            self._symbols[symbol_id] = name
            self.symbol_ids[name] = symbol_id
        for source_id, name in connection.execute(
            "SELECT id, name FROM source WHERE id > ?", (max(self._sources, default=0),)
        ):
            self._sources[source_id] = name
            self.source_ids[name] = source_id

    def add(self, connection: apsw.Connection, symbols: Iterable[str], sources: Iterable[str]) -> bool:
        """Write unknown names inside the caller's transaction, which calls load() once it has committed.

        Returns whether there were any: ids of an aborted transaction must never be remembered.
        """
        new = False
        for name in symbols:
            if name not in self.symbol_ids:
                connection.execute("INSERT INTO symbol(name) VALUES (?) ON CONFLICT DO NOTHING", (name,))
                new = True
        for name in sources:
            if name not in self.source_ids:
                connection.execute("INSERT INTO source(name) VALUES (?) ON CONFLICT DO NOTHING", (name,))
                new = True
        return new

    def ids(self, connection: apsw.Connection, table: str, names: Iterable[str]) -> list[int]:
        """Return ids by name, also of names that this transaction has just written."""
        known: dict[str, int] = self.symbol_ids if table == "symbol" else self.source_ids  # type: ignore[assignment]
        return [
            known[name]
            if name in known
            else int(connection.execute(f"SELECT id FROM {table} WHERE name = ?", (name,)).get)
            for name in names
        ]

    def symbol_id(self, connection: apsw.Connection, name: str) -> int | None:
        """Return a symbol's id, or None if the tape has never seen it."""
        if name not in self.symbol_ids:
            self.load(connection)
        return self.symbol_ids.get(name)

    def symbol(self, connection: apsw.Connection, symbol_id: int) -> str:
        """Return a symbol's name."""
        if symbol_id not in self._symbols:
            self.load(connection)
        return self._symbols[symbol_id]

    def source(self, connection: apsw.Connection, source_id: int) -> str | None:
        """Return a source's name; 0 is none."""
        if source_id not in self._sources:
            self.load(connection)
        return self._sources[source_id]
