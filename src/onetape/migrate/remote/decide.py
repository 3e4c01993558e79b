"""The decision about keys of another server: as on one, but equal may be what that server encodes its own way."""

from __future__ import annotations

import msgspec

from onetape.errors import EndpointError
from onetape.migrate.copying import decide
from onetape.migrate.copying.decide import Decided
from onetape.migrate.copying.lane import Batch, Reading
from onetape.migrate.keys import content
from onetape.migrate.keys.dump import digest
from onetape.migrate.ledger.entry import REENCODED, Known
from onetape.migrate.remote.bridge import OTHER_SERVER, Bridge
from onetape.migrate.remote.lane import RemoteLane


def would(bridge: Bridge, batch: Batch, known: dict[bytes, Known], target_db: int) -> Decided:
    """Return what copying a batch would do. Only reads; the bridge's database is then none."""
    lane = RemoteLane([bridge.source], bridge.target, target_db)
    batch.careful = True
    lane.send_read(batch)
    reading = lane.receive_read()
    bridge.source.call("UNWATCH")
    bridge.target.call("UNWATCH")
    bridge.db = bridge.source.db = -1
    bridge.target.db = -1
    if reading.refused is not None:
        return decide.final(batch, decide.FAILED, reading.refused.message)
    decided = decide_remote(batch, reading, known, lane.has_expire_time)
    for place in unsure(decided):
        if is_equal(bridge, (batch.db, batch.keys[place]), (target_db, batch.targets[place])):
            found_equal(batch, reading, decided, place)
    return decided


def decide_remote(batch: Batch, reading: Reading, known: dict[bytes, Known], exact: bool) -> Decided:
    """Decide a careful batch whose targets are another server's.

    What that server is known to hold in an encoding of its own counts as what it was made from.
    """
    reading.targets = list(reading.targets)
    for place, key in enumerate(batch.keys):
        one = known.get(key)
        if one is None or one.error != REENCODED:
            continue
        source, held = reading.sources[place], reading.targets[place]
        if isinstance(source, bytes) and isinstance(held, bytes) and one.read is not None:
            if digest(held) == one.written and digest(source) == one.read:
                reading.targets[place] = source
                known[key] = msgspec.structs.replace(one, written=one.read)
            else:
                known[key] = msgspec.structs.replace(one, read=one.written)
    slack_ms = 0 if exact else decide.SLACK_BEFORE_7_MS
    return decide.decide_careful(batch, reading, known, OTHER_SERVER, slack_ms)


def unsure(decided: Decided) -> list[int]:
    """Return the places of targets that differ from their sources and that nobody knows to be ours."""
    kept = decide.NEWER_TARGET_KEPT
    return [at for at, one in enumerate(decided.outcomes) if one == kept and decided.errors[at] is None]


def is_equal(bridge: Bridge, source: tuple[int, bytes], target: tuple[int, bytes]) -> bool:
    """Return whether both keys have equal content and expiry at one moment."""
    try:
        pair = content.read_together(bridge, [source, (OTHER_SERVER + target[0], target[1])])
    except EndpointError as error:
        if not content.is_changed(error):
            raise
        return False
    if pair is None or pair[0] is None or pair[1] is None:
        return False
    return pair[0].equals(pair[1], decide.SLACK_BEFORE_7_MS)


def found_equal(batch: Batch, reading: Reading, decided: Decided, place: int) -> None:
    """Decide that a target is equal, and so may be called ours from now on."""
    key, held, expire_ms = batch.keys[place], reading.targets[place], reading.source_expiry[place]
    source = reading.sources[place]
    assert isinstance(held, bytes) and isinstance(source, bytes)
    decided.outcomes[place] = decide.UNCHANGED
    for at, row in enumerate(decided.rows):
        if row[2] == key and row[7] == decide.NEWER_TARGET_KEPT:
            decided.rows[at] = (*row[:4], digest(source), digest(held), expire_ms, decide.UNCHANGED, REENCODED, row[9])
