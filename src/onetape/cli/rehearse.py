"""onetape migrate rehearse: all of a migration on a private copy, killed at every step; what the real one will take."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from onetape.cli import output
from onetape.cli.live_options import PlanFile, Redis, TargetDb

if TYPE_CHECKING:
    from onetape.migrate.rehearse import Rehearsal

ENDS = """\b
Exit codes:
  0    every phase went forward and back, and nothing was lost
  1    it did not: what stood in the way is named
  2    the plan or the data are refused, before anything is written
"""
_LISTED = 10


def rehearse(
    rdb: Annotated[
        Path | None, typer.Option("--rdb", metavar="FILE", help="An RDB file, as SAVE or BGSAVE writes it.")
    ] = None,
    redis: Redis = None,
    plan_file: PlanFile = None,
    target_db: TargetDb = None,
    scale: Annotated[
        int, typer.Option(min=1, metavar="N", help="Copy one key in N of the server, and estimate for all.")
    ] = 1,
    rate: Annotated[float, typer.Option(min=1, metavar="N", help="Keys a second of the slow estimate.")] = 20_000.0,
    no_kills: Annotated[bool, typer.Option("--no-kills", help="Run each command once, unharmed.")] = False,
    no_writers: Annotated[bool, typer.Option("--no-writers", help="Without clients that write meanwhile.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Rehearse a migration on a private copy of the data, and say what the real one will take.

    The original is an RDB file, or the server, which is only read. The copy goes into a server of its own, that ends
    with this command. There every phase is gone through forward and back, each command killed at every step and run
    again, while clients write; then nothing may be lost.
    """
    from onetape import config
    from onetape.migrate.rehearse import Options
    from onetape.migrate.rehearse import rehearse as run

    settings = config.load(redis_url=redis, plan=plan_file, target_db=target_db)
    options = Options(scale=1 if rdb else scale, keys_per_s_paced=rate, kills=not no_kills, writers=not no_writers)

    def tell(step: str) -> None:
        if not json:
            output.note(step)

    with TemporaryDirectory(prefix="onetape-rehearsal-") as place:
        found = run(
            str(settings.plan),
            Path(place),
            rdb=rdb,
            url="" if rdb else settings.redis_url,
            target_db=settings.target_db,
            options=options,
            on_step=tell,
        )
    if json:
        typer.echo(output.json_line(found.to_dict()))
    else:
        _tell(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _tell(found: Rehearsal) -> None:
    typer.echo(f"plan {found.plan}, of {found.source}: {found.loaded.keys:,} keys in a private {found.server}\n")
    rows = []
    for one in found.done:
        if one.killed:
            end = "killed" if one.reached else "not reached"
        else:
            end = "done" if one.code == 0 else f"code {one.code}"
        rows.append([one.command.replace("_", "-"), one.killed, output.duration(one.seconds), end])
    output.print_table(["command", "killed at", "took", "end"], rows, ("command", "killed at", "end"))
    if found.counted is not None:
        typer.echo(
            f"\n{found.counted.writes:,} counted writes to {found.counted.keys:,} keys meanwhile, "
            f"{len(found.counted.wrong):,} keys wrong"
        )
    _tell_estimate(found)
    for db, number in found.unmatched.items():
        typer.echo(f"database {db}, keys that no rule matches: {number:,}")
    for warning in found.warnings:
        output.note(f"warning: {warning}")
    for problem in found.problems:
        output.note(f"problem: {problem}")
    if found.passed:
        typer.echo(f"\nverdict: passed, in {output.duration(found.seconds)}, killed {found.kills:,} times on the way")
    else:
        typer.echo(f"\nverdict: not passed, {len(found.problems):,} problems")


def _tell_estimate(found: Rehearsal) -> None:
    told = found.estimate
    if told is None:
        return
    sys.stdout.write("\nThe real run, by what was measured here:\n")
    facts = {
        "keys": f"{told.keys:,}",
        "to copy": output.size(told.bytes_to_copy),
        "memory": f"at most {told.memory_factor:g} x what the server uses now",
        "rate": f"{told.keys_per_s:,.0f} keys/s without a throttle",
    }
    output.print_facts(facts)
    sys.stdout.write("\n")
    rows = [
        [name.replace("_", "-"), output.duration(seconds), output.duration(told.seconds_paced[name])]
        for name, seconds in told.seconds.items()
    ]
    output.print_table(["command", "at full rate", f"at {told.keys_per_s_paced:,.0f} keys/s"], rows, ("command",))
    if found.biggest:
        sys.stdout.write("\n")
        big = [
            [str(key.source_db), key.key, key.type, output.size(key.bytes_used), "in slices" if key.sliced else "whole"]
            for key in found.biggest[:_LISTED]
        ]
        output.print_table(
            ["database", "biggest keys", "type", "size", "copied"], big, ("biggest keys", "type", "copied")
        )
