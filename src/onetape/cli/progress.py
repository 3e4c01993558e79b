"""Progress of long work on stderr: a bar with rate and time left on a terminal, a plain line now and then in a pipe."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from onetape.cli import output

if TYPE_CHECKING:
    from onetape.progress import Progress

#: How often a log gets a line.
_LINE_EVERY_S = 5.0
#: Work that is over sooner shows nothing: a flash of a bar tells nobody anything.
_QUIET_S = 0.5


class ProgressLine:
    """Shows what it is given; `unit` says what is counted ("keys", "bytes"). Silent where `quiet`."""

    def __init__(self, unit: str, *, quiet: bool = False) -> None:
        self._unit, self._quiet = unit, quiet
        self._began_s = time.monotonic()
        self._line_s = self._began_s
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self.done = 0

    def __call__(self, progress: Progress) -> None:
        self.done = progress.done
        now_s = time.monotonic()
        if self._quiet or now_s - self._began_s < _QUIET_S:
            return
        if self._terminal:
            self._draw(progress)
        elif now_s - self._line_s >= _LINE_EVERY_S:
            self._line_s = now_s
            sys.stderr.write(self._text(progress) + "\n")
            sys.stderr.flush()

    def _text(self, progress: Progress) -> str:
        share = "" if progress.fraction is None else f" of {self._amount(progress.total)} ({progress.fraction:.0%})"
        left = "" if progress.left_s is None else f", {output.duration(progress.left_s)} left"
        rate = f", {self._amount(progress.rate_per_s)}/s" if progress.rate_per_s else ""
        return f"{progress.step}: {self._amount(progress.done)}{share}{rate}{left}"

    def _amount(self, count: float) -> str:
        return output.size(count) if self._unit == "bytes" else f"{count:,.0f} {self._unit}"

    def _draw(self, progress: Progress) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bars

            columns = (TextColumn("{task.description}", markup=False), BarColumn(None))
            console = Console(stderr=True)
            self._bar = Bars(*columns, console=console, transient=True, refresh_per_second=10, expand=True)
            self._bar.start()
        if progress.step not in self._tasks:
            self._tasks[progress.step] = self._bar.add_task(progress.step, total=None)
        self._bar.update(
            self._tasks[progress.step],
            description=self._text(progress),
            completed=progress.done,
            total=progress.total or None,
        )

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
