"""Old address of onetape.migrate: moves the documented Redis layout into database 1, and onto the tape.

    python -m trading_system.storage.data_migrator --phase historical [--dry-run] [--limit N]
    python -m trading_system.storage.data_migrator --phase verify

And, for a live migration, the phases of `onetape migrate`, each a dry run until --execute: dual-write (start),
backfill, verify (with --repair), switch-reads, cutover, rollback, finish, undo, unfence; pause, resume, throttle, which
act at once; status, and why --key KEY.

Exit codes: 0 done, or converged; 1 keys failed, or not proven; 2 refused, nothing was written; 3 converged, but with
listed skips, or keys were left and named; 130 interrupted.
"""

# onetape is imported where it is used: --help must answer at once.

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from onetape.config import Settings
    from onetape.migrate.migration import Migration
    from onetape.migrate.plans.plan import Plan
    from onetape.migrate.report import Report
    from onetape.progress import Progress

__all__ = ["DATABASES", "SafeRedisConsolidator", "main"]

#: The plan's step → the name of its count in the statistics, in the document's order.
_COUNTS = {
    "volume": "volume_migrated",
    "indicators": "indicators_migrated",
    "system": "system_migrated",
    "ticks": "historical_ticks_migrated",
    "ohlc": "ohlc_migrated",
    "baselines": "baseline_migrated",
}

#: The names that databases had, and the numbers they are.
DATABASES = {
    "ticker": 0,
    "ticks": 0,
    "session": 0,
    "system": 0,
    "health": 0,
    "volume": 2,
    "ohlc": 2,
    "baseline": 2,
    "indicators": 5,
    "unified": 1,
}


