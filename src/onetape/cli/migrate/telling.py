"""What the commands of a migration print for people."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from onetape.cli import output

if TYPE_CHECKING:
    from onetape.migrate.migration import PlanCheck, Status
    from onetape.migrate.phases.move import Move
    from onetape.migrate.report import Report
    from onetape.migrate.verifying.verdict import Verification

_LISTED = 10


def tell_move(move: Move) -> None:
    """Print what a command did, or would do."""
    for text in move.lines:
        typer.echo(output.plain(text))
    for text in move.warnings[:_LISTED]:
        output.note(f"note: {text}")
    if len(move.warnings) > _LISTED:
        output.note(f"and {len(move.warnings) - _LISTED:,} more; --json lists them")
    if not move.executed:
        typer.echo("nothing was changed: --execute does it")
    else:
        version = f", version {move.version} of the state" if move.version else ""
        typer.echo(f"phase: {move.after}{version}")


def tell_plan(check: PlanCheck) -> None:
    typer.echo(f"plan {check.name}  {check.address}, into database {check.target_db}")
    typer.echo(f"hash {check.hash}\n")
    rows = [[step, str(db), output.plain(pattern), f"{keys:,}"] for step, db, pattern, keys in check.rules]
    output.print_table(["step", "database", "pattern", "keys"], rows, ("step", "pattern"))
    typer.echo(f"\n{check.keys_total:,} keys, no two become one")
    if check.bytes_to_copy:
        free = "" if check.bytes_free is None else f", {output.size(check.bytes_free)} free"
        typer.echo(f"about {output.size(check.bytes_to_copy)} to copy{free}")
    tell_unmatched(check.to_dict()["unmatched"])
    for warning in check.warnings:
        output.note(f"warning: {warning}")
    for refusal in check.refusals:
        output.note(f"a backfill would be refused: {refusal}")
    typer.echo("nothing was changed")


def tell_unmatched(unmatched: Mapping[str, Mapping[str, Any]]) -> None:
    for db, found in unmatched.items():
        names = ", ".join(found["first"][:_LISTED])
        more = ", …" if found["count"] > _LISTED else ""
        typer.echo(output.plain(f"database {db}, keys that no rule matches: {found['count']:,} ({names}{more})"))


def tell_backfill(report: Report) -> None:
    facts = report.to_dict()
    typer.echo(
        f"{'dry run: ' if report.dry_run else ''}plan {report.plan_name}, {report.server} {report.version} at "
        f"{report.address}, into database {report.target_db}\n"
    )
    print_counts(report.steps)
    landed = "would land" if report.dry_run else "landed"
    typer.echo(
        f"\n{report.keys:,} keys in {output.duration(report.seconds)} ({report.keys_per_s:,.0f}/s); "
        f"records on the tape: {report.ticks_landed:,} {landed}, {report.ticks_known:,} were there"
    )
    tell_unmatched(facts["unmatched"]["by_database"])
    for warning in report.warnings:
        output.note(f"warning: {warning}")
    for error in facts["errors"]["first"][:_LISTED]:
        output.note(f"failed: db {error['source_db']} {error['key']} -> {error['target']}: {error['error']}")
    if report.error_count > _LISTED:
        output.note(f"and {report.error_count - _LISTED:,} more, in the report")
    for note in facts["notes"]["first"][:_LISTED]:
        output.note(f"not on the tape: db {note['source_db']} {note['key']}: {note['error']}")
    if report.note_count > _LISTED:
        output.note(f"and {report.note_count - _LISTED:,} more that are no ticks or bars, in the report")
    if report.path:
        typer.echo(f"report: {report.path}")
    if report.dry_run:
        typer.echo("nothing was changed")


def tell_verify(result: Verification) -> None:
    print_counts(result.counts)
    typer.echo(
        f"\n{result.checked:,} keys and {result.target_keys:,} targets compared in {output.duration(result.seconds)} "
        f"({result.keys_per_s:,.0f}/s), rounds: {result.rounds}; keys that no rule matches: {result.unmatched:,}"
    )
    for line in result.differences[:_LISTED]:
        output.note(line)
    for line in result.skips[:_LISTED]:
        output.note(line)
    more = result.unlisted + sum(max(0, len(lines) - _LISTED) for lines in (result.differences, result.skips))
    if more:
        output.note(f"and {more:,} more; --json and the report list them")
    typer.echo(f"verdict: {result.verdict}{' (of a sample only)' if result.sampled else ''}")
    if result.note:
        output.note(result.note)
    if result.report:
        typer.echo(f"report: {result.report}")


def tell_status(found: Status) -> None:
    output.print_facts(
        {
            "phase": found.phase,
            "verdict": found.verdict or "none yet",
            "plan": f"{found.plan_name} {found.plan_hash}",
            "server": f"{found.address}, into database {found.target_db}",
            "ledger": found.ledger,
            **_live_facts(found),
            **({"fenced": ", ".join(found.fenced)} if found.fenced else {}),
        }
    )
    if found.trouble:
        output.note(found.trouble)
    for text in found.writers:
        output.note(f"not ours: {text}")
    if found.steps:
        sys.stdout.write("\n")
        print_counts(found.steps)
    moves = [
        [text["at"], text["command"] + (" (forced)" if text["forced"] else ""), f"{text['before']} -> {text['after']}",
         text["outcome"] or "not ended", text["by"]]
        for text in found.to_dict()["transitions"]
    ]  # fmt: skip
    if moves:
        sys.stdout.write("\n")
        columns = ["at", "command", "phase", "outcome", "by"]
        output.print_table(columns, moves, columns)
    runs = [
        [str(run["id"]), run["command"], run["started"], run["ended"] or "not ended", run["report"] or ""]
        for run in found.to_dict()["runs"]
    ]
    if runs:
        sys.stdout.write("\n")
        output.print_table(
            ["run", "command", "started", "ended", "report"], runs, ("command", "started", "ended", "report")
        )


def _live_facts(found: Status) -> dict[str, str]:
    state = found.state
    if state is None:
        return {}
    marks = [name for name in ("mirrored", "paused", "postponed") if state[name]]
    throttle = ", ".join(f"{name} = {value}" for name, value in sorted(state["throttle"].items()))
    facts = {
        "state": f"version {state['version']}, changed by {state['changed_by']}" + "".join(f", {one}" for one in marks),
        "reads": f"{state['read_share']:.0%} new names first, {state['shadow_share']:.0%} compared",
        "throttle": throttle,
        "reason": state["reason"],
        "clients": ", ".join(
            f"{facts.get('kind', 'client')} {facts.get('name') or id} (version {facts.get('version')})"
            for id, facts in list(found.clients.items())[:_LISTED]
        ),
        "diverged": f"{found.diverged:,} keys" if found.diverged else "",
    }
    if found.operator is not None:
        facts["at work"] = f"{found.operator.get('command')}, by {found.operator.get('by')}"
    return {name: text for name, text in facts.items() if text}


def print_counts(steps: Mapping[str, Mapping[str, int]]) -> None:
    """Print a table of steps and outcomes, with the sums."""
    outcomes = list(dict.fromkeys(name for counts in steps.values() for name, number in counts.items() if number))
    rows = [[step, *_numbers([counts.get(name, 0) for name in outcomes])] for step, counts in steps.items()]
    sums = [sum(counts.get(name, 0) for counts in steps.values()) for name in outcomes]
    rows.append(["all", *_numbers(sums)])
    heads = [name.replace("_", " ") for name in outcomes]
    output.print_table(["step", *heads, "keys"], rows, ("step",))


def _numbers(counts: Sequence[int]) -> list[str]:
    return [f"{number:,}" if number else "" for number in counts] + [f"{sum(counts):,}"]
