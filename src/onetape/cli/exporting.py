"""The command `onetape export`: what a tape holds as files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from onetape.cli import output
from onetape.cli.options import End, Json, Start, TapePath, open_tape
from onetape.cli.progress import ProgressLine
from onetape.cli.times import parse_span
from onetape.errors import ConfigInvalid


class FileFormat(StrEnum):
    """What is written."""

    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"


class RecordKind(StrEnum):
    """Which records."""

    TICKS = "ticks"
    BARS = "bars"


def export_files(
    symbols: Annotated[list[str] | None, typer.Argument(metavar="[SYMBOL]...", help="All symbols if left out.")] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE|FOLDER", help="Where to. Its name says the format.")
    ] = None,
    minhos: Annotated[
        Path | None, typer.Option("--minhos", metavar="FILE", help="Instead: a database of MinhOS, to go back to it.")
    ] = None,
    format: Annotated[
        FileFormat | None, typer.Option(help="If the name does not say it. parquet makes a folder then.")
    ] = None,
    start: Start = None,
    end: End = None,
    what: Annotated[RecordKind, typer.Option(help="Which records.")] = RecordKind.TICKS,
    interval: Annotated[str | None, typer.Option(help="Length of bars: 1min, 5min, 1h, 1d. [default: 1min]")] = None,
    columns: Annotated[str, typer.Option(metavar="NAME,…", help="Only these fields of a record, in this order.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Replace the file or the export that is there.")] = False,
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """Write ticks or bars to a file, or to a folder of Parquet files, as the tape is at this moment."""
    from onetape.exporting import export

    if minhos is not None:
        asked = {"--to": to, "--format": format, "--interval": interval, "--columns": columns or None}
        asked["--what"] = None if what is RecordKind.TICKS else what
        also = next((name for name, value in asked.items() if value is not None), None)
        if also is not None:
            raise ConfigInvalid(f"--minhos and {also} exclude each other", hint="it writes ticks and 1min bars alike")
        _export_minhos(minhos, symbols, start, end, replace=replace, json=json, tape=tape)
        return
    if to is None:
        raise ConfigInvalid("where to?", hint="--to ticks.parquet, or --to FOLDER --format parquet")
    if interval is not None and what is RecordKind.TICKS:
        raise ConfigInvalid("--interval is for bars", hint="add --what bars")
    start_ns, end_ns = parse_span(start, end)
    names = [name.strip() for name in columns.split(",") if name.strip()]
    with open_tape(tape) as opened, ProgressLine(what.value) as progress:
        done = export(
            opened,
            to,
            format=None if format is None else format.value,
            symbols=symbols or None,
            start=start_ns,
            end=end_ns,
            what=what.value,
            interval=interval or "1min",
            columns=names or None,
            replace=replace,
            on_progress=progress,
        )
    if json:
        typer.echo(output.json_line(done))
        return
    kind = done.what[:-1] if done.rows == 1 else done.what
    many = f" in {done.files:,} files" if done.files != 1 else ""
    of = f" of {done.symbols:,} symbol{'s' if done.symbols != 1 else ''}" if done.rows else ""
    typer.echo(output.plain(f"{to}: {done.rows:,} {kind}{of}{many}, {output.size(done.bytes)}, position {done.head:,}"))
    if not done.rows:
        output.note("nothing of that on the tape: see onetape symbols")


def _export_minhos(
    to: Path,
    symbols: list[str] | None,
    start: str | None,
    end: str | None,
    *,
    replace: bool,
    json: bool,
    tape: Path | None,
) -> None:
    from onetape.exporting.minhos import export_minhos

    start_ns, end_ns = parse_span(start, end)
    with open_tape(tape) as opened, ProgressLine("ticks") as progress:
        done = export_minhos(
            opened, to, symbols=symbols or None, start=start_ns, end=end_ns, replace=replace, on_progress=progress
        )
    if json:
        typer.echo(output.json_line(done))
        return
    rows = f"{done.ticks:,} tick{'s' * (done.ticks != 1)} and {done.minutes:,} minute{'s' * (done.minutes != 1)}"
    typer.echo(output.plain(f"{to}: {rows}, {output.size(done.bytes)}, position {done.head:,}"))
    if done.bars_left_out:
        output.note(f"{done.bars_left_out:,} bars left out: the old table holds one a minute, from 1973 on")
    if not done.ticks and not done.minutes:
        output.note("nothing of that on the tape: see onetape symbols")
