"""The telling: how the demo prints what it measured, for a terminal, a pipe, or not at all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from onetape import progress

_WIDTH_MAX = 100
_PIPE_WIDTH = 100
_TEXT_MIN = 8


class Telling:
    """Prints the story: numbered chapters, lines, tables, progress. `quiet` prints nothing at all."""

    def __init__(self, quiet: bool = False) -> None:
        terminal = sys.stdout.isatty()
        self._console = Console(quiet=quiet, highlight=False, soft_wrap=False, width=None if terminal else _PIPE_WIDTH)
        if self._console.width > _WIDTH_MAX:
            self._console.width = _WIDTH_MAX
        self._chapter = 0

    @property
    def width(self) -> int:
        """Return how many columns there are to print in."""
        return self._console.width

    @property
    def colour(self) -> bool:
        """Return whether colours can be seen."""
        return self._console.color_system is not None

    @property
    def ascii_only(self) -> bool:
        """Return whether the output has no way to show other letters."""
        return not self._console.encoding.lower().startswith("utf")

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        self._chapter += 1
        self._console.print()
        self._console.print(Text(f"{self._chapter}. {title}", style="bold"))

    def line(self, text: str, style: str = "") -> None:
        """Print a paragraph of a chapter, indented and broken at blanks."""
        for part in Text(text, style=style).wrap(self._console, self.width - 3):
            part.rstrip()
            self._console.print(Text("   ") + part, soft_wrap=True)

    def plain(self, text: str, style: str = "") -> None:
        """Print a line as it is, never broken: what can be copied must stay whole."""
        self._console.print(Text(f"   {text}", style=style), soft_wrap=True)

    def gap(self) -> None:
        """Print an empty line."""
        self._console.print()

    def show(self, thing: RenderableType) -> None:
        """Print something that rich can draw."""
        self._console.print(thing)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
        """Print a table; the first `left` columns are text, cut where there is no room, the others numbers."""
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        while 3 + sum(widths) + 2 * (len(widths) - 1) > self.width and max(widths[:left]) > _TEXT_MIN:
            widths[widths.index(max(widths[:left]))] -= 1
        for at, row in enumerate((head, *rows)):
            cells = [
                _cut(cell, width).ljust(width) if column < left else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            self.plain("  ".join(cells).rstrip(), "" if at else "dim")

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[progress.Progress], None]]:
        """Show progress with rate and time left while the block runs; gives what to call. Gone when it ends."""
        columns = (TextColumn("   {task.description:<12}"), BarColumn(24), _Numbers())
        with Progress(*columns, console=self._console, transient=True, disable=not sys.stdout.isatty()) as shown:
            task = shown.add_task(title, total=None)

            def update(now: progress.Progress) -> None:
                shown.update(task, description=now.step, completed=now.done, total=now.total or None, now=now)

            yield update


class _Numbers(ProgressColumn):
    def render(self, task: Task) -> Text:
        now: progress.Progress | None = task.fields.get("now")
        if now is None:
            return Text("")
        left = "" if now.left_s is None else f", {now.left_s:.0f} s left"
        told = f"{now.done:,} of {now.total:,} keys, {now.rate_per_s:,.0f}/s{left}"
        return Text(told, style="dim", no_wrap=True)


def outcomes(steps: Mapping[str, Mapping[str, int]]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a table of counts: steps down, outcomes across, with a sum."""
    names = list(dict.fromkeys(name for counts in steps.values() for name, count in counts.items() if count))
    rows = [[step, *(_count(counts.get(name, 0)) for name in names)] for step, counts in steps.items()]
    rows.append(["all", *(_count(sum(counts.get(name, 0) for counts in steps.values())) for name in names)])
    return ["step", *(name.replace("_", " ") for name in names)], rows


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _count(count: int) -> str:
    return f"{count:,}" if count else "-"


def size(count: float) -> str:
    """Return a number of bytes for a person."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
