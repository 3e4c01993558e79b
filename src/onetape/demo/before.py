"""What was there before: digests of old keys and the size of the target, to show that a dry run wrote nothing."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b

import msgspec

from onetape.demo.legacy import SOURCE_DBS, TARGET_DB
from onetape.errors import MigrationError
from onetape.migrate.wire.endpoint import Endpoint
from onetape.tape import Tape

_KEYS_A_DATABASE = 200


class Before(msgspec.Struct, frozen=True):
    """Digests of (database, key) as they were."""

    digests: dict[tuple[int, bytes], bytes]

    @classmethod
    def look(cls, url: str, moving: Collection[str]) -> Before:
        """Look at some keys of every source database, without those of the `moving` symbols, which writers change."""
        names = [symbol.encode() for symbol in moving]
        keys: list[tuple[int, bytes]] = []
        with Endpoint.connect(url, writable=False) as endpoint:
            for db in SOURCE_DBS:
                endpoint.select(db)
                found = endpoint.call("SCAN", 0, "COUNT", 2 * _KEYS_A_DATABASE)[1]
                still = [key for key in found if not key.startswith(b"lock:") and not any(n in key for n in names)]
                keys += [(db, key) for key in still[:_KEYS_A_DATABASE]]
            return cls(_digests(endpoint, keys))

    def check(self, url: str, tape: Tape) -> None:
        """Raise MigrationError if a key, the target database or the tape is not as it was: both were empty."""
        with Endpoint.connect(url, writable=False) as endpoint:
            now = _digests(endpoint, list(self.digests))
            endpoint.select(TARGET_DB)
            written = endpoint.call("DBSIZE")
        changed = [key for key, digest in self.digests.items() if now[key] != digest]
        if changed:
            raise MigrationError(f"the dry run changed {len(changed)} old keys, one of them {changed[0]}")
        if written:
            raise MigrationError(f"the dry run wrote {written:,} keys to database {TARGET_DB}")
        if tape.stats().head:
            raise MigrationError(f"the dry run put {tape.stats().head:,} records on the tape")


def _digests(endpoint: Endpoint, keys: list[tuple[int, bytes]]) -> dict[tuple[int, bytes], bytes]:
    found: dict[tuple[int, bytes], bytes] = {}
    for db in SOURCE_DBS:
        endpoint.select(db)
        wanted = [key for key in keys if key[0] == db]
        for key, payload in zip(wanted, endpoint.pipeline([("DUMP", key) for _, key in wanted]), strict=True):
            found[key] = blake2b(payload or b"gone", digest_size=16).digest()
    return found
