"""Named positions of a tape: taken, listed, verified, deleted, and what "as of" means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import apsw
import msgspec

from onetape.clock import Time, now_ns, to_ns
from onetape.errors import ConfigInvalid
from onetape.store import moments, query, snapshots
from onetape.store.query import Names
from onetape.store.snapshots import Digest, Snapshot
from onetape.tape.upkeep import Upkeep


class SnapshotProof(msgspec.Struct, frozen=True):
    """Whether a snapshot still holds: `found` is the content of the tape as of its position, read just now."""

    snapshot: Snapshot
    found: Digest

    @property
    def holds(self) -> bool:
        """Return whether the content is, bit for bit, what it was when the snapshot was taken."""
        return self.snapshot.digest == self.found.digest


class Snapshots(Upkeep):
    """How positions get names."""

    def snapshot(self, name: str, note: str = "") -> Snapshot:
        """Name the tape's last position, with a digest of everything up to it; return the snapshot.

        From then on retention keeps what the snapshot covers. Writers go on while the digest is made, which reads
        all of the tape: about two million ticks a second. Raises SnapshotExists, ConfigInvalid, ChunkCorrupt.
        """
        snapshots.check_name(name)
        if _reads_as_time(name):
            raise ConfigInvalid(f"{name!r} reads as a time", hint=f"put a word in front of it: eod-{name}")
        connection = self._writing()
        self._settle()
        try:
            with self._write_lock, self._transaction(connection):
                begun = snapshots.begin(connection, name, note, now_ns())
        except apsw.Error as error:
            raise self._failed(error, "take a snapshot of") from error
        try:
            found = self._digest(begun.seq)
        except BaseException:
            self._drop_snapshot(name)
            raise
        try:
            with self._write_lock, self._transaction(connection):
                snapshots.finish(connection, name, found)
        except apsw.Error as error:
            raise self._failed(error, "take a snapshot of") from error
        return msgspec.structs.replace(begun, digest=found.digest, records=found.records)

    def snapshots(self) -> list[Snapshot]:
        """Return all snapshots, by position."""
        with self._reading() as connection:
            return snapshots.every(connection)

    def verify_snapshot(self, name: str) -> SnapshotProof:
        """Read the tape as of a snapshot again and compare it with its digest. Raises SnapshotMissing, ChunkCorrupt."""
        with self._reading() as connection:
            known = snapshots.get(connection, name)
        if known.digest is None:
            raise ConfigInvalid(f"snapshot {name!r} was never finished", hint="delete it and take it again", name=name)
        return SnapshotProof(known, self._digest(known.seq))

    def delete_snapshot(self, name: str) -> Snapshot:
        """Forget a snapshot; retention may remove what it alone kept. Raises SnapshotMissing."""
        self._writing()
        with self._reading() as connection:
            known = snapshots.get(connection, name)
        self._drop_snapshot(name)
        return known

    def digest(self, as_of: int | str | Time | None = None) -> Digest:
        """Return a digest of what the tape holds, or held `as_of` a moment (see as_of()), to compare tapes by."""
        if as_of is not None:
            return self._digest(self.as_of(as_of))
        with self._reading() as connection:
            head = query.head(connection)
        return self._digest(head)

    def as_of(self, value: int | str | Time) -> int:
        """Return the last position that was on the tape at a moment.

        An int is a position; text the name of a snapshot or else an ISO 8601 time; a datetime the time of appending
        (not of the events). Raises ConfigInvalid for a moment before the first record, or after the last position.
        """
        with self._reading() as connection, query.snapshot(connection):
            head = query.head(connection)
            if isinstance(value, bool):
                raise ConfigInvalid(f"as_of = {value!r}", hint="give a position, a snapshot's name, or a time")
            if isinstance(value, int):
                found, what = value, f"position {value}"
                if value > head:
                    raise ConfigInvalid(f"as_of = {value}: the tape's last position is {head}", hint="it is not yet")
            else:
                named = snapshots.position(connection, value) if isinstance(value, str) else None
                if named is not None:
                    return named
                found, what = moments.position_at(connection, _time(value)), f"{value}"
            if found < 1:
                raise ConfigInvalid(
                    f"as_of = {what}: that is before the first record",
                    hint="the first record has position 1" if head else "the tape is empty",
                )
        return found

    def _drop_snapshot(self, name: str) -> None:
        connection = self._writing()
        try:
            with self._write_lock, self._transaction(connection):
                snapshots.delete(connection, name)
        except apsw.Error as error:
            raise self._failed(error, "delete a snapshot of") from error

    def _digest(self, seq: int) -> Digest:
        @contextmanager
        def reading() -> Iterator[apsw.Connection]:
            with self._reading() as connection:
                yield connection

        return snapshots.digest(reading, lambda connection: Names(self._catalog, connection), seq)


def _time(value: str | Time) -> int:
    try:
        return to_ns(value, "as_of")
    except ConfigInvalid as error:
        if not isinstance(value, str):
            raise
        raise ConfigInvalid(
            f"as_of = {value!r} is neither a snapshot nor a time", hint="see tape.snapshots() for their names"
        ) from error


def _reads_as_time(name: str) -> bool:
    try:
        to_ns(name)
    except ConfigInvalid:
        return False
    return True
