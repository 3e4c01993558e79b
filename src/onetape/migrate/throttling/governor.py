"""The memory governor: stops a copy before its server is out of memory, and says beforehand that it will be.

At its limit a server refuses every write, or evicts keys, of its live users too; so the copy ends before that. The
numbers come from INFO memory, which is read the more often the less room there is.
"""

from __future__ import annotations

from typing import NamedTuple

from onetape.errors import MemoryShort

#: This much of the limit is never used by a copy: live writers and the server's own buffers need it.
RESERVE_SHARE = 0.03
RESERVE_BYTES_MAX = 1024 * 1024 * 1024
#: A server without a limit is ended by its machine: this share of the machine's memory counts as its limit.
MACHINE_SHARE = 0.95
#: The forecast counts from here on: before, what the server's buffers took weighs more than keys.
FORECAST_KEYS_MIN = 20_000
_KEY_BYTES, _MEASURED_KEYS_MIN = 500.0, 2000  # before as many were measured
_WHOLE_TIMES = 1.25  # a copy may take a little more than its original
_ON_THEIR_WAY = 1000  # keys that are sent, but perhaps not counted yet


class Memory(NamedTuple):
    """What INFO says: bytes used as the server counts them against its limit, the limit (None: there is none)."""

    used: int
    held: int  # of these, by data
    limit: int | None
    policy: str
    evicted: int

    @classmethod
    def of(cls, info: dict[str, str]) -> Memory:
        """Return it from INFO's sections memory and stats."""

        def number(name: str) -> int:
            text = info.get(name, "0")
            return int(text) if text.lstrip("-").isdecimal() else 0

        used = number("used_memory")
        buffers = number("mem_clients_normal") + number("mem_not_counted_for_evict")
        limit: int | None = number("maxmemory")
        if limit:
            used -= number("mem_not_counted_for_evict")
        else:
            used = max(used, number("used_memory_rss"))
            limit = int(number("total_system_memory") * MACHINE_SHARE) or None
        policy = info.get("maxmemory_policy", "noeviction") if number("maxmemory") else "noeviction"
        return cls(used, number("used_memory") - buffers, limit, policy, number("evicted_keys"))


class Governor:
    """Told of what is sent, shown what the server says; raises MemoryShort before there is too little."""

    def __init__(self, *, address: str = "") -> None:
        self._address = address
        self._first: Memory | None = None
        self._keys = self._since = 0
        self._bytes = self._measured = 0.0
        self._held = self._grown = 0
        self._room: float | None = None
        self.forecast_bytes: int | None = None

    def sent(self, keys: int, size: int) -> None:
        """Count what is about to be sent."""
        self._keys += keys
        self._since += keys
        self._bytes += max(size, keys * self.key_bytes)

    @property
    def is_due(self) -> bool:
        """Return whether so much was sent since the last look that it must be looked again."""
        return self._room is not None and self._bytes > self._room / 4

    @property
    def key_bytes(self) -> float:
        """About how many bytes a key takes in the server's memory, as far as it was measured."""
        return self._measured if self._keys >= _MEASURED_KEYS_MIN else _KEY_BYTES

    def look(self, info: dict[str, str], left: int = 0, size: int = 0, whole: int | None = None) -> None:
        """Judge by what the server says; `left` keys are to go, `size` bytes come next. Raises MemoryShort.

        `whole`: what the server copied from held when this began, which copies of it cannot be much more than.
        """
        now = Memory.of(info)
        if self._first is None:
            self._first, self._held = now, now.held
        first = self._first
        since, self._since, self._bytes = self._since, 0, 0.0
        if now.evicted > first.evicted:
            raise self._short(f"it evicted {now.evicted - first.evicted:,} keys since this began", now)
        if now.policy.startswith("allkeys-"):
            raise self._short(f"maxmemory-policy is {now.policy} by now, which evicts live keys without an error", now)
        if now.limit is None:
            self._room = None
            return
        if since:  # what grew while it stood still, others wrote
            self._grown += now.held - self._held
        self._held = now.held
        if self._keys:
            self._measured = max(0.0, self._grown / self._keys)
        on_their_way = _ON_THEIR_WAY * (self._measured if self._keys >= _MEASURED_KEYS_MIN else _KEY_BYTES)
        reserve = min(RESERVE_BYTES_MAX, int(now.limit * RESERVE_SHARE)) + on_their_way
        self._room = max(0.0, now.limit - now.used - reserve)
        if self._room <= size:
            wanted = f", and the next {size:,} bytes would not fit" if self._room > 0 else ""
            raise self._short(f"{_mib(now.used)} of {_mib(now.limit)} are used{wanted}", now)
        if self._keys < FORECAST_KEYS_MIN or not left:
            return
        forecast = left * self._measured
        if whole is not None:  # the first keys may be much bigger than those to go
            forecast = min(forecast, max(0.0, _WHOLE_TIMES * whole - self._grown))
        self.forecast_bytes = int(forecast)
        if self.forecast_bytes > self._room:
            raise self._short(
                f"the {left:,} keys to go need about {_mib(self.forecast_bytes)}, at {self._measured:,.0f} bytes a key "
                f"so far, and {_mib(int(self._room))} are free",
                now,
            )

    def _short(self, why: str, now: Memory) -> MemoryShort:
        where = f"{self._address}: " if self._address else ""
        return MemoryShort(
            f"{where}memory: {why}; stopped before anything was lost",
            hint="raise maxmemory or free memory, then run it again: it goes on where it was",
            used_bytes=now.used,
            limit_bytes=now.limit,
            policy=now.policy,
        )


def _mib(number: int) -> str:
    return f"{number / 2**20:,.1f} MiB"
