"""The server's setting for keyspace notifications: made to tell what the mirror needs, and put back afterwards."""

from __future__ import annotations

from onetape.errors import EndpointError
from onetape.migrate.mirror.memory import Memory
from onetape.migrate.wire.endpoint import Endpoint, is_lost

_NAME = "notify-keyspace-events"
_BEFORE = "notify_before"
#: E: events by name of database; the rest: of every type, deletions, expiry, eviction.
_NEEDED = "Eg$lshzxet"


def tells_enough(flags: str) -> bool:
    """Return whether a setting makes the server tell of every write."""
    return set(_NEEDED) <= set(flags.replace("A", "g$lshzxetd"))


def ensure(endpoint: Endpoint, memory: Memory) -> str:
    """Make the server tell; return "" where it does, else why not and what to do about it.

    The value before is remembered, also over a kill, for restore().
    """
    try:
        found = endpoint.call("CONFIG", "GET", _NAME)
        now = found[1].decode() if found else ""
        if tells_enough(now):
            return ""
        if memory.state(_BEFORE) is None:
            memory.set_state(_BEFORE, now)
        endpoint.call("CONFIG", "SET", _NAME, _joined(now))
    except EndpointError as error:
        if is_lost(error):
            raise
        return (
            f"the server does not tell of writes, and this user may not change that ({error.facts.get('code')}): "
            "the sweep alone finds them; CONFIG SET notify-keyspace-events AE makes it tell"
        )
    return ""


def restore(endpoint: Endpoint, memory: Memory) -> None:
    """Put back what the setting was before, if it is still as ensure() made it."""
    before = memory.state(_BEFORE)
    if before is None:
        return
    try:
        found = endpoint.call("CONFIG", "GET", _NAME)
        if found and set(found[1].decode()) == set(_joined(before)):
            endpoint.call("CONFIG", "SET", _NAME, before)
    except EndpointError as error:
        if is_lost(error):
            raise
    memory.set_state(_BEFORE, None)


def _joined(flags: str) -> str:
    kept = set(flags.replace("A", "")) - set("g$lshzxetd")
    return "A" + "".join(sorted(kept | {"E"}))
