"""Market data by symbol, read under the documented names from the side that the migration's state says."""

from __future__ import annotations

from typing import Any

from onetape.migrate.fields.tick_fields import TickDecoder
from onetape.migrate.landing.latest_ticks import Sides, as_tick, pick
from onetape.migrate.phases.phase import Phase
from onetape.migrate.plans.plan import Plan
from onetape.migrate.reader.client import Reader
from onetape.migrate.reader.core import Core
from onetape.migrate.reader.steps import Ask, Command, Steps
from onetape.migrate.reader.switch import side_of_read
from onetape.migrate.reader.tally import ReadStats

#: Entries of a stream that is read as a whole, the newest ones.
_ENTRIES_MAX = 1000


class MarketReader:
    """Reads ticks, volume states, indicators and OHLC of the documented layout. None where there is nothing.

    What comes back is what Redis holds, as text (bytes that are no UTF-8 by surrogateescape): a hash as dict, a string
    as str, a list as list, a set as set, a sorted set as list of (member, score), a stream as list of (id, fields).
    Without a migration's state new names are asked first, with the old ones to fall back to.
    """

    def __init__(self, url: str, plan: Plan | None = None, *, name: str = "") -> None:
        self.reader = Reader(
            url,
            plan,
            name=name,
            without_state="new_first",
            decode_responses=True,
            encoding_errors="surrogateescape",
        )
        self._core = self.reader._core
        self._decoder = TickDecoder(self._core.plan.timezone)

    def tick(self, symbol: str) -> dict[str, str] | None:
        """Return the newest tick of a symbol.

        The old side keeps it in a hash, the new one as the last entry of the symbol's stream. Both are asked in one
        packet; from the switch on the newer one by its time counts, so that a writer that only knows the old name makes
        nobody read a tick that is over. After finish the stream alone.
        """
        found: dict[str, str] | None = self.reader._drive(_tick(self._core, self._decoder, symbol))[0]
        return found

    def volume_state(self, symbol: str, token: int | str | None = None) -> Any:
        """Return the volume state of a token, or of a symbol that is its own token."""
        names = [str(token), symbol] if token is not None else [symbol]
        return self._first([(2, f"volume_state:{name}") for name in names])

    def indicator(self, symbol: str, name: str) -> Any:
        """Return an indicator of a symbol."""
        return self._first([(5, f"indicators:{symbol}:{name}")])

    def ohlc(self, symbol: str) -> Any:
        """Return the latest OHLC of a symbol, or, where there is none, its series."""
        return self._first([(2, f"ohlc_latest:{symbol}"), (2, f"ohlc:{symbol}")])

    def stats(self) -> ReadStats:
        """Return how the reads went."""
        return self.reader.status().stats

    def close(self) -> None:
        """Close the connections."""
        self.reader.close()

    def _first(self, places: list[tuple[int, str]]) -> Any:
        for db, key in places:
            found = self._value(db, key)
            if found is not None:
                return found
        return None

    def _value(self, db: int, key: str) -> Any:
        execute = self.reader.execute
        kind = execute("TYPE", key, db=db)
        if kind == "string":
            return execute("GET", key, db=db)
        if kind == "hash":
            return execute("HGETALL", key, db=db) or None
        if kind == "list":
            return execute("LRANGE", key, 0, -1, db=db) or None
        if kind == "set":
            return set(execute("SMEMBERS", key, db=db)) or None
        if kind == "zset":
            flat = execute("ZRANGE", key, 0, -1, "WITHSCORES", db=db)
            in_pairs = bool(flat) and isinstance(flat[0], list | tuple)
            pairs = flat if in_pairs else zip(flat[::2], flat[1::2], strict=True)
            return [(member, float(score)) for member, score in pairs] or None
        if kind == "stream":
            newest = execute("XREVRANGE", key, "+", "-", "COUNT", _ENTRIES_MAX, db=db)
            return [(entry_id, fields) for entry_id, fields in reversed(newest)] or None
        return None


def _tick(core: Core, decoder: TickDecoder, symbol: str) -> Steps:
    sides = Sides.of(core.plan, symbol)
    state_of: Command = (core.names.db, ("GET", core.names.state), {})
    replies = yield Ask(
        [
            state_of,
            (sides.new_db, ("XREVRANGE", sides.stream, "+", "-", "COUNT", 1), {}),
            (sides.old_db, ("HGETALL", sides.old_key), {}),
        ],
        transaction=True,
    )
    raw, entries, held = replies
    core.view.take(raw)
    if isinstance(held, Exception) and str(held).startswith("WRONGTYPE"):
        text = (yield Ask([(sides.old_db, ("GET", sides.old_key), {})]))[0]
        held = {} if text is None else {"data": text}
    for reply in (entries, held):
        if isinstance(reply, Exception):
            raise reply
    state = core.view.state
    old = _bytes(held)
    last = (entries[0][0].encode(), _bytes(entries[0][1])) if entries else None
    if side_of_read(state, core.chance) == "old":
        core.tally.other("old_reads" if old else "misses")
        return [as_tick(old)]
    if state is not None and state.phase is Phase.FINISHED:
        old = []
    found, side = pick(decoder, old, last)
    if found is None:
        core.tally.other("misses")
    elif side == "new":
        core.tally.new()
    else:
        core.tally.fallback()
    return [found]


def _bytes(fields: dict[str, str]) -> list[bytes]:
    return [part.encode("utf-8", "surrogateescape") for pair in fields.items() for part in pair]


__all__ = ["MarketReader"]
