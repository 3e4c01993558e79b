"""The catalog: the names of symbols and sources, and their ids, which are given once and never change.

A symbol may have further names (store/aliases.py). Those that were met are remembered beside the symbols' own, so
that an append under an alias costs no more. `state.names` counts changes of names: who sees it grow forgets aliases
and reads names anew. It is looked at whenever a connection is at hand: at every read, at every append of several
records or of a new name, but not by the fast path of an append of one tick under a name it knows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import apsw
import numpy as np

from onetape.errors import InvalidRecord
from onetape.store import aliases, block

if TYPE_CHECKING:
    from onetape.store.table import Batch


class Catalog:
    """Names to ids and back, remembered in memory; what other processes add is looked up when it is met."""

    def __init__(self) -> None:
        #: Every name that means one symbol whoever sends it: symbols, and aliases that were met.
        self.symbol_ids: dict[str, int] = {}
        self.source_ids: dict[str | None, int] = {None: 0}
        #: Of the aliases among them: the symbols they stand for.
        self.aliases: dict[str, str] = {}
        self._names: dict[str, int] = {}
        self._symbols: dict[int, str] = {}
        self._sources: dict[int, str | None] = {0: None}
        #: Aliases met in a transaction that may not have been committed, or whose symbol has no record yet.
        self._met: dict[str, str] = {}
        self.version = 0
        self._lock = threading.Lock()

    def load(self, connection: apsw.Connection) -> None:
        """Read names that were added since the last time; all of them, if names have changed."""
        with self._lock:
            version = _version(connection)
            anew = version > self.version
            after = 0 if anew else max(self._symbols, default=0)
            # A symbol whose name is an alias in the records of some source is not found by its name alone.
            rows: list[Any] = connection.execute(
                "SELECT id, name, EXISTS(SELECT 1 FROM alias WHERE alias.name = symbol.name) FROM symbol WHERE id > ?",
                (after,),
            ).fetchall()
            if anew:
                self._forget({name for _, name, _ in rows}, {name for _, name, scoped in rows if not scoped})
            for symbol_id, name, scoped in rows:
                self._symbols[symbol_id] = name
                self._names[name] = symbol_id
                if not scoped:
                    self.symbol_ids[name] = symbol_id
            self.version = max(version, self.version)
            for alias, symbol in list(self._met.items()):
                self._remember(alias, symbol)
            for source_id, name in connection.execute(
                "SELECT id, name FROM source WHERE id > ?", (max(self._sources, default=0),)
            ):
                self._sources[source_id] = name
                self.source_ids[name] = source_id

    def _forget(self, names: set[str], plain: set[str]) -> None:
        """Forget all but these, in place: other threads look into the dicts meanwhile."""
        self._met.clear()
        for name in set(self.symbol_ids) - plain:
            self.symbol_ids.pop(name, None)
        for name in set(self._names) - names:
            self._names.pop(name, None)
        for name in list(self.aliases):
            self.aliases.pop(name, None)

    def _remember(self, alias: str, symbol: str) -> None:
        symbol_id = self._names.get(symbol)
        if symbol_id is not None:
            self.aliases[alias] = symbol  # before the name can be found: who finds it may ask whose it is
            self.symbol_ids[alias] = symbol_id
            self._met.pop(alias, None)

    def refresh(self, connection: apsw.Connection) -> None:
        """Read all names anew if any has changed."""
        if _version(connection) > self.version:
            self.load(connection)

    def settle(self, connection: apsw.Connection, batches: list[Batch]) -> list[Batch]:
        """Return batches with aliases replaced by what they stand for, inside the transaction that stores them.

        Raises InvalidRecord for records of a continuous future: it has none of its own.
        """
        self.refresh(connection)
        settled, offset = [], 0
        for batch in batches:
            settled.append(self._settle(connection, batch, offset))
            offset += len(batch)
        return settled

    def _settle(self, connection: apsw.Connection, batch: Batch, offset: int) -> Batch:
        column = batch.columns["symbol"]
        unknown = [i for i in block.distinct(column).tolist() if batch.symbols[i] not in self.symbol_ids]
        if not unknown:
            return batch
        symbols, settled = list(batch.symbols), column
        for index in unknown:
            name = symbols[index]
            by_source = aliases.lookup(connection, name)
            if not by_source and name not in self._names and aliases.is_continuous(connection, name):
                first = offset + int(np.argmax(column == index))
                raise InvalidRecord(first, "symbol", name, "a continuous future is a view: append to its contracts")
            if aliases.ANY in by_source:
                symbols[index] = by_source.pop(aliases.ANY)
                if not by_source:
                    self._met[name] = symbols[index]
            for source, symbol in by_source.items():
                if source not in batch.sources or "source" not in batch.columns:
                    continue
                mask = (column == index) & (batch.columns["source"] == batch.sources.index(source) + 1)
                if mask.any():
                    settled = settled.copy() if settled is column else settled
                    settled[mask] = len(symbols)
                    symbols.append(symbol)
        return replace(batch, symbols=symbols, columns={**batch.columns, "symbol": settled})

    def add(self, connection: apsw.Connection, symbols: Iterable[str], sources: Iterable[str]) -> bool:
        """Write unknown names inside the caller's transaction, which calls load() once it has committed.

        Returns whether there were any: ids of an aborted transaction must never be remembered.
        """
        new = bool(self._met)
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
        """Return the id of a symbol by its name or an alias, or None if the tape has no record of it.

        Raises NameAmbiguous where sources mean different symbols by the name.
        """
        self.refresh(connection)
        if (found := self.symbol_ids.get(name)) is not None:
            return found
        self.load(connection)
        if (found := self.symbol_ids.get(name, self._names.get(name))) is not None:
            return found
        symbol = aliases.meaning(connection, name)
        if symbol is None:
            return None
        with self._lock:
            if aliases.lookup(connection, name).keys() == {aliases.ANY}:
                self._remember(name, symbol)
        return self._names.get(symbol)

    def find(self, connection: apsw.Connection, name: str) -> tuple[int | None, str]:
        """Return (id, name) of the symbol that a name stands for; (None, the name given) if there is none."""
        symbol_id = self.symbol_id(connection, name)
        return symbol_id, name if symbol_id is None else self.symbol(connection, symbol_id)

    def names(self) -> list[str]:
        """Return the names of the symbols that were read, without aliases."""
        return list(self._names)

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


def _version(connection: apsw.Connection) -> int:
    return int(connection.execute("SELECT names FROM state").get)
