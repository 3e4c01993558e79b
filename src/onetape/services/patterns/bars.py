"""Bars as arrays: what detectors are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

    from onetape.record import Bar

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class BarArrays:
    """Complete bars of one symbol and interval, ascending in time; all columns have one length.

    ts_ns are their starts. A volume that is not known is NaN.
    """

    ts_ns: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats

    def __len__(self) -> int:
        return self.ts_ns.size

    def cut(self, start: int, stop: int) -> BarArrays:
        """Return the bars from index `start` up to, not including, `stop`."""
        part = slice(start, stop)
        prices = (self.open[part], self.high[part], self.low[part], self.close[part])
        return BarArrays(self.ts_ns[part], *prices, self.volume[part])


def from_table(table: pa.Table) -> BarArrays:
    """Return the complete bars of a table as Tape.bars() gives it."""
    import pyarrow.compute as pc

    kept = table.filter(table["complete"])

    def floats(name: str) -> Floats:
        return np.ascontiguousarray(pc.fill_null(kept[name], np.nan).to_numpy(), dtype=np.float64)

    ts_ns = np.ascontiguousarray(kept["ts_start_ns"].to_numpy()).astype(np.int64)
    return BarArrays(ts_ns, floats("open"), floats("high"), floats("low"), floats("close"), floats("volume"))


def from_bars(bars: Sequence[Bar]) -> BarArrays:
    """Return the complete ones of these bars."""
    kept = [bar for bar in bars if bar.complete]
    ts_ns = np.array([bar.ts_start_ns for bar in kept], dtype=np.int64)

    def floats(name: str) -> Floats:
        return np.array([getattr(bar, name) for bar in kept], dtype=np.float64)  # None is NaN

    return BarArrays(ts_ns, floats("open"), floats("high"), floats("low"), floats("close"), floats("volume"))
