"""onetape migrate mirror: follow writers that cannot be changed, until stopped."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from onetape.cli import output
from onetape.cli.live_options import AllowFlush, Ledger, MetricsPort, PlanFile, Redis, TargetDb, chosen
from onetape.cli.options import TapePath, open_tape

if TYPE_CHECKING:
    from onetape.migrate.mirror import MirrorStatus

_LINE_EVERY_S = 5.0

ENDS = """\b
Exit codes:
  0    stopped (Ctrl-C, SIGTERM), or with --once: both sides are equal
  1    the server was lost for good; or a database lost its keys without a word
  2    refused: no live migration, or another mirror is at work
  3    stopped, and there are keys that differ and are kept, or that failed
"""


def mirror(
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    ledger: Ledger = None,
    tape: TapePath = None,
    no_tape: Annotated[bool, typer.Option("--no-tape", help="Mirror keys in Redis only.")] = False,
    memory: Annotated[
        Path | None, typer.Option("--memory", help="What it knows of both sides. [default: LEDGER.mirror]")
    ] = None,
    sweep_every: Annotated[
        float, typer.Option("--sweep-every", min=0.1, metavar="S", help="Seconds from the end of a sweep to the next.")
    ] = 60.0,
    sweep_rate: Annotated[
        float, typer.Option("--sweep-rate", min=100, metavar="N", help="Keys a second that a sweep looks at, at most.")
    ] = 20_000.0,
    once: Annotated[bool, typer.Option("--once", help="End after one sweep, when no hint is left.")] = False,
    no_hints: Annotated[bool, typer.Option("--no-hints", help="Do not listen to notifications; sweep only.")] = False,
    allow_flush: AllowFlush = False,
    metrics_port: MetricsPort = None,
    json: Annotated[bool, typer.Option("--json", help="Its status as one JSON object a line.")] = False,
) -> None:
    """Follow writers that cannot be changed: what they write under old names comes to be under the new ones.

    It listens to the server's notifications, and sweeps all keys now and then. After the cutover it follows the new
    names back to the old ones. It never overwrites what somebody else wrote on the other side; that is kept and listed.
    """
    from onetape.migrate.mirror import Mirror, Options
    from onetape.migrate.phases.helm import Helm
    from onetape.migrate.watching.view import Viewer

    settings, plan, ledger_path = chosen(redis, plan_file, target_db, ledger, tape)
    options = Options(
        sweep_every_s=sweep_every,
        sweep_keys_per_s=sweep_rate,
        once=once,
        allow_flush=allow_flush,
        hints=not no_hints,
    )
    with ExitStack() as stack:
        opened = None if no_tape else stack.enter_context(open_tape(settings.tape, "rw"))
        if metrics_port is not None:
            from onetape.cli.watch import serve

            serve(stack, stack.enter_context(Viewer(Helm(settings.redis_url, plan, ledger_path))), metrics_port)
        running = Mirror(
            settings.redis_url,
            plan,
            memory or ledger_path.with_name(ledger_path.name + ".mirror"),
            ledger_path=ledger_path,
            tape=opened,
            options=options,
            on_status=_Telling(json),
        )
        status = running.run(stack.enter_context(_stopped_by_signals()))
    _tell_end(status, json)
    if status.kept or status.failed:
        raise typer.Exit(3)


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second Ctrl-C interrupts as ever."""
    stop = threading.Event()

    def on_signal(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Telling:
    """Tells a mirror's status: a line that is written over on a terminal, one now and then in a log."""

    def __init__(self, json: bool) -> None:
        self._json = json
        self._terminal = sys.stderr.isatty() and not json
        self._told_s = 0.0

    def __call__(self, status: MirrorStatus) -> None:
        if self._json:
            facts = msgspec.structs.asdict(status)
            del facts["token"]
            typer.echo(output.json_line(facts))
            sys.stdout.flush()
            return
        now_s = time.monotonic()
        if self._terminal:
            sys.stderr.write("\r\x1b[K" + _line(status)[:160])
            sys.stderr.flush()
        elif now_s - self._told_s >= _LINE_EVERY_S:
            self._told_s = now_s
            output.note(_line(status))


def _line(status: MirrorStatus) -> str:
    lag = "unknown" if status.lag_ms is None else f"{status.lag_ms:.1f} ms"
    way = "new to old" if status.back else "old to new"
    doing = "paused, " if status.paused else "" if status.sweeping is None else f"sweeping {status.sweeping:.0%}, "
    return output.plain(
        f"mirror {way}: {doing}lag {lag}, {status.queue:,} waiting, copied {status.copied:,}, deleted "
        f"{status.deleted:,}, merged {status.merged:,}, kept {status.kept:,}, failed {status.failed:,}"
        + (f"; {status.note}" if status.note else "")
    )


def _tell_end(status: MirrorStatus, json: bool) -> None:
    if json:
        return
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    typer.echo(_line(status).replace(f"lag {status.lag_ms} ms, ", ""))
    if status.kept:
        output.note(f"{status.kept:,} keys differ and were kept: onetape migrate verify --repair settles them")
    if status.last_error:
        output.note(status.last_error)
