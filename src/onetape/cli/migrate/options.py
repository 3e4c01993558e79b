"""What the commands of a migration share: options, and the migration, the settings and the tape that they name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onetape.cli.live_options import Ledger, PlanFile, Redis, TargetDb
from onetape.errors import ConfigInvalid, TapeMissing

if TYPE_CHECKING:
    from onetape.config import Settings
    from onetape.migrate.migration import Migration
    from onetape.tape import Tape

EXIT_CODES = """\b
Exit codes:
  0    done, or a dry run that found nothing against it; verify: converged
  1    some keys failed, or the server was lost; verify: not proven
  2    refused before anything was written
  3    verify: converged, with listed skips; finish, undo: done, and some keys stay
  130  interrupted; run it again to go on
"""

Target = Annotated[
    str | None,
    typer.Option("--target", metavar="URL", help="Another server to move to, or a cluster://HOST:PORT."),
]
NoTape = Annotated[bool, typer.Option("--no-tape", help="Move keys in Redis only.")]
ReportDir = Annotated[Path | None, typer.Option("--report-dir", help="Where reports go. [default: here]")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]
Execute = Annotated[bool, typer.Option("--execute", help="Do it. Without it, say what would be done.")]
Force = Annotated[bool, typer.Option("--force", help="Go on against the reasons; the history has them.")]
Discard = Annotated[bool, typer.Option("--discard", help="Let go of replaced values that are too big to be kept.")]


def settings_of(
    redis: str | None,
    plan_file: str | None,
    target_db: int | None,
    ledger: Path | None = None,
    tape: Path | None = None,
    report_dir: Path | None = None,
) -> Settings:
    """Return the settings with what the options say on top."""
    from onetape import config

    return config.load(
        redis_url=redis, plan=plan_file, target_db=target_db, ledger=ledger, tape=tape, reports_dir=report_dir
    )


@contextmanager
def opened_tape(
    settings: Settings, none: bool, mode: Literal["r", "rw"], *, or_empty: bool = False
) -> Iterator[Tape | None]:
    """Open the tape, or none. `or_empty`: where there is none yet, an empty one that is gone afterwards."""
    from onetape.cli.options import open_tape

    if none:
        yield None
        return
    if or_empty and not settings.tape.exists():
        with TemporaryDirectory(prefix="onetape-") as place, open_tape(Path(place) / "tape.db", "rw") as empty:
            yield empty
        return
    try:
        opened = open_tape(settings.tape, mode)
    except TapeMissing as error:
        raise TapeMissing(error.message, hint="give --tape, or --no-tape to leave ticks out") from error
    with opened:
        yield opened


def migration_of(
    settings: Settings, tape: Tape | None = None, report_dir: Path | None = None, target: str | None = None
) -> Migration:
    """Return the migration that the settings name."""
    from onetape.migrate.migration import Migration
    from onetape.migrate.plans.named import ledger_of, plan_of

    return Migration(
        settings.redis_url,
        target_url=target,
        plan=plan_of(settings),
        ledger_path=ledger_of(settings),
        tape=tape,
        report_dir=report_dir,
    )


def throttle_of(given: Sequence[str]) -> dict[str, Any]:
    """Return settings of the throttle written NAME=VALUE; an empty value is None. Raises ConfigInvalid."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigInvalid(f"{text!r} is not NAME=VALUE", hint="such as keys_per_s=20000; NAME= takes it out")
        found[name.strip().replace("-", "_")] = _value(value.strip())
    return found


def _value(text: str) -> Any:
    if text in ("", "true", "false"):
        return {"": None, "true": True, "false": False}[text]
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number


__all__ = [
    "EXIT_CODES",
    "Discard",
    "Execute",
    "Force",
    "Json",
    "Ledger",
    "NoTape",
    "PlanFile",
    "Redis",
    "ReportDir",
    "Target",
    "TargetDb",
    "migration_of",
    "opened_tape",
    "settings_of",
    "throttle_of",
]
