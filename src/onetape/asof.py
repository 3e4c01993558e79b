"""The as-of join of two Arrow tables: what was quoted when something was traded, on one tape or on two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onetape.errors import ConfigInvalid
from onetape.store import join
from onetape.store.block import Array

if TYPE_CHECKING:
    import pyarrow as pa

#: What a quote says.
QUOTE = ("bid", "ask", "bid_size", "ask_size")


def join_as_of(
    trades: pa.Table,
    quotes: pa.Table,
    columns: Sequence[str] = QUOTE,
    *,
    max_age_ns: int | None = None,
    same_tape: bool = True,
    prefix: str = "",
) -> pa.Table:
    """Return `trades` with, beside each row, the newest row of `quotes` at or before it.

    Both are tables as Tape.read() gives them, with ts_event_ns and in canonical order (ts_event_ns, seq). Of `quotes`
    come `columns`, quote_ts_ns (its time) and quote_age_ns (how much older it is, >= 0); each with `prefix` in front of
    its name. They are null where there is no quote, or none of the last `max_age_ns`. A row of `quotes` with neither
    bid nor ask is no quote; one with a single side means that the other side is empty: quotes replace both sides.

    same_tape: the positions (seq) of both tables say which of two rows of equal time came first, and a record that is
    both a trade and a quote is its own quote. Without it, or without seq, every quote of equal time counts as before.

    Raises ConfigInvalid for a column that is missing, there twice, or not in order.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if max_age_ns is not None and max_age_ns < 0:
        raise ConfigInvalid(f"max_age_ns = {max_age_ns}", hint="an age is 0 or more")
    added = [prefix + name for name in (*columns, "quote_ts_ns", "quote_age_ns")]
    for name in columns:
        if name not in quotes.column_names:
            raise ConfigInvalid(f"the quotes have no column {name!r}", hint="read them with it")
    for name in added:
        if name in trades.column_names or added.count(name) > 1:
            raise ConfigInvalid(f"the result would have two columns {name!r}", hint="give a prefix")
    sides = [name for name in ("bid", "ask") if name in quotes.column_names]
    if sides:
        told = pc.is_valid(quotes[sides[0]])
        for name in sides[1:]:
            told = pc.or_(told, pc.is_valid(quotes[name]))
        if not pc.all(told, min_count=0).as_py():
            quotes = quotes.filter(told)
    ts, seq = _place(trades, "trades", same_tape)
    of_ts, of_seq = _place(quotes, "quotes", same_tape)
    found = join.within(join.newest_before(ts, seq, of_ts, of_seq), ts, of_ts, max_age_ns)
    none = found < 0
    index = pa.array(found, pa.int64(), mask=none if none.any() else None)
    for name in columns:
        trades = trades.append_column(prefix + name, quotes[name].combine_chunks().take(index))
    quoted = pa.array(of_ts).take(index)
    return trades.append_column(added[-2], quoted).append_column(added[-1], pc.subtract(pa.array(ts), quoted))


def _place(table: pa.Table, what: str, same_tape: bool) -> tuple[Array, Array | None]:
    """Return the times and positions of a table that is in canonical order."""
    if "ts_event_ns" not in table.column_names:
        raise ConfigInvalid(f"the {what} have no column 'ts_event_ns'", hint="read them with it")
    ts = _numbers(table["ts_event_ns"])
    seq = _numbers(table["seq"]) if same_tape and "seq" in table.column_names else None
    later = ts[1:] > ts[:-1]
    tied = ts[1:] == ts[:-1]
    if not bool((later | (tied if seq is None else tied & (seq[1:] >= seq[:-1]))).all()):
        raise ConfigInvalid(f"the {what} are not in order", hint="sort them by ts_event_ns, then seq")
    return ts, seq


def _numbers(column: Any) -> Array:
    if column.null_count:
        raise ConfigInvalid("a time or a position is null", hint="read the table from a tape")
    return np.asarray(column.combine_chunks().to_numpy(zero_copy_only=False), dtype="<i8")
