"""The sizes: how much memory each listed key takes, asked for one page before it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onetape.errors import EndpointError
from onetape.migrate.survey.listing import Page
from onetape.migrate.wire.endpoint import Endpoint, ReplyError, pack

_USAGE = b"*3\r\n$6\r\nMEMORY\r\n$5\r\nUSAGE\r\n$%d\r\n%b\r\n"


class Sizes:
    """Asks for sizes on a connection of its own, so that the answer is there when the page's turn comes."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def of(self, pages: Iterable[Page]) -> Iterator[tuple[Page, list[int]]]:
        """Yield each page with the bytes of its keys in the server's memory; 0 where one is gone or not told.

        One page is held back. Raises EndpointError.
        """
        before: Page | None = None
        for page in pages:
            self._send(page)
            if before is not None:
                yield before, self._receive(before)
            before = page
        if before is not None:
            yield before, self._receive(before)

    def kinds(self, db: int, keys: list[bytes]) -> list[bytes]:
        """Return the types of keys, b"none" where one is gone. Not while pages are on their way."""
        self._endpoint.select(db)
        replies = self._endpoint.pipeline([("TYPE", key) for key in keys])
        return [b"none" if isinstance(reply, ReplyError) else reply for reply in replies]

    def close(self) -> None:
        """Close the connection."""
        self._endpoint.close()

    def _send(self, page: Page) -> None:
        asked = [_USAGE % (len(key), key) for key in page.keys]
        self._endpoint.send(b"".join([pack("SELECT", page.db), *asked]))

    def _receive(self, page: Page) -> list[int]:
        replies = self._endpoint.receive(len(page.keys) + 1)
        if isinstance(replies[0], ReplyError):
            raise EndpointError(f"database {page.db}: {replies[0].message}", code=replies[0].code)
        return [size if size.__class__ is int else 0 for size in replies[1:]]


__all__ = ["Sizes"]
