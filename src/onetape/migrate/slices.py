"""Big keys: copied in slices under a temporary name, then put in place in one step, if nothing changed meanwhile.

A COPY of a set of a million members stops the server for more than a second. Here source and target are watched from
before the first look until the last step, the slices go to `onetape:slice:TOKEN:NEW NAME` in the target database, and
one transaction gives it the new name and the exact expiry. Where the source is written again and again, one COPY under
the temporary name is a snapshot that needs no quiet source; it is taken if the server would not stand still for too
long by it, else the key is counted as changed while it was copied.

What is known of such a key in the ledger is a digest of its content, not of its DUMP, which nobody takes of it: 17
bytes that begin with "c". The name of the temporary key is in the ledger before the key is there, so that the next
run removes what a killed one left; it also goes by itself.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from hashlib import blake2b

import msgspec

from onetape.errors import EndpointError, MigrationError
from onetape.migrate import content, decide, dump
from onetape.migrate.content import LENGTH, Content, read_content
from onetape.migrate.copy import LOSSES_MAX, OnDone
from onetape.migrate.endpoint import Endpoint, ReplyError, is_lost
from onetape.migrate.guard import Guard, Place
from onetape.migrate.lane import Batch
from onetape.migrate.ledger import Entry, Known, Ledger, Row, key_hash
from onetape.migrate.pacing import Pacing
from onetape.migrate.slice_write import LEASE_MS, Lost, write

TEMPORARY = b"onetape:slice:"

#: Above these sizes in the server's memory a key of a type is copied in slices. A COPY takes 1 to 2 ms a MiB where
#: elements are copied one by one, a fifth of it where blocks are, and many times more for millions of elements; a DUMP
#: takes 1 to 5 ms a MiB of anything.
SLICE_BYTES = 2 * 1024 * 1024
SLICE_BYTES_OF_BLOCKS = 16 * 1024 * 1024
_BLOCKS = (b"string", b"stream")

#: How long the server may stand still for the one COPY of a key that is never quiet, ms.
PAUSE_MS_MAX = 50.0
#: A key is begun anew this often when its source changes meanwhile.
ATTEMPTS_MAX = 4
#: Of what the server takes: ms a MiB (measured for sets and sorted sets that no longer fit the processor's cache).
_COPY_MS_A_MIB = 25.0
_COPY_MS_A_MIB_OF_BLOCKS = 0.7
#: Up to here a target is dumped to see whether it is what an earlier run copied whole.
_DUMP_BYTES_MAX = 16 * 1024 * 1024
_ASK_EVERY = 50  # slices between two looks at whether anything changed
_CONTENT = b"c"
_STATE = "slicing"


def is_sliced(kind: bytes, size: int, *, dumps: bool) -> bool:
    """Return whether a key of that type and size in memory is copied in slices. `dumps`: else it would be dumped."""
    if kind not in LENGTH:
        return False
    return size > (SLICE_BYTES_OF_BLOCKS if kind in _BLOCKS and not dumps else SLICE_BYTES)


def content_digest(found: Content) -> bytes:
    """Return what the ledger holds of a key that was not dumped: 17 bytes that begin with b"c"."""
    whole = content.framed(found.type.encode(), b"%d" % found.length, found.digest)
    return _CONTENT + blake2b(whole, digest_size=dump.DIGEST_BYTES).digest()


def is_content_digest(digest: bytes | None) -> bool:
    """Return whether a digest of the ledger is one of a content and not of a DUMP."""
    return digest is not None and len(digest) == dump.DIGEST_BYTES + 1


def still_holds(endpoint: Endpoint, db: int, entry: Entry) -> bool:
    """Return whether an entry's target is now what the entry says was written, by its content digest."""
    found = content.read_together(endpoint, [(db, entry.target)])
    endpoint.db = -1
    there = None if found is None else found[0]
    return there is not None and content_digest(there) == entry.written and _expiry(there) == entry.expire_ms


class Big(msgspec.Struct, frozen=True):
    """A key to copy in slices: rule's index, source database, names, bytes in the server's memory."""

    rule: int
    db: int
    key: bytes
    target: bytes
    size: int

    def batch(self) -> Batch:
        """Return it as what reports are made of."""
        return Batch(self.db, [self.key], [self.target], [self.rule])


class _Done(msgspec.Struct):
    """How an attempt ended: the outcome's code, why, and what the ledger is still to be told (None: nothing)."""

    outcome: int
    error: str | None = None
    row: Row | None = None


class _Changed(Exception):
    """Source or target were written meanwhile; nothing was done."""


