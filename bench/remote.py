"""Another server: a backfill to it and its verify beside redis-py's pipelines of DUMP and RESTORE."""

from __future__ import annotations

from bench import keys, moves
from bench.measure import Line, Setting, alone, beside, take_turns
from onetape.embedded import EmbeddedServer


def measure(setting: Setting) -> list[Line]:
    """Return the lines, of two servers of their own."""
    with EmbeddedServer() as server, EmbeddedServer() as other:
        total = keys.fill(server.url, setting.scaled(200_000, 4_000))
        verified: list[float] = []

        def ours() -> float:
            keys.empty_target(other.url)
            with setting.scratch() as folder:
                first = moves.run("backfill", server, folder, other=other)
                if first.keys != total or keys.copied(other.url) != total:
                    raise RuntimeError(f"{first.keys} of {total} keys were copied")
                verified.append(moves.run("verify", server, folder, other=other).per_s)
            return first.per_s

        def theirs() -> float:
            keys.empty_target(other.url)
            with setting.scratch() as folder:
                return moves.run("to_another_server", server, folder, other=other).per_s

        figures = take_turns({"ours": ours, "theirs": theirs}, setting.runs)
    name, peer = f"backfill to another server, {total:,} mixed keys", "redis-py, pipelined DUMP, PTTL, RESTORE"
    return [
        beside(name, "keys/s", figures["ours"], peer, figures["theirs"], ratio_at_least=2),
        alone("its verify, both directions", "keys/s", verified),
    ]
