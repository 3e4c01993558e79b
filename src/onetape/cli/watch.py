"""Commands that look on: onetape migrate watch and metrics."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from onetape.cli import output
from onetape.cli.live_options import Ledger, MetricsPort, PlanFile, Redis, TargetDb, helm
from onetape.cli.options import TapePath

if TYPE_CHECKING:
    from onetape.migrate.phases.helm import Helm
    from onetape.migrate.watching.view import View, Viewer

#: Frames a second at most: more tells nobody anything.
_EVERY_S_MIN = 0.2


def watch(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
    every: Annotated[float, typer.Option(min=_EVERY_S_MIN, metavar="S", help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and exit.")] = False,
    metrics_port: MetricsPort = None,
    json: Annotated[bool, typer.Option("--json", help="A JSON object a line, each time it looks.")] = False,
) -> None:
    """Watch a live migration: phase, progress, rate, lag, what slows it, clients. Only reads. Ctrl-C ends it."""
    place = helm(redis, plan_file, target_db, ledger, tape)
    with _looking(place, metrics_port) as viewer:
        if json or once or not sys.stdout.isatty():
            _lines(viewer, every, once, json)
        else:
            _screen(viewer, every)


def metrics(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
) -> None:
    """Print a live migration's metrics once, as Prometheus reads them. Only reads."""
    from onetape.migrate.watching.metrics import text

    with _looking(helm(redis, plan_file, target_db, ledger, tape), None) as viewer:
        typer.echo(text(viewer.view()), nl=False)


@contextmanager
def _looking(place: Helm, port: int | None) -> Iterator[Viewer]:
    from onetape.migrate.watching.view import Viewer

    with ExitStack() as stack:
        viewer = stack.enter_context(Viewer(place))
        if port is not None:
            serve(stack, viewer, port)
        yield viewer


def serve(stack: ExitStack, viewer: Viewer, port: int) -> None:
    """Serve metrics until the stack is left, and say where."""
    from onetape.migrate.watching.metrics import Served

    served = stack.enter_context(Served(viewer.view, port))
    output.note(f"metrics: http://127.0.0.1:{served.port}/metrics")


def _lines(viewer: Viewer, every_s: float, once: bool, json: bool) -> None:
    while True:
        view = viewer.view()
        if json:
            typer.echo(output.json_line(view.to_dict()))
        elif once:
            _print(view)
        else:
            typer.echo(f"{view.to_dict()['at']} {_line(view)}")
        if once:
            if view.trouble and not view.address:
                raise typer.Exit(1)
            return
        sys.stdout.flush()
        time.sleep(every_s)


def _line(view: View) -> str:
    from onetape.cli.watch_screen import line

    return line(view)


def _print(view: View) -> None:
    from rich.console import Console

    from onetape.cli.watch_screen import screen

    Console(highlight=False, markup=False).print(screen(view))


def _screen(viewer: Viewer, every_s: float) -> None:
    from rich.console import Console
    from rich.live import Live

    from onetape.cli.watch_screen import screen

    console = Console(highlight=False, markup=False)
    with Live(screen(viewer.view()), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            live.update(screen(viewer.view()), refresh=True)