class Slicer:
    """Copies big keys one after the other and reports each exactly once to `on_done`, as Copier does.

    `pace`: asked before each slice. `at`: told of "slicing" (after each slice), "intended", "acted" and "recorded".
    """

    def __init__(
        self,
        connect: Callable[[], Endpoint],
        ledger: Ledger,
        target_db: int,
        on_done: OnDone,
        *,
        pace: Pacing | None = None,
        pause_ms_max: float = PAUSE_MS_MAX,
        at: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._connect = connect
        self._ledger = ledger
        self._target_db = target_db
        self._on_done = on_done
        self._pace = pace
        self._pause_ms_max = pause_ms_max
        self._at = at
        self._open()
        self._slack_ms = 0 if self._reader.has_expire_time else decide.SLACK_BEFORE_7_MS
        self._written: tuple[bytes, int] | None = None
        self._sweep()

    def _open(self) -> None:
        self._guard = Guard(self._connect)
        self._reader, self._writer = self._connect(), self._connect()

    def close(self) -> None:
        """Close the connections."""
        self._guard.close()
        self._reader.close()
        self._writer.close()

    def _sweep(self) -> None:
        """Remove the temporary key that a killed run left, if any."""
        left = self._ledger.state(_STATE)
        if left:
            db, name = json.loads(left)
            self._writer.select(db)
            self._writer.call("UNLINK", bytes.fromhex(name))
            self._ledger.set_state(**{_STATE: ""})

    def put(self, big: Big) -> None:
        """Copy one key. Raises EndpointError if the server is lost for good, LedgerUnusable, and what the pace does."""
        done: _Done | None = None
        attempts = losses = 0
        self._written = None
        while done is None:
            try:
                done = self._attempt(big, attempts)
            except (_Changed, Lost) as reason:
                self._abandon()
                attempts += isinstance(reason, _Changed)
                losses += isinstance(reason, Lost)
                if attempts >= ATTEMPTS_MAX or losses > LOSSES_MAX:
                    done = self._gave_up(big, attempts)
            except EndpointError as error:
                if is_lost(error):
                    losses += 1
                    if losses > LOSSES_MAX:
                        raise
                    self.close()
                    self._open()
                    self._sweep()
                elif content.is_changed(error):
                    self._abandon()
                    attempts += 1
                    if attempts >= ATTEMPTS_MAX:
                        done = self._gave_up(big, attempts)
                else:
                    self._abandon()
                    done = _final(big, decide.FAILED, error.message)
            except MigrationError:  # the pace
                self._abandon_quietly()
                raise
        if done.row is not None:
            self._ledger.record([done.row])
        self._on_done(big.batch(), [done.outcome], [done.error])

    def _gave_up(self, big: Big, attempts: int) -> _Done:
        pause_ms = self._pause_ms(big)
        why = (
            f"it changed {attempts} times in a row while it was copied in slices, and one COPY would stop the server "
            f"for about {pause_ms:,.0f} ms, over the {self._pause_ms_max:,.0f} allowed"
        )
        if pause_ms <= self._pause_ms_max:
            why = f"it or its target changed {attempts} times in a row while it was copied"
        return _final(big, decide.CHANGED_WHILE_COPYING, why)

    def _attempt(self, big: Big, attempts: int) -> _Done:
        source, target = (big.db, big.key), (self._target_db, big.target)
        self._reader.select(big.db)
        kind = self._reader.call("TYPE", big.key)
        if kind == b"none":
            return _final(big, decide.EXPIRED, "gone since it was listed: expired or deleted")
        if source == target:
            return _Done(decide.UNCHANGED)
        if self._in_one_piece(big, kind, attempts):
            return self._whole(big, target)
        self._guard.watch([source, target])
        self._reader.select(big.db)
        expire_ms = _absolute(content.expiry(self._reader, big.key))
        replace = self._exists(target)
        if replace:
            done = self._existing(big, self._content(source), target)
            if done is not None:
                if not self._guard.holds():
                    raise _Changed
                return done
        temporary = self._name(big.target)
        digest = self._sliced(big, kind, temporary)
        return self._put_in_place(big, temporary, digest, expire_ms, replace)

    def _in_one_piece(self, big: Big, kind: bytes, attempts: int) -> bool:
        """Return whether this attempt is to be one COPY. Raises _Changed where that would take too long."""
        if kind not in LENGTH or big.size <= SLICE_BYTES:
            return True
        if attempts < ATTEMPTS_MAX - 1:
            return False
        if self._pause_ms(big) > self._pause_ms_max:
            raise _Changed
        return True

    def _whole(self, big: Big, target: Place) -> _Done:
        """Copy by one COPY under the temporary name: a snapshot, whatever becomes of the source."""
        self._guard.watch([target])
        temporary = self._name(big.target)
        expire_ms = self._snapshot(big, temporary)
        held = self._content((self._target_db, temporary))
        if held is None:
            raise Lost
        replace = self._exists(target)
        if replace:
            here = msgspec.structs.replace(held, expires_ms=None if expire_ms < 0 else expire_ms)
            done = self._existing(big, here, target)
            if done is not None:
                untouched = self._guard.holds()
                self._sweep()
                if not untouched:
                    raise _Changed
                return done
        self._guard.also([(self._target_db, temporary)])
        if not self._exists((self._target_db, temporary)):
            raise Lost
        return self._put_in_place(big, temporary, content_digest(held), expire_ms, replace)

    def _exists(self, place: Place) -> bool:
        self._reader.select(place[0])
        return bool(self._reader.call("EXISTS", place[1]))

    def _pause_ms(self, big: Big) -> float:
        self._reader.select(big.db)
        blocks = self._reader.call("TYPE", big.key) in _BLOCKS
        return big.size / 2**20 * (_COPY_MS_A_MIB_OF_BLOCKS if blocks else _COPY_MS_A_MIB)

    def _name(self, target: bytes) -> bytes:
        temporary = TEMPORARY + secrets.token_hex(8).encode() + b":" + target
        self._ledger.set_state(**{_STATE: json.dumps([self._target_db, temporary.hex()])})
        return temporary

    def _sliced(self, big: Big, kind: bytes, temporary: bytes) -> bytes:
        """Write the temporary key and return the digest of what it holds."""
        reader, writer, guard = self._reader, self._writer, self._guard
        reader.select(big.db)
        writer.select(self._target_db)
        asked = 0

        def between(elements: int, size: int) -> None:
            nonlocal asked
            asked += 1
            if asked % _ASK_EVERY == 0 and not guard.holds():
                raise _Changed
            self._at("slicing")
            if self._pace is not None:
                self._pace.wait(0, size, work=elements / 4)

        digester, pieces = write(reader, writer, big.key, kind, temporary, between)
        guard.also([(self._target_db, temporary)])
        left_ms, length = writer.pipeline([("PTTL", temporary), (LENGTH[kind], temporary)])
        if not isinstance(left_ms, int) or left_ms <= 0 or not isinstance(length, int):
            raise Lost
        if not guard.holds():
            raise _Changed
        # Fields that expire may be counted on one side and gone on the other.
        if not pieces.length - pieces.fields_expiring <= length <= pieces.length:
            raise Lost
        if digester.count > pieces.length and kind in (b"set", b"hash"):  # SCAN repeated some
            held = read_content(writer, temporary)
            if held is None:
                raise Lost
            return content_digest(held)
        return content_digest(Content(kind.decode(), length, digester.digest(), None))

    def _snapshot(self, big: Big, temporary: bytes) -> int:
        """Make the temporary key by one COPY; return the absolute expiry of what was copied, -1 for none."""
        writer = self._writer
        before_7 = not writer.has_expire_time
        ask = [("PTTL", big.key), ("TIME",)] if before_7 else [("PEXPIRETIME", big.key)]
        replies = writer.pipeline(
            [
                ("SELECT", big.db), ("MULTI",), *ask, ("COPY", big.key, temporary, "DB", self._target_db),
                ("SELECT", self._target_db), ("PEXPIRE", temporary, LEASE_MS), ("EXEC",),
            ]
        )  # fmt: skip
        writer.db = -1
        done = replies[-1]
        for reply in (*replies, *(done if isinstance(done, list) else ())):
            if isinstance(reply, ReplyError):
                raise EndpointError(f"{writer.address}: COPY: {reply.message}", code=reply.code)
        if done[-3] != 1:
            raise _Changed
        if before_7 and done[0] >= 0:
            return int(done[0]) + int(done[1][0]) * 1000 + int(done[1][1]) // 1000
        return _absolute(int(done[0]))

    def _put_in_place(self, big: Big, temporary: bytes, digest: bytes, expire_ms: int, replace: bool) -> _Done:
        row: Row = (
            big.rule, big.db, big.key, big.target, digest, digest, expire_ms, decide.COPIED, None,
            key_hash(big.db, big.key),
        )  # fmt: skip
        batch = self._ledger.intend([row])
        self._at("intended")
        # RENAME would free a target that is there before it answers anybody; UNLINK frees it beside.
        commands: list[tuple[bytes | str | int, ...]] = [("UNLINK", big.target)] if replace else []
        commands.append(("RENAME", temporary, big.target))
        commands.append(("PERSIST", big.target) if expire_ms < 0 else ("PEXPIREAT", big.target, expire_ms))
        self._written = (digest, expire_ms)
        try:
            done = self._guard.act(self._target_db, commands)
        except EndpointError as error:
            if not is_lost(error):
                self._ledger.settle(batch, [decide.unwritten(row, decide.INTENDED, "not done, " + error.message)])
            raise
        self._at("acted")
        failed = next((reply for reply in done or () if isinstance(reply, ReplyError)), None)
        if done is None or failed is not None:
            self._written = None
            self._ledger.settle(
                batch, [decide.unwritten(row, decide.INTENDED, "not done, a side had changed; tried again")]
            )
            if failed is not None:
                raise EndpointError(failed.message, code=failed.code)
            raise _Changed
        self._ledger.settle(batch)
        self._ledger.set_state(**{_STATE: ""})
        self._at("recorded")
        return _Done(decide.COPIED)

    def _existing(self, big: Big, here: Content | None, target: Place) -> _Done | None:
        """Decide about a target that is there, as decide_careful does; None: it is ours, and is replaced."""
        there = self._content(target)
        if here is None or there is None:
            raise _Changed
        read, held = content_digest(here), content_digest(there)
        expire_ms, held_ms = _expiry(here), _expiry(there)

        def near(one: int, other: int) -> bool:
            return abs(one - other) <= self._slack_ms

        known = self._ledger.find(big.db, [big.key]).get(big.key)
        if read == held and near(expire_ms, held_ms):
            if self._written is not None and self._written[0] == held and near(self._written[1], held_ms):
                return _row(big, _Done(decide.COPIED), read, held, expire_ms)  # the answer to our act was lost
            known_now = known is not None and known.target == big.target and known.written == held
            if known_now and known is not None and near(known.expire_ms, held_ms):
                return _Done(decide.UNCHANGED)
            return _row(big, _Done(decide.UNCHANGED), read, held, expire_ms)
        ours, why = self._ours(known, big, held, held_ms)
        if ours and known is not None and known.read != known.written:
            if known.read == read and near(known.expire_ms, expire_ms):
                return _Done(decide.UNCHANGED)  # the target differs because ticks were merged into our copy
            return _row(big, _Done(decide.NEWER_TARGET_KEPT, decide.MERGED_INTO), read, None, expire_ms)
        return None if ours else _row(big, _Done(decide.NEWER_TARGET_KEPT, why), read, None, expire_ms)

    def _content(self, place: Place) -> Content | None:
        self._reader.select(place[0])
        if self._pace is not None:
            self._pace.wait(0, 0)
        return read_content(self._reader, place[1])

    def _ours(self, known: Known | None, big: Big, held: bytes, held_ms: int) -> tuple[bool, str | None]:
        """Return whether the target still holds what the ledger says we wrote, and if that cannot be known, why."""
        if known is None or known.target != big.target or abs(known.expire_ms - held_ms) > self._slack_ms:
            return False, None
        written: bytes | None = known.written
        if is_content_digest(written):
            return written == held, None
        if written is None:
            return (
                False,
                "it was copied without a digest, so which side is newer is not known; verify --repair settles it",
            )
        self._reader.select(self._target_db)
        size = self._reader.call("MEMORY", "USAGE", big.target)
        if size is None or size > _DUMP_BYTES_MAX:
            return False, "it was copied whole by an earlier run, and is too big by now to be compared with that"
        payload = self._reader.call("DUMP", big.target)
        return isinstance(payload, bytes) and dump.digest(payload) == written, None

    def _abandon(self) -> None:
        """Remove the temporary key of an attempt that failed."""
        self._guard.leave()
        self._sweep()

    def _abandon_quietly(self) -> None:
        # What ended the attempt is more important than what ends this; the next run removes what is left.
        try:
            self._abandon()
        except EndpointError as error:
            if not is_lost(error):
                raise


def _expiry(found: Content) -> int:
    return -1 if found.expires_ms is None else found.expires_ms


def _absolute(expire_ms: int) -> int:
    return expire_ms if expire_ms >= 0 else -1


def _final(big: Big, outcome: int, error: str) -> _Done:
    return _row(big, _Done(outcome, error), None, None, -1)


def _row(big: Big, done: _Done, read: bytes | None, written: bytes | None, expire_ms: int) -> _Done:
    done.row = (
        big.rule, big.db, big.key, big.target, read, written, expire_ms, done.outcome, done.error,
        key_hash(big.db, big.key),
    )  # fmt: skip
    return done