class SafeRedisConsolidator:
    """The documented migration: databases 0, 2 and 5 to database 1, historical ticks and OHLC also onto the tape.

    Nothing is ever overwritten that this migration did not write, and sources stay. The tape, its ledger and the
    reports are where ONETAPE_TAPE or onetape.toml say, else `market_data.db` in the working directory.
    """

    def __init__(self, redis_host: str | None = None, redis_port: int | None = None) -> None:
        from onetape import config

        self._settings = config.load()
        self._url = _url(redis_host, redis_port, self._settings)
        where = urlsplit(self._url)
        self.redis_host, self.redis_port = where.hostname or "localhost", where.port or 6379
        self.migration_log: list[dict[str, Any]] = []

    def migrate_historical_data(self, dry_run: bool = False, limit: int | None = None) -> dict[str, Any]:
        """Carry out the six steps and return the documented statistics.

        limit: at most that many keys a step. dry_run: on a connection that cannot write; the counts say what would
        be migrated. A JSON report with a timestamp in its name is written. Keys that fail are counted in `errors`,
        and the rest goes on; raises EndpointError and PreflightRefused where nothing can be done at all.
        """
        stats, _ = self._historical(dry_run, limit, None)
        return stats

    def _historical(
        self, dry_run: bool, limit: int | None, on_progress: Callable[[Progress], None] | None
    ) -> tuple[dict[str, Any], Report]:
        _check(limit)
        with self._migration(self._plan(), reads=dry_run) as migration:
            report = migration.backfill(dry_run=dry_run, limit=limit, on_progress=on_progress)
        counts = {name: migrated(report, step) for step, name in _COUNTS.items()}
        stats = {
            "start_time": _text(report.started_ns),
            "end_time": _text(report.ended_ns),
            "dry_run": bool(dry_run),
            **counts,
            "errors": errors(report),
            "total_keys_migrated": sum(counts.values()),
        }
        self._log("migrate_historical_data", stats, limit=limit, report=report.path)
        return stats, report

    def migrate_ticks(self, source_db: int, limit: int | None = None, dry_run: bool = False) -> Report:
        """Carry out the step of the historical ticks alone, with all of its keys in one database."""
        from msgspec.structs import replace

        from onetape.migrate.plans.plan import Rule

        _check(limit)
        plan = self._plan().only(["ticks"]).with_source("ticks", source_db)
        if source_db == plan.target_db:
            # The streams that tick hashes are merged into are in the same database: they are no source of ticks.
            merged = Rule(step="ticks", source_db=source_db, pattern="ticks:historical:{symbol}", skip=True)
            plan = replace(plan, rules=(merged, *plan.rules))
        with self._migration(plan, reads=dry_run, part=f"ticks-{source_db}") as migration:
            report = migration.backfill(dry_run=dry_run, limit=limit)
        self._log("migrate_ticks", report.totals, source_db=source_db, limit=limit, dry_run=dry_run)
        return report

    def migrate_with_redis_copy(
        self,
        pattern: str,
        source_db_name: str | int,
        target_db: int = 1,
        key_transform: Callable[[str], str] | None = None,
        verbose: bool = True,
    ) -> dict[str, int]:
        """Copy the keys that a Redis glob matches, and return how many were migrated, failed, skipped and scanned.

        source_db_name: a database's number, or one of the names in DATABASES. key_transform: from the old name to
        the new one, as text (bytes that are not UTF-8 pass through it by surrogateescape); None keeps names.
        skipped: keys whose target holds the same already, newer targets kept, and keys that expired meanwhile.
        verbose: also print that.
        """
        from onetape.migrate.plans.plan import Plan

        plan = Plan.of_glob(pattern, _database(source_db_name), target_db=target_db, transform=_of_bytes(key_transform))
        with self._migration(plan, part=f"copy-{plan.hash[:12]}") as migration:
            report = migration.backfill()
        done = ("copied", "failed", "changed_while_copying")
        counts = {
            "migrated": migrated(report, "copy"),
            "errors": errors(report),
            "skipped": sum(number for outcome, number in report.totals.items() if outcome not in done),
            "scanned": report.keys,
        }
        self._log("migrate_with_redis_copy", counts, pattern=pattern, source_db=source_db_name, target_db=target_db)
        if verbose:
            print(f"{pattern}: " + ", ".join(f"{number} {name}" for name, number in counts.items()))
        return counts

    def verify_migration(self) -> dict[str, Any]:
        """Compare every key with its place in database 1, and what belongs on the tape with the tape.

        `status` is "converged", "converged with listed skips" or "not proven"; `checked` counts source keys, `counts`
        is step → finding → keys, `differences` and `skips` say in words what was found.
        """
        return self._verify("verify_migration", None)

    def verify_data_consistency(self, sample_size: int = 50) -> dict[str, Any]:
        """As verify_migration(), of `sample_size` keys of each source database."""
        return self._verify("verify_data_consistency", sample_size)

    def start_dual_write_migration(self) -> dict[str, Any]:
        """Begin the live migration: writers that use onetape.migrate.dual write both sides from then on.

        Returns phase ("dual_writing"), version (of the state that clients follow), changed (False: it was begun before)
        and lines (what that means). Raises PhaseRefused where a migration is further on already, PreflightRefused.
        """
        return self._phase("dual-write", execute=True)

    def _phase(self, name: str, *, execute: bool, **options: Any) -> dict[str, Any]:
        """Give a command of the live migration, and return what it did, or would do."""
        reads = not (execute and name == "finish")
        with self._migration(self._plan(), reads=reads, tapeless=True) as migration:
            commands: dict[str, Callable[..., Any]] = {
                "dual-write": migration.start,
                "start": migration.start,
                "switch-reads": migration.switch_reads,
                "cutover": migration.cutover,
                "rollback": migration.rollback,
                "finish": migration.finish,
                "undo": migration.undo,
                "unfence": migration.unfence,
                "repair": migration.repair,
                "pause": lambda execute: migration.pause(),
                "resume": lambda execute: migration.resume(),
                "throttle": lambda execute, settings: migration.throttle(settings),
            }
            move = commands[name](execute=execute, **options).to_dict()
        result = {"phase": move.pop("after"), **move}
        self._log(name, result, execute=execute, **{key: repr(value) for key, value in options.items()})
        return result

    def save_migration_log(self, filename: str | Path) -> None:
        """Write what this object did, as a JSON list of operations with their results, whole or not at all."""
        path = Path(filename)
        draft = path.with_name(path.name + ".tmp")
        draft.write_text(json.dumps(self.migration_log, indent=2) + "\n", "utf-8")
        draft.replace(path)

    def cleanup(self) -> None:
        """Close the connections of UnifiedRedisManager. What a migration itself opens, it has closed already."""
        from onetape.legacy import close_redis_clients

        close_redis_clients()

    def _plan(self) -> Plan:
        from onetape.migrate.plans.named import plan_of

        return plan_of(self._settings, documented=True)

    @contextmanager
    def _migration(
        self, plan: Plan, *, reads: bool = False, part: str = "", tapeless: bool = False
    ) -> Iterator[Migration]:
        """A migration with the tape and the ledger of the settings; `reads`: neither is created. `tapeless`: there need
        not be a tape yet, although there is a ledger.

        A ledger belongs to one plan: `part` names that of a plan which is not the documented one.
        """
        from onetape.migrate.migration import Migration
        from onetape.migrate.plans.named import ledger_of
        from onetape.tape import open as open_tape

        settings = self._settings
        ledger = ledger_of(settings)
        if part:
            ledger = ledger.with_name(f"{ledger.name}-{part}")
        with ExitStack() as stack:
            tape = None
            if not reads or settings.tape.exists() or (ledger.exists() and not tapeless):
                opened = open_tape(
                    settings.tape,
                    mode="r" if reads else "rw",
                    durability=settings.durability,
                    retention_days=settings.retention_days,
                )
                tape = stack.enter_context(opened)
            yield Migration(self._url, plan=plan, ledger_path=ledger, tape=tape, report_dir=settings.reports_dir)

    def _verify(self, operation: str, sample: int | None) -> dict[str, Any]:
        with self._migration(self._plan(), reads=True) as migration:
            found = migration.verify(sample=sample).as_dict()
        result = {"status": found.pop("verdict"), **found}
        self._log(operation, result, sample_size=sample)
        return result

    def _log(self, operation: str, result: Any, **arguments: Any) -> None:
        now = datetime.now(UTC).isoformat()
        self.migration_log.append({"time": now, "operation": operation, "arguments": arguments, "result": result})


