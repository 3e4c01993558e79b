"""Commands about what a tape covers: coverage, gaps, heal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from onetape.cli import output
from onetape.cli.options import End, Json, Start, TapePath, open_tape
from onetape.cli.progress import ProgressLine
from onetape.cli.times import parse_span
from onetape.errors import ConfigInvalid

if TYPE_CHECKING:
    from onetape.healing import Asks, CsvSource, Healed, TapeSource
    from onetape.store.partition import Gap, Span

_LEFT = ("symbol", "from", "to", "state", "by", "asked in vain", "is", "why")
_LISTED = 40

Symbols = Annotated[list[str] | None, typer.Argument(metavar="[SYMBOL]...", help="All symbols if left out.")]
Session = Annotated[
    str | None,
    typer.Option(
        "--session",
        metavar="HOURS",
        help="When the market trades: XNYS, or 'America/Chicago 17:00-16:00 mon-fri CMES'.",
    ),
]
Min = Annotated[float, typer.Option("--min", min=0, metavar="S", help="Leave out gaps of fewer seconds.")]


def coverage(
    symbols: Symbols = None,
    start: Start = None,
    end: End = None,
    session: Session = None,
    quiet: Annotated[
        float, typer.Option("--quiet", min=0, metavar="S", help="Covered time without a tick for longer is quiet.")
    ] = 60.0,
    spans: Annotated[bool, typer.Option("--spans", help="List every span instead of drawing days.")] = False,
    width: Annotated[int | None, typer.Option(min=24, max=1440, help="Columns of a day. [default: what fits]")] = None,
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """Show what is known of a symbol's time: covered, quiet, missing, closed; a line a day."""
    from onetape.clock import to_text

    start_ns, end_ns = parse_span(start, end)
    with open_tape(tape) as opened:
        for name in symbols or [info.symbol for info in opened.symbols()]:
            found = opened.coverage(name, start_ns, end_ns, session=session, quiet_s=quiet)
            if json:
                sys.stdout.writelines(output.json_line(_as_dict(span)) + "\n" for span in found)
            elif not found:
                output.note(f"nothing is known of {name}")
            elif spans:
                rows = [
                    [
                        span.symbol,
                        to_text(span.start_ns),
                        to_text(span.end_ns),
                        output.duration((span.end_ns - span.start_ns) / 1e9),
                        span.state + (" (inferred)" if span.inferred else ""),
                        ", ".join(span.by),
                        ", ".join(span.asked),
                    ]
                    for span in found
                ]
                output.print_table(["symbol", "from", "to", "length", "state", "by", "asked in vain"], rows, _LEFT)
            else:
                _draw(name, found, width)


def _draw(name: str, found: Sequence[Span], width: int | None) -> None:
    from onetape.cli.coverage_days import days, legend

    columns = width or max(24, min(144, shutil.get_terminal_size((100, 24)).columns - 12))
    ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
    typer.echo(output.plain(name))
    for line in days(found, columns, ascii_only=ascii_only):
        typer.echo(line)
    whole = sum(span.end_ns - span.start_ns for span in found)
    for state, glyph in legend(ascii_only=ascii_only).items():
        total = sum(span.end_ns - span.start_ns for span in found if span.state == state)
        if total:
            guessed = sum(span.end_ns - span.start_ns for span in found if span.state == state and span.inferred)
            told = "  (inferred: nobody said so)" if guessed == total else "  (partly inferred)" if guessed else ""
            typer.echo(f"  {glyph} {state:<8} {total / whole:6.1%}  {output.duration(total / 1e9)}{told}")


