"""Bar tables: made bars as an Arrow table, column by column. Loads PyArrow: import it when a table is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from onetape.store.arrow import BAR_SCHEMA
from onetape.store.block import Columns
from onetape.store.made import Rule

_DATED = pa.field("session", pa.date32())
_COUNTED = (pa.field("number", pa.int64()), pa.field("ts_end_ns", pa.int64()))


def schema(rule: Rule) -> pa.Schema:
    """Return the columns of a rule's bars: with their trading day, and what counted bars have besides."""
    return pa.schema([*BAR_SCHEMA, *([_DATED] if rule.dated else []), *(_COUNTED if rule.interval.counted else [])])


def to_arrow(made: Columns, names: dict[int, str], rule: Rule) -> pa.Table:
    """Return made bars as a table, under the symbols' names by id."""
    wanted = schema(rule)
    count = len(made["open"])
    ids = np.array(sorted(names), dtype="<i8")
    codes = np.searchsorted(ids, made["symbol"]).astype("<i4")
    symbols = pa.array([names[symbol_id] for symbol_id in ids.tolist()], pa.string())
    texts = {
        "symbol": pa.DictionaryArray.from_arrays(codes, symbols).cast(pa.string()),
        "interval": pa.repeat(pa.scalar(rule.interval.text, pa.string()), count),
        "source": pa.nulls(count, pa.string()),
        "session": pa.array(made["day"].astype("<i4")).cast(pa.date32()),
    }
    return pa.table(
        [texts[field.name] if field.name in texts else _column(made[field.name], field) for field in wanted], wanted
    )


def _column(values: Any, field: pa.Field) -> pa.Array:
    plain = np.ascontiguousarray(values)
    absent = np.isnan(plain) if plain.dtype.kind == "f" else None
    return pa.array(plain, field.type, mask=absent if absent is not None and absent.any() else None)


def bars_to_arrow(found: Any, rule: Rule) -> pa.Table:
    """Return bars as a table of the same columns."""
    wanted = schema(rule)
    return pa.table([pa.array([getattr(bar, field.name) for bar in found], field.type) for field in wanted], wanted)
