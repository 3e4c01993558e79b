"""The report: what a run did, as one frozen object and as a JSON file with a timestamp in its name.

The file `migration_report_<UTC time>.json` holds one object:

    onetape, command, dry_run, started, ended (ISO 8601, UTC), seconds, keys_per_s
    plan          name, hash, target_db
    server        address, server, version
    ledger        its path
    steps         step → outcome → number of keys (ledger.Outcome says what each means)
    totals        outcome → number of keys
    ticks         landed: records put on the tape now, known: there already, merged_keys: tick hashes merged
    errors        count, and the first 1,000 of: step, source_db, key, target, error
    notes         count, and the first 1,000, as of errors: keys that are over, but hold what no tape can
    unmatched     count, and by source database: count and the first 1,000 keys
    throttled     seconds that the pace held it back, by the kind of reason
    warnings      what the checks before the run found worth saying
    verification  the verdict and counts of a verify, or null

Keys are text where they are UTF-8; other bytes are written \\xNN.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

from onetape import clock
from onetape.errors import MigrationError

ERRORS_LISTED = 1000

#: Exit codes of every migrate command, and of `Report.exit_code`.
EXIT_OK = 0
EXIT_FAILURES = 1  # finished, but some keys failed, or not proven
EXIT_REFUSED = 2  # refused before anything was written
EXIT_SKIPS = 3  # converged, with listed skips


class KeyFailure(msgspec.Struct, frozen=True):
    """One key that could not be brought over, and why; or, among notes, what of it is not on the tape."""

    step: str
    source_db: int
    key: bytes
    target: bytes
    error: str


class UnmatchedKeys(msgspec.Struct, frozen=True):
    """Keys of one source database that no rule matches: how many, and the first 1,000."""

    count: int
    first: tuple[bytes, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a backfill did, or, with dry_run, what it would do. Times in ns since the epoch, UTC."""

    command: str
    dry_run: bool
    plan_name: str
    plan_hash: str
    target_db: int
    address: str
    server: str
    version: str
    ledger: str
    started_ns: int
    ended_ns: int
    steps: dict[str, dict[str, int]]
    ticks_landed: int = 0
    ticks_known: int = 0
    error_count: int = 0
    errors: tuple[KeyFailure, ...] = ()
    note_count: int = 0
    notes: tuple[KeyFailure, ...] = ()
    unmatched: dict[int, UnmatchedKeys] = {}
    warnings: tuple[str, ...] = ()
    throttled: dict[str, float] = {}
    verification: dict[str, Any] | None = None
    path: str | None = None

    @property
    def totals(self) -> dict[str, int]:
        """Outcome → number of keys, over all steps."""
        totals: dict[str, int] = {}
        for counts in self.steps.values():
            for outcome, number in counts.items():
                totals[outcome] = totals.get(outcome, 0) + number
        return totals

    @property
    def keys(self) -> int:
        """How many keys of the plan were met."""
        return sum(self.totals.values())

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.ended_ns - self.started_ns) / 1e9

    @property
    def keys_per_s(self) -> float:
        """Keys a second, over the whole run."""
        return self.keys / self.seconds if self.ended_ns > self.started_ns else 0.0

    @property
    def exit_code(self) -> int:
        """0: all is over or was there. 1: some key failed, or changed too fast to be copied."""
        totals = self.totals
        bad = self.error_count or totals.get("failed") or totals.get("changed_while_copying")
        return EXIT_FAILURES if bad else EXIT_OK

    def to_dict(self) -> dict[str, Any]:
        """Return what the report file holds."""
        from onetape import __version__

        return {
            "onetape": __version__,
            "command": self.command,
            "dry_run": self.dry_run,
            "started": clock.to_text(self.started_ns),
            "ended": clock.to_text(self.ended_ns),
            "seconds": round(self.seconds, 3),
            "keys_per_s": round(self.keys_per_s, 1),
            "plan": {"name": self.plan_name, "hash": self.plan_hash, "target_db": self.target_db},
            "server": {"address": self.address, "server": self.server, "version": self.version},
            "ledger": self.ledger,
            "steps": self.steps,
            "totals": self.totals,
            "ticks": {"landed": self.ticks_landed, "known": self.ticks_known},
            "errors": {"count": self.error_count, "first": _told(self.errors)},
            "notes": {"count": self.note_count, "first": _told(self.notes)},
            "unmatched": {
                "count": sum(keys.count for keys in self.unmatched.values()),
                "by_database": {
                    str(db): {"count": keys.count, "first": [key_text(key) for key in keys.first]}
                    for db, keys in self.unmatched.items()
                },
            },
            "throttled": self.throttled,
            "warnings": list(self.warnings),
            "verification": self.verification,
        }

    def save(self, directory: str | Path) -> Report:
        """Write the file into `directory`, whole or not at all; return the report with its `path`."""
        return msgspec.structs.replace(self, path=str(save(self.to_dict(), directory, self.ended_ns)))


def _told(failures: tuple[KeyFailure, ...]) -> list[dict[str, Any]]:
    return [{**msgspec.structs.asdict(e), "key": key_text(e.key), "target": key_text(e.target)} for e in failures]


def save(content: dict[str, Any], directory: str | Path, at_ns: int) -> Path:
    """Write `migration_report_<UTC time>.json`, whole or not at all, and return its path.

    Raises MigrationError.
    """
    stamp = clock.to_text(at_ns // 1_000_000 * 1_000_000).replace("-", "").replace(":", "").replace(".", "_")
    path = Path(directory) / f"migration_report_{stamp}.json"
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise MigrationError(
            f"the report {path} cannot be written: {error.strerror}",
            hint="the migration itself is done and in the ledger; give another directory",
        ) from error
    return path


def key_text(key: bytes) -> str:
    """Return a key as text: UTF-8 where it is, \\xNN for other bytes."""
    return key.decode("utf-8", "backslashreplace")
