"""The decision: from what both sides hold and what the ledger remembers to what is done with a key. Pure."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any
from zlib import crc32

import msgspec

from onetape.migrate.copying.lane import Batch, Dumped, Reading
from onetape.migrate.keys import dump
from onetape.migrate.keys.dump import digest
from onetape.migrate.ledger.entry import CODES, OPEN, Known, Outcome, Row, key_hash
from onetape.migrate.wire.endpoint import ReplyError

COPIED = CODES[Outcome.COPIED]
UNCHANGED = CODES[Outcome.UNCHANGED]
NEWER_TARGET_KEPT = CODES[Outcome.NEWER_TARGET_KEPT]
EXPIRED = CODES[Outcome.EXPIRED]
CHANGED_WHILE_COPYING = CODES[Outcome.CHANGED_WHILE_COPYING]
INTENDED = CODES[Outcome.INTENDED]
SKIPPED = CODES[Outcome.SKIPPED]
FAILED = CODES[Outcome.FAILED]

#: Servers before 7.0 tell the time left only, so an absolute expiry read twice differs by what lay between.
SLACK_BEFORE_7_MS = 100

#: Why our copy is not made anew although its source went on.
MERGED_INTO = "ticks were merged into it, which copying the source anew would take out"
#: Why a target is kept that differs from its source and was copied without being read: nobody can tell who is newer.
DIGEST_OPEN = "it was copied without a digest, so that nothing tells which side is newer: verify --repair settles it"


class Decided(msgspec.Struct):
    """What is to be done with a batch.

    `acts`: (place in the batch, replace the target). `rows`: for the ledger; the first len(acts) of them
    belong to the acts, in their order. `outcomes` and `errors`: by place, None where the act is to tell.
    `seen`: digests read.
    """

    acts: list[tuple[int, bool]]
    rows: list[Row]
    outcomes: list[int | None]
    errors: list[str | None]
    seen: list[bytes | None]


def decide_first(batch: Batch, reading: Reading) -> Decided:
    """Decide a batch whose targets are not expected to exist: copy all that can be read."""
    db, targets, rules = batch.db, batch.targets, batch.rules
    payloads, expiries, number = reading.sources, reading.source_expiry, len(batch.keys)
    if set(map(type, payloads)) == {bytes} and set(map(type, expiries)) == {int}:  # nearly always
        contents: list[Any] = list(map(digest, payloads))  # type: ignore[arg-type]
        hashes = [crc32(key, db) for key in batch.keys]
        same = (repeat(db), batch.keys, targets, contents, contents, expiries, repeat(COPIED), repeat(None), hashes)
        return Decided(
            [(place, False) for place in range(number)],
            list(zip(rules, *same)),  # noqa: B905
            [None] * number,
            [None] * number,
            contents,
        )
    decided = Decided([], [], [None] * len(batch.keys), [None] * len(batch.keys), [])
    finals: list[Row] = []
    acts, rows, seen = decided.acts, decided.rows, decided.seen
    for place, key in enumerate(batch.keys):
        payload, expire_ms = reading.sources[place], reading.source_expiry[place]
        if isinstance(payload, bytes) and expire_ms.__class__ is int:
            content = digest(payload)
            seen.append(content)
            acts.append((place, False))
            rows.append(
                (rules[place], db, key, targets[place], content, content, expire_ms, COPIED, None,
                 key_hash(db, key))
            )  # fmt: skip
        else:
            seen.append(None)
            finals.append(_unreadable(batch, place, decided, payload, expire_ms))
    rows += finals
    return decided


def decide_careful(
    batch: Batch, reading: Reading, known: dict[bytes, Known], target_db: int, slack_ms: int = 0
) -> Decided:
    """Decide a batch whose targets were read too.

    A target that equals its source is unchanged. One that holds what we wrote (so the ledger, or an act whose
    answer was lost) is ours and follows its source, unless ticks were merged into it: they, and what live writers
    put there before, are nowhere else. One that is ours without a digest is kept for a repair to settle. Any other
    was written by somebody newer, and is kept.
    """
    decided = Decided([], [], [None] * len(batch.keys), [None] * len(batch.keys), [])
    finals: list[Row] = []
    for place, key in enumerate(batch.keys):
        row = _careful(batch, place, reading, known.get(key), target_db, slack_ms, decided)
        if row is not None:
            finals.append(row)
    decided.rows += finals
    return decided


def _careful(
    batch: Batch,
    place: int,
    reading: Reading,
    known: Known | None,
    target_db: int,
    slack_ms: int,
    decided: Decided,
) -> Row | None:
    """Decide one key; return the row of an outcome that is final, if it is worth one."""
    payload, expire_ms = reading.sources[place], reading.source_expiry[place]
    held, held_expiry = reading.targets[place], reading.target_expiry[place]
    if not isinstance(payload, bytes) or not isinstance(expire_ms, int):
        decided.seen.append(None)
        return _unreadable(batch, place, decided, payload, expire_ms)
    content = digest(payload)
    target = batch.targets[place]
    decided.seen.append(content)
    if isinstance(held, ReplyError) or isinstance(held_expiry, ReplyError):
        error = held if isinstance(held, ReplyError) else held_expiry
        return _final(batch, place, decided, FAILED, f"target: {error.message}")
    if held is None:
        _copy(batch, place, decided, content, expire_ms, replace=False)
        return None
    there = digest(held)

    def holds(what: bytes | None, expiry: int) -> bool:
        return abs(held_expiry - expiry) <= slack_ms and dump.holds(what, held, there)

    mine = None if batch.mine is None else batch.mine[place]
    if (there == content and abs(held_expiry - expire_ms) <= slack_ms) or _is_itself(batch, place, target_db):
        if mine is not None and (mine[0] == OPEN or holds(*mine)):
            return _final(batch, place, decided, COPIED, None, content, there, expire_ms)
        new = known is None or known.target != target or not holds(known.written, known.expire_ms)
        decided.outcomes[place] = UNCHANGED
        return _final(batch, place, decided, UNCHANGED, None, content, there, expire_ms) if new else None
    ours = known is not None and known.target == target and holds(known.written, known.expire_ms)
    if ours and known is not None and dump.holds(known.read, payload, content) and known.expire_ms == expire_ms:
        decided.outcomes[place] = UNCHANGED  # the target differs because ticks were merged into our copy
        return None
    if ours and known is not None and known.read != known.written:
        return _final(batch, place, decided, NEWER_TARGET_KEPT, MERGED_INTO, content, None, expire_ms)
    if ours or (mine is not None and holds(*mine)):
        _copy(batch, place, decided, content, expire_ms, replace=True)
        return None
    unknown = (mine is not None and mine[0] == OPEN) or (known is not None and known.target == target and known.is_open)
    why = DIGEST_OPEN if unknown else None
    return _final(batch, place, decided, NEWER_TARGET_KEPT, why, content, None, expire_ms)


def _is_itself(batch: Batch, place: int, target_db: int) -> bool:
    return batch.db == target_db and batch.keys[place] == batch.targets[place]


def _copy(batch: Batch, place: int, decided: Decided, content: bytes, expire_ms: int, *, replace: bool) -> None:
    decided.acts.append((place, replace))
    decided.rows.append(_row(batch, place, COPIED, None, content, content, expire_ms))


def _final(
    batch: Batch,
    place: int,
    decided: Decided,
    outcome: int,
    error: str | None,
    read: bytes | None = None,
    written: bytes | None = None,
    expire_ms: int = -1,
) -> Row:
    decided.outcomes[place] = outcome
    decided.errors[place] = error
    return _row(batch, place, outcome, error, read, written, expire_ms)


def _unreadable(batch: Batch, place: int, decided: Decided, payload: Dumped, expire_ms: int | ReplyError) -> Row:
    error = next((reply for reply in (payload, expire_ms) if isinstance(reply, ReplyError)), None)
    if error is not None:
        return _final(batch, place, decided, FAILED, error.message)
    return _final(batch, place, decided, EXPIRED, "gone since it was listed: expired or deleted")


def _row(
    batch: Batch,
    place: int,
    outcome: int,
    error: str | None,
    read: bytes | None,
    written: bytes | None,
    expire_ms: int,
) -> Row:
    key = batch.keys[place]
    return (batch.rules[place], batch.db, key, batch.targets[place], read, written, expire_ms, outcome, error,
            key_hash(batch.db, key))  # fmt: skip


def final(batch: Batch, outcome: int, error: str) -> Decided:
    """Return a decision that gives every key of the batch this outcome, without an act."""
    decided = Decided([], [], [None] * len(batch.keys), [None] * len(batch.keys), [None] * len(batch.keys))
    decided.rows = [_final(batch, place, decided, outcome, error) for place in range(len(batch.keys))]
    return decided


def unwritten(row: Row, outcome: int, error: str) -> Row:
    """Return the row of an act that wrote nothing."""
    return (*row[:5], None, row[6], outcome, error, row[9])


Decide = Callable[[Batch, Reading], Decided]
