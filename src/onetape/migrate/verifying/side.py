"""The side: what a key holds, as far as it takes to tell whether it is what the ledger or the other side says."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from onetape.migrate.copying.slice_decide import content_digest, is_content_digest
from onetape.migrate.keys import content
from onetape.migrate.keys.content import Content
from onetape.migrate.keys.dump import digest, holds
from onetape.migrate.wire.endpoint import Endpoint, ReplyError

#: Bigger values are read in slices, and compared by content.
BIG_BYTES = 2 * 1024 * 1024


class Side(msgspec.Struct, frozen=True):
    """What one side holds: a digest of its value, or of its content where it is big; absolute expiry in ms, -1: none.

    `payload`: its DUMP, None where it is big.
    """

    stands: bytes
    expire_ms: int
    payload: bytes | None
    bytes_used: int
    content: Content | None = None

    def same(self, other: Side) -> bool:
        """Return whether both are equal, as far as two digests can tell."""
        return self.stands == other.stands and self.expire_ms == other.expire_ms

    def is_what(self, written: bytes | None, expire_ms: int) -> bool:
        """Return whether this is what the ledger says was written. An open digest (b"") says nothing."""
        if not written or self.expire_ms != expire_ms:
            return False
        if self.payload is None or is_content_digest(written):
            return self.stands == written
        return holds(written, self.payload)


def read_sides(endpoint: Endpoint, db: int, keys: Sequence[bytes], *, big: bool | None = None) -> list[Side | None]:
    """Return what these keys hold, None for one that is not there. Not as of one moment, unless they are watched.

    `big`: read them all by their content, or by their DUMP; None: by their sizes.
    """
    endpoint.select(db)
    replies = endpoint.pipeline([("MEMORY", "USAGE", key, "SAMPLES", 1) for key in keys])
    sizes = [size if isinstance(size, int) else 0 for size in replies]
    by_content = [size > BIG_BYTES if big is None else big for size in sizes]
    small = [key for key, is_big in zip(keys, by_content, strict=True) if not is_big]
    commands = [command for key in small for command in (("DUMP", key), ("PEXPIRETIME", key))]
    dumps = iter(endpoint.pipeline(commands))
    found: list[Side | None] = []
    for key, size, is_big in zip(keys, sizes, by_content, strict=True):
        if is_big:
            found.append(_by_content(endpoint, key, size))
            continue
        payload, expire_ms = next(dumps), next(dumps)
        if isinstance(expire_ms, ReplyError):  # a server before 7.0
            expire_ms = content.expiry(endpoint, key)
        found.append(Side(digest(payload), int(expire_ms), payload, size) if isinstance(payload, bytes) else None)
    return found


def _by_content(endpoint: Endpoint, key: bytes, size: int) -> Side | None:
    read = content.read_content(endpoint, key)
    if read is None:
        return None
    return Side(content_digest(read), -1 if read.expires_ms is None else read.expires_ms, None, size, read)


__all__ = ["BIG_BYTES", "Side", "read_sides"]
