"""Commands that look after a tape: doctor, backup, restore, upgrade, mem, prune, snapshot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from onetape.cli import output
from onetape.cli.options import Json, TapePath, open_tape
from onetape.cli.progress import ProgressLine

if TYPE_CHECKING:
    from onetape.store.repair import RepairPlan
    from onetape.store.snapshots import Snapshot

_LEFT = ("symbol", "name", "taken", "note", "digest", "weight", "place", "what", "where", "times", "why")

Execute = Annotated[bool, typer.Option("--execute", help="Do it; without, only say what would be done.")]
Days = Annotated[float | None, typer.Option("--days", min=0, metavar="N", help="Keep ticks of so many days.")]
BarDays = Annotated[
    float | None, typer.Option("--bar-days", min=0, metavar="N", help="Keep 1-minute bars of so many days.")
]
Name = Annotated[str, typer.Argument(help="The snapshot's name.")]

snapshot_app = typer.Typer(
    help="Name positions of the tape, each with a digest of all up to it, which retention leaves alone.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def doctor(
    full: Annotated[bool, typer.Option("--full", help="Also SQLite's long check, and every bar made again.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Say what a repair would set aside and make again.")] = False,
    execute: Execute = False,
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """Look at the whole tape: checksums, positions, bars, the log, who holds it, space. Exit code 1: damage."""
    from onetape import config
    from onetape.errors import ConfigInvalid
    from onetape.progress import ProgressMeter
    from onetape.tape import care

    path = config.load(tape=tape).tape
    if execute and not repair:
        raise ConfigInvalid("--execute does nothing without --repair", hint="add --repair")
    if repair:
        _repair(path, execute, json)
        return
    meter = ProgressMeter("reading")
    with ProgressLine("positions", quiet=json) as shown:
        found = care.doctor(path, full=full, on_progress=lambda done, total: shown(meter.update(done, total)))
    if json:
        sys.stdout.writelines(output.json_line(msgspec.structs.asdict(finding)) + "\n" for finding in found.findings)
    else:
        for finding in found.findings:
            sys.stdout.write(output.plain(f"{finding.weight:<8} {finding.place:<10} {finding.message}") + "\n")
            if finding.hint:
                sys.stdout.write(output.plain(f"{'':<19} {finding.hint}") + "\n")
        count = len(found.problems)
        verdict = "healthy" if not count else f"{count} problem{'s' if count > 1 else ''}"
        sys.stdout.write(f"{found.path}: {verdict}\n")
    if not found.healthy:
        raise typer.Exit(1)


def _repair(path: Path, execute: bool, json: bool) -> None:
    from onetape.tape import care

    plan = care.repair(path, execute=execute)
    if json:
        sys.stdout.write(output.json_line(msgspec.to_builtins(plan)) + "\n")
        return
    if plan.nothing:
        sys.stdout.write("nothing to repair\n")
        return
    _tell_repair(plan)
    if not execute:
        output.note("nothing was changed; --execute does it")


def _tell_repair(plan: RepairPlan) -> None:
    verb = "set aside" if plan.done else "to be set aside"
    if plan.log is not None:
        renamed = "renamed to" if plan.done else "to be renamed to"
        sys.stdout.write(f"the log beside the file is not its own, {renamed} {plan.log}\n")
        if not plan.done:
            sys.stdout.write("what is in the file itself can be looked at after that\n")
    if plan.aside:
        rows = [
            [aside.place, aside.symbol or "several", f"{aside.first}-{aside.last}", f"{aside.records:,}", aside.times,
             aside.why]
            for aside in plan.aside
        ]  # fmt: skip
        sys.stdout.write(f"{verb}:\n")
        output.print_table(["where", "symbol", "positions", "records", "times", "why"], rows, _LEFT)
    for corrected in plan.corrected:
        sys.stdout.write(output.plain(f"{'corrected' if plan.done else 'to be corrected'}: {corrected}") + "\n")
    if plan.hours_of_bars:
        made = "made again" if plan.done else "to be made again"
        sys.stdout.write(f"{made}: the bars of {plan.hours_of_bars:,} hours of a symbol\n")
    if plan.backup is not None:
        sys.stdout.write(f"the tape as it was: {plan.backup}\n")


def backup(
    to: Annotated[Path, typer.Argument(help="The new file; one that is there is never overwritten.")],
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """Copy the tape to a new file while it is written, and prove the copy."""
    from onetape.progress import ProgressMeter

    meter = ProgressMeter("copying")
    with open_tape(tape) as opened, ProgressLine("bytes", quiet=json) as shown:
        made = opened.backup(to, on_progress=lambda done, total: shown(meter.update(done, total)))
    if json:
        sys.stdout.write(output.json_line(made) + "\n")
        return
    output.print_facts(
        {
            "backup": made.path,
            "size": output.size(made.bytes),
            "position": f"{made.head:,}",
            "records": f"{made.records:,}, each of them read again from the copy",
            "digest": made.digest,
        }
    )


def restore(
    path: Annotated[Path, typer.Argument(metavar="BACKUP", help="A file that onetape backup wrote.")],
    to: Annotated[Path, typer.Option("--to", help="Where the tape is to be.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Rename what is there; refused while a process has it open.")
    ] = False,
    execute: Execute = False,
    json: Json = False,
) -> None:
    """Put a backup, once it is proved, where a tape is to be. A dry run until --execute."""
    from onetape.tape import care

    plan = care.restore(path, to, execute=execute, replace=replace)
    if json:
        sys.stdout.write(output.json_line(plan) + "\n")
        return
    facts = {
        "backup": f"{plan.backup.path}: whole, format {plan.backup.format_version}",
        "position": f"{plan.backup.head:,}",
        "records": f"{plan.backup.records:,}",
        "tape": plan.to,
    }
    if plan.kept is not None:
        facts["kept"] = f"what {'was' if execute else 'is'} there: {plan.kept}"
    output.print_facts(facts)
    if not execute:
        output.note("nothing was changed; --execute does it")


def upgrade(execute: Execute = False, json: Json = False, tape: TapePath = None) -> None:
    """Bring a tape of an older format to this one, with a backup beside it. A dry run until --execute."""
    from onetape import config
    from onetape.tape import care

    plan = care.upgrade(config.load(tape=tape).tape, execute=execute)
    if json:
        sys.stdout.write(output.json_line(plan) + "\n")
        return
    facts = {"tape": plan.path, "format": str(plan.version)}
    if plan.backup is None:
        facts["to do"] = "nothing: it is the newest"
    else:
        facts["to format"] = f"{plan.to_version}: {'; '.join(plan.changes)}"
        facts["backup"] = plan.backup
        facts["space"] = f"up to {output.size(plan.bytes_needed)} for a while, {output.size(plan.bytes_free)} are free"
    output.print_facts(facts)
    if plan.backup is not None and not execute:
        output.note("nothing was changed; --execute does it, and so does opening the tape for writing")


def mem(
    limit: Annotated[int, typer.Option(min=0, help="At most so many symbols, the largest; 0: all.")] = 20,
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """Show what the newest ticks of each symbol take in the memory of a process that asks for all of them."""
    with open_tape(tape) as opened:
        opened.latest()
        found = sorted(opened.memory(), key=lambda told: (-told.bytes, told.symbol))
    if json:
        sys.stdout.writelines(output.json_line(told._asdict()) + "\n" for told in found)
        return
    if not found:
        output.note("the tape is empty")
        return
    shown = found[:limit] if limit else found
    rows = [
        [told.symbol, f"{told.records:,}", f"{told.bytes:,}", f"{told.bytes / max(told.records, 1):.0f}"]
        for told in shown
    ]
    output.print_table(["symbol", "records", "bytes", "bytes a record"], rows, _LEFT)
    total = sum(told.bytes for told in found)
    sys.stdout.write(f"{len(found):,} symbols, {sum(told.records for told in found):,} records: {output.size(total)}\n")
    if len(shown) < len(found):
        output.note(f"the {len(shown):,} largest of {len(found):,} symbols; --limit 0 shows all")


def prune(
    days: Days = None,
    bar_days: BarDays = None,
    execute: Execute = False,
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """Remove what is older than the retention: ticks, then bars. A dry run until --execute; snapshots are kept."""
    with open_tape(tape, mode="rw" if execute else "r") as opened:
        plan = opened.prune_plan(retention_days=days, bar_retention_days=bar_days)
        before = opened.stats().file_bytes
        removed = opened.prune(retention_days=days, bar_retention_days=bar_days) if execute else None
    if json:
        sys.stdout.write(output.json_line({**msgspec.structs.asdict(plan), "removed": removed}) + "\n")
        return
    facts: dict[str, str] = {}
    if removed is None:
        facts["would go"] = f"{plan.ticks:,} ticks ({output.size(plan.bytes)}), bars of {plan.bar_hours:,} hours"
    else:
        facts["removed"] = f"{removed:,} ticks, bars of {plan.bar_hours:,} hours"
        facts["file"] = f"{output.size(before)} before"
    for name, ticks in plan.held.items():
        facts[f"held by {name}"] = f"{ticks:,} ticks"
    output.print_facts(facts)
    if removed is None:
        output.note("nothing was changed; --execute does it")


@snapshot_app.command("create")
def create(
    name: Name,
    note: Annotated[str, typer.Option("--note", help="What it is for.")] = "",
    json: Json = False,
    tape: TapePath = None,
) -> None:
    """Name the tape's last position, with a digest of everything up to it."""
    with open_tape(tape, mode="rw") as opened:
        _print([opened.snapshot(name, note)], json)


