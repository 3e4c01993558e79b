"""What an undo did, and the hand that removes keys for it: only while they are what was read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from onetape.errors import EndpointError
from onetape.migrate.report import key_text
from onetape.migrate.wire.endpoint import Argument, Endpoint, ReplyError

LISTED = 100


class Undone(msgspec.Struct):
    """What became of new keys: "removed", "put_back", "kept", "failed" → keys, entries → merged ticks taken out.

    `kept` and `failed`: the first of each in words.
    """

    counts: Counter[str] = msgspec.field(default_factory=Counter)
    entries: int = 0
    kept: list[str] = []
    failed: list[str] = []

    def add(self, what: str, db: int, key: bytes, why: str = "") -> None:
        """Count one key."""
        self.counts[what] += 1
        lines = {"kept": self.kept, "failed": self.failed}.get(what)
        if lines is not None and len(lines) < LISTED:
            lines.append(f"db {db} {key_text(key)}: {why}")

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        facts = {"entries": self.entries, "kept_first": self.kept, "failed_first": self.failed}
        return {**dict(self.counts), **facts}

    def lines(self, would: bool) -> list[str]:
        """Return it in words."""
        told = [
            (self.counts["removed"], "new keys were removed", "new keys would be removed"),
            (self.counts["put_back"], "values were put back", "values would be put back"),
            (self.entries, "merged ticks were taken out of streams", "merged ticks would be taken out of streams"),
            (self.counts["kept"], "new keys stay as they are", "new keys would stay as they are"),
            (self.counts["failed"], "keys failed", "keys would fail"),
        ]
        return [f"{number:,} {then if would else now}" for number, now, then in told if number]


class Hand:
    """Removes watched keys of one database. `write` False: it does nothing, and says that it could."""

    def __init__(self, endpoint: Endpoint, db: int, *, write: bool, at: Callable[[str], None]) -> None:
        self.endpoint = endpoint
        self.db = db
        self.write = write
        self.at = at

    def watch(self, keys: Sequence[bytes]) -> None:
        """Watch keys, and nothing else."""
        if not self.write:
            return
        commands: list[Sequence[Argument]] = [("UNWATCH",), ("SELECT", self.db), ("WATCH", *keys)]
        for reply in self.endpoint.pipeline(commands):
            if isinstance(reply, ReplyError):
                raise EndpointError(f"WATCH: {reply.message}", code=reply.code)
        self.endpoint.db = self.db

    def remove(self, keys: Sequence[bytes]) -> bool:
        """Remove watched keys; False where something changed, and then nothing was done."""
        if not self.write or not keys:
            return True
        result = self.endpoint.pipeline([("MULTI",), ("UNLINK", *keys), ("EXEC",)])[-1]
        if isinstance(result, ReplyError):
            raise EndpointError(f"UNLINK: {result.message}", code=result.code)
        self.at("unlinked")
        return result is not None


__all__ = ["Hand", "Undone"]