def gaps(
    symbols: Symbols = None,
    start: Start = None,
    end: End = None,
    session: Session = None,
    min_s: Min = 1.0,
    check: Annotated[bool, typer.Option("--check", help="Exit with code 1 if there is any gap.")] = False,
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """List what is missing: time that a source said it lost, or that nobody covered."""
    start_ns, end_ns = parse_span(start, end)
    with open_tape(tape) as opened:
        found: list[Gap] = []
        for name in symbols or [None]:  # type: ignore[list-item]
            found += opened.gaps(name, start_ns, end_ns, session=session, min_s=min_s)
    if json:
        sys.stdout.writelines(output.json_line(_as_dict(gap)) + "\n" for gap in found)
    elif found:
        _list_gaps(found)
    else:
        output.note("no gaps")
    if check and found:
        raise typer.Exit(1)


def _list_gaps(found: Sequence[Gap], limit: int | None = None) -> None:
    from onetape.clock import to_text

    rows = [
        [
            gap.symbol,
            to_text(gap.start_ns),
            to_text(gap.end_ns),
            output.duration((gap.end_ns - gap.start_ns) / 1e9),
            gap.state,
            ", ".join(gap.by),
            ", ".join(gap.asked),
        ]
        for gap in found[:limit]
    ]
    output.print_table(["symbol", "from", "to", "length", "state", "by", "asked in vain"], rows, _LEFT)
    if limit is not None and len(found) > limit:
        output.note(f"and {len(found) - limit:,} more: see onetape gaps")


def heal(
    symbols: Symbols = None,
    from_tape: Annotated[
        Path | None, typer.Option("--from-tape", metavar="FILE", help="Ask another tape: a backup, a second recorder.")
    ] = None,
    from_csv: Annotated[
        list[Path] | None,
        typer.Option("--from-csv", metavar="FILE|FOLDER", help="Ask CSV files, read as onetape import reads them."),
    ] = None,
    start: Start = None,
    end: End = None,
    session: Session = None,
    min_s: Min = 1.0,
    again: Annotated[bool, typer.Option("--again", help="Ask also for what the source had nothing of before.")] = False,
    name: Annotated[
        str | None, typer.Option(help="What coverage remembers the source by. [default: the file's]")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, metavar="N", help="Ask at most N times a second.")] = None,
    symbol: Annotated[str | None, typer.Option(help="CSV: the symbol of every row, where no column says it.")] = None,
    mapping: Annotated[
        list[str] | None, typer.Option("--map", metavar="FIELD=COLUMN,…", help="CSV: which column is which field.")
    ] = None,
    time_format: Annotated[
        str, typer.Option(metavar="FORM", help="CSV: auto, ns, us, ms, s, iso or a pattern.")
    ] = "auto",
    timezone: Annotated[str, typer.Option(metavar="ZONE", help="CSV: of times written without an offset.")] = "UTC",
    header: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="CSV: column names of files that have no header line.")
    ] = None,
    execute: Annotated[bool, typer.Option("--execute", help="Do it. Without this, say what would be asked.")] = False,
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """Ask a source for what is missing, and store it, while live data flows. A dry run until --execute."""
    from onetape.healing import CsvSource, TapeSource, asks, csv_files
    from onetape.healing import heal as heal_tape
    from onetape.importing import CsvOptions, parse_mapping

    if (from_tape is None) == (not from_csv):
        raise ConfigInvalid("say whom to ask", hint="give --from-tape FILE or --from-csv FILE, one of them")
    start_ns, end_ns = parse_span(start, end)
    options = CsvOptions(
        symbol=symbol,
        mapping=parse_mapping(mapping or [], "ticks"),
        time_format=time_format,
        timezone=timezone,
        header=tuple(each.strip() for each in header.split(",")) if header else (),
    )
    with open_tape(tape, "rw" if execute else "r") as opened:
        source: AbstractContextManager[TapeSource | CsvSource]
        if from_tape is not None:
            source = TapeSource(from_tape, name)
        else:
            csv_files(from_csv or [])
            source = CsvSource(from_csv or [], options, name)
        with source as asked:
            if not execute:
                plan = asks(opened, asked, symbols, start_ns, end_ns, session=session, min_s=min_s, again=again)
                _tell_plan(plan, asked.name, json)
                return
            with ProgressLine("pieces", quiet=json) as progress:
                done = heal_tape(
                    opened,
                    asked,
                    symbols,
                    start_ns,
                    end_ns,
                    session=session,
                    min_s=min_s,
                    again=again,
                    requests_per_s=rate,
                    on_progress=progress,
                )
    _tell_done(done, json)
    if done.failures or done.not_asked:
        raise typer.Exit(1)


def _tell_plan(plan: Asks, name: str, json: bool) -> None:
    if json:
        sys.stdout.writelines(output.json_line(_as_dict(piece)) + "\n" for piece in plan.pieces)
        return
    if not plan.gaps:
        output.note("no gaps: nothing to heal")
        return
    _list_gaps(plan.gaps, _LISTED)
    total = sum(piece.end_ns - piece.start_ns for piece in plan.pieces)
    typer.echo(f"{name} would be asked {_counted(len(plan.pieces), 'time')}, for {output.duration(total / 1e9)} in all")
    if plan.asked_before:
        output.note(f"{_counted(len(plan.asked_before), 'gap')} it had nothing of before; --again asks for them too")
    output.note("nothing was asked or stored: --execute does it")


def _tell_done(done: Healed, json: bool) -> None:
    from onetape.clock import to_text

    if json:
        typer.echo(output.json_line(done))
        return
    if not done.gaps:
        output.note("no gaps: nothing to heal")
        return
    typer.echo(
        f"{_counted(done.gaps, 'gap')}, {done.source} was asked {_counted(done.asked, 'time')}: "
        f"{_counted(done.stored, 'tick')} stored, "
        f"{output.duration(done.covered_ns / 1e9)} covered now"
    )
    if done.empty_ns:
        output.note(f"it had nothing of {output.duration(done.empty_ns / 1e9)}, which stays missing: see onetape gaps")
    if done.asked_before:
        output.note(f"not asked for, as it had nothing before: {_counted(done.asked_before, 'gap')}; --again does")
    if done.left_out:
        output.note(
            f"{done.left_out:,} of its ticks were left out: of a time the tape has ticks of, or was not asked for"
        )
    if done.failures:
        rows = [[f.symbol, to_text(f.start_ns), to_text(f.end_ns), f.why] for f in done.failures[:_LISTED]]
        output.print_table(["symbol", "from", "to", "why"], rows, _LEFT)
        output.note(f"pieces that failed: {len(done.failures):,}; run it again to ask for them again")
    if done.not_asked:
        output.note(f"the source counts as down: {done.not_asked:,} pieces were not asked for")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _as_dict(found: Any) -> dict[str, Any]:
    from onetape.clock import to_text

    fields: dict[str, Any] = msgspec.structs.asdict(found) if isinstance(found, msgspec.Struct) else found._asdict()
    return {**fields, "start": to_text(found.start_ns), "end": to_text(found.end_ns)}