@snapshot_app.command("list")
def list_(json: Json = False, tape: TapePath = None) -> None:
    """List the snapshots, by position."""
    with open_tape(tape) as opened:
        found = opened.snapshots()
    _print(found, json)
    if not found:
        output.note("no snapshots")


@snapshot_app.command("show")
def show(name: Name, json: Json = False, tape: TapePath = None) -> None:
    """Show one snapshot, its whole digest too."""
    from onetape.errors import SnapshotMissing

    with open_tape(tape) as opened:
        found = [known for known in opened.snapshots() if known.name == name]
    if not found:
        raise SnapshotMissing(f"no snapshot {name!r}", hint="see onetape snapshot list", name=name)
    if json:
        _print(found, json)
        return
    output.print_facts(_facts(found[0]))


@snapshot_app.command("verify")
def verify(name: Name, json: Json = False, tape: TapePath = None) -> None:
    """Read everything up to a snapshot again and compare it with its digest. Exit code 1: it is not the same."""
    with open_tape(tape) as opened:
        proof = opened.verify_snapshot(name)
    told = {"name": name, "holds": proof.holds, "digest": proof.snapshot.digest, "found": proof.found.digest,
            "records": proof.snapshot.records, "records_found": proof.found.records}  # fmt: skip
    if json:
        sys.stdout.write(output.json_line(told) + "\n")
    elif proof.holds:
        sys.stdout.write(output.plain(f"{name}: {proof.found.records:,} records, each bit as it was") + "\n")
    else:
        sys.stdout.write(output.plain(f"{name}: not as it was") + "\n")
        output.print_facts({key: str(value) for key, value in told.items() if key not in ("name", "holds")})
    if not proof.holds:
        raise typer.Exit(1)


