"""Following: records in order of position, live, one by one or by callback."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial

import apsw

from onetape.clock import Time, to_ns
from onetape.errors import ConfigInvalid, TapeUnusable
from onetape.live.follower import Follower
from onetape.live.subscription import Subscription, WhenSlow
from onetape.live.waker import Waker
from onetape.record import TS_MAX_NS, Record
from onetape.store import layout
from onetape.tape.continuous import view_of
from onetape.tape.handle import Handle, within
from onetape.tape.rolling import RollFollower

#: Subscriptions that ended by themselves stay in stats(), the last few.
_ENDED_KEPT = 8


class Follows(Handle):
    """How a tape is followed."""

    def follow(
        self,
        symbols: str | Iterable[str] | None = None,
        from_seq: int | None = None,
        from_time: Time | None = None,
        *,
        idle_s: float | None = None,
    ) -> Follower:
        """Return an iterator over records in order of position: what is there, then what comes, without end.

        from_seq: the last position already seen (0: from the beginning); from_time: records from this event time
        on, late ones included; neither: from now. symbols: only these, also ones yet to come. idle_s: end when
        nothing came for so long. It sees what any process appends, within milliseconds. Close it when done.
        """
        if from_seq is not None and from_time is not None:
            raise ConfigInvalid("give from_seq or from_time, not both")
        if from_seq is not None and not 0 <= from_seq <= TS_MAX_NS:
            raise ConfigInvalid(f"from_seq = {from_seq}", hint="0 is the beginning")
        start_ns = None if from_time is None else within(to_ns(from_time, "from_time"))
        return self._follower(symbols, from_seq, start_ns, idle_s)

    def _follower(
        self,
        symbols: str | Iterable[str] | None,
        position: int | None,
        start_ns: int | None = None,
        idle_s: float | None = None,
    ) -> Follower:
        self._check_open()
        if self._frozen is not None:
            raise TapeUnusable(
                f"{self.path} cannot be followed: its folder may not be written, and nobody writes to the tape",
                hint="give this process the right to write to the folder, or open it while a writer runs",
            )
        view = view_of(self, symbols)
        follower = Follower if view is None else partial(RollFollower, view)
        connection = self._connect("r")
        waker = Waker(layout.wal_path(self.path))
        try:
            made = follower(
                connection,
                waker,
                symbols=symbols,
                position=position,
                start_ns=start_ns,
                idle_s=idle_s,
                on_close=self._forget,
            )
        except apsw.Error as error:
            waker.close()
            raise self._failed(error, "follow") from error
        with self._followers_lock:
            self._followers.add(made)
            self._followed = True
        return made

    def _forget(self, follower: Follower) -> None:
        with self._followers_lock:
            self._followers.discard(follower)

    async def afollow(
        self,
        symbols: str | Iterable[str] | None = None,
        from_seq: int | None = None,
        from_time: Time | None = None,
        *,
        idle_s: float | None = None,
    ) -> AsyncIterator[Record]:
        """As follow(), for `async for`; the event loop is never blocked. Close it with aclose(), or by leaving."""
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "onetape-afollow") as pool:
            follower = await loop.run_in_executor(pool, lambda: self.follow(symbols, from_seq, from_time))
            try:
                while True:
                    found = await loop.run_in_executor(pool, follower.take, idle_s)
                    if not found:
                        return
                    for record in found:
                        yield record
            finally:
                follower.close()

    def subscribe(
        self,
        callback: Callable[[Record], object],
        symbols: str | Iterable[str] | None = None,
        when_slow: WhenSlow = "drop_oldest",
        queue_records: int = 1000,
        *,
        from_seq: int | None = None,
    ) -> Subscription:
        """Call `callback(record)` in a thread of its own for every record appended from now on, by any process.

        when_slow, for a callback slower than the tape: "block" (it gets everything, later), "drop_oldest",
        "conflate" (the newest of each symbol), "disconnect". queue_records bounds what waits in memory. No policy
        slows a writer or another subscriber. from_seq: start after this position instead of now.
        """
        if when_slow not in ("block", "drop_oldest", "conflate", "disconnect"):
            raise ConfigInvalid(
                f"when_slow = {when_slow!r}", hint="it is 'block', 'drop_oldest', 'conflate' or 'disconnect'"
            )
        if queue_records < 1:
            raise ConfigInvalid(f"queue_records = {queue_records}", hint="it is at least 1")
        made = Subscription(
            self._follower(symbols, from_seq), callback, when_slow, queue_records, self._subscription_ended
        )
        self._subscriptions.append(made)
        return made

    def _subscription_ended(self, subscription: Subscription) -> None:
        ended = [one for one in self._subscriptions if one is subscription or not one.active]
        for one in ended[: None if subscription.error is None else -_ENDED_KEPT]:
            with contextlib.suppress(ValueError):  # another thread was faster
                self._subscriptions.remove(one)

    def _poke(self) -> None:
        with self._followers_lock:
            followers = list(self._followers)
            self._followed = bool(followers)
        for follower in followers:
            follower.poke()
