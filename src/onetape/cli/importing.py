"""The command `onetape import`: CSV files onto the tape."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onetape.cli import output
from onetape.cli.options import Json, TapePath, open_tape
from onetape.cli.progress import ProgressLine
from onetape.errors import ConfigInvalid, ImportInvalid

if TYPE_CHECKING:
    from onetape.importing import CsvOptions, Imported
    from onetape.tape import Tape


class RecordKind(StrEnum):
    """What a row is."""

    TICKS = "ticks"
    BARS = "bars"


class OnInvalid(StrEnum):
    """What becomes of a file with a wrong row."""

    RAISE = "raise"
    QUARANTINE = "quarantine"


def import_files(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="CSV files: plain, .gz or .zip.")],
    symbol: Annotated[str | None, typer.Option(help="The symbol of every row, where no column says it.")] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=COLUMN,…", help="Which column is which field: price=last,size=qty."),
    ] = None,
    time_format: Annotated[
        str, typer.Option(metavar="FORM", help="auto, ns, us, ms, s, iso, or a pattern: '%d/%m/%Y %H:%M:%S'.")
    ] = "auto",
    timezone: Annotated[
        str, typer.Option(metavar="ZONE", help="Of times written without an offset: Asia/Kolkata.")
    ] = "UTC",
    kind: Annotated[RecordKind, typer.Option(help="What a row is.")] = RecordKind.TICKS,
    interval: Annotated[str | None, typer.Option(help="Length of every bar: 1min, 1h, 1d.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="Found in the header line if left out; 'tab' is a tab.")] = None,
    header: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Column names of files that have no header line.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Who the records are from.")] = None,
    on_invalid: Annotated[
        OnInvalid, typer.Option(help="Of a file with a wrong row, store nothing (raise), or the good rows.")
    ] = OnInvalid.RAISE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, store nothing.")] = False,
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """Import CSV files. A file that was imported already, read the same way, changes nothing."""
    from onetape.importing import CsvOptions, parse_mapping

    options = CsvOptions(
        kind=kind.value,
        symbol=symbol,
        mapping=parse_mapping(mapping or [], kind.value),
        time_format=time_format,
        timezone=timezone,
        delimiter={"tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter),
        header=tuple(name.strip() for name in header.split(",")) if header else (),
        source=source,
        interval=interval,
        on_invalid=on_invalid.value,
    )
    if interval is not None and kind is RecordKind.TICKS:
        raise ConfigInvalid("--interval is for bars", hint="add --kind bars")
    if dry_run:
        failed, stored = _import_all(None, files, options, json)
    else:
        with open_tape(tape, "rw") as opened:
            failed, stored = _import_all(opened, files, options, json)
    if failed:
        raise typer.Exit(1 if stored else 2)


def _import_all(tape: Tape | None, files: list[Path], options: CsvOptions, json: bool) -> tuple[int, int]:
    """Import file by file; one that cannot be read does not stop the others. Return (files failed, files read)."""
    from onetape.cli.app import print_error
    from onetape.importing import import_csv

    failed = 0
    oldest_ns: int | None = None
    for path in files:
        try:
            with ProgressLine("bytes") as progress:
                done = import_csv(tape, path, options, on_progress=progress)
        except ImportInvalid as error:
            print_error(str(error))
            failed += 1
            continue
        for result in done:
            if json:
                typer.echo(output.json_line(result))
            else:
                _tell(result)
            if result.kind == "ticks" and result.stored and result.ts_first_ns is not None:
                oldest_ns = min(result.ts_first_ns, oldest_ns or result.ts_first_ns)
    _warn_of_retention(tape, oldest_ns)
    return failed, len(files) - failed


def _tell(result: Imported) -> None:
    from onetape.clock import to_text

    if not result.rows:
        typer.echo(f"{result.file}: no rows, only a header line")
        return
    if result.known == result.rows - result.refused and result.known:
        typer.echo(
            f"{result.file}: nothing to do, what it holds ({_counted(result.known, result)}) is on the tape already"
        )
        return
    act = "can be stored" if result.dry_run else "stored"
    count = result.rows - result.refused if result.dry_run else result.stored
    known = f", {result.known:,} were there already" if result.known else ""
    rate = f" ({count / result.seconds:,.0f}/s)" if result.seconds > 1 and not result.dry_run else ""
    typer.echo(f"{result.file}: {_counted(count, result)} {act}{known}{rate}")
    if result.ts_first_ns is not None and result.ts_last_ns is not None:
        names = ", ".join(result.symbols[:5]) + (f" and {len(result.symbols) - 5} more" if result.symbols[5:] else "")
        order = "" if result.in_order else "; the rows are not in order of time, the tape is"
        typer.echo(f"  {names}  {to_text(result.ts_first_ns)} to {to_text(result.ts_last_ns)}{order}")
    columns = "  ".join(f"{field}={column}" for field, column in result.columns.items())
    typer.echo(f"  {columns}  (times: {result.time_format})")
    if result.unused:
        typer.echo(f"  not used: {', '.join(result.unused)}")
    if result.kind == "ticks" and "volume" in result.columns and "size" not in result.columns:
        output.note(
            f"{result.file}: column {result.columns['volume']!r} was taken for the session's volume so far; "
            "if it is each trade's size: --map size=" + result.columns["volume"]
        )
    if result.refused:
        kept = "refused" if result.dry_run else "in quarantine"
        output.note(f"{result.file}: rows {kept}: {result.refused:,}")
        for row in result.first_refused:
            output.note(f"  line {row.line}, column {row.column!r}: {row.value!r}: {row.why}")


def _counted(count: int, result: Imported) -> str:
    return f"{count:,} {result.kind[:-1] if count == 1 else result.kind}"


def _warn_of_retention(tape: Tape | None, oldest_ns: int | None) -> None:
    """Say it when what was imported will not stay: nobody expects a file to vanish a month later."""
    from onetape.clock import now_ns

    days = None if tape is None else tape.stats().retention_days
    if days and oldest_ns is not None and oldest_ns < now_ns() - days * 86_400_000_000_000:
        output.note(
            f"ticks older than {days:g} days leave the tape {days:g} days from now, their bars stay; "
            "ONETAPE_RETENTION_DAYS=none keeps them"
        )
