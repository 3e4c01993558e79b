"""The filler: sends commands to the server in large pipelines and counts what it stored; an error ends the fill."""

from __future__ import annotations

from collections import Counter

import hiredis

from onetape.errors import EndpointError
from onetape.migrate.wire.endpoint import Argument, Endpoint, ReplyError

_BATCH_BYTES = 512 * 1024


class Filler:
    """One connection that writes. Use it in `with`: leaving it sends the rest.

    `counts` is what the fill tells of itself; callers add to it.
    """

    def __init__(self, url: str) -> None:
        self._endpoint = Endpoint.connect(url, timeout_s=30.0)
        self._packed: list[bytes] = []
        self._bytes = 0
        self.counts: Counter[str] = Counter()

    def select(self, db: int) -> None:
        """Make `db` the database of what follows."""
        self.add("SELECT", db)

    def add(self, *command: Argument) -> None:
        """Queue a command."""
        # Numbers as text: hiredis 3 turns them into it unchecked, and a Ctrl-C just then is a segmentation fault
        texts = tuple([part if isinstance(part, (str, bytes)) else repr(part) for part in command])
        packed: bytes = hiredis.pack_command(texts)  # type: ignore[arg-type]
        self._packed.append(packed)
        self._bytes += len(packed)
        if self._bytes > _BATCH_BYTES:
            self.flush()

    def expire(self, key: bytes | str, seconds: int) -> None:
        """Queue an expiry, `seconds` from now."""
        self.add("EXPIRE", key, seconds)

    def flush(self) -> None:
        """Send what is queued. Raises EndpointError for the first command that failed."""
        if not self._packed:
            return
        replies = self._endpoint.exchange(b"".join(self._packed), len(self._packed))
        self._packed, self._bytes = [], 0
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise EndpointError(f"filling the legacy system: {reply.message}", code=reply.code)

    def __enter__(self) -> Filler:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._endpoint.close()