def migrated(report: Report, step: str) -> int:
    """Return how many keys of a step were brought over by this run, or, in a dry run, would be."""
    return report.steps.get(step, {}).get("copied", 0)


def errors(report: Report) -> int:
    """Return how many keys failed, kept changing, or could not be put on the tape."""
    totals = report.totals
    return max(report.error_count, totals.get("failed", 0) + totals.get("changed_while_copying", 0))


def _url(host: str | None, port: int | None, settings: Settings) -> str:
    from onetape.legacy import redis_address

    given = host or port is not None or os.environ.get("REDIS_HOST") or os.environ.get("REDIS_PORT")
    if not given:
        return settings.redis_url  # of ONETAPE_REDIS_URL or onetape.toml; redis://localhost:6379 where nobody says
    name, number = redis_address(host, port)
    return f"redis://{f'[{name}]' if ':' in name else name}:{number}"


def _check(limit: int | None) -> None:
    from onetape import ConfigInvalid

    if limit is not None and limit < 0:
        raise ConfigInvalid(f"limit = {limit}", hint="it is a number of keys a step; None is no limit")


def _database(name: str | int) -> int:
    if isinstance(name, int) and not isinstance(name, bool):
        return name
    if isinstance(name, str) and (name.lower() in DATABASES or name.isdecimal()):
        return DATABASES[name.lower()] if name.lower() in DATABASES else int(name)
    from onetape import ConfigInvalid

    raise ConfigInvalid(f"no database is called {name!r}", hint="a number, or " + ", ".join(sorted(DATABASES)))


