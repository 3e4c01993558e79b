"""What `onetape import` does with files that are not CSV: the formats of onetape.importing.formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from onetape.cli import output
from onetape.cli.progress import ProgressLine
from onetape.errors import ImportInvalid

if TYPE_CHECKING:
    from onetape.importing.formats import Imported, Options
    from onetape.tape import Tape


def list_formats(wanted: bool) -> None:
    """Print every format and what it is, and end."""
    if not wanted:
        return
    from onetape.importing import formats

    rows = [("csv", "CSV files with a header line, plain, .gz or .zip; whatever no other format takes for its own")]
    rows += [(one.name, one.says) for one in formats.known()]
    output.print_table(("format", "files"), rows, left=("format", "files"))
    raise typer.Exit


def chosen(path: Path, format: str | None) -> list[tuple[Path, str]]:
    """Return the files that a path means, each with its format: itself, or what is in a folder.

    Raises ImportInvalid for a folder without any file of a format, ConfigInvalid for a format that is not known.
    """
    from onetape.importing import formats

    if format == "csv":
        return [(path, "csv")]
    asked = None if format is None else formats.find(format)
    if not path.is_dir():
        detected = asked or formats.detect(path)
        return [(path, "csv" if detected is None else detected.name)]
    found = []
    for file in formats.files_in(path, asked):
        detected = asked or formats.detect(file)
        assert detected is not None
        found.append((file, detected.name))
    if not found:
        what = "files of any format but perhaps CSV" if format is None else f"{format} files"
        raise ImportInvalid(f"{path}: a folder without {what}", hint="give the files themselves, or --format")
    return found


def import_one(
    tape: Tape | None,
    path: Path,
    format: str,
    options: Options,
    seen: dict[str, str],
    json: bool,
    oldest: Callable[[int], object],
) -> None:
    """Import one file and say what became of it. Raises as import_file does."""
    from onetape.importing import formats

    with ProgressLine("bytes") as progress:
        done = formats.import_file(tape, path, format, options, on_progress=progress, seen=seen)
    if not json:
        _tell_empty(path, [result for result in done if _is_empty(result)])
    for result in done:
        if json:
            typer.echo(output.json_line(result))
        elif not _is_empty(result):
            _tell(result)
        if result.kind != "bars" and result.stored and result.ts_first_ns is not None:
            oldest(result.ts_first_ns)


def _is_empty(result: Imported) -> bool:
    return not result.rows and result.repeats is None


def _tell_empty(path: Path, results: list[Imported]) -> None:
    """Say it once for all parts of a file without a record: there can be a hundred of them."""
    if not results:
        return
    where = results[0].file if len(results) == 1 else f"{path}, {len(results)} files in it"
    typer.echo(f"{where}: no ticks and no bars")
    reasons: dict[str, int] = {}
    for result in results:
        for reason, count in result.skipped.items():
            reasons[reason] = reasons.get(reason, 0) + count
    for text in dict.fromkeys(text for result in results for text in result.notes):
        typer.echo(f"  {text}")
    for reason, count in reasons.items():
        typer.echo(f"  left out: {count:,} {reason}")


def _tell(result: Imported) -> None:
    from onetape.clock import to_text

    good = result.rows - result.refused
    if result.repeats is not None:
        typer.echo(f"{result.file}: left out, it repeats the session of {result.repeats}")
        return
    if result.known == good and result.known:
        typer.echo(f"{result.file}: nothing to do, what it holds ({_counted(good, result)}) is on the tape already")
    else:
        act = "can be stored" if result.dry_run else "stored"
        count = good if result.dry_run else result.stored
        there = f", {result.known:,} were there already" if result.known else ""
        rate = f" ({count / result.seconds:,.0f}/s)" if result.seconds > 1 and not result.dry_run else ""
        typer.echo(f"{result.file} ({result.format}): {_counted(count, result)} {act}{there}{rate}")
        if result.ts_first_ns is not None and result.ts_last_ns is not None:
            more = f" and {len(result.symbols) - 5} more" if result.symbols[5:] else ""
            span = f"{to_text(result.ts_first_ns)} to {to_text(result.ts_last_ns)}"
            typer.echo(f"  {', '.join(result.symbols[:5])}{more}  {span}")
    for text in result.notes:
        typer.echo(f"  {text}")
    for reason, count in result.skipped.items():
        typer.echo(f"  left out: {count:,} {reason}")
    if result.refused:
        kept = "refused" if result.dry_run else "in quarantine"
        output.note(f"{result.file}: records {kept}: {result.refused:,}")
        for row in result.first_refused:
            output.note(f"  {row.place}, {row.field}: {row.value}: {row.why}")


def _counted(count: int, result: Imported) -> str:
    return f"{count:,} {result.kind[:-1] if count == 1 else result.kind}"
