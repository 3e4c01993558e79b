"""One command of a rehearsed migration in a process of its own, so that it can be killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from onetape.errors import OnetapeError
from onetape.migrate.migration import Migration
from onetape.migrate.plans.plan import Plan
from onetape.migrate.steps.gate import Limits
from onetape.tape import open as open_tape


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, and where. `plan`: a file, or the name of a shipped plan. `given`: the command's arguments."""

    url: str
    plan: str
    target_db: int
    ledger: str
    tape: str | None
    command: str
    given: dict[str, Any] = {}


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `code`: 0 done, 1 failed, 2 refused, 3 with listed skips. `facts`: what the command counted."""

    code: int
    seconds: float
    facts: dict[str, Any] = {}
    error: str = ""


def run(task: Task) -> Told:
    """Carry out a task in this process."""
    plan = Plan.load(task.plan).with_target(task.target_db)
    started_s = time.monotonic()
    tape = None if task.tape is None else open_tape(Path(task.tape))
    try:
        migration = Migration(task.url, plan=plan, ledger_path=task.ledger, tape=tape)
        code, facts = _do(migration, task)
        return Told(code=code, seconds=time.monotonic() - started_s, facts=facts)
    except OnetapeError as error:
        return Told(code=2, seconds=time.monotonic() - started_s, error=str(error))
    finally:
        if tape is not None:
            tape.close()


def _do(migration: Migration, task: Task) -> tuple[int, dict[str, Any]]:
    if task.command == "backfill":
        report = migration.backfill(**task.given)
        errors = [f"{one.key!r}: {one.error}" for one in report.errors[:5]]
        return report.exit_code, {"keys": report.keys, "steps": report.steps, "errors": errors}
    if task.command == "verify":
        found = migration.verify(**task.given)
        lines = [*found.differences[:5], *found.skips[:5]]
        return found.exit_code, {"verdict": found.verdict, "keys": found.checked, "lines": lines}
    given = dict(task.given)
    if task.command == "cutover":
        given["limits"] = Limits(quiet_for_s=0.0, fallback_for_s=60.0, volatile_ok=True)
    move = getattr(migration, task.command.replace("-", "_"))(**given, execute=True)
    return move.exit_code, {"phase": move.after, "warnings": list(move.warnings[:5])}


def main() -> None:
    """Run the task in argv and print what came of it."""
    told = run(msgspec.json.decode(sys.argv[1], type=Task))
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")


if __name__ == "__main__":
    main()