def _of_bytes(transform: Callable[[str], str] | None) -> Callable[[bytes], bytes] | None:
    if transform is None:
        return None

    @wraps(transform)
    def renamed(key: bytes) -> bytes:
        return transform(key.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    return renamed


def _text(ts_ns: int) -> str:
    return datetime.fromtimestamp(ts_ns / 1e9, UTC).replace(tzinfo=None).isoformat()


# The command line

_MOVED = ("historical", "backfill", "verify")
_LIVE = ("dual-write", "start", "switch-reads", "cutover", "rollback", "finish", "undo", "unfence")
#: Settings of a live migration: they act at once.
_SETTINGS = ("pause", "resume", "throttle")
#: Errors before anything was written.
_REFUSED = frozenset(
    {
        "ConfigInvalid",
        "GateRefused",
        "LedgerBusy",
        "LedgerUnusable",
        "OperatorBusy",
        "PhaseRefused",
        "PlanCollision",
        "PlanInvalid",
        "PreflightRefused",
        "StateLost",
        "StateMoved",
    }
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trading_system.storage.data_migrator",
        description="Move the old Redis databases 0, 2 and 5 into database 1, or verify that it is done.",
        epilog="Exit codes: 0 done, or converged; 1 keys failed, or not proven; 2 refused, nothing was written; "
        "3 converged, with listed skips; 130 interrupted.",
    )
    parser.add_argument("--phase", required=True, choices=[*_MOVED, *_LIVE, *_SETTINGS, "status", "why"],
                        help="what to do")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="count what would be migrated; write nothing")
    parser.add_argument("--limit", type=_limit, metavar="N", help="at most N keys a step")
    parser.add_argument("--execute", action="store_true", help="of a live migration: do it, not only say what it does")
    parser.add_argument("--to", metavar="PHASE", help="rollback: to this phase; default: one back")
    parser.add_argument("--share", type=float, default=1.0, metavar="S", help="switch-reads: share of reads, 0 to 1")
    parser.add_argument("--force", action="store_true", help="cutover, rollback, finish: against the reasons")
    parser.add_argument("--volatile-ok", action="store_true", help="cutover: the server keeps nothing on disk")
    parser.add_argument("--repair", action="store_true", help="verify: first make what differs equal, with --execute")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="throttle: a setting")
    parser.add_argument("--key", metavar="KEY", help="why: the key, by its old or its new name")
    parser.add_argument("--yes", action="store_true", help="finish: the old keys may be removed")
    parser.add_argument("--redis-host", metavar="HOST", help="default: REDIS_HOST, else localhost")
    parser.add_argument("--redis-port", type=int, metavar="PORT", help="default: REDIS_PORT, else 6379")
    return parser


def _options(given: argparse.Namespace) -> dict[str, Any]:
    """Return what the arguments say for one of the live migration's phases."""
    options: dict[str, Any] = {"switch-reads": {"share": given.share}, "rollback": {"to": given.to}}.get(
        given.phase, {}
    )
    if given.phase in ("cutover", "rollback", "finish"):
        options["force"] = given.force
    if given.phase == "throttle":
        from onetape.cli.migrate.options import throttle_of

        options["settings"] = throttle_of(given.set)
    if given.phase == "cutover":
        from onetape.migrate.steps.gate import Limits

        options["limits"] = Limits(volatile_ok=given.volatile_ok)
    return options


