"""Upkeep: retention, and the space given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import apsw

from onetape.clock import Time, now_ns, to_ns
from onetape.errors import ConfigInvalid
from onetape.store import lifecycle, query
from onetape.tape.handle import Handle

_PRUNE_EVERY_NS = 3_600_000_000_000
_PRUNE_STEPS = 4


class Upkeep(Handle):
    """What keeps the file in order."""

    def _settle(self) -> None:
        """Seal what is in the journal: only what is sealed can go."""
        raise NotImplementedError

    def prune(
        self,
        *,
        now: Time | None = None,
        retention_days: float | None = None,
        bar_retention_days: float | None = None,
    ) -> int:
        """Remove ticks older than the retention, in small steps, and give their space back; return how many.

        The tape's own 1-minute bars stay, or go after `bar_retention_days`, if that is set, once their ticks are gone.
        What a snapshot covers stays. Arguments replace the tape's own settings for this call. Other processes may
        write meanwhile. Raises ConfigInvalid where bars would go before their ticks.
        """
        ticks_before, bars_before = self._cutoffs(now, retention_days, bar_retention_days)
        if ticks_before is None and bars_before is None:
            return 0
        self._settle()
        removed, connection = 0, self._writing()

        def steps(step: Callable[[], int]) -> Iterator[int]:
            while True:
                with self._write_lock:
                    try:
                        with self._transaction(connection):
                            count = step()
                    except apsw.Error as error:
                        raise self._failed(error, "prune") from error
                if not count:
                    return
                yield count

        if ticks_before is not None:
            removed = sum(steps(lambda: lifecycle.prune_step(connection, ticks_before)))
        if bars_before is not None:
            for _ in steps(lambda: lifecycle.prune_bars_step(connection, bars_before, ticks_before)):
                pass
        while True:
            with self._write_lock:
                try:
                    if not lifecycle.give_back(connection):
                        break
                except apsw.Error as error:
                    raise self._failed(error, "shrink") from error
        return removed

    def prune_plan(
        self,
        *,
        now: Time | None = None,
        retention_days: float | None = None,
        bar_retention_days: float | None = None,
    ) -> lifecycle.PrunePlan:
        """Return what prune() with these arguments would remove of what is sealed, and what snapshots hold."""
        ticks_before, bars_before = self._cutoffs(now, retention_days, bar_retention_days)
        with self._reading() as connection, query.snapshot(connection):
            return lifecycle.plan(connection, ticks_before, bars_before)

    def _cutoffs(
        self, now: Time | None, retention_days: float | None, bar_retention_days: float | None
    ) -> tuple[int | None, int | None]:
        days = retention_days if retention_days is not None else self._retention_days
        bar_days = bar_retention_days if bar_retention_days is not None else self._bar_retention_days
        check_retention(days, bar_days)
        at_ns = now_ns() if now is None else to_ns(now, "now")
        return (
            None if days is None else lifecycle.cutoff_ns(at_ns, days),
            None if bar_days is None else lifecycle.cutoff_ns(at_ns, bar_days),
        )

    def _prune_is_due(self, connection: apsw.Connection) -> bool:
        if self._retention_days is None and self._bar_retention_days is None:
            return False
        return now_ns() - int(connection.execute("SELECT last_prune_ns FROM state").get) >= _PRUNE_EVERY_NS

    def _prune_when_due(self, connection: apsw.Connection) -> None:
        if not self._prune_is_due(connection):
            return
        now = now_ns()
        ticks_before, bars_before = self._cutoffs(now, None, None)
        for _ in range(_PRUNE_STEPS):
            with self._transaction(connection):
                removed = 0 if ticks_before is None else lifecycle.prune_step(connection, ticks_before)
                if not removed and bars_before is not None:
                    removed = lifecycle.prune_bars_step(connection, bars_before, ticks_before)
                if not removed:
                    connection.execute("UPDATE state SET last_prune_ns = ?", (now,))
                    break
        lifecycle.give_back(connection)


def check_retention(days: float | None, bar_days: float | None) -> None:
    """Raise ConfigInvalid unless ticks go before the bars that are made of them."""
    for name, value in (("retention_days", days), ("bar_retention_days", bar_days)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigInvalid(f"{name} = {value!r}", hint="it is a number of days above 0, or None: for ever")
    if bar_days is not None and (days is None or bar_days < days):
        told = "for ever" if days is None else f"for {days:g} days"
        raise ConfigInvalid(
            f"bars are to be kept for {bar_days:g} days, but their ticks {told}",
            hint="keep bars at least as long as ticks: they are made of them",
        )
