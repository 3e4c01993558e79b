"""The fan-out: what changed, made into frames once and written to every client that wants it.

Clients that want the same are a **group**: they share each frame, bytes and all. A group is told at once when it was
not told for a frame's time, else when that time is over, so a client gets at most so many frames a second, and the
first change after quiet does not wait. A client whose connection has not taken its last frame yet is passed over: what
it missed is in the next one it gets. Where the machine cannot keep up, frames become rarer, for all alike.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from onetape.web.channel import Channel
from onetape.web.pump import News

_log = logging.getLogger("onetape.web")

#: Groups whose time is over within this are told together, s.
_TOGETHER_S = 0.002
#: Frames become rarer where writing them takes more than this share of the time, and come back below the other.
_SHARE_MAX, _SHARE_LOW = 0.6, 0.4
#: The rarest frames, s.
_PERIOD_MAX_S = 1.0
_MEASURE_S = 0.5

Key = tuple[str, str]


class Wire(Protocol):
    """A client as the fan-out sees it."""

    seen: int

    @property
    def behind(self) -> bool:
        """Whether it has not taken what was written to it."""

    def write(self, message: bytes) -> None:
        """Send a JSON text message. Never waits."""

    def frame(self, framed: bytes) -> None:
        """Send a message that framed() made. Never waits."""

    def anew(self, keys: Iterable[Key]) -> None:
        """Give it its bars anew: what changed is not known any more."""


class Group:
    """Clients that want the same channels."""

    def __init__(self, channels: tuple[Channel, ...]) -> None:
        self.channels = channels
        self.wires: set[Wire] = set()
        self.dirty: set[Channel] = set()
        self.due = 0.0
        self.told = 0  # the version of its last frame

    def position(self) -> int | None:
        """Return the position up to which everything is told."""
        known = [channel.position for channel in self.channels if channel.position is not None]
        return min(known, default=None)


class Counts:
    """What the fan-out has done since it began."""

    def __init__(self) -> None:
        self.frames = self.bytes = self.passed_over = self.stalled = self.anew = self.made = 0


class Fanout:
    """Groups and channels, on the event loop. `frame` makes a message what is written to a connection."""

    def __init__(self, frames_per_s: float, frame: Callable[[bytes], bytes]) -> None:
        self._base_s = self.period_s = 1.0 / frames_per_s
        self._frame = frame
        self.version = 1
        self.counts = Counts()
        self.channels: dict[Key, Channel] = {}
        self._by_symbol: dict[str, set[Channel]] = {}
        self._groups: dict[tuple[Key, ...], Group] = {}
        self._waiting: set[Group] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._spent = 0.0
        self._measured = 0.0

    # Who wants what

    def channel(self, key: Key) -> Channel:
        """Return a channel, made where there is none; count one user of it."""
        found = self.channels.get(key)
        if found is None:
            found = self.channels[key] = Channel(*key, self.version)
            self._by_symbol.setdefault(key[0], set()).add(found)
        found.users += 1
        return found

    def release(self, key: Key) -> bool:
        """Count one user less; return whether it was the last."""
        found = self.channels[key]
        found.users -= 1
        if found.users:
            return False
        del self.channels[key]
        of = self._by_symbol[key[0]]
        of.discard(found)
        if not of:
            del self._by_symbol[key[0]]
        return True

    def group(self, keys: Iterable[Key]) -> Group | None:
        """Return the group of clients that want exactly these channels, which have users."""
        wanted = tuple(sorted(keys))
        if not wanted:
            return None
        found = self._groups.get(wanted)
        if found is None:
            found = self._groups[wanted] = Group(tuple(self.channels[key] for key in wanted))
            found.told = self.version
            for channel in found.channels:
                channel.groups.add(found)
        return found

    def join(self, wire: Wire, group: Group) -> None:
        """Let a client be told."""
        group.wires.add(wire)
        if any(channel.changed > wire.seen for channel in group.channels):
            self._wait_for(group)

    def part(self, wire: Wire, group: Group) -> None:
        """Tell a client no more."""
        group.wires.discard(wire)
        if not group.wires:
            self._waiting.discard(group)
            self._groups.pop(tuple((channel.symbol, channel.interval) for channel in group.channels), None)
            for channel in group.channels:
                channel.groups.discard(group)

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return len(self._groups)

    # What comes

    def take(self, news: News) -> None:
        """Take what the pump gathered, and tell whoever is due."""
        began = _now()
        self.version += 1
        dirty: set[Group] = set()
        for symbol, (count, last) in news.ticks.items():
            for channel in self._by_symbol.get(symbol, ()):
                channel.tick(self.version, count, last)
                self._mark(channel, dirty)
        for interval, by_symbol in news.bars.items():
            for symbol, rows in by_symbol.items():
                found = self.channels.get((symbol, interval))
                if found is not None:
                    found.bars(self.version, rows)
                    self._mark(found, dirty)
        if news.positions:
            for channel in self.channels.values():
                position = news.positions.get(channel.interval)
                if position is not None:
                    channel.position = position
        self._waiting |= dirty
        self._spent += _now() - began
        self._tell_due()

    def _mark(self, channel: Channel, dirty: set[Group]) -> None:
        for group in channel.groups:
            group.dirty.add(channel)
            dirty.add(group)

    def nudge(self, groups: Iterable[Group]) -> None:
        """Tell groups with clients that were passed over."""
        for group in groups:
            self._wait_for(group)

    def _wait_for(self, group: Group) -> None:
        self._waiting.add(group)
        self._tell_due()

    # Telling

    def _tell_due(self) -> None:
        now = _now()
        soon = now + _TOGETHER_S
        next_due = 0.0
        for group in list(self._waiting):
            if group.due <= soon:
                self._waiting.discard(group)
                self._tell(group)
                group.due = now + self.period_s
            elif not next_due or group.due < next_due:
                next_due = group.due
        spent = _now() - now
        self._spent += spent
        self._adapt(now + spent)
        if next_due and (self._timer is None or next_due < self._timer_at):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = next_due
            self._timer = asyncio.get_running_loop().call_at(next_due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._tell_due()

    def _tell(self, group: Group) -> None:
        made: dict[int, bytes | None] = {}
        counts = self.counts
        for wire in list(group.wires):
            seen = wire.seen
            if seen >= self.version:
                continue
            if wire.behind:
                counts.passed_over += 1
                continue
            if seen not in made:
                made[seen] = self._made(group, seen)
            framed = made[seen]
            wire.seen = self.version
            if framed is None:
                counts.anew += 1
                wire.anew((channel.symbol, channel.interval) for channel in group.channels if channel.lost > seen)
            elif framed:
                wire.frame(framed)
                counts.frames += 1
                counts.bytes += len(framed)
        group.dirty.clear()
        group.told = self.version

    def _made(self, group: Group, seen: int) -> bytes | None:
        """Return a frame of what changed since a version; None where that is not known any more, b"" where nothing."""
        channels = group.dirty if seen >= group.told else group.channels
        changed = [channel for channel in channels if channel.changed > seen]
        if any(channel.lost > seen for channel in changed):
            return None
        if not changed:
            return b""
        self.counts.made += 1
        position = group.position()
        return self._frame(
            b'{"op":"delta","position":%b,"symbols":{%b}}'
            % (
                b"null" if position is None else b"%d" % position,
                b",".join(channel.since(seen) for channel in changed),
            )
        )

    def _adapt(self, now: float) -> None:
        """Let frames be rarer where writing them takes too much of the time."""
        passed = now - self._measured
        if passed < _MEASURE_S:
            return
        share, self._spent, self._measured = self._spent / passed, 0.0, now
        if share > _SHARE_MAX:
            self.period_s = min(_PERIOD_MAX_S, self.period_s * min(2.0, share / _SHARE_MAX * 1.1))
        elif share < _SHARE_LOW and self.period_s > self._base_s:
            self.period_s = max(self._base_s, self.period_s * 0.8)

    def close(self) -> None:
        """End the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.clear()


def _now() -> float:
    return asyncio.get_running_loop().time()
