"""What a stream is besides its entries: its ids, groups, consumers and pending entries, read and set."""

from __future__ import annotations

from typing import Any

import msgspec

from onetape.migrate.wire.endpoint import Argument, Endpoint

_PENDING_TIMES_MAX = 1000
_PAGE = 5000


class Pending(msgspec.Struct, frozen=True):
    """One entry delivered to `consumer` and not acknowledged. `time_ms` is None where it was not read."""

    id: bytes
    consumer: bytes
    deliveries: int
    time_ms: int | None


class Group(msgspec.Struct, frozen=True):
    """A consumer group. `entries_read` is None where the server does not know it."""

    name: bytes
    last_delivered: bytes
    entries_read: int | None
    consumers: list[bytes]
    pending: list[Pending]


class StreamState(msgspec.Struct, frozen=True):
    """A stream besides its entries. The counters are None on servers before 7.0."""

    last_id: bytes
    max_deleted: bytes | None
    added: int | None
    groups: list[Group]

    def elements(self) -> list[tuple[bytes, bytes]]:
        """Return it as named values, in a defined order, for a digest."""
        found = [
            (b"last-generated-id", self.last_id),
            (b"max-deleted-entry-id", b"%r" % self.max_deleted),
            (b"entries-added", b"%r" % self.added),
        ]
        for group in self.groups:
            found.append((b"group %s" % group.name, msgspec.json.encode(group)))
        return found

    def uncounted(self) -> StreamState:
        """Return what a server before 7.0 knows of it, to be compared with one."""
        groups = [msgspec.structs.replace(group, entries_read=None) for group in self.groups]
        return StreamState(last_id=self.last_id, max_deleted=None, added=None, groups=groups)

    def position(self, key: bytes) -> tuple[Argument, ...]:
        """Return the command that sets a stream's last id and counters."""
        if self.added is None or self.max_deleted is None:
            return ("XSETID", key, self.last_id)
        return ("XSETID", key, self.last_id, "ENTRIESADDED", self.added, "MAXDELETEDID", self.max_deleted)

    def commands(self, key: bytes) -> list[tuple[Argument, ...]]:
        """Return the commands that give a stream with the right entries this state, groups and all."""
        commands: list[tuple[Any, ...]] = [self.position(key)]
        for group in self.groups:
            read = [] if group.entries_read is None else ["ENTRIESREAD", group.entries_read]
            commands.append(("XGROUP", "CREATE", key, group.name, group.last_delivered, *read))
            commands += [("XGROUP", "CREATECONSUMER", key, group.name, name) for name in group.consumers]
            for one in group.pending:
                time = [] if one.time_ms is None else ["TIME", one.time_ms]
                claim = ("XCLAIM", key, group.name, one.consumer, 0, one.id, *time)
                commands.append((*claim, "RETRYCOUNT", one.deliveries, "FORCE", "JUSTID"))
        return commands


def stream_state(endpoint: Endpoint, key: bytes, *, all_times: bool = False) -> StreamState | None:
    """Return the state of a stream of the selected database, None if the key is gone.

    Delivery times are read where at most 1,000 entries are pending, or always with `all_times`; reading them
    costs as many entries. Raises EndpointError.
    """
    info, raw_groups = endpoint.pipeline([("XINFO", "STREAM", key), ("XINFO", "GROUPS", key)])
    if not isinstance(info, list) or not isinstance(raw_groups, list):
        return None
    facts = _facts(info)
    group_facts = sorted((_facts(raw) for raw in raw_groups), key=lambda facts: bytes(facts[b"name"]))
    most = max((int(facts[b"pending"]) for facts in group_facts), default=0)
    total = sum(int(facts[b"pending"]) for facts in group_facts)
    times: dict[tuple[bytes, bytes], int] = {}
    if total and (all_times or total <= _PENDING_TIMES_MAX):
        times = _delivery_times(endpoint, key, most)
    return StreamState(
        last_id=facts[b"last-generated-id"],
        max_deleted=facts.get(b"max-deleted-entry-id"),
        added=facts.get(b"entries-added"),
        groups=[_group(endpoint, key, facts, times) for facts in group_facts],
    )


def _group(endpoint: Endpoint, key: bytes, facts: dict[bytes, Any], times: dict[tuple[bytes, bytes], int]) -> Group:
    name = facts[b"name"]
    consumers = [_facts(raw)[b"name"] for raw in endpoint.call("XINFO", "CONSUMERS", key, name)]
    pending: list[Pending] = []
    start = b"-"
    while facts[b"pending"]:
        page = endpoint.call("XPENDING", key, name, start, "+", _PAGE)
        for entry_id, consumer, _idle, deliveries in page:
            pending.append(Pending(entry_id, consumer, deliveries, times.get((name, entry_id))))
        if len(page) < _PAGE:
            break
        start = b"(" + page[-1][0]
    return Group(name, facts[b"last-delivered-id"], facts.get(b"entries-read"), sorted(consumers), pending)


def _delivery_times(endpoint: Endpoint, key: bytes, most: int) -> dict[tuple[bytes, bytes], int]:
    full = _facts(endpoint.call("XINFO", "STREAM", key, "FULL", "COUNT", most))
    times = {}
    for raw in full[b"groups"]:
        group = _facts(raw)
        for entry_id, _consumer, time_ms, _deliveries in group.get(b"pel", group.get(b"pending", [])):
            times[(group[b"name"], entry_id)] = time_ms
    return times


def _facts(flat: list[Any]) -> dict[bytes, Any]:
    return {flat[i]: flat[i + 1] for i in range(0, len(flat), 2)}
