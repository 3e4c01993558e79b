"""Held records: what may be held at all, and how a run of deliveries is put on the tape that is back, once."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from onetape.errors import ConfigInvalid, CursorConflict, InvalidRecord
from onetape.record import Bar, SeqRange, Tick
from onetape.steady.ring import Held
from onetape.store import table
from onetape.tape import Tape

_log = logging.getLogger("onetape.steady")


def valid(records: Sequence[Tick | Bar], *, raising: bool) -> list[Tick | Bar]:
    """Return the valid records. Raises InvalidRecord for the first that is not, where it is to."""
    good: list[Tick | Bar] = []
    for index, record in enumerate(records):
        try:
            for kind, _, run in table.split_by_kind([record]):
                for problem in table.from_records(run, kind, index).problems():
                    raise InvalidRecord(index, problem.field, problem.value, problem.why)
            good.append(record)
        except InvalidRecord:
            if raising:
                raise
    return good


def put(tape: Tape, run: list[Held]) -> tuple[SeqRange | None, int]:
    """Append a run of deliveries, which may be joined, under one identity: (where they are, how many were refused).

    None: nothing was stored, for it was stored before, or its source gives it again, or no tape takes it. Raises
    CursorConflict where a part of the run may be stored, and what says that the tape is away.
    """
    first, last = run[0], run[-1]
    cursor = None
    if first.cursor is not None and last.cursor is not None:
        cursor = (first.cursor[0], first.cursor[1], last.cursor[2])
    records = [record for held in run for record in held.records]
    try:
        batch = f"{first.batch}+{len(run)}" if cursor is None and len(run) > 1 else first.batch
        return tape.append(records, batch=batch, ids=first.ids, cursor=cursor, on_invalid="quarantine"), 0
    except CursorConflict as error:
        assert cursor is not None
        if tape.cursor(cursor[0]) == cursor[2]:
            return None, 0  # it was stored, and the answer was lost
        if len(run) > 1:
            raise
        # The source gives again what comes behind the tape's cursor: it is told by its next append.
        _log.error("%s: %d held records are left to their source, which gives them again: %s", cursor[0],
                   len(records), error)  # fmt: skip
        return None, 0
    except (InvalidRecord, ConfigInvalid) as error:
        _log.error("%d held records are refused by the tape: %s", len(records), error)
        return None, len(records)
