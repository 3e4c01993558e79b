"""The market of the demo: its instruments and their ticks, real where sample data is present, else simulated.

Real instruments keep their names and their data as recorded. Where there are fewer of them than symbols wanted, or
fewer ticks, the seeded simulator gives the rest under names of its own; the two are never mixed in one instrument.
"""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import NamedTuple

from onetape.demo import samples, simulator
from onetape.errors import ConfigInvalid
from onetape.record import Tick

SYMBOLS_MIN = 50
TICKS_MIN = 2000
#: All ticks are held in memory to the end, for the proof: some hundred bytes each.
TICKS_MAX = 2_000_000
#: The live writers need instruments of their own: what they write is simulated and must not pass for real.
SIMULATED_MIN = 12
#: Of the ticks, at most this share is simulated while there is real data left to take.
_SIMULATED_SHARE = 0.15


class Instrument(NamedTuple):
    """One symbol and its ticks in the order of their arrival. `origin` says where real ones come from."""

    symbol: str
    ticks: list[Tick]
    origin: str | None

    @property
    def real(self) -> bool:
        """Return whether its ticks were recorded from a market."""
        return self.origin is not None


def gather(ticks: int, symbols: int, seed: int, folder: Path | None) -> list[Instrument]:
    """Return `symbols` instruments with `ticks` ticks in all; the same arguments give the same ticks.

    `folder`: the sample data, None for a market that is simulated as a whole. Raises ConfigInvalid.
    """
    if symbols < SYMBOLS_MIN or symbols > simulator.SYMBOLS_MAX:
        raise ConfigInvalid(f"symbols = {symbols}", hint=f"{SYMBOLS_MIN} to {simulator.SYMBOLS_MAX}")
    least = max(TICKS_MIN, 40 * symbols)
    if not least <= ticks <= TICKS_MAX:
        raise ConfigInvalid(f"ticks = {ticks}", hint=f"{least:,} to {TICKS_MAX:,} for {symbols} symbols")
    found = [] if folder is None else samples.read(folder, ticks)[: symbols - SIMULATED_MIN]
    made = symbols - len(found)
    budget = int(ticks * (1 - _SIMULATED_SHARE)) if found else 0
    budget = min(budget, ticks - 20 * made)
    shares = _deal([len(one) for _symbol, _origin, one in found], budget)
    real = [
        Instrument(symbol, one[:share], origin)
        for (symbol, origin, one), share in zip(found, shares, strict=True)
        if share
    ]
    made = symbols - len(real)
    rest = ticks - sum(len(one.ticks) for one in real)
    names = simulator.symbols(made)
    counts = [rest // made + (at < rest % made) for at in range(made)]
    return real + [
        Instrument(name, simulator.ticks(name, count, seed), None) for name, count in zip(names, counts, strict=True)
    ]


def _deal(available: list[int], budget: int) -> list[int]:
    """Deal a budget so that small ones get all they have and large ones the same share."""
    shares = [0] * len(available)
    heap = [(count, at) for at, count in enumerate(available)]
    heapq.heapify(heap)
    while heap:
        fair = budget // len(heap)
        count, at = heapq.heappop(heap)
        shares[at] = min(count, fair)
        budget -= shares[at]
    return shares