def _limit(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} keys a step: it is at least 1")
    return number


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = _parser()
    given = parser.parse_args(args)
    if given.phase not in ("historical", "backfill") and (given.dry_run or given.limit is not None):
        parser.error("--dry-run and --limit belong to --phase historical: a verify only reads, and reads all")
    if given.phase == "finish" and given.execute and not given.yes:
        parser.error("--phase finish removes the old keys and cannot be undone: --yes says that you mean it")
    if given.phase == "why" and given.key is None:
        parser.error("--phase why asks for a key: --key KEY")
    from onetape import OnetapeError

    try:
        migrator = SafeRedisConsolidator(given.redis_host, given.redis_port)
        if given.phase == "verify":
            repaired = _print_move(migrator._phase("repair", execute=given.execute)) if given.repair else 0
            return _print_verification(migrator.verify_migration()) or repaired
        if given.phase == "status":
            return _print_status(migrator)
        if given.phase == "why":
            return _print_why(migrator, given.key)
        if given.phase in _LIVE or given.phase in _SETTINGS:
            return _print_move(migrator._phase(given.phase, execute=given.execute, **_options(given)))
        stats, report = migrator._historical(given.dry_run, given.limit, _progress())
        return _print_statistics(stats, report)
    except OnetapeError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if type(error).__name__ in _REFUSED else 1
    except KeyboardInterrupt:
        print("interrupted: run it again to go on", file=sys.stderr)
        return 130


def _progress() -> Callable[[Progress], None] | None:
    """Return what shows progress: on a terminal only."""
    if not sys.stderr.isatty():
        return None

    def show(progress: Progress) -> None:
        left = "" if progress.left_s is None else f", {progress.left_s:.0f} s left"
        rate = f"{progress.rate_per_s:,.0f}/s"
        sys.stderr.write(f"\r\x1b[K{progress.step}: {progress.done:,} of {progress.total:,} keys, {rate}{left}\r")
        sys.stderr.flush()

    return show


def _print_statistics(stats: dict[str, Any], report: Report) -> int:
    for failure in report.errors[:20]:
        key = failure.key.decode("utf-8", "backslashreplace")
        print(f"failed: db {failure.source_db} {key!r}: {failure.error}", file=sys.stderr)
    for note in report.notes[:20]:
        key = note.key.decode("utf-8", "backslashreplace")
        print(f"not on the tape: db {note.source_db} {key!r}: {note.error}", file=sys.stderr)
    if report.note_count > 20:
        print(f"and {report.note_count - 20} more that are no ticks or bars, in the report", file=sys.stderr)
    print(json.dumps(stats, indent=4))
    others = {outcome: number for outcome, number in report.totals.items() if outcome != "copied"}
    if others:
        print("not migrated: " + ", ".join(f"{number} {outcome}" for outcome, number in others.items()))
    print(f"report: {report.path}")
    return 1 if stats["errors"] else 0


def _print_move(move: dict[str, Any]) -> int:
    for line in move["lines"]:
        print(line)
    for line in move["warnings"][:20]:
        print(f"note: {line}", file=sys.stderr)
    print(f"phase: {move['phase']}" if move["executed"] else "nothing was changed: --execute does it")
    code: int = move["exit_code"]
    return code


def _print_status(migrator: SafeRedisConsolidator) -> int:
    with migrator._migration(migrator._plan(), reads=True, tapeless=True) as migration:
        print(json.dumps(migration.status().to_dict(), indent=2, default=str))
    return 0


def _print_why(migrator: SafeRedisConsolidator, key: str) -> int:
    with migrator._migration(migrator._plan(), reads=True, tapeless=True) as migration:
        found = migration.why(os.fsencode(key))
    for reason in found:
        facts = reason.to_dict()
        told = f": {facts['error']}" if facts["error"] else ""
        print(f"run {facts['run']}  {facts['at']}  {facts['outcome']}: {facts['key']} -> {facts['target']}{told}")
    if not found:
        print(f"error: the ledger knows no key {key!r}", file=sys.stderr)
    return 0 if found else 2


def _print_verification(result: dict[str, Any]) -> int:
    for line in (*result["differences"], *result["skips"]):
        print(line)
    if result["unlisted"]:
        print(f"and {result['unlisted']} more")
    print(f"{result['checked']} keys checked: {result['status']}")
    if result["note"]:
        print(result["note"])
    code: int = result["exit_code"]
    return code


if __name__ == "__main__":
    sys.exit(main())
