"""What is owned: of each key in a ledger, its target, what was last written to it, and whether we made it. On disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import apsw

from onetape.migrate.ledger.entry import NO_TICKS, NOT_LANDED, Outcome
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.verifying.twins import Twin

_PAGE = 1000


class Owned:
    """What the ledger says of each old key, on disk: its target, what was written, and whether we made the target."""

    def __init__(self, ledger: Ledger) -> None:
        self._db = apsw.Connection("")
        self._db.execute(
            "CREATE TABLE owned(db, key BLOB, target BLOB, written BLOB, expire_ms, made, met DEFAULT 0,"
            " PRIMARY KEY(db, key)) WITHOUT ROWID"
        )
        with self._db:
            self._db.executemany(
                "INSERT INTO owned(db, key, target, written, expire_ms, made) VALUES(?,?,?,?,?,?)"
                " ON CONFLICT(db, key) DO UPDATE SET target=excluded.target, written=excluded.written,"
                " expire_ms=excluded.expire_ms, made=made OR excluded.made",
                (
                    (entry.source_db, entry.key, entry.target, entry.written, entry.expire_ms,
                     int(entry.outcome in (Outcome.COPIED, Outcome.INTENDED)))
                    for entry in ledger.entries()
                    if entry.written is not None and not (entry.error or "").startswith((NO_TICKS, NOT_LANDED))
                ),
            )  # fmt: skip

    def find(self, twin: Twin) -> tuple[bytes, int, bool] | None:
        """Return what was written, its expiry, and whether we made the target; None where nothing is known."""
        rows = list(
            self._db.execute(
                "SELECT written, expire_ms, made FROM owned WHERE db = ? AND key = ? AND target = ?",
                (twin.old_db, twin.old_key, twin.new_key),
            )
        )
        return (bytes(rows[0][0]), int(rows[0][1]), bool(rows[0][2])) if rows else None

    def has_target(self, target: bytes) -> bool:
        """Return whether a key was copied to this target."""
        self._db.execute("CREATE INDEX IF NOT EXISTS by_target ON owned(target)")
        return bool(list(self._db.execute("SELECT 1 FROM owned WHERE target = ? LIMIT 1", (target,))))

    def meet(self, twins: Sequence[Twin]) -> None:
        """Mark pairs as met."""
        with self._db:
            self._db.executemany(
                "UPDATE owned SET met = 1 WHERE db = ? AND key = ?", [(twin.old_db, twin.old_key) for twin in twins]
            )

    def not_met(self, target_db: int) -> Iterator[list[Twin]]:
        """Yield the pairs that were not met: their old keys are gone."""
        last: tuple[int, bytes] = (-1, b"")
        while True:
            rows = list(
                self._db.execute(
                    "SELECT db, key, target FROM owned WHERE met = 0 AND (db, key) > (?, ?) ORDER BY db, key LIMIT ?",
                    (*last, _PAGE),
                )
            )
            if not rows:
                return
            yield [Twin(db, key, target_db, target, -1) for db, key, target in rows if (db, key) != (target_db, target)]
            last = (rows[-1][0], rows[-1][1])

    def close(self) -> None:
        """Close it."""
        self._db.close()


__all__ = ["Owned"]
