"""The mirror's status: what it publishes each second for the gate, the screen and the metrics."""

from __future__ import annotations

import msgspec

#: How long the published status outlives a mirror that was killed, ms.
ALIVE_MS = 5_000


class MirrorStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where a mirror is. Times `…_at_ms` are the server's, ms since the epoch; None for never.

    `lag_ms`: how old the oldest write may be that was not followed yet: the way of a hint, and how long the oldest
    one has waited; None where no hints come in. `queue`: hinted keys waiting. Since it was started: `copied` (also
    added to a stream), `deleted`, `merged` (ticks of hashes), `landed` (records on the tape).
    `kept`: pairs that differ now and are left so; `failed`: keys that could not be made equal when last looked at.
    `sweep_found`: pairs that the last sweep had to make equal and no hint had told of. `foreign_writes_at_ms`: when the
    sides last differed, so somebody wrote one side only.
    """

    token: str
    by: str
    at_ms: int
    phase: str
    back: bool
    hints: bool
    note: str
    lag_ms: float | None
    queue: int
    copied: int
    deleted: int
    merged: int
    landed: int
    kept: int
    failed: int
    sweeps: int
    sweeping: float | None
    sweep_at_ms: int | None
    sweep_s: float | None
    sweep_found: int
    foreign_writes_at_ms: int | None
    paused: bool
    last_error: str = ""


def decode_status(raw: bytes | None) -> MirrorStatus | None:
    """Return the status in a value, None where there is none that can be read."""
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=MirrorStatus)
    except msgspec.DecodeError:
        return None
