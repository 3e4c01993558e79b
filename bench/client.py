"""The client: how much memory a backfill and a verify take, for few keys and for many."""

from __future__ import annotations

from bench import keys, moves
from bench.measure import Line, Setting, alone
from onetape.embedded import EmbeddedServer

_NAMES = {"live": "a live backfill", "verify": "its verify", "backfill": "a backfill with digests"}


def measure(setting: Setting) -> list[Line]:
    """Return the memory of the client for few keys and for many."""
    lines = []
    first: dict[str, float] = {}
    sizes = [10_000, 200_000] + ([1_000_000] if setting.full else [])
    with EmbeddedServer() as server:
        for count in [1_000, 4_000] if setting.quick else sizes:
            keys.fill(server.url, count)
            with setting.scratch() as folder:
                moves.live(server, folder)
                peaks = {way: moves.run(way, server, folder).peak_mib for way in ("live", "verify")}
            keys.empty_target(server.url)
            with setting.scratch() as folder:
                peaks["backfill"] = moves.run("backfill", server, folder).peak_mib
            for way, name in _NAMES.items():
                line = alone(f"memory of {name}, {count:,} keys", "MiB peak", [peaks[way]], below=100)
                if way in first:
                    line.peer, line.theirs, line.ratio = "the fewest keys", first[way], first[way] / peaks[way]
                first.setdefault(way, peaks[way])
                lines.append(line)
    return lines
