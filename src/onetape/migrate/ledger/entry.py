"""The entry: what a ledger says of one key from one run, and the words for what became of it."""

from __future__ import annotations

import enum
import zlib
from typing import Any

import msgspec


class Outcome(enum.StrEnum):
    """The fate of one key.

    `INTENDED` is never in a report: it stands in the ledger until the outcome is known, and stays there where an
    intent was not carried out and the key was taken up again.
    """

    INTENDED = "intended"
    COPIED = "copied"
    UNCHANGED = "unchanged"
    NEWER_TARGET_KEPT = "newer_target_kept"
    EXPIRED = "expired"
    CHANGED_WHILE_COPYING = "changed_while_copying"
    SKIPPED = "skipped"
    FAILED = "failed"


OUTCOMES = tuple(Outcome)
#: What the `error` of an entry begins with where a copied key, or a part of it, is nothing that a tape can hold,
#: and where it could not be put on the tape. Such entries tell of the landing alone: nothing is `written`.
NO_TICKS, NOT_LANDED = "no ticks or bars: ", "not put on the tape: "
#: The `error` of a copied entry whose value another server keeps in an encoding of its own: then `read` and `written`
#: differ although nothing was merged into the target.
REENCODED = "equal; the target's server keeps it in another encoding"
#: In the place of a digest, `read` and `written`, of a key that was copied without being read: it is ours, but what it
#: held is not known until a verify or a careful look has taken its digest.
OPEN = b""
#: Outcome → the number that stands for it in a Row.
CODES = {outcome: code for code, outcome in enumerate(OUTCOMES)}


class Entry(msgspec.Struct, frozen=True):
    """What the ledger knows of one key from one run.

    `read`: stands for the source when it was read, `written`: for what the target then held (a digest or a seal, see
    dump.py, None where nothing was read or written, OPEN where it was copied without being read). `expire_ms`:
    absolute expiry in ms, -1 for none, not known where they are OPEN. `settled_ns`: when the outcome was known, None
    while it is only intended.
    """

    id: int
    run: int
    rule: int
    step: str
    source_db: int
    key: bytes
    target: bytes
    read: bytes | None
    written: bytes | None
    expire_ms: int
    outcome: Outcome
    error: str | None
    settled_ns: int | None

    @property
    def is_open(self) -> bool:
        """Return whether the target is ours, but what it held when it was copied is not known."""
        return self.written == OPEN


class Known(msgspec.Struct, frozen=True):
    """What the ledger says a target held when we last wrote it, and the digest of the source at that time."""

    target: bytes
    read: bytes | None
    written: bytes
    expire_ms: int
    error: str | None = None

    @property
    def is_open(self) -> bool:
        """Return whether the target is ours, but what it held when it was copied is not known."""
        return self.written == OPEN


class Run(msgspec.Struct, frozen=True):
    """One run of a command with this ledger; `ended_ns` None: it is at work or was killed."""

    id: int
    command: str
    started_ns: int
    ended_ns: int | None
    report: str | None


#: What is written for one key: rule's index, source db, key, target, read, written, expire_ms, outcome's
#: code, error, key_hash(source db, key). A plain tuple, because a million of them are made.
Row = tuple[int, int, bytes, bytes, bytes | None, bytes | None, int, int, str | None, int]


def key_hash(db: int, key: bytes) -> int:
    """Return 32 bits that stand for a source key in the index; the key itself is compared too."""
    return zlib.crc32(key, db)


def entry_of(row: tuple[Any, ...]) -> Entry:
    """Return an entry from its columns, in the order of its fields."""
    values = dict(zip(Entry.__struct_fields__, row, strict=True))
    return Entry(**{**values, "outcome": OUTCOMES[row[10]]})
