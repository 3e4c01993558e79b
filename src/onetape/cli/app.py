"""The application: its commands, what an error looks like, and what an exit code means."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from onetape import errors
from onetape.cli import (
    bars,
    care,
    continuous,
    correct,
    coverage,
    exporting,
    importing,
    migrate,
    mirror,
    names,
    query,
    rehearse,
    serve,
    sql,
    top,
    watch,
)
from onetape.cli.output import print_error

EXIT_CODES = """\b
Exit codes:
  0    done; or the reader of the output had enough and left
  1    failed, or not everything could be done; what was done is said
  2    refused: wrong input or setting, nothing was written
  3    onetape migrate verify: converged, but with listed skips
  130  interrupted (Ctrl-C)

\b
Settings: a flag, else ONETAPE_TAPE, ONETAPE_REDIS_URL … in the environment,
else onetape.toml in this directory, else the default.
--debug adds the traceback to an error.
"""

#: Errors of what was asked for: nothing was written, and asking again the same way will not help.
_REFUSED = (
    errors.ConfigInvalid,
    errors.InvalidRecord,
    errors.ImportInvalid,
    errors.RecordMissing,
    errors.TapeMissing,
    errors.TapeUnusable,
    errors.TapeTooNew,
    errors.TapeReadOnly,
    errors.TapeInUse,
    errors.TargetExists,
    errors.SnapshotMissing,
    errors.SnapshotExists,
    errors.PlanInvalid,
    errors.PlanCollision,
    errors.PreflightRefused,
    errors.LedgerUnusable,
    errors.LedgerBusy,
    errors.PhaseRefused,
    errors.GateRefused,
    errors.StateMoved,
    errors.StateLost,
    errors.OperatorBusy,
)

app = typer.Typer(
    name="onetape",
    help="One durable tape of market data, and the safe way to get onto it.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help starts in half the time, and fits every terminal and pipe
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from onetape import __version__

        typer.echo(f"onetape {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


app.command("latest")(query.latest)
app.command("history")(query.history)
app.command("bars")(bars.bars)
app.command("tail", epilog=query.TAIL_ENDS)(query.tail)
app.command("top")(top.top)
app.command("serve")(serve.serve)
app.command("sql", epilog=sql.TABLES)(sql.sql)
app.command("symbols")(query.symbols)
app.command("stats")(query.stats)
app.command("cancel")(correct.cancel)
app.command("revise")(correct.revise)
app.command("compact")(correct.compact)
app.command("coverage")(coverage.coverage)
app.command("gaps")(coverage.gaps)
app.command("heal")(coverage.heal)
app.command("import")(importing.import_files)
app.command("export")(exporting.export_files)
app.add_typer(names.alias, name="alias")
app.add_typer(continuous.app, name="continuous")
app.command("doctor")(care.doctor)
app.command("backup")(care.backup)
app.command("restore")(care.restore)
app.command("upgrade")(care.upgrade)
app.command("mem")(care.mem)
app.command("prune")(care.prune)
app.add_typer(care.snapshot_app, name="snapshot")
migrate.app.command("mirror", epilog=mirror.ENDS)(mirror.mirror)
migrate.app.command("rehearse", epilog=rehearse.ENDS)(rehearse.rehearse)
migrate.app.command("watch")(watch.watch)
migrate.app.command("metrics")(watch.metrics)
app.add_typer(migrate.app, name="migrate")
if importlib.util.find_spec("onetape.cli.demo") is not None:
    app.command("demo")(importlib.import_module("onetape.cli.demo").demo)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line with these arguments (those of the process by default) and return the exit code."""
    given = list(sys.argv[1:] if args is None else args)
    debug = _take_debug(given)
    _print_anything()
    try:
        code = typer.main.get_command(app).main(args=given, prog_name="onetape", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit as error:
        return 0 if _reader_left(error.__context__) else _code(error)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001  (every error ends as one line and an exit code)
        if _reader_left(error):
            return 0
        if debug:
            traceback.print_exc()
        return _report(error)


def _take_debug(args: list[str]) -> bool:
    """Remove --debug, which may stand anywhere before `--`, and return whether it was there."""
    end = args.index("--") if "--" in args else len(args)
    kept = [arg for arg in args[:end] if arg != "--debug"]
    found = len(kept) < end
    args[:end] = kept
    return found


def _print_anything() -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a symbol the terminal has no letters for is no error


def _reader_left(error: BaseException | None) -> bool:
    """Return whether the error is that stdout's reader went away; then also keep the interpreter quiet about it."""
    if not isinstance(error, BrokenPipeError):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _code(error: SystemExit) -> int:
    return error.code if isinstance(error.code, int) else int(error.code is not None)


def _report(error: Exception) -> int:
    """Print an error as one line and return its exit code."""
    if isinstance(error, errors.OnetapeError):
        print_error(str(error))
        return 2 if isinstance(error, _REFUSED) else 1
    if hasattr(error, "format_message"):  # of the parser: typer carries its own click, older ones use click's
        context: Any = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "onetape"
        message = error.format_message().strip().removesuffix(".")
        if message:
            print_error(f"{message} (see {command} --help)")
        return 2
    if type(error).__name__ == "Abort":
        return 130
    if isinstance(error, OSError):
        print_error(str(error))
        return 1
    print_error(f"unexpected {type(error).__name__}: {error} (run it again with --debug and report it)")
    return 1
