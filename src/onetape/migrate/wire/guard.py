"""The guard: a WATCH that is held over a few keys for as long as it takes, and asked in between whether it still holds.

WATCH lasts until EXEC, whatever else is sent, so a transaction at the end of long work can be refused if one of the
keys was touched since its beginning. To learn of it earlier, two connections take turns: the second begins to watch
before the first is asked (by an empty transaction), so no moment is unwatched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from onetape.errors import EndpointError
from onetape.migrate.wire.endpoint import Argument, Endpoint, ReplyError, is_lost

Place = tuple[int, bytes]  # database, key


class Guard:
    """Watches keys of any databases of one server. Not for several threads at once."""

    def __init__(self, connect: Callable[[], Endpoint]) -> None:
        self._watching = connect()
        try:
            self._other = connect()
        except BaseException:
            self._watching.close()
            raise
        self._places: list[Place] = []

    def watch(self, places: Sequence[Place]) -> None:
        """Begin to watch these keys, and no others. Raises EndpointError."""
        self._watching.call("UNWATCH")
        self._places = []
        self.also(places)

    def also(self, places: Sequence[Place]) -> None:
        """Watch these keys from now on as well."""
        _watch(self._watching, places)
        self._places += places

    def holds(self) -> bool:
        """Return whether none of the keys was touched since it is watched; from here on the rest is watched anew."""
        _watch(self._other, self._places)
        untouched = self._watching.pipeline([("MULTI",), ("EXEC",)])[1] is not None
        self._watching, self._other = self._other, self._watching
        return untouched

    def act(self, db: int, commands: Sequence[Sequence[Argument]]) -> list[Any] | None:
        """Do all this in a database in one transaction; None, with nothing done, if a key was touched.

        Error replies are in place. Raises EndpointError, also where the server refused a command beforehand.
        """
        endpoint = self._watching
        replies = endpoint.pipeline([("SELECT", db), ("MULTI",), *commands, ("EXEC",)])
        endpoint.db = -1
        done = replies[-1]
        if isinstance(done, ReplyError):
            refused = next((reply for reply in replies if isinstance(reply, ReplyError)), done)
            raise EndpointError(f"{endpoint.address}: {refused.message}", code=refused.code)
        return done  # type: ignore[no-any-return]

    def leave(self) -> None:
        """Watch nothing any more; a connection that is lost watches nothing."""
        try:
            self._watching.call("UNWATCH")
        except EndpointError as error:
            if not is_lost(error):
                raise

    def close(self) -> None:
        """Close both connections."""
        self._watching.close()
        self._other.close()


def _watch(endpoint: Endpoint, places: Sequence[Place]) -> None:
    for db, key in places:
        for reply in endpoint.pipeline([("SELECT", db), ("WATCH", key)]):
            if isinstance(reply, ReplyError):
                raise EndpointError(f"{endpoint.address}: WATCH: {reply.message}", code=reply.code)
    endpoint.db = -1
