"""The command that shows bars, and follows them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onetape.cli import output
from onetape.cli.options import End, Json, Start, TapePath, open_tape
from onetape.cli.query import check_known, print_json
from onetape.cli.times import parse_span, position
from onetape.errors import ConfigInvalid

if TYPE_CHECKING:
    from onetape.record import Bar
    from onetape.tape import Tape

_TEXT = ("symbol", "time", "source", "session", "end", "state")
#: How often a follower looks whether its reader is still there and whether its time is up, while nothing changes.
_LOOK_S = 0.5


def bars(
    symbols: Annotated[list[str], typer.Argument(metavar="SYMBOL...", help="Which symbols.")],
    interval: Annotated[
        str,
        typer.Option(
            metavar="LENGTH",
            help="What a bar is: 30s, 5min, 1h, 1d, or 100tick, 5000volume, 1000000value, 2.5range.",
        ),
    ] = "1min",
    start: Start = None,
    end: End = None,
    session: Annotated[
        str | None,
        typer.Option(
            metavar="HOURS",
            help="When the market trades: a calendar such as XNYS, or 'America/Chicago 17:00-16:00 mon-fri CMES'."
            " [default: UTC days]",
        ),
    ] = None,
    price: Annotated[
        str, typer.Option(metavar="PRICE", help="Of what: trade, or bid, ask or mid for bars of quotes.")
    ] = "trade",
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only bars that this source gave, not the tape's own.")
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option("--as-of", metavar="MOMENT", help="What the tape said at a position, a snapshot or a time."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=0, help="At most this many, the newest; 0: all. [default: 20; what fits a chart]")
    ] = None,
    chart: Annotated[bool, typer.Option("--chart", help="Draw candles instead of listing numbers.")] = False,
    width: Annotated[int | None, typer.Option(min=30, max=1000, help="Columns of a chart.")] = None,
    height: Annotated[int, typer.Option(min=4, max=200, help="Rows of a chart.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", help="Show bars as they form, end and are revised.")] = False,
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With --follow: end after this many changes.")
    ] = None,
    idle: Annotated[
        float | None, typer.Option(min=0, metavar="S", help="With --follow: end when nothing changed for so long.")
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(min=0, metavar="S", help="With --follow: a bar over for so long by the clock is complete."),
    ] = None,
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """Show bars, oldest first; with --chart as candles, with --follow live."""
    start_ns, end_ns = parse_span(start, end)
    if chart and (json or follow or len(symbols) > 1):
        raise ConfigInvalid("a chart is of one symbol, not JSON and not followed", hint="leave --chart out")
    which: dict[str, Any] = {"session": session, "price": price}
    with open_tape(tape) as opened:
        if follow:
            if end is not None or source is not None or as_of is not None:
                raise ConfigInvalid("--follow has no --end, --source or --as-of", hint="it shows the tape's own")
            _follow(opened, symbols, interval, start_ns, which, count, idle, grace, json)
            return
        check_known(opened, symbols)
        asked = symbols[0] if len(symbols) == 1 else symbols
        found = opened.bar_list(asked, interval, start_ns, end_ns, source=source, as_of=position(as_of), **which)
    shown = found if limit == 0 or (chart and limit is None) else _newest(found, limit or 20)
    if json:
        print_json([output.as_dict(bar) for bar in shown])
    elif not shown:
        output.note(f"no bars of {', '.join(symbols)} of {interval}" + (" in that time" if start or end else ""))
    elif chart:
        _draw(symbols[0], interval, shown, width, height)
    else:
        named = len(symbols) > 1 or shown[0].symbol != symbols[0]  # of a continuous future: the contract
        names = ("ts_start_ns", *(["symbol"] if named else []), "session", "number", "ts_end_ns", *output.BAR_COLUMNS)
        rows = [[*_cells(bar, names), "" if bar.complete else "forming"] for bar in shown]
        heads = ["end" if name == "ts_end_ns" else output.heading(name) for name in names]
        output.print_table([*heads, "state"], rows, _TEXT)
    if len(shown) < len(found) and not chart:
        output.note(f"the newest {len(shown):,} of {len(found):,} bars; --limit 0 shows all")


def _newest(found: Sequence[Bar], limit: int) -> list[Bar]:
    """Return the newest bars, in the order in which they were found."""
    kept = sorted(range(len(found)), key=lambda at: found[at].ts_start_ns)[-limit:]
    return [found[at] for at in sorted(kept)]


def _follow(
    tape: Tape,
    symbols: list[str],
    interval: str,
    start_ns: int | None,
    which: dict[str, Any],
    count: int | None,
    idle: float | None,
    grace: float | None,
    json: bool,
) -> None:
    left, quiet_s = count, 0.0
    with tape.follow_bars(symbols, interval, from_time=start_ns, grace_s=grace, **which) as follower:
        while (left is None or left) and not output.reader_left():
            wait_s = _LOOK_S if idle is None else max(0.0, min(_LOOK_S, idle - quiet_s))
            found = follower.take(wait_s)[:left]
            if found:
                sys.stdout.write("".join(_line(bar, json) + "\n" for bar in found))
                sys.stdout.flush()
                left = None if left is None else left - len(found)
                quiet_s = 0.0
                continue
            quiet_s += wait_s
            if idle is not None and quiet_s >= idle:
                return


def _line(bar: Bar, json: bool) -> str:
    if json:
        return output.json_line(output.as_dict(bar))
    if bar.trades == 0:
        told = "taken back"
    else:
        names = ("open", "high", "low", "close", "volume", "vwap", "trades")
        told = "  ".join(f"{name} {output.cell(name, getattr(bar, name))}" for name in names)
        told += "" if bar.complete else "  forming"
    revised = f"  revision {bar.revision}" if bar.revision else ""
    number = "" if bar.number is None else f"  number {bar.number}"
    return output.plain(f"{output.cell('ts_start_ns', bar.ts_start_ns)}  {bar.symbol}{number}  {told}{revised}")


def _cells(bar: Bar, names: Sequence[str]) -> list[str]:
    return [output.cell("ts_start_ns" if name == "ts_end_ns" else name, getattr(bar, name)) for name in names]


def _draw(symbol: str, interval: str, found: Sequence[Bar], width: int | None, height: int) -> None:
    from rich.console import Console

    from onetape.cli.chart import candle_chart

    columns = width or shutil.get_terminal_size((100, 24)).columns
    console = Console(width=columns, highlight=False, soft_wrap=True)
    drawn = candle_chart(
        found,
        columns,
        height,
        title=f"{symbol}  {interval}",
        ascii_only="utf" not in (sys.stdout.encoding or "").lower(),
        colour=console.color_system is not None,
    )
    console.print(drawn)
