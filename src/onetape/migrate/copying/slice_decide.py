"""The decision about a big key, which nobody dumps: by the content of both sides, read in slices.

The ledger's digest of such a key is one of its content: 17 bytes that begin with "c".
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from onetape.migrate.copying import decide
from onetape.migrate.copying.lane import Batch
from onetape.migrate.keys import content, dump
from onetape.migrate.keys.content import Content
from onetape.migrate.ledger.entry import Entry, Known, Row, key_hash
from onetape.migrate.wire.endpoint import Endpoint

#: Keys that take more of the server's memory are not dumped: it takes 1 to 5 ms a MiB. Most are copied in slices too: a
#: COPY takes 1 to 2 ms a MiB where elements are copied one by one, and many times more for millions of them.
SLICE_BYTES = 2 * 1024 * 1024
#: Up to here a COPY of a type that is kept in blocks takes a few milliseconds.
SLICE_BYTES_OF_BLOCKS = 16 * 1024 * 1024
BLOCKS = (b"string", b"stream")

#: Up to here a target is dumped to see whether it is what an earlier run copied whole.
_DUMP_BYTES_MAX = 16 * 1024 * 1024
_CONTENT = b"c"
_TOO_BIG = "it was copied whole by an earlier run, and is too big by now to be compared with that"


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
    return there is not None and content_digest(there) == entry.written and expiry_of(there) == entry.expire_ms


class Big(msgspec.Struct, frozen=True):
    """A key to copy in slices: rule's index, source database, names, bytes in the server's memory.

    `again`: the copier has already told the ledger something of it, which is not the last word.
    """

    rule: int
    db: int
    key: bytes
    target: bytes
    size: int
    again: bool = False

    def batch(self) -> Batch:
        """Return it as what reports are made of."""
        return Batch(self.db, [self.key], [self.target], [self.rule])

    def row(self, outcome: int, error: str | None, read: bytes | None, written: bytes | None, expire_ms: int) -> Row:
        """Return a line for the ledger."""
        return (
            self.rule, self.db, self.key, self.target, read, written, expire_ms, outcome, error,
            key_hash(self.db, self.key),
        )  # fmt: skip

    def final(self, outcome: int, error: str | None) -> Done:
        """Return an outcome that needs no act."""
        return Done(outcome, error, self.row(outcome, error, None, None, -1))


class Done(msgspec.Struct, frozen=True):
    """How it ended: the outcome's code, why, and the row that the ledger is still to be told, None for nothing."""

    outcome: int
    error: str | None = None
    row: Row | None = None


def decide_existing(
    endpoint: Endpoint,
    big: Big,
    target_db: int,
    here: Content,
    there: Content,
    known: Known | None,
    mine: tuple[bytes, int] | None = None,
    slack_ms: int = 0,
) -> Done | None:
    """Decide about a target that is there, as decide_careful does; None: it is ours, and follows its source.

    `mine`: (digest, expiry) that an act whose answer was lost may have written. Raises EndpointError.
    """
    read, held = content_digest(here), content_digest(there)
    expire_ms, held_ms = expiry_of(here), expiry_of(there)

    def near(one: int, other: int) -> bool:
        return abs(one - other) <= slack_ms

    def told(outcome: int, error: str | None, written: bytes | None) -> Done:
        return Done(outcome, error, big.row(outcome, error, read, written, expire_ms))

    if known is not None and known.target != big.target:
        known = None
    if read == held and near(expire_ms, held_ms):
        if mine is not None and mine[0] == held and near(mine[1], held_ms):
            return told(decide.COPIED, None, held)
        if known is not None and known.written == held and near(known.expire_ms, held_ms) and not big.again:
            return Done(decide.UNCHANGED)
        return told(decide.UNCHANGED, None, held)
    ours, why = _ours(endpoint, known, big, target_db, held, held_ms, slack_ms)
    if ours and known is not None and known.read != known.written:
        if known.read == read and near(known.expire_ms, expire_ms) and not big.again:
            return Done(decide.UNCHANGED)  # the target differs because ticks were merged into our copy
        return told(decide.NEWER_TARGET_KEPT, decide.MERGED_INTO, None)
    return None if ours else told(decide.NEWER_TARGET_KEPT, why, None)


def _ours(
    endpoint: Endpoint, known: Known | None, big: Big, target_db: int, held: bytes, held_ms: int, slack_ms: int
) -> tuple[bool, str | None]:
    """Return whether the target still holds what the ledger says we wrote, and if that cannot be known, why."""
    if known is None:
        return False, None
    if known.is_open:
        return False, decide.DIGEST_OPEN
    if abs(known.expire_ms - held_ms) > slack_ms:
        return False, None
    if is_content_digest(known.written):
        return known.written == held, None
    endpoint.select(target_db)
    size = endpoint.call("MEMORY", "USAGE", big.target)
    if size is None or size > _DUMP_BYTES_MAX:
        return False, _TOO_BIG
    payload = endpoint.call("DUMP", big.target)
    return isinstance(payload, bytes) and dump.holds(known.written, payload), None


def would(endpoint: Endpoint, big: Big, target_db: int, known: Known | None) -> Done:
    """Say what copying the key would do, on a connection that cannot write."""
    source, target = (big.db, big.key), (target_db, big.target)
    if source == target:
        return Done(decide.UNCHANGED)
    pair = content.read_together(endpoint, [source, target])
    endpoint.db = -1
    if pair is None:
        return Done(decide.CHANGED_WHILE_COPYING, "it kept changing while it was read")
    here, there = pair
    if here is None:
        return Done(decide.EXPIRED, "gone since it was listed: expired or deleted")
    if there is None:
        return Done(decide.COPIED)
    return decide_existing(endpoint, big, target_db, here, there, known) or Done(decide.COPIED)


def expiry_of(found: Content) -> int:
    """Return a content's absolute expiry in ms, -1 for none."""
    return -1 if found.expires_ms is None else found.expires_ms