@snapshot_app.command("delete")
def delete(name: Name, execute: Execute = False, json: Json = False, tape: TapePath = None) -> None:
    """Forget a snapshot: retention may remove what it alone kept. A dry run until --execute."""
    from onetape.errors import SnapshotMissing

    with open_tape(tape, mode="rw" if execute else "r") as opened:
        known = {snapshot.name: snapshot for snapshot in opened.snapshots()}
        if name not in known:
            raise SnapshotMissing(f"no snapshot {name!r}", hint="see onetape snapshot list", name=name)
        held = opened.prune_plan().held.get(name, 0)
        if execute:
            opened.delete_snapshot(name)
    if json:
        sys.stdout.write(output.json_line({"name": name, "deleted": execute, "held_ticks": held}) + "\n")
        return
    verb = "deleted" if execute else "would delete"
    sys.stdout.write(
        output.plain(f"{verb} {name}, of position {known[name].seq:,}; it holds {held:,} old ticks") + "\n"
    )
    if not execute:
        output.note("nothing was changed; --execute does it")


def _facts(snapshot: Snapshot) -> dict[str, str]:
    from onetape.clock import to_text

    return {
        "name": snapshot.name,
        "position": f"{snapshot.seq:,}",
        "records": "not finished" if snapshot.records is None else f"{snapshot.records:,}",
        "taken": to_text(snapshot.created_ns),
        "note": snapshot.note,
        "digest": snapshot.digest or "",
    }


def _print(found: list[Snapshot], json: bool) -> None:
    if json:
        sys.stdout.writelines(output.json_line(_as_dict(snapshot)) + "\n" for snapshot in found)
    elif found:
        rows = [list({**_facts(one), "digest": (one.digest or "")[:16]}.values()) for one in found]
        output.print_table(["name", "position", "records", "taken", "note", "digest"], rows, _LEFT)


def _as_dict(snapshot: Snapshot) -> dict[str, Any]:
    from onetape.clock import to_text

    return {**msgspec.structs.asdict(snapshot), "created": to_text(snapshot.created_ns)}
