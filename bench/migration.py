"""Migration: backfill and verify, live and historical, beside blind copies and one command a round trip."""

from __future__ import annotations

from pathlib import Path

from bench import keys, moves
from bench.measure import Line, Setting, alone, beside, take_turns
from onetape.embedded import EmbeddedServer

_BLIND = "redis-py, pipelined blind COPY"
_ONE = "redis-py, one command a round trip"
_RAW = "raw connection, pipelined blind COPY"


def measure(setting: Setting) -> list[Line]:
    """Return the lines of the migrator, on a server of its own with mixed keys."""
    count = setting.scaled(1_000_000, 4_000)
    with EmbeddedServer() as server:
        total = keys.fill(server.url, count)
        return _speed(setting, server, total)


def _speed(setting: Setting, server: EmbeddedServer, total: int) -> list[Line]:
    again: list[float] = []
    verified: list[float] = []
    sealed: list[float] = []
    whole: list[float] = []

    def moved(way: str, folder: Path) -> moves.Run:
        first = moves.run(way, server, folder)
        if first.keys != total or keys.copied(server.url) != total:
            raise RuntimeError(f"{first.keys} of {total} keys were copied")
        return first

    def live() -> float:
        with setting.scratch() as folder:
            moves.live(server, folder)
            first = moved("live", folder)
            proof = moves.run("verify", server, folder)
        sealed.append(proof.per_s)
        whole.append(1e6 * (first.seconds + proof.seconds) / total)
        return first.per_s

    def digests() -> float:
        keys.empty_target(server.url)
        with setting.scratch() as folder:
            first = moved("backfill", folder)
            again.append(moves.run("backfill", server, folder).per_s)
            verified.append(moves.run("verify", server, folder).per_s)
        return first.per_s

    def peer(way: str, number: int = 0) -> float:
        keys.empty_target(server.url)
        with setting.scratch() as folder:
            return moves.run(way, server, folder, number).per_s

    figures = take_turns(
        {
            "digests": digests,
            "one": lambda: peer("one_by_one", setting.scaled(5_000, 200)),
            "raw": lambda: peer("raw_copies"),
            "live": live,
            "blind": lambda: peer("copies"),
        },
        setting.runs,
    )
    name = f"live backfill, {total:,} mixed keys"
    historical = f"backfill with digests, {total:,} mixed keys"
    return [
        beside(name, "keys/s", figures["live"], _BLIND, figures["blind"], ratio_at_least=2),
        beside(name, "keys/s", figures["live"], _ONE, figures["one"], ratio_at_least=80),
        beside(name, "keys/s", figures["live"], _RAW, figures["raw"]),
        alone("its verify, both directions, takes the digests", "keys/s", sealed, at_least=100_000),
        alone("moved and verified, live, a million keys", "s", whole, at_most=15),
        beside(historical, "keys/s", figures["digests"], _BLIND, figures["blind"], ratio_at_least=1),
        beside(historical, "keys/s", figures["digests"], _ONE, figures["one"], ratio_at_least=30),
        beside("the same once more, nothing to do", "keys/s", again, _BLIND, figures["blind"]),
        alone("its verify, both directions", "keys/s", verified, at_least=100_000),
    ]
