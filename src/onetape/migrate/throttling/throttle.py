"""The throttle: how fast a copy may go, from what its server feels. It names the reason, always.

The rate (keys a second) goes as TCP's does: doubled until something is felt for the first time; then a third or half
less after each look that was not quiet, soon back to near where that was, and from there on in small steps. So one
spike, which may not be the copy's, costs little, and many of them much. What stands it still: an operator's pause, and
the market's hours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from onetape.errors import ConfigInvalid
from onetape.migrate.throttling.latency import p99
from onetape.migrate.throttling.market_hours import MarketHours

RATE_FIRST, RATE_MIN, RATE_MAX = 10_000.0, 1000.0, 1_000_000.0
#: A batch is at most as long as this at the present rate: others wait behind one batch, not behind a second's work.
BATCH_S = 0.001
BATCH_KEYS_MIN, BATCH_KEYS_MAX = 10, 200
#: A latency target below this cannot be told from the noise of a machine.
LATENCY_MS_MIN = 0.1

_STEP_SHARE, _STEP_MIN = 0.04, 500.0
_NEAR = 0.9  # of the rate at which something was felt: up to here it is soon back
_SLOWER, _MUCH_SLOWER = 0.7, 0.5


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a copy keeps to; None: no limit. All can be changed while it runs.

    `latency_ms`: p99 of the round trip of somebody else, ms. `latency_times`: the same, in multiples of what it was
    before the copy began. `keys_per_s`, `bytes_per_s`: limits of the rate. `others_per_s`: commands a second of all
    others; above it the server is theirs. `replica_lag_s`, `replica_lag_bytes`: of the replica that is furthest
    behind. `aof`: give way when the append-only file cannot be synced in time. `market_hours`: "09:15-15:30
    Asia/Kolkata", or the name of an exchange calendar; while it is open, `market_keys_per_s` (0: none), and
    `market_around_min` minutes before and after each opening and close, none.
    """

    latency_ms: float | None = None
    latency_times: float | None = None
    keys_per_s: float | None = None
    bytes_per_s: float | None = None
    others_per_s: float | None = None
    replica_lag_s: float | None = 10.0
    replica_lag_bytes: int | None = 64 * 1024 * 1024
    aof: bool = True
    market_hours: str | None = None
    market_keys_per_s: float = 0.0
    market_around_min: float = 0.0

    def __post_init__(self) -> None:
        for name, low in (("latency_ms", 0.0), ("latency_times", 1.0), ("keys_per_s", 0.0), ("bytes_per_s", 0.0)):
            value = getattr(self, name)
            if value is not None and not value > low:
                raise ValueError(f"{name} = {value}: more than {low:g}")
        for name in ("others_per_s", "replica_lag_s", "replica_lag_bytes", "market_keys_per_s", "market_around_min"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} = {value}: at least 0")
        if self.market_hours is not None:
            MarketHours(self.market_hours)

    @property
    def feels_latency(self) -> bool:
        """Return whether the latency of others is to be measured."""
        return self.latency_ms is not None or self.latency_times is not None


def settings(values: Mapping[str, Any], base: Settings | None = None) -> Settings:
    """Return settings with these values, the others as in `base`. Raises ConfigInvalid, naming what is wrong."""
    merged = {**msgspec.structs.asdict(base or Settings()), **values}
    try:
        return msgspec.convert(merged, Settings)
    except (msgspec.ValidationError, ValueError) as error:
        known = ", ".join(Settings.__struct_fields__)
        raise ConfigInvalid(f"throttle: {error}", hint=f"settings are {known}") from error


class Felt(NamedTuple):
    """What was seen of the server at one look. `others`: commands a second that are not ours. `replica_lag_s` and
    `replica_lag_bytes`: of the replica furthest behind. `aof_delays`: syncs that were late since the last look.
    """

    p99_ms: float | None = None
    others_per_s: float | None = None
    replica_lag_s: float = 0.0
    replica_lag_bytes: int = 0
    aof_delays: int = 0


