"""Disk: bytes a tick of the day, of ours before and after compaction, and of each peer in its final form.

Ours keeps more than the nine fields: every record's position, so that it can be followed from any of them, and the
1-minute bars. Sorted by symbol the positions are all but free; in time order they say how the symbols took turns, which
no peer keeps.
"""

from __future__ import annotations

from bench.measure import Line, Setting, against, alone
from bench.peers.field import field

_REACH = 5.5


def measure(setting: Setting) -> list[Line]:
    """Return a line for each form of ours, the compacted one beside each peer."""
    entered = field(setting)
    each = {"Parquet": {}, "chDB": {"tuned": True}, "DuckDB": {}, "ArcticDB": {}}
    peers: dict[str, list[float]] = {}
    for name in entered.named(*each):
        entered.ready(name, **each[name])
        peers[name] = [entered.settle(name) / entered.total]
    lines = []
    for tape, told in (
        ("bulk", "appended at once, not compacted"),
        ("fed", "appended 50,000 at a time, not compacted"),
    ):
        entered.tape(tape)
        lines.append(alone(f"file, {told}", "bytes/tick", [_size(setting, tape)]))
    if not entered.tape("compact"):
        return [*lines[:-1], *against(lines[-1].name, "bytes/tick", lines[-1].values, peers, more_is_better=False)]
    entered.ours.ask("compact", source="bulk", name="bulk-compact")
    for tape, told in (("bulk-compact", "appended at once by symbol"), ("compact", "appended in time order")):
        size = [_size(setting, tape)]
        found = against(f"file, compacted, {told}", "bytes/tick", size, peers, more_is_better=False)
        found[0].target, found[0].reached = f"<= {_REACH:g}", size[0] <= _REACH
        lines += found
    entered.ours.ask("drop", name="bulk-compact")
    lines.append(alone("compact()", "ticks/s", [entered.total / entered.compact_s]))
    return [*lines, _fine(setting)]


def _fine(setting: Setting) -> Line:
    """Return the line of ticks whose times use every nanosecond: ten bits more a tick that nothing can take out."""
    entered = field(setting)
    entered.ours.ask("fill", path=entered.fine_path, order="symbol", name="fine")
    entered.ours.ask("compact", source="fine", name="fine-compact")
    size = _size(setting, "fine-compact") / (entered.total // 10) * entered.total
    for tape in ("fine", "fine-compact"):
        entered.ours.ask("drop", name=tape)
    return alone("file, compacted, times to the nanosecond", "bytes/tick", [size])


def _size(setting: Setting, tape: str) -> float:
    entered = field(setting)
    return float(entered.ours.ask("settle", name=tape)) / entered.total
