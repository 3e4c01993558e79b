"""The lane between two servers: what one batch says on a connection to each. No decisions here.

    read      source: WATCH; DUMP and PEXPIRETIME of each. Careful batches: the same on the target.
    restore   target: MULTI; RESTORE and DUMP of each; EXEC. Without REPLACE the server refuses where something is.
    check     source: an empty transaction, which is nil if one of the keys changed since it was read.

The DUMP behind each RESTORE says what the target holds now, in its own encoding: what a later run must find there to
call it ours. Where its bytes are those of the source's DUMP, that proves the copy as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from onetape.migrate.copying.lane import Batch, Lane, Reading, bulk
from onetape.migrate.remote.cluster import Cluster
from onetape.migrate.wire.endpoint import Endpoint, ReplyError

_MULTI = b"*1\r\n$5\r\nMULTI\r\n"
_EXEC = b"*1\r\n$4\r\nEXEC\r\n"
_UNCHANGED = _MULTI + _EXEC
_RESTORING = b"*5\r\n$7\r\nRESTORE\r\n%b$%d\r\n%b\r\n$%d\r\n"
_REPLACING = b"*6" + _RESTORING[2:]
_RESTORED = b"\r\n$6\r\nABSTTL\r\n*2\r\n$4\r\nDUMP\r\n%b"
_REPLACED = b"\r\n$6\r\nABSTTL\r\n$7\r\nREPLACE\r\n*2\r\n$4\r\nDUMP\r\n%b"
#: For small payloads in one piece: without an expiry (0), and with one.
_STAYING = (
    b"*5\r\n$7\r\nRESTORE\r\n$%d\r\n%b\r\n$1\r\n0\r\n$%d\r\n%b\r\n$6\r\nABSTTL\r\n*2\r\n$4\r\nDUMP\r\n$%d\r\n%b\r\n"
)
_EXPIRING = _STAYING.replace(b"$1\r\n0\r\n", b"$%d\r\n%b\r\n")
_COPIED_BYTES = 4096


class Mark:
    """What became of a RESTORE, where it is neither a payload nor an error: BUSY or CHANGED."""


#: Something is there already. / The target changed since it was read, so nothing was done.
BUSY, CHANGED = Mark(), Mark()

#: The target's DUMP after the RESTORE; None: it expired at once; BUSY; CHANGED; or the error.
Answer = bytes | None | Mark | ReplyError


class Item(NamedTuple):
    """One key to restore: `replace` over what is there and was read."""

    key: bytes
    payload: bytes
    expire_ms: int
    replace: bool


class RemoteLane:
    """Connections to both servers, in one of four states: idle, reading, restoring, checking.

    A source up to Redis 7.2 compares every key with all that the same connection watches already, so the keys of a
    batch are shared out among `sources`.
    """

    def __init__(self, sources: Sequence[Endpoint], target: Endpoint, target_db: int) -> None:
        self.sources = sources
        self.target = target
        self._target_db = target_db
        self.reads = [Lane(source, 0) for source in sources]
        self._reading: list[Lane] = []
        self._target_reads = ClusterReads(target) if isinstance(target, Cluster) else Lane(target, 0)
        self.restores = ClusterRestores(target) if isinstance(target, Cluster) else NodeRestores(target, target_db)
        self._careful = False

    @property
    def has_expire_time(self) -> bool:
        """Return whether both servers tell absolute expiries."""
        return self.sources[0].has_expire_time and self.target.has_expire_time

    def close(self) -> None:
        """Close all connections."""
        for endpoint in (*self.sources, self.target):
            endpoint.close()

    def send_read(self, batch: Batch) -> None:
        """Ask for all that is needed to decide the batch, under WATCH."""
        self._careful = batch.careful
        share = -(-len(batch.keys) // len(self.reads))
        shares = Batch(batch.db, batch.keys, batch.targets, batch.rules).cut(0, len(batch.keys), share)
        self._reading = self.reads[: len(shares)]
        for lane, part in zip(self._reading, shares, strict=True):
            lane.send_read(part)
        if batch.careful:
            self._target_reads.send_read(Batch(self._target_db, batch.targets, batch.targets, batch.rules))

    def receive_read(self) -> Reading:
        """Return the answers to send_read()."""
        parts = [lane.receive_read() for lane in self._reading]
        reading = Reading(
            [one for part in parts for one in part.sources],
            [one for part in parts for one in part.source_expiry],
            refused=next((part.refused for part in parts if part.refused is not None), None),
        )
        if self._careful:
            held = self._target_reads.receive_read()
            reading.targets, reading.target_expiry = held.sources, held.source_expiry
            reading.refused = reading.refused or held.refused
        return reading

    def send_restore(self, items: Sequence[Item]) -> None:
        """Ask to restore these keys."""
        self.restores.send(items)

    def receive_restore(self) -> list[Answer]:
        """Return what became of each."""
        return self.restores.receive()

    def send_check(self) -> None:
        """Ask whether a source key changed since it was read."""
        for lane in self._reading:
            lane.endpoint.send(_UNCHANGED)

    def receive_check(self) -> bool:
        """Return whether all are as they were read."""
        done = [lane.endpoint.receive(2)[1] for lane in self._reading]
        return None not in done


class NodeRestores:
    """Restores on one server: a transaction a batch, under the WATCH that the targets were read with."""

    def __init__(self, endpoint: Endpoint, db: int) -> None:
        self._endpoint = endpoint
        self._select = b"*2\r\n$6\r\nSELECT\r\n" + bulk(b"%d" % db)
        self._number = 0

    def send(self, items: Sequence[Item]) -> None:
        packets = [self._select, _MULTI]
        append = packets.append
        for key, payload, expire_ms, replace in items:
            size, bytes_ = len(key), len(payload)
            if replace or bytes_ > _COPIED_BYTES:
                # In pieces, so that a big payload is not copied before the pieces are joined.
                name, left = b"$%d\r\n%b\r\n" % (size, key), b"%d" % max(0, expire_ms)
                append((_REPLACING if replace else _RESTORING) % (name, len(left), left, bytes_))
                append(payload)
                append((_REPLACED if replace else _RESTORED) % name)
            elif expire_ms < 0:
                append(_STAYING % (size, key, bytes_, payload, size, key))
            else:
                left = b"%d" % expire_ms
                append(_EXPIRING % (size, key, len(left), left, bytes_, payload, size, key))
        packets.append(_EXEC)
        self._number = len(items)
        self._endpoint.send(b"".join(packets))

    def receive(self) -> list[Answer]:
        number = self._number
        replies = self._endpoint.receive(3 + 2 * number)
        done = replies[-1]
        if done is None:
            return [CHANGED] * number
        if isinstance(done, list):
            if done[::2].count(b"OK") == number:
                return done[1::2]
            return [_answer(done[at], done[at + 1]) for at in range(0, 2 * number, 2)]
        # Some could not be queued (out of memory, not allowed): they are to blame, the others go again.
        queued = replies[2:-1]
        blamed: list[Answer] = [
            next((one for one in queued[at : at + 2] if isinstance(one, ReplyError)), CHANGED)
            for at in range(0, 2 * number, 2)
        ]
        return blamed if any(one is not CHANGED for one in blamed) else [done] * number


class ClusterReads:
    """Reads of a cluster's keys; nothing is watched, for a transaction there has the keys of one slot only."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._reading = Reading((), ())

    def send_read(self, batch: Batch) -> None:
        commands = [command for key in batch.keys for command in (("DUMP", key), ("PEXPIRETIME", key))]
        replies = self._cluster.pipeline(commands)
        self._reading = Reading(replies[::2], replies[1::2])

    def receive_read(self) -> Reading:
        return self._reading


