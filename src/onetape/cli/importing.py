"""The command `onetape import`: files onto the tape; CSV here, other formats in cli/formats.py."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onetape.cli import formats, output
from onetape.cli.options import Json, TapePath, open_tape
from onetape.cli.output import print_error
from onetape.cli.progress import ProgressLine
from onetape.errors import ConfigInvalid, ImportInvalid

if TYPE_CHECKING:
    from onetape.importing import CsvOptions, Imported
    from onetape.importing.formats import Options
    from onetape.tape import Tape


class RecordKind(StrEnum):
    """What a row is."""

    TICKS = "ticks"
    BARS = "bars"


class Repeats(StrEnum):
    """What becomes of a session that comes twice."""

    REFUSE = "refuse"
    ONCE = "once"
    KEEP = "keep"


class OnInvalid(StrEnum):
    """What becomes of a file with a wrong row."""

    RAISE = "raise"
    QUARANTINE = "quarantine"


def import_files(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files, or folders of them.")],
    format: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which format they are; found by looking, if left out.")
    ] = None,
    list_formats: Annotated[
        bool, typer.Option("--list-formats", callback=formats.list_formats, is_eager=True, help="Say which there are.")
    ] = False,
    symbol: Annotated[str | None, typer.Option(help="The symbol of every row, where the file does not say it.")] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=COLUMN,…", help="Which column is which field: price=last,size=qty."),
    ] = None,
    time_format: Annotated[
        str, typer.Option(metavar="FORM", help="auto, ns, us, ms, s, iso, or a pattern: '%d/%m/%Y %H:%M:%S'.")
    ] = "auto",
    timezone: Annotated[
        str | None,
        typer.Option(metavar="ZONE", help="Of times written without an offset: Asia/Kolkata. [CSV default: UTC]"),
    ] = None,
    kind: Annotated[RecordKind, typer.Option(help="What a row is.")] = RecordKind.TICKS,
    interval: Annotated[str | None, typer.Option(help="Length of every bar: 1min, 1h, 1d.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="Found in the header line if left out; 'tab' is a tab.")] = None,
    header: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Column names of files that have no header line.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Who the records are from.")] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="When it was so, of a file that says no time.")
    ] = None,
    as_path: Annotated[
        str | None,
        typer.Option("--as", metavar="PATH", help="Where the file would lie in its vendor's folder, if that matters."),
    ] = None,
    allow_cut: Annotated[
        bool, typer.Option("--allow-cut", help="Of a file that ends too early, take what is whole.")
    ] = False,
    multiplier: Annotated[
        str, typer.Option(metavar="DECIMAL", help="Prices are this many times what the file says.")
    ] = "1",
    tick_size: Annotated[
        str | None, typer.Option("--tick-size", metavar="DECIMAL", help="Prices are multiples of it: snapped exactly.")
    ] = None,
    repeats: Annotated[
        Repeats, typer.Option(help="Of a session that comes twice under two dates: refuse, import once, or keep both.")
    ] = Repeats.REFUSE,
    on_invalid: Annotated[
        OnInvalid, typer.Option(help="Of a file with a wrong row, store nothing (raise), or the good rows.")
    ] = OnInvalid.RAISE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, store nothing.")] = False,
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """Import files: CSV and other formats. A file that was imported already, read the same way, changes nothing."""
    from onetape.importing import CsvOptions, parse_mapping
    from onetape.importing.formats import Options

    others = Options(
        symbol=symbol,
        source=source,
        timezone=timezone,
        mapping=parse_mapping(mapping or [], kind.value),
        kind=None if kind is RecordKind.TICKS else "bars",
        interval=interval,
        time_format=time_format,
        at=at,
        as_path=as_path,
        allow_cut=allow_cut,
        multiplier=multiplier,
        tick_size=tick_size,
        repeats=repeats.value,
        on_invalid=on_invalid.value,
    )
    options = CsvOptions(
        kind=kind.value,
        symbol=symbol,
        mapping=parse_mapping(mapping or [], kind.value),
        time_format=time_format,
        timezone=timezone or "UTC",
        delimiter={"tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter),
        header=tuple(name.strip() for name in header.split(",")) if header else (),
        source=source,
        interval=interval,
        on_invalid=on_invalid.value,
    )
    if interval is not None and kind is RecordKind.TICKS:
        raise ConfigInvalid("--interval is for bars", hint="add --kind bars")
    if dry_run:
        failed, stored = _import_all(None, files, format, options, others, json)
    else:
        with open_tape(tape, "rw") as opened:
            failed, stored = _import_all(opened, files, format, options, others, json)
    if failed:
        raise typer.Exit(1 if stored else 2)


def _import_all(
    tape: Tape | None, paths: list[Path], format: str | None, options: CsvOptions, others: Options, json: bool
) -> tuple[int, int]:
    """Import file by file; one that cannot be read does not stop the others. Return (files failed, files read)."""
    failed = read = 0
    seen: dict[str, str] = {}
    oldest: list[int] = []
    for given in paths:
        try:
            found = formats.chosen(given, format)
        except ImportInvalid as error:
            print_error(str(error))
            failed += 1
            continue
        for path, name in found:
            try:
                if name == "csv":
                    _import_csv(tape, path, options, others, json, oldest.append)
                else:
                    _refuse_csv_options(options, name)
                    formats.import_one(tape, path, name, others, seen, json, oldest.append)
            except ImportInvalid as error:
                print_error(str(error))
                failed += 1
                continue
            read += 1
    _warn_of_retention(tape, min(oldest, default=None))
    return failed, read


def _import_csv(
    tape: Tape | None,
    path: Path,
    options: CsvOptions,
    others: Options,
    json: bool,
    oldest: Callable[[int], object],
) -> None:
    from onetape.importing import import_csv

    for name in sorted(others.given() & {"at", "as_path", "allow_cut", "repeats"}):
        flag = "--as" if name == "as_path" else "--" + name.replace("_", "-")
        raise ConfigInvalid(f"{flag}: {path} is taken for CSV", hint="leave it out, or say --format")
    with ProgressLine("bytes") as progress:
        done = import_csv(tape, path, options, on_progress=progress)
    for result in done:
        if json:
            typer.echo(output.json_line(result))
        else:
            _tell(result)
        if result.kind == "ticks" and result.stored and result.ts_first_ns is not None:
            oldest(result.ts_first_ns)


def _refuse_csv_options(options: CsvOptions, format: str) -> None:
    from onetape.importing import CsvOptions

    plain = CsvOptions()
    flags = {"delimiter": "--delimiter", "header": "--header"}
    given = [flag for name, flag in flags.items() if getattr(options, name) != getattr(plain, name)]
    if given:
        raise ConfigInvalid(f"{given[0]} is for CSV, this is {format}", hint="leave it out, or say --format csv")


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
