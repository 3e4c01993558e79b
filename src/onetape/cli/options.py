"""Options that several commands share, and the tape they open with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from onetape.cli.times import HELP

if TYPE_CHECKING:
    from onetape.tape import Tape

TapePath = Annotated[Path | None, typer.Option("--tape", help="The tape's file. [default: market_data.db]")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, times as ns and as text.")]
Start = Annotated[str | None, typer.Option("--start", metavar="TIME", help=f"From this time on: {HELP}")]
End = Annotated[str | None, typer.Option("--end", metavar="TIME", help="Before this time.")]


def open_tape(path: Path | None, mode: Literal["r", "rw"] = "r") -> Tape:
    """Open the tape the settings name, or the one at `path`."""
    from onetape import config, tape

    settings = config.load(tape=path)
    return tape.open(
        settings.tape,
        mode=mode,
        durability=settings.durability,
        retention_days=settings.retention_days,
        bar_retention_days=settings.bar_retention_days,
        recent_per_symbol=settings.recent_per_symbol,
        memory_bytes=settings.memory_bytes,
    )
