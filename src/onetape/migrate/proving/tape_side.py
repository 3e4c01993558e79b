"""The tape's side: the ticks of a tape that came from Redis, and what symbols of Redis are called on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from onetape.errors import NameAmbiguous
from onetape.migrate.landing.ticks import SOURCE
from onetape.migrate.proving.tick_sides import Part
from onetape.tape import Tape

#: Columns of the tape that are compared, with the symbol and the source.
_OF_TAPE = ("symbol", "ts_event_ns", "price", "size", "bid", "ask", "bid_size", "ask_size", "volume", "open_interest",
            "side", "source")  # fmt: skip

Names = Callable[[str], str]


def names_of(tape: Tape | None) -> Names:
    """Return what a symbol of Redis is called on the tape: an alias stands for the symbol it means."""
    if tape is None:
        return str
    known: dict[str, str] = {}

    def name(symbol: str) -> str:
        found = known.get(symbol)
        if found is None:
            try:
                found = tape.symbol_of(symbol, SOURCE) or symbol
            except NameAmbiguous:
                found = symbol
            known[symbol] = found
        return found

    return name


def of_tape(tape: Tape, symbols: Sequence[str] | None = None) -> Iterator[Part]:
    """Yield the ticks of the tape that came from Redis; of some symbols only, if given."""
    for batch in tape.batches(list(symbols) if symbols is not None else None, columns=_OF_TAPE):
        source = batch.column("source").dictionary_decode().to_pylist()
        kept = np.fromiter((one == SOURCE for one in source), bool, len(source))
        if not kept.any():
            continue
        columns: dict[str, Any] = {}
        for name in _OF_TAPE[1:-1]:
            column = batch.column(name)
            if name == "ts_event_ns":
                columns[name] = column.to_numpy()[kept]
            else:
                columns[name] = column.cast("float64").to_numpy(zero_copy_only=False)[kept]
        names = batch.column("symbol").dictionary_decode().to_pylist()
        yield Part([name for name, one in zip(names, kept.tolist(), strict=True) if one], columns)


__all__ = ["Names", "names_of", "of_tape"]
