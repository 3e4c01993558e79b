"""Patterns: detected on bars, written onto the tape, judged by what came after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from onetape.services.patterns.detection import PREFIX, Detection
from onetape.services.patterns.registry import DETECTORS
from onetape.services.patterns.service import PatternService

if TYPE_CHECKING:
    from onetape.steady import SteadyTape

__all__ = ["DETECTORS", "PREFIX", "Detection", "Options", "PatternService", "make"]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[services.patterns]` of onetape.toml; see PatternService."""

    symbols: tuple[str, ...] | None = None
    intervals: tuple[str, ...] = ("1min",)
    detectors: tuple[str, ...] | None = None
    history_s: float = 5 * 86_400


def make(tape: SteadyTape, options: Options) -> PatternService:
    """Return the service. Raises ConfigInvalid."""
    return PatternService(
        tape,
        symbols=options.symbols,
        intervals=options.intervals,
        detectors=options.detectors,
        history_s=options.history_s,
    )
