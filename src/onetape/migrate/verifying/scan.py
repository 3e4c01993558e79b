"""The scan: one pass of SCAN over a database, whose pages can be asked for behind other work."""

from __future__ import annotations

from typing import Any

from onetape.errors import EndpointError
from onetape.migrate.copying.compare import Request
from onetape.migrate.wire.endpoint import Argument, Endpoint, ReplyError, pack
from onetape.migrate.wire.line import Line, Ticket

#: Keys a page: what is asked of the server at once.
PAGE_KEYS = 300


class Pages:
    """One pass of SCAN over a database on a line, always asking for the page after the one that is given."""

    def __init__(self, line: Line, db: int, glob: bytes | None) -> None:
        self._line = line
        self._db = db
        self._narrowed: tuple[Argument, ...] = () if glob is None else ("MATCH", glob)
        self._asked: Ticket | None = None
        self._ask(b"0")

    def _ask(self, cursor: bytes) -> None:
        scan = pack("SCAN", cursor, *self._narrowed, "COUNT", PAGE_KEYS)
        self._asked = self._line.send(pack("SELECT", self._db) + scan, 2)

    def next(self) -> list[bytes] | None:
        """Return the next page, which may be empty, None at the end. Raises EndpointError."""
        if self._asked is None:
            return None
        selected, page = self._line.take(self._asked)
        self._asked = None
        for reply in (selected, page):
            if isinstance(reply, ReplyError):
                raise EndpointError(f"scanning database {self._db}: {reply}", hint="verify needs to read it")
        cursor, keys = page
        if cursor != b"0":
            self._ask(cursor)
        return list(dict.fromkeys(keys))


class Scan:
    """One pass of SCAN over a database, page by page; a page may be asked for behind another request."""

    def __init__(self, endpoint: Endpoint, db: int, glob: bytes | None) -> None:
        self._endpoint = endpoint
        self._db = db
        self._narrowed: tuple[Argument, ...] = () if glob is None else ("MATCH", glob)
        self._cursor = b""
        self.done = False

    def first(self) -> list[bytes]:
        """Return the next page, [] at the end; it may be empty before."""
        self.send_after(None)
        return self.receive_after(None)[1]

    def send_after(self, request: Request | None) -> None:
        """Send a request and ask for the next page behind it. Whatever is sent here only reads."""
        packed = b"" if request is None else request.packed
        if not self.done:
            scan = pack("SCAN", self._cursor or b"0", *self._narrowed, "COUNT", PAGE_KEYS)
            packed += pack("SELECT", self._db) + scan
        if packed:
            self._endpoint.send(packed)

    def receive_after(self, request: Request | None) -> tuple[list[Any] | None, list[bytes]]:
        """Return the replies to the request, None without one, and the next page."""
        expected = 0 if request is None else request.replies
        replies = self._endpoint.receive(expected + (0 if self.done else 2))
        keys: list[bytes] = []
        if not self.done:
            page = replies.pop()
            if isinstance(page, ReplyError) or isinstance(replies.pop(), ReplyError):
                raise EndpointError(f"scanning database {self._db}: {page}", hint="verify needs to read it")
            self._cursor, keys = page
            self.done = self._cursor == b"0"
        return (None if request is None else replies), list(dict.fromkeys(keys))
