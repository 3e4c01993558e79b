"""The schema of an export: which columns it has, what their units are, and what a file says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import pyarrow as pa

from onetape.errors import ConfigInvalid
from onetape.record import Tick
from onetape.store import arrow

What = Literal["ticks", "bars"]

#: Columns that hold times.
TIMES = frozenset({"ts_event_ns", "ts_recv_ns", "ts_start_ns"})
_UNIT = {b"unit": b"ns since 1970-01-01T00:00:00Z"}


class Origin(msgspec.Struct, frozen=True):
    """What an export says of itself: who wrote it, what it holds, and the position of the tape it shows."""

    onetape: str
    what: What
    head: int
    interval: str | None
    times: str = "int64, ns since 1970-01-01T00:00:00Z"

    def metadata(self, **more: str) -> dict[bytes, bytes]:
        """Return it as the metadata of an Arrow schema."""
        facts = {
            "version": self.onetape,
            "what": self.what,
            "head": str(self.head),
            "interval": self.interval,
            "times": self.times,
        }
        told = {name: value for name, value in {**facts, **more}.items() if value is not None}
        return {f"onetape.{name}".encode(): value.encode() for name, value in told.items()}


def names(what: What, columns: Sequence[str] | None) -> list[str]:
    """Return the columns asked for, all by default. Raises ConfigInvalid for one that no record has, or has twice."""
    known = list(Tick.__struct_fields__) if what == "ticks" else list(arrow.BAR_SCHEMA.names)
    asked = known if columns is None else list(columns)
    for name in asked:
        if name not in known:
            raise ConfigInvalid(f"no {what[:-1]} has a column {name!r}", hint=f"columns are {', '.join(known)}")
        if asked.count(name) > 1:
            raise ConfigInvalid(f"column {name!r} is asked for twice", hint="name it once")
    if not asked:
        raise ConfigInvalid("no columns are asked for", hint=f"columns are {', '.join(known)}")
    return asked


def of(what: What, columns: Sequence[str], metadata: dict[bytes, bytes]) -> Any:
    """Return the Arrow schema of these columns; texts are dictionaries for ticks."""
    fields = [
        pa.field(
            name,
            arrow.arrow_type(name) if what == "ticks" else arrow.BAR_SCHEMA.field(name).type,
            metadata=_UNIT if name in TIMES else None,
        )
        for name in columns
    ]
    return pa.schema(fields, metadata)
