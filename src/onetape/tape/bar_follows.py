"""Following bars: as they form, end and are revised, live."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable

import apsw

from onetape.clock import Time, to_ns
from onetape.errors import ConfigInvalid, TapeUnusable
from onetape.live.bar_follower import BarFollower
from onetape.live.waker import Waker
from onetape.record import TS_MAX_NS, Bar
from onetape.store import layout, made
from onetape.store.interval import parse
from onetape.store.made import Rule
from onetape.store.sessions import Sessions, find
from onetape.tape.continuous import view_of
from onetape.tape.follows import Follows
from onetape.tape.handle import within


class BarFollows(Follows):
    """How bars are followed."""

    def follow_bars(
        self,
        symbols: str | Iterable[str] | None = None,
        interval: str = "1min",
        from_seq: int | None = None,
        from_time: Time | None = None,
        *,
        session: str | Sessions | None = None,
        price: str = "trade",
        idle_s: float | None = None,
        grace_s: float | None = None,
    ) -> BarFollower:
        """Return an iterator over the tape's own bars: each time one changed, as it is now, without end.

        A bar is given while it forms (complete False), when it is complete, and again when a late trade or a
        correction changes it: its revision has grown then. Changes that come faster than they are taken are given as
        one. A bar all trades of which were taken back comes once more, with `trades` 0 and NaN as prices. What is given
        last of each bar is, byte for byte, what bars() returns; bars without trades are not given.

        interval, session, price: as in bars(). from_seq: the last position already seen (0: from the beginning);
        from_time: bars that records from this event time on are in; neither: from now, a bar that has begun whole.
        symbols: only these, also ones yet to come. idle_s: end when nothing changed for so long.

        grace_s: a bar of time is given as complete when it has been over for so long by this machine's clock, even
        though no later trade has come; bars() calls it complete only then. None: when a later trade has come.
        """
        if from_seq is not None and from_time is not None:
            raise ConfigInvalid("give from_seq or from_time, not both")
        if from_seq is not None and not 0 <= from_seq <= TS_MAX_NS:
            raise ConfigInvalid(f"from_seq = {from_seq}", hint="0 is the beginning")
        if grace_s is not None and not (0 <= grace_s < math.inf):
            raise ConfigInvalid(f"grace_s = {grace_s}", hint="it is a number of seconds, or None")
        rule = Rule(parse(interval), find(session), price)
        made.check(rule)
        self._check_open()
        if view_of(self, symbols) is not None:
            raise ConfigInvalid(
                f"bars of {symbols!r}, a continuous future, cannot be followed", hint="follow() its ticks"
            )
        if self._frozen is not None:
            raise TapeUnusable(
                f"{self.path} cannot be followed: its folder may not be written, and nobody writes to the tape",
                hint="give this process the right to write to the folder, or open it while a writer runs",
            )
        connection = self._connect("r")
        waker = Waker(layout.wal_path(self.path))
        try:
            found = BarFollower(
                connection,
                waker,
                rule=rule,
                symbols=symbols,
                position=from_seq,
                start_ns=None if from_time is None else within(to_ns(from_time, "from_time")),
                idle_s=idle_s,
                grace_s=grace_s,
                on_close=self._forget,
            )
        except apsw.Error as error:
            waker.close()
            connection.close()
            raise self._failed(error, "follow") from error
        with self._followers_lock:
            self._followers.add(found)
            self._followed = True
        return found

    async def afollow_bars(
        self,
        symbols: str | Iterable[str] | None = None,
        interval: str = "1min",
        from_seq: int | None = None,
        from_time: Time | None = None,
        *,
        session: str | Sessions | None = None,
        price: str = "trade",
        idle_s: float | None = None,
        grace_s: float | None = None,
    ) -> AsyncIterator[Bar]:
        """As follow_bars(), for `async for`; the event loop is never blocked. Close it with aclose(), or by leaving."""
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "onetape-afollow") as pool:
            follower = await loop.run_in_executor(
                pool,
                lambda: self.follow_bars(
                    symbols, interval, from_seq, from_time, session=session, price=price, grace_s=grace_s
                ),
            )
            try:
                while True:
                    found = await loop.run_in_executor(pool, follower.take, idle_s)
                    if not found:
                        return
                    for bar in found:
                        yield bar
            finally:
                follower.close()
