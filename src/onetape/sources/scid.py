"""Sierra Chart's .scid files, followed: what is in the file, then what Sierra Chart writes to it.

[[source]]
kind = "scid"
path = "/sierra/Data/ESZ6.scid"
symbol = "ESZ6"
tick_size = "0.25"
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from onetape.clock import to_ns
from onetape.errors import ConfigInvalid
from onetape.importing.scid_file import FIRST_PART, LAST_PART, Prices
from onetape.record import interval_ns
from onetape.sources.scid_tail import ScidTail

__all__ = ["FIRST_PART", "LAST_PART", "Options", "ScidTail", "make"]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `[[source]] kind = "scid"` takes.

    symbol: the file's name without its ending, if left out. multiplier, tick_size: decimals; prices are this many
    times what the file says, and multiples of the tick size. interval: of bars; inferred if left out. start:
    "history", all that is in the file, "now", or a time, where the tape has nothing of this source yet.
    """

    path: str
    symbol: str | None = None
    source: str = "sierra"
    multiplier: str | float = 1
    tick_size: str | float | None = None
    interval: str | None = None
    start: str = "history"


def make(name: str, options: Options) -> ScidTail:
    """Return the source. Raises ConfigInvalid, naming the key."""
    path = Path(options.path)
    start_ns: int | None
    if options.start in ("history", "now"):
        start_ns = None if options.start == "history" else -1
    else:
        start_ns = to_ns(options.start, f"source {name}: start")
    try:
        length = None if options.interval is None else interval_ns(options.interval)
    except ValueError as error:
        raise ConfigInvalid(f"source {name}: interval: {error}", hint="such as 1min, 5min, 1h, 1d") from error
    symbol = options.symbol if options.symbol is not None else path.name.removesuffix(path.suffix)
    if not symbol:
        raise ConfigInvalid(f"source {name}: path = {options.path!r}", hint="the path of a file, or give the symbol")
    return ScidTail(
        path,
        symbol,
        name=name,
        source=options.source,
        prices=Prices(options.multiplier, options.tick_size),
        interval_ns=length,
        start_ns=start_ns,
    )
