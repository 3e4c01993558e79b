"""Commands that migrate Redis data: onetape migrate, one file for keys, one for the live migration's phases.

Commands of other files (mirror, watch, rehearse) join in app.py.
"""

from __future__ import annotations

from collections.abc import Callable

import typer

from onetape.cli.migrate import keys, live, proof
from onetape.cli.migrate.options import EXIT_CODES

app = typer.Typer(
    help="Move scattered Redis data into one database and onto the tape, while its writers go on.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
)

_COMMANDS: dict[str, Callable[..., None]] = {
    "plan": keys.plan,
    "start": live.start,
    "backfill": keys.backfill,
    "verify": keys.verify,
    "switch-reads": live.switch_reads,
    "cutover": live.cutover,
    "rollback": live.rollback,
    "finish": live.finish,
    "undo": live.undo,
    "unfence": live.unfence,
    "status": keys.status,
    "why": keys.why,
    "pause": live.pause,
    "resume": live.resume,
    "throttle": live.throttle,
    "report": proof.report,
}
for _name, _command in _COMMANDS.items():
    app.command(_name, epilog=EXIT_CODES)(_command)

__all__ = ["app"]
