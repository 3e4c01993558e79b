"""The lane: what one batch says on one connection, and how the answers are laid out. No decisions here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from onetape.migrate.wire.endpoint import Endpoint, ReplyError

_MULTI = b"*1\r\n$5\r\nMULTI\r\n"
_EXEC = b"*1\r\n$4\r\nEXEC\r\n"
_UNWATCH = b"*1\r\n$7\r\nUNWATCH\r\n"
_TIME = b"*1\r\n$4\r\nTIME\r\n"
_READ = b"*2\r\n$4\r\nDUMP\r\n%b*2\r\n$11\r\nPEXPIRETIME\r\n%b"
_READ_BEFORE_7 = b"*2\r\n$4\r\nDUMP\r\n%b*2\r\n$4\r\nPTTL\r\n%b"

#: What DUMP gave: the payload, None for no such key, or the error.
Dumped = bytes | None | ReplyError


class Batch(msgspec.Struct):
    """Keys of one source database on their way: parallel lists of keys, targets and the rules' indexes.

    `careful`: the targets are read too. `attempts`: how often a key that is alone was refused because it had changed.
    `seen`: the digests of the last attempt, so that who differs now is known to be the culprit. `mine`: (digest,
    expiry) that an act whose answer was lost may have written.
    """

    db: int
    keys: list[bytes]
    targets: list[bytes]
    rules: list[int]
    careful: bool = False
    attempts: int = 0
    seen: list[bytes | None] | None = None
    mine: list[tuple[bytes, int] | None] | None = None

    def part(self, places: Iterable[int], attempts: int) -> Batch:
        """Return a careful batch of some of the keys, given by their places."""
        chosen = list(places)
        return Batch(
            self.db,
            [self.keys[i] for i in chosen],
            [self.targets[i] for i in chosen],
            [self.rules[i] for i in chosen],
            True,
            attempts,
            None if self.seen is None else [self.seen[i] for i in chosen],
            None if self.mine is None else [self.mine[i] for i in chosen],
        )

    def cut(self, start: int, end: int, size: int) -> list[Batch]:
        """Return what lies between two places as batches of at most so many keys, as careful as this one."""
        return [
            Batch(
                self.db,
                self.keys[at:to],
                self.targets[at:to],
                self.rules[at:to],
                self.careful,
                mine=None if self.mine is None else self.mine[at:to],
            )
            for at in range(start, end, size)
            for to in (min(at + size, end),)
        ]


class Reading(msgspec.Struct):
    """What both sides held, in the order of the batch. `refused`: WATCH or SELECT failed, nothing can be done.

    Expiries are absolute, ms since the epoch, -1 for none.
    """

    sources: Sequence[Dumped]
    source_expiry: Sequence[Any]
    targets: Sequence[Dumped] = ()
    target_expiry: Sequence[Any] = ()
    refused: ReplyError | None = None


class Lane:
    """One connection, in one of three states: idle, reading, acting."""

    def __init__(self, endpoint: Endpoint, target_db: int) -> None:
        self.endpoint = endpoint
        self._read = _READ if endpoint.has_expire_time else _READ_BEFORE_7
        self._target_db = target_db
        self._select_target = _select(target_db)
        self._copy = b"*5\r\n$4\r\nCOPY\r\n%b%b$2\r\nDB\r\n" + bulk(b"%d" % target_db)
        self._replace = b"*6\r\n$4\r\nCOPY\r\n%b%b$2\r\nDB\r\n" + bulk(b"%d" % target_db) + b"$7\r\nREPLACE\r\n"
        self._batch = Batch(0, [], [], [])
        self._sources: list[bytes] = []
        self._targets: list[bytes] = []
        self._acts = 0

    def send_read(self, batch: Batch) -> None:
        """Ask for all that is needed to decide the batch, under WATCH."""
        self._batch = batch
        self._sources = sources = [b"$%d\r\n%b\r\n" % (len(key), key) for key in batch.keys]
        self._targets = targets = [b"$%d\r\n%b\r\n" % (len(key), key) for key in batch.targets]
        # What an earlier batch watched and did not act on must not make this one fail.
        packets = [_UNWATCH, *self._side(_select(batch.db), sources)]
        if batch.careful:
            packets += self._side(self._select_target, targets)
        self.endpoint.send(b"".join(packets))

    def _side(self, select: bytes, keys: list[bytes]) -> list[bytes]:
        read = self._read
        watch = b"*%d\r\n$5\r\nWATCH\r\n" % (len(keys) + 1)
        clock = [] if self.endpoint.has_expire_time else [_TIME]
        return [select, watch, *keys, *clock, *[read % (key, key) for key in keys]]

    def receive_read(self) -> Reading:
        """Return the answers to send_read()."""
        batch, number = self._batch, len(self._sources)
        extra = 0 if self.endpoint.has_expire_time else 1
        side = 2 + extra + 2 * number
        replies = self.endpoint.receive(1 + side * (2 if batch.careful else 1))
        sources, source_expiry, refused = _side_of(replies[1 : 1 + side], extra)
        reading = Reading(sources, source_expiry, refused=refused)
        if batch.careful:
            reading.targets, reading.target_expiry, refused = _side_of(replies[1 + side :], extra)
            reading.refused = reading.refused or refused
        return reading

    def send_act(self, acts: Sequence[tuple[int, bool]]) -> None:
        """Ask to copy, in one transaction, the keys at these places; True: over the target that is there."""
        self._acts = len(acts)
        if not acts:
            return
        sources, targets, copy, replace = self._sources, self._targets, self._copy, self._replace
        if len(acts) == len(sources) and not any(over for _, over in acts):
            copies = [copy % pair for pair in zip(sources, targets, strict=True)]
        else:
            copies = [(replace if over else copy) % (sources[i], targets[i]) for i, over in acts]
        self.endpoint.send(b"".join([_select(self._batch.db), _MULTI, *copies, _EXEC]))

    def receive_act(self) -> tuple[list[Any], Any]:
        """Return the queueing replies of the copies, and EXEC's: a list, None if something changed, or an
        error.
        """
        if not self._acts:
            return [], []
        replies = self.endpoint.receive(self._acts + 3)
        return replies[2:-1], replies[-1]


def bulk(value: bytes) -> bytes:
    """Return a RESP bulk string."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _select(db: int) -> bytes:
    return b"*2\r\n$6\r\nSELECT\r\n" + bulk(b"%d" % db)


def _side_of(replies: list[Any], extra: int) -> tuple[list[Dumped], list[Any], ReplyError | None]:
    refused = next((reply for reply in replies[: 2 + extra] if isinstance(reply, ReplyError)), None)
    dumps, expiries = replies[2 + extra :: 2], replies[3 + extra :: 2]
    if extra and refused is None:  # no PEXPIRETIME: from the time left and the server's clock
        seconds, micros = replies[2]
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        expiries = [left if isinstance(left, ReplyError) or left < 0 else now_ms + left for left in expiries]
    return dumps, expiries, refused
