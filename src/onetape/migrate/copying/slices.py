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

import msgspec

from onetape.errors import EndpointError, MigrationError
from onetape.migrate.copying import decide
from onetape.migrate.copying.copy import LOSSES_MAX, OnDone
from onetape.migrate.copying.slice_decide import (
    BLOCKS,
    SLICE_BYTES,
    SLICE_BYTES_OF_BLOCKS,
    Big,
    Done,
    content_digest,
    decide_existing,
)
from onetape.migrate.copying.slice_write import LEASE_MS, Lost, write
from onetape.migrate.keys import content
from onetape.migrate.keys.content import LENGTH, Content, read_content
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.throttling.pacing import Pacing
from onetape.migrate.wire.endpoint import Endpoint, ReplyError, is_lost
from onetape.migrate.wire.guard import Guard, Place

TEMPORARY = b"onetape:slice:"

#: How long the server may stand still for the one COPY of a key that is never quiet, ms.
PAUSE_MS_MAX = 50.0
#: A key is begun anew this often when its source changes meanwhile.
ATTEMPTS_MAX = 4
#: What the server takes for one COPY, ms a MiB: of blocks; of elements; of so many elements that the processor's caches
#: do not hold them.
_COPY_MS_A_MIB = (0.7, 5.0, 25.0)
_CACHED_BYTES = 16 * 1024 * 1024
_ASK_EVERY = 50  # slices between two looks at whether anything changed
_STATE = "slicing"


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
        done: Done | None = None
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
                    done = big.final(decide.FAILED, error.message)
            except MigrationError:  # the pace
                self._abandon_quietly()
                raise
        if done.row is not None:
            self._ledger.record([done.row])
        self._on_done(big.batch(), [done.outcome], [done.error])

    def _gave_up(self, big: Big, attempts: int) -> Done:
        pause_ms = self._pause_ms(big)
        why = (
            f"it changed {attempts} times in a row while it was copied in slices, and one COPY would stop the server "
            f"for about {pause_ms:,.0f} ms, over the {self._pause_ms_max:,.0f} allowed"
        )
        if pause_ms <= self._pause_ms_max:
            why = f"it or its target changed {attempts} times in a row while it was copied"
        return big.final(decide.CHANGED_WHILE_COPYING, why)

    def _attempt(self, big: Big, attempts: int) -> Done:
        source, target = (big.db, big.key), (self._target_db, big.target)
        self._reader.select(big.db)
        kind = self._reader.call("TYPE", big.key)
        if kind == b"none":
            return big.final(decide.EXPIRED, "gone since it was listed: expired or deleted")
        if source == target:
            return big.final(decide.UNCHANGED, None)
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
        if kind not in LENGTH or big.size <= (SLICE_BYTES_OF_BLOCKS if kind in BLOCKS else SLICE_BYTES):
            return True
        if attempts < ATTEMPTS_MAX - 1:
            return False
        if self._pause_ms(big) > self._pause_ms_max:
            raise _Changed
        return True

    def _whole(self, big: Big, target: Place) -> Done:
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
        blocks = self._reader.call("TYPE", big.key) in BLOCKS
        return big.size / 2**20 * _COPY_MS_A_MIB[0 if blocks else 1 if big.size <= _CACHED_BYTES else 2]

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

        def between(elements: int, commands: int, size: int) -> None:
            nonlocal asked
            asked += 1
            if asked % _ASK_EVERY == 0 and not guard.holds():
                raise _Changed
            self._at("slicing")
            if self._pace is not None:
                self._pace.own_calls += commands + 1
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

    def _put_in_place(self, big: Big, temporary: bytes, digest: bytes, expire_ms: int, replace: bool) -> Done:
        row = big.row(decide.COPIED, None, digest, digest, expire_ms)
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
        return Done(decide.COPIED)

    def _existing(self, big: Big, here: Content | None, target: Place) -> Done | None:
        there = self._content(target)
        if here is None or there is None:
            raise _Changed
        known = self._ledger.find(big.db, [big.key]).get(big.key)
        return decide_existing(self._reader, big, self._target_db, here, there, known, self._written, self._slack_ms)

    def _content(self, place: Place) -> Content | None:
        self._reader.select(place[0])
        if self._pace is not None:
            self._pace.wait(0, 0)
        return read_content(self._reader, place[1])

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


def _absolute(expire_ms: int) -> int:
    return expire_ms if expire_ms >= 0 else -1