class ClusterRestores:
    """Restores on a cluster: a transaction a key. One that replaces reads it anew under WATCH, key after key."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._answers: list[Answer] = []
        #: key → what it held when the replacement was decided.
        self.held: dict[bytes, Any] = {}

    def send(self, items: Sequence[Item]) -> None:
        fresh = [item for item in items if not item.replace]
        commands: list[Sequence[Any]] = []
        for key, payload, expire_ms, _replace in fresh:
            commands += [("MULTI",), ("RESTORE", key, max(0, expire_ms), payload, "ABSTTL"), ("DUMP", key), ("EXEC",)]
        replies = self._cluster.pipeline(commands)
        answers = {item.key: _of_transaction(replies[4 * at : 4 * at + 4]) for at, item in enumerate(fresh)}
        for item in items:
            if item.replace:
                answers[item.key] = self._replaced(item)
        self._answers = [answers[item.key] for item in items]

    def _replaced(self, item: Item) -> Answer:
        cluster = self._cluster
        _ok, payload, expire_ms = (cluster.pipeline([(name, item.key)])[0] for name in ("WATCH", "DUMP", "PEXPIRETIME"))
        if (payload, expire_ms) != self.held.get(item.key):
            cluster.call("UNWATCH")
            return CHANGED
        restore = ("RESTORE", item.key, max(0, item.expire_ms), item.payload, "ABSTTL", "REPLACE")
        return _of_transaction(cluster.pipeline([("MULTI",), restore, ("DUMP", item.key), ("EXEC",)]))

    def receive(self) -> list[Answer]:
        return self._answers


def _of_transaction(replies: Sequence[Any]) -> Answer:
    done = replies[-1]
    if done is None:
        return CHANGED
    if isinstance(done, list):
        return _answer(*done)
    return next((one for one in replies if isinstance(one, ReplyError)), done)


def _answer(restored: Any, held: Any) -> Answer:
    if isinstance(restored, ReplyError):
        return BUSY if restored.code == "BUSYKEY" else restored
    return held  # type: ignore[no-any-return]
