"""The status: what a dual-writing client saw and did."""

from __future__ import annotations

import msgspec

from onetape.migrate.dual.exchange import Exchange
from onetape.migrate.phases.phase import Phase


class DualStatus(msgspec.Struct, frozen=True):
    """The phase and version that were seen last (PLANNED and 0 without a state), and counters since the client began.

    `known`: pairs taken to be equal. `merged`: writes of ticks that the migrator merges. `again`: transactions that
    were begun anew because the state changed. `healed`: pairs made equal after the sides replied differently.
    `lost`: connections lost. `state_lost`: how often the state was gone.
    """

    id: str
    name: str
    phase: Phase
    version: int
    known: int
    writes: int
    reads: int
    divergences: int
    passed: int
    merged: int
    again: int
    copies: int
    left: int
    healed: int
    lost: int
    state_lost: int


def status_of(exchange: Exchange, client: str, name: str) -> DualStatus:
    """Return an exchange's status."""
    version = exchange.state.version if exchange.state is not None else 0
    counts = msgspec.structs.asdict(exchange.counts)
    return DualStatus(client, name, exchange.phase, version, len(exchange.known), **counts)


__all__ = ["DualStatus", "status_of"]