class Throttle:
    """The rate, and why it is what it is. Pure: what was seen, and the time, are passed in."""

    def __init__(self, settings: Settings) -> None:
        self._rate = RATE_FIRST
        self._ceiling = 0.0
        self._felt_before = False
        self._quiet: list[float] = []
        self._quiet_ms: float | None = None
        self._market: MarketHours | None = None
        self._congested: str | None = None
        self._slowed: str | None = None
        self.pause: str | None = None
        self._still: str | None = None
        self._cap: float | None = None
        self.settings = settings
        self.change(settings)

    def change(self, settings: Settings) -> None:
        """Go by other settings from now on."""
        if self._market is None or settings.market_hours != self.settings.market_hours:
            self._market = None if settings.market_hours is None else MarketHours(settings.market_hours)
        self.settings = settings

    # What it says

    @property
    def adapts(self) -> bool:
        """Return whether the rate follows what is felt; else only what is felt wrong slows it down."""
        return self.settings.feels_latency or self._felt_before

    @property
    def rate(self) -> float | None:
        """Return keys a second, None for no limit."""
        limits = [limit for limit in (self._cap, self.settings.keys_per_s) if limit is not None]
        if self.adapts:
            limits.append(self._rate)
        return min(limits, default=None)

    @property
    def batch_keys(self) -> int | None:
        """Return how many keys may be sent together, None where it does not matter."""
        rate = self.rate
        return None if rate is None else max(BATCH_KEYS_MIN, min(BATCH_KEYS_MAX, int(rate * BATCH_S)))

    @property
    def still(self) -> str | None:
        """Why nothing may be sent at all, None if something may."""
        return self.pause or self._still

    @property
    def reason(self) -> str | None:
        """What holds it back, the kind first ("latency: ..."), None for nothing."""
        if self.still is not None:
            return self.still
        if self._congested is not None:
            return self._congested
        if self._cap is not None and self.rate == self._cap:
            return self._slowed
        if self.settings.keys_per_s is not None and self.rate == self.settings.keys_per_s:
            return f"rate: the limit of {self.settings.keys_per_s:,.0f} keys/s"
        if self.adapts and self._slowed is not None and self._rate < RATE_MAX:
            return self._slowed
        return None

    @property
    def target_ms(self) -> float | None:
        """The p99 that is kept to, ms; None for none."""
        targets = [] if self.settings.latency_ms is None else [self.settings.latency_ms]
        if self.settings.latency_times is not None and self._quiet_ms is not None:
            targets.append(max(LATENCY_MS_MIN, self._quiet_ms * self.settings.latency_times))
        return min(targets, default=None)

    @property
    def quiet_ms(self) -> float | None:
        """The p99 before the copy began, ms; None where it was not measured."""
        return self._quiet_ms

    def quiet(self, samples: list[float], enough: int = 400) -> bool:
        """Take round trips from before anything is sent; True once they are enough, or not needed."""
        if self.settings.latency_times is None or self._quiet_ms is not None:
            return True
        self._quiet += samples
        if len(self._quiet) < enough:
            return False
        self._quiet_ms = p99(self._quiet)
        return True

    # What it is told

    def clock(self, now_ns: int) -> None:
        """Look at the market's hours."""
        self._still, self._cap = None, None
        if self._market is None:
            return
        told, now = self.settings, self._market.at(now_ns)
        around = told.market_around_min
        if now.to_next_min is not None and now.to_next_min <= around:
            what = "close" if now.is_open else "open"
            self._still = f"market: {told.market_hours} will {what} in {now.to_next_min:.0f} min"
        elif around and now.since_last_min is not None and now.since_last_min <= around:
            what = "opened" if now.is_open else "closed"
            self._still = f"market: {told.market_hours} {what} {now.since_last_min:.0f} min ago"
        elif now.is_open and not told.market_keys_per_s:
            self._still = f"market: {told.market_hours} is open"
        elif now.is_open:
            self._cap = told.market_keys_per_s
            self._slowed = f"market: {told.market_hours} is open, {self._cap:,.0f} keys/s"

    def feel(self, felt: Felt, *, used: bool = True) -> None:
        """Go slower or faster by what was seen. `used`: the rate was made use of since the last look."""
        worst, reason = self._worst(felt)
        if worst > 1.0:
            # Felt again before it was back where it was: that was too much as well.
            self._ceiling = self._rate if self._rate >= self._ceiling else (self._rate + self._ceiling) / 2
            self._rate = max(RATE_MIN, self._rate * (_MUCH_SLOWER if worst > 2.0 else _SLOWER))
            self._congested = self._slowed = reason
            self._felt_before = True
            return
        self._congested = None
        if not used or worst > 0.8:  # near enough
            return
        if not self._felt_before:
            step = self._rate
        else:
            step = max(_STEP_MIN, self._rate * _STEP_SHARE, (self._ceiling * _NEAR - self._rate) / 2)
        self._rate = min(RATE_MAX, self._rate + step)
        if self._rate >= RATE_MAX:
            self._slowed = None

    def _worst(self, felt: Felt) -> tuple[float, str]:
        """Return how near what was seen is to its limit (1: there), and what it was."""
        told, target = self.settings, self.target_ms
        found: list[tuple[float, str]] = []
        if target is not None and felt.p99_ms is not None:
            found.append((felt.p99_ms / target, f"latency: p99 {felt.p99_ms:.2f} ms, the target is {target:.2f}"))
        if told.others_per_s is not None and felt.others_per_s is not None:
            share = felt.others_per_s / told.others_per_s if told.others_per_s else felt.others_per_s
            found.append((share, f"load: {felt.others_per_s:,.0f} commands/s of others"))
        if told.replica_lag_s:
            found.append((felt.replica_lag_s / told.replica_lag_s, f"replica: {felt.replica_lag_s:.0f} s behind"))
        if told.replica_lag_bytes:
            share = felt.replica_lag_bytes / told.replica_lag_bytes
            found.append((share, f"replica: {felt.replica_lag_bytes / 2**20:,.1f} MiB behind"))
        if told.aof and felt.aof_delays:
            found.append((1.5, f"disk: {felt.aof_delays} syncs of the append-only file were late"))
        return max(found, default=(0.0, ""))
