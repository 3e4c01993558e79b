"""The kinds of keys: what types the plan's keys have, which of them nobody could copy, and which are hidden from us."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onetape.errors import EndpointError
from onetape.migrate.keys.payload import version_of
from onetape.migrate.plans.plan import Plan
from onetape.migrate.report import key_text
from onetape.migrate.survey.listing import SCAN_COUNT, memory_usage
from onetape.migrate.wire.endpoint import Endpoint, ReplyError

#: Types that every server can copy, dump and restore.
CORE = frozenset({"string", "hash", "list", "set", "zset", "stream", "none"})
_SAMPLE_PAGES = 3
#: Where modules are loaded: so many pages of a database, a second's work.
_MODULE_PAGES = 200
_NAMED = 1000
_SMALL_BYTES = 64 * 1024
#: Valkey's own engine of scripts, which it loads as a module that has no types.
_OWN_MODULES = frozenset({"lua"})


class ReadKeys:
    """Looks at the keys that a plan copies: a sample of each source database, more where modules are loaded.

    After look(): `of_modules`, type → (database, key) of each found; `versions`, of the RDB format → a key in it.
    """

    def __init__(self, source: Endpoint, plan: Plan) -> None:
        self._source = source
        self._plan = plan
        self._modules = modules_of(source)
        self.sample: dict[int, list[bytes]] = {}
        self.of_modules: dict[str, list[tuple[int, bytes]]] = {}
        self.versions: dict[int, bytes] = {}
        self._refused: dict[str, tuple[bytes, str, int]] = {}

    def look(self) -> ReadKeys:
        """Look. Only reads. Raises EndpointError."""
        for db in self._plan.source_dbs():
            matcher = self._plan.matcher(db)
            self._source.select(db)
            for keys in self._pages():
                hits = [(key, hit[1]) for key in keys if (hit := matcher.match(key)) is not None]
                kinds = self._source.pipeline([("TYPE", key) for key, _ in hits])
                wanted = []
                for (key, first), kind in zip(hits, kinds, strict=True):
                    if isinstance(kind, ReplyError):
                        self._refuse("TYPE", key, kind)
                        continue
                    name = kind.decode()
                    hit = matcher.match_type(key, name) if first.types else (0, first, b"")
                    if hit is None or hit[1].skip:
                        continue
                    if name not in CORE:
                        self.of_modules.setdefault(name, []).append((db, key))
                    wanted.append(key)
                self.sample.setdefault(db, []).extend(wanted[: _NAMED - len(self.sample.get(db, ()))])
            self._try_to_read(db)
        return self

    def _try_to_read(self, db: int) -> None:
        """DUMP what is small: it shows what this user may not read, and in which version of the format values come."""
        keys = self.sample.get(db, [])
        sizes = memory_usage(self._source, db, keys)
        small = [key for key, size in zip(keys, sizes, strict=True) if size <= _SMALL_BYTES]
        for key, reply in zip(small, self._source.pipeline([("DUMP", key) for key in small]), strict=True):
            if isinstance(reply, ReplyError) and reply.code == "NOPERM":
                self._refuse("DUMP", key, reply)
            elif isinstance(reply, bytes):
                self.versions.setdefault(version_of(reply), key)

    def _refuse(self, command: str, key: bytes, reply: ReplyError) -> None:
        first, why, number = self._refused.get(command, (key, reply.message, 0))
        self._refused[command] = (first, why, number + 1)

    def hidden(self) -> list[str]:
        """Return the reasons against a migration that come from keys which may be listed but not read."""
        return [
            f"rights: {number:,} of the keys looked at are hidden from this user, the first {key_text(key)!r} ({why})"
            for key, why, number in self._refused.values()
        ]

    def _pages(self) -> Iterator[list[bytes]]:
        cursor, pages = b"0", 0
        while True:
            cursor, keys = self._source.call("SCAN", cursor, "COUNT", SCAN_COUNT)
            pages += 1
            yield keys
            if cursor == b"0" or pages == (_MODULE_PAGES if self._modules else _SAMPLE_PAGES):
                return


def modules_of(endpoint: Endpoint) -> frozenset[str]:
    """Return the names of the modules that a server has loaded, its own aside; whose user may not ask gets {"?"}."""
    try:
        listed: Any = endpoint.call("MODULE", "LIST")
    except EndpointError as error:
        if error.facts.get("code") in ("CUT", "TIMEOUT"):
            raise
        return frozenset() if error.facts.get("code") == "ERR" else frozenset({"?"})
    return frozenset(one[one.index(b"name") + 1].decode("utf-8", "replace") for one in listed) - _OWN_MODULES
