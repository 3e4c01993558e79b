"""Big keys on their way: written in slices under a temporary name, so that the server stands still for none of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from onetape.errors import EndpointError
from onetape.migrate.copying.slice_decide import BLOCKS, SLICE_BYTES, SLICE_BYTES_OF_BLOCKS
from onetape.migrate.copying.slice_write import Lost, write
from onetape.migrate.copying.slices import TEMPORARY
from onetape.migrate.keys.content import LENGTH
from onetape.migrate.mirror.ways import Pair
from onetape.migrate.wire.endpoint import Argument, Endpoint, is_lost


class Bigs:
    """Writes big keys on two connections of its own, while the caller's one watches both sides."""

    def __init__(self, connect: Callable[[], Endpoint]) -> None:
        self._connect = connect
        self._reader: Endpoint | None = None
        self._writer: Endpoint | None = None

    def close(self) -> None:
        """Close the connections."""
        for endpoint in (self._reader, self._writer):
            if endpoint is not None:
                endpoint.close()
        self._reader = self._writer = None

    def wants(self, endpoint: Endpoint, pair: Pair) -> bytes | None:
        """Return the type of a leader that is too big for one COPY, None for one that is not."""
        endpoint.select(pair.from_db)
        kind, size = endpoint.pipeline([("TYPE", pair.from_key), ("MEMORY", "USAGE", pair.from_key)])
        if not isinstance(size, int) or kind not in LENGTH:
            return None
        return bytes(kind) if size > (SLICE_BYTES_OF_BLOCKS if kind in BLOCKS else SLICE_BYTES) else None

    def written(self, pair: Pair, kind: bytes) -> bytes | None:
        """Write the leader under a temporary name in the follower's database and return the name.

        None where something went away meanwhile. It goes by itself if it is never put in place. Raises EndpointError.
        """
        if self._reader is None or self._reader.closed:
            self._reader = self._connect()
        if self._writer is None or self._writer.closed:
            self._writer = self._connect()
        temporary = TEMPORARY + secrets.token_hex(8).encode() + b":" + pair.to_key
        self._reader.select(pair.from_db)
        self._writer.select(pair.to_db)
        try:
            _digester, pieces = write(self._reader, self._writer, pair.from_key, kind, temporary, _go_on)
            length = self._writer.pipeline([(LENGTH[kind], temporary)])[0]
        except Lost:
            return None
        except EndpointError as error:
            if not is_lost(error):
                self._writer.pipeline([("UNLINK", temporary)])
            raise
        # Fields that expire may be counted on one side and gone on the other.
        if isinstance(length, int) and pieces.length - pieces.fields_expiring <= length <= pieces.length:
            return temporary
        self.drop(temporary)
        return None

    def drop(self, temporary: bytes) -> None:
        """Remove a temporary key that was not put in place."""
        if self._writer is not None and not self._writer.closed:
            self._writer.call("UNLINK", temporary)


def _go_on(*_told: int) -> None:
    """Between two slices nothing more is asked: the state is watched, and the last step fails if anything changed."""


def put_in_place(pair: Pair, temporary: bytes, expire_ms: int, *, over: bool) -> list[Sequence[Argument]]:
    """Return the transaction that gives the temporary key the follower's name and expiry, from MULTI to EXEC."""
    # RENAME would free what is there before it answers anybody; UNLINK frees it beside.
    commands: list[Sequence[Argument]] = [("SELECT", pair.to_db), ("MULTI",)]
    if over:
        commands.append(("UNLINK", pair.to_key))
    commands.append(("RENAME", temporary, pair.to_key))
    stays = expire_ms < 0
    commands.append(("PERSIST", pair.to_key) if stays else ("PEXPIREAT", pair.to_key, expire_ms))
    return [*commands, ("EXEC",)]
