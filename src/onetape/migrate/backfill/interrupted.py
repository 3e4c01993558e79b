"""The interrupted: what a killed run had intended, settled by what its targets hold now."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from onetape.migrate.copying import decide, slice_decide
from onetape.migrate.copying.copy import GROUP_KEYS
from onetape.migrate.copying.lane import Batch, Lane
from onetape.migrate.keys.dump import digest
from onetape.migrate.ledger.entry import Entry, Outcome, Row
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.plans.plan import Plan
from onetape.migrate.wire.endpoint import Endpoint


def settle_interrupted(reader: Endpoint, plan: Plan, ledger: Ledger) -> int:
    """Settle what a killed run had intended: a target that holds what was read is a copy made. Returns how many.

    What was not carried out, or was changed by somebody since, is marked so and met again by the next
    listing.
    """
    settled = 0
    for batch, group in groupby(ledger.unsettled(), key=lambda pair: pair[0]):
        entries = [entry for _, entry in group]
        changes = _judge(reader, plan, entries)
        ledger.settle(batch, changes)
        settled += len(entries)
    return settled


def _judge(reader: Endpoint, plan: Plan, entries: list[Entry]) -> list[Row | None]:
    why = "not done, the run was killed"
    acts = [place for place, entry in enumerate(entries) if entry.outcome is Outcome.COPIED]
    changes: list[Row | None] = [None] * len(entries)
    for place in [place for place in acts if slice_decide.is_content_digest(entries[place].written)]:
        acts.remove(place)
        entry = entries[place]
        if not slice_decide.still_holds(reader, plan.target_db, entry):
            changes[place] = _entry_row(entry, entry.read, None, entry.expire_ms, decide.INTENDED, why)
    held, expiries = _read_all(reader, plan.target_db, plan.target_db, [entries[place].target for place in acts])
    opened = [place for place in acts if entries[place].is_open]
    db = entries[opened[0]].source_db if opened else 0  # one in each batch
    sources, source_expiries = _read_all(reader, plan.target_db, db, [entries[place].key for place in opened])
    open_sources = dict(zip(opened, zip(sources, source_expiries, strict=True), strict=True))
    for place, payload, expire_ms in zip(acts, held, expiries, strict=True):
        entry = entries[place]
        if entry.is_open and isinstance(payload, bytes):
            content = digest(payload)
            source, source_ms = open_sources[place]
            if isinstance(source, bytes) and digest(source) == content and source_ms == expire_ms:
                changes[place] = _entry_row(entry, content, content, expire_ms, decide.COPIED, None)
            continue  # else it stays open: there is a target, and nothing tells whether we made it
        if not (isinstance(payload, bytes) and digest(payload) == entry.written and expire_ms == entry.expire_ms):
            changes[place] = _entry_row(entry, entry.read or None, None, entry.expire_ms, decide.INTENDED, why)
    return changes


def _entry_row(
    entry: Entry, read: bytes | None, written: bytes | None, expire_ms: int, outcome: int, error: str | None
) -> Row:
    return (entry.rule, entry.source_db, entry.key, entry.target, read, written, expire_ms, outcome, error, 0)


def _read_all(reader: Endpoint, target_db: int, db: int, keys: list[bytes]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return what keys of a database hold, and their expiries, a group at a time."""
    lane = Lane(reader, target_db)
    held: list[Any] = []
    expiries: list[Any] = []
    for at in range(0, len(keys), GROUP_KEYS):
        some = keys[at : at + GROUP_KEYS]
        lane.send_read(Batch(db, some, some, [0] * len(some)))
        reading = lane.receive_read()
        reader.call("UNWATCH")
        held += reading.sources
        expiries += reading.source_expiry
    reader.db = -1
    return held, expiries
