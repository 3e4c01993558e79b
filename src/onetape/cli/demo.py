"""onetape demo: a legacy system becomes one verified tape before your eyes; and a whole system with its web page."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onetape.cli.output import json_line

if TYPE_CHECKING:
    from rich.text import Text

    from onetape.demo.telling import Telling
    from onetape.record import Bar

_SAMPLES = Path("../shared/data")


def demo(
    ticks: Annotated[int, typer.Option(metavar="N", help="Ticks of the legacy system.")] = 220_000,
    symbols: Annotated[int, typer.Option(metavar="N", help="Its symbols, at least 50.")] = 56,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of what is simulated.")] = 1,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where tape, ledger and reports stay. [default: demo-data, or demo-migration; --web keeps nothing]",
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Use this Redis; databases 0, 1, 2, 5 must be empty. [default: a private one]"
        ),
    ] = None,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="The live migration: all phases, and back from each, under writers.")
    ] = False,
    web: Annotated[
        bool, typer.Option("--web", help="A whole system on replayed ticks: sources, services, the web page.")
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="With --web: the page's port; a free one if taken.")
    ] = 8080,
    for_s: Annotated[
        float | None,
        typer.Option("--for", metavar="SECONDS", min=0, help="With --web: end after so long. [default: Ctrl-C]"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print only what was measured, as one JSON object.")] = False,
) -> None:
    """Migrate a legacy system of real market data to a verified tape, while its writers go on.

    With --migrate the writers never stop: the system goes through all phases of a live migration, back from each, and
    every write is counted at the end. It has a size and a private server of its own.

    With --web nothing is migrated: recorded ticks are played again as if they came now, with all services and the web
    page, until Ctrl-C.

    Ticks are real where the sample data is present (ONETAPE_SAMPLE_DATA, else ../shared/data), else simulated.
    """
    from onetape.demo.telling import Telling

    # A terminal that closes or a supervisor ends us with these: servers and writers are then ended in order, too
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    if migrate:
        _print(_live(seed, keep or Path("demo-migration"), Telling(quiet=json)), json)
        return
    if web:
        _print(_web(seed, keep, port, for_s, Telling(quiet=json)), json)
        return
    from onetape.demo.story import Options, run

    options = Options(
        ticks=ticks,
        symbols=symbols,
        seed=seed,
        keep=keep or Path("demo-data"),
        server=server,
        samples=_samples(),
        command=_command(),
        chart=_chart,
    )
    _print(run(options, Telling(quiet=json)), json)


def _live(seed: int, keep: Path, telling: Telling) -> dict[str, Any]:
    from onetape.demo.live.story import Options, run

    return run(Options(seed=seed, keep=keep, samples=_samples(), command=_command()), telling)


def _web(seed: int, keep: Path | None, port: int, for_s: float | None, telling: Telling) -> dict[str, Any]:
    from onetape.demo.web.show import Options, run

    return run(Options(samples=_samples(), keep=keep, seed=seed, port=port, for_s=for_s), telling)


def _print(measured: dict[str, Any], json: bool) -> None:
    if json:
        sys.stdout.write(json_line(measured) + "\n")


def _end(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _samples() -> Path | None:
    path = Path(os.environ.get("ONETAPE_SAMPLE_DATA") or _SAMPLES)
    return path if path.is_dir() else None


def _command() -> str:
    """Return how to call this program from here: its name if the PATH finds it, else its path."""
    program = Path(sys.argv[0])
    if program.name != "onetape":
        return f"{shlex.quote(sys.executable)} -m onetape"
    found = shutil.which("onetape")
    if found is not None and Path(found).absolute() == program.absolute():
        return "onetape"
    return shlex.quote(os.path.relpath(program))


def _chart(bars: Sequence[Bar], width: int, height: int, title: str, ascii_only: bool, colour: bool) -> Text:
    from onetape.cli.chart import candle_chart

    return candle_chart(bars, width, height, title=title, ascii_only=ascii_only, colour=colour)
