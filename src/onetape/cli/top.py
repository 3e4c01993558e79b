"""onetape top: the symbols as they move, at five frames a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onetape.cli import output
from onetape.cli.options import TapePath, open_tape

if TYPE_CHECKING:
    from rich.console import RenderableType

    from onetape.services.board import Board, Row

FRAME_S = 0.2
_SORTS = {
    "symbol": lambda row: row.symbol,
    "rate": lambda row: -row.rate,
    "change": lambda row: -abs(row.change_pct or 0.0),
    "lag": lambda row: -(row.lag_ms or 0.0),
    "age": lambda row: row.age_s,
}
_HEAD = ("symbol", "last", "change", "%", "bid", "ask", "ticks/s", "lag", "age")


def top(
    symbols: Annotated[list[str] | None, typer.Argument(help="Only these symbols. [default: all]")] = None,
    tape: TapePath = None,
    sort: Annotated[str, typer.Option(help=f"Order of the rows: {', '.join(_SORTS)}.")] = "symbol",
    rows: Annotated[int | None, typer.Option(min=1, help="At most so many rows. [default: the screen's]")] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="A running `onetape serve`, for its sources' lag, gaps and drops.")
    ] = None,
    token: Annotated[str | None, typer.Option(envvar="ONETAPE_TOKEN", help="Its token, where it wants one.")] = None,
    once: Annotated[bool, typer.Option("--once", help="One look of a second, and exit.")] = False,
    json: Annotated[bool, typer.Option("--json", help="A JSON object a line and frame.")] = False,
) -> None:
    """Watch symbols live: last, change, rate, lag; and sources: lag, gaps, drops. Ctrl-C ends it."""
    if sort not in _SORTS:
        from onetape.errors import ConfigInvalid

        raise ConfigInvalid(f"--sort {sort}", hint=f"it is one of {', '.join(_SORTS)}")
    from onetape.cli.top_sources import Sources
    from onetape.services.board import Board

    with open_tape(tape) as opened, Board(opened, symbols or None) as board, Sources(url, token) as sources:
        if once or json or not sys.stdout.isatty():
            _lines(board, sources, sort, rows, once, json)
        else:
            _screen(board, sources, sort, rows)


def _lines(board: Board, sources: Any, sort: str, rows: int | None, once: bool, json: bool) -> None:
    wait_s = 1.0 if once or not json else FRAME_S
    while True:
        time.sleep(wait_s)
        if once:
            sources.await_first()
        found = _sorted(board.look(), sort)[:rows]
        if json:
            typer.echo(output.json_line({"symbols": found, "behind": board.behind, "sources": sources.look()}))
        else:
            output.print_table(_HEAD, [_cells(row) for row in found], left=("symbol",))
            for line in sources.lines():
                typer.echo(line)
        sys.stdout.flush()
        if once:
            return


def _screen(board: Board, sources: Any, sort: str, rows: int | None) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, markup=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(FRAME_S)
            found = _sorted(board.look(), sort)
            room = rows or max(1, console.size.height - 4 - len(sources.lines()))
            live.update(_drawn(found, room, board, sources), refresh=True)


def _drawn(found: Sequence[Row], room: int, board: Board, sources: Any) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in _HEAD:
        table.add_column(name, justify="left" if name == "symbol" else "right", no_wrap=True)
    for row in found[:room]:
        style = "" if not row.change else ("green" if row.change > 0 else "red")
        cells = [Text(text) for text in _cells(row)]
        cells[2].stylize(style)
        cells[3].stylize(style)
        table.add_row(*cells)
    rate = sum(row.rate for row in found)
    told = f"{len(found):,} symbols  {rate:,.0f} ticks/s  {board.behind:,} behind"
    if len(found) > room:
        told += f"  ({len(found) - room:,} more: a larger screen, or name symbols)"
    return Group(Text(told, style="dim"), table, *(Text(line) for line in sources.lines()))


def _sorted(rows: Sequence[Row], sort: str) -> list[Row]:
    return sorted(rows, key=_SORTS[sort])


def _cells(row: Row) -> tuple[str, ...]:
    def signed(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:+,.{digits}f}"

    return (
        output.plain(row.symbol),
        output.number(row.price),
        "" if row.change is None else f"{row.change:+.10g}",
        signed(row.change_pct, 2),
        output.number(row.bid),
        output.number(row.ask),
        f"{row.rate:,.1f}",
        "" if row.lag_ms is None else _time(row.lag_ms / 1000),
        _time(row.age_s),
    )


def _time(seconds: float) -> str:
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f} ms"
    return output.duration(seconds) if seconds >= 0 else f"-{output.duration(-seconds)}"
