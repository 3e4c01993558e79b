"""State: positions, risk parameters, what the system may do; durable in a file beside the tape, exact in its money."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from onetape.services.state.file import Event
from onetape.services.state.position import Fill, Position
from onetape.services.state.risk import Breach, RiskParameters
from onetape.services.state.service import StateService
from onetape.services.state.valued import ProfitLoss, Valued

if TYPE_CHECKING:
    from onetape.steady import SteadyTape

__all__ = [
    "Breach",
    "Event",
    "Fill",
    "Options",
    "Position",
    "ProfitLoss",
    "RiskParameters",
    "StateService",
    "Valued",
    "make",
]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[services.state]: the file (None: beside the tape, `<tape>.state`), and when a trading day begins."""

    path: str | None = None
    day_starts: str = "00:00 UTC"


def make(tape: SteadyTape, options: Options) -> StateService:
    """Return the service."""
    return StateService(tape, options.path or f"{tape.path}.state", day_starts=options.day_starts)
