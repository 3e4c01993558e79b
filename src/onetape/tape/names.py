"""Names: the further names of symbols, and what a name stands for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import apsw

from onetape.store import aliases
from onetape.store.aliases import Alias
from onetape.tape.handle import Handle


class AliasesAdded(NamedTuple):
    """What adding a list of aliases did: how many are new, and how many were there already."""

    added: int
    known: int


class SymbolNames(Handle):
    """How symbols are called."""

    def alias(
        self, name: str, symbol: str, *, source: str | None = None, replace: bool = False, rename: str | None = None
    ) -> str:
        """Let `name` stand for `symbol` too, in every process; return the symbol.

        Appends, reads and followers take the alias for the symbol, and what they give bears the symbol's own name.
        `symbol` need not have records yet; an alias of an alias is one of its symbol. source: only in records of
        this source, for tokens that vendors use for different things. replace: an alias that stands for another
        symbol stands for this one from now on; records stay where they are. rename: `name` is a symbol with records;
        it bears this name from now on.

        A process that has appended ticks under the name before, singly or with a writer, goes on as it did until it
        next looks at the tape's names: at its next read, append of several, or seal. Repeating it changes nothing.
        Raises NameTaken, NameAmbiguous, ConfigInvalid, TapeReadOnly.
        """
        with self._changing_names() as connection:
            return aliases.add(connection, name, symbol, source, replace, rename)[0]

    def add_aliases(
        self, pairs: Iterable[tuple[str, str]], *, source: str | None = None, replace: bool = False
    ) -> AliasesAdded:
        """Make aliases of (name, symbol) pairs in one transaction: all of them, or none if one is refused."""
        given = list(pairs)
        with self._changing_names() as connection:
            return AliasesAdded(*aliases.add_all(connection, given, source, replace))

    def remove_alias(self, name: str, *, source: str | None = None) -> str:
        """Let `name` stand for nothing; return the symbol it stood for. Records stay, under the symbol's name.

        Later appends under the name make a symbol of it. Raises ConfigInvalid if it is no alias.
        """
        with self._changing_names() as connection:
            return aliases.remove(connection, name, source)

    def aliases(self, symbol: str | None = None) -> list[Alias]:
        """Return all aliases, or those of one symbol, by name and source."""
        with self._reading() as connection:
            return aliases.listing(connection, symbol)

    def symbol_of(self, name: str, source: str | None = None) -> str | None:
        """Return the symbol that a name stands for (itself, if it is one), or None if the tape does not know it.

        source: in records of this source. Raises NameAmbiguous where only the source tells.
        """
        with self._reading() as connection:
            if source is not None and (found := aliases.lookup(connection, name).get(source)) is not None:
                return found
            if aliases.is_symbol(connection, name):
                return name
            return aliases.meaning(connection, name, source)

    @contextmanager
    def _changing_names(self) -> Iterator[apsw.Connection]:
        connection = self._writing()
        with self._write_lock:
            try:
                with self._transaction(connection):
                    yield connection
                self._catalog.refresh(connection)
            except apsw.Error as error:
                raise self._failed(error, "change names on") from error
        if self._recent is not None:
            try:
                self._recent.catch_up()
            except apsw.Error as error:
                raise self._failed(error, "read") from error
