"""Old address of `onetape migrate backfill --step ticks`: historical ticks into database 1, and onto the tape.

python redis_files/volume_migration.py [--source-db N] [--limit N] [--dry-run]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from trading_system.storage.data_migrator import SafeRedisConsolidator, errors, migrated

__all__ = ["main", "migrate_volume_data"]


def migrate_volume_data(source_db: int = 1, limit: int | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Bring the tick streams and tick hashes of one database over, and return counts.

    ticks_migrated: keys (streams and hashes), as in the statistics of the whole migration. errors: keys that failed.
    ticks_unchanged: keys that were there already. records_on_tape: ticks put on the tape by this run. Of the ticks in
    database 1 itself, which is where they belong, only the tape gets something new. dry_run: nothing is written, and
    the counts say what would be. Host and port are REDIS_HOST and REDIS_PORT.
    """
    report = SafeRedisConsolidator().migrate_ticks(source_db, limit, dry_run)
    return {
        "ticks_migrated": migrated(report, "ticks"),
        "errors": errors(report),
        "ticks_unchanged": report.totals.get("unchanged", 0),
        "records_on_tape": report.ticks_landed,
        "dry_run": bool(dry_run),
    }


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 some keys failed or an error, 2 a wrong command."""
    parser = argparse.ArgumentParser(prog="volume_migration.py", description="Migrate historical ticks alone.")
    parser.add_argument("--source-db", type=int, default=1, metavar="N", help="the database to read (default: 1)")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N keys")
    parser.add_argument("--dry-run", action="store_true", help="count what would be migrated; write nothing")
    given = parser.parse_args(args)
    from onetape import OnetapeError

    try:
        counts = migrate_volume_data(given.source_db, given.limit, given.dry_run)
    except OnetapeError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(json.dumps(counts, indent=4))
    return 1 if counts["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
