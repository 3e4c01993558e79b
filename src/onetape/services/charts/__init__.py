"""Charts: bars of many symbols and intervals, their spreads, what the market does, and how far that can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from onetape.services.charts.measures import Regime
from onetape.services.charts.service import ChartConfig, ChartData, ChartService, SpreadConfig
from onetape.services.charts.spread import Spread

if TYPE_CHECKING:
    from onetape.steady import SteadyTape

__all__ = ["ChartConfig", "ChartData", "ChartService", "Options", "Regime", "Spread", "SpreadConfig", "make"]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[services.charts]: the charts ([[services.charts.charts]]) and the spreads between them."""

    charts: tuple[ChartConfig, ...] = ()
    spreads: tuple[SpreadConfig, ...] = ()


def make(tape: SteadyTape, options: Options) -> ChartService:
    """Return the service. Raises ConfigInvalid."""
    return ChartService(tape, options.charts, options.spreads)
