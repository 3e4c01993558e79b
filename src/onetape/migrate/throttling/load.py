"""The load: what INFO tells of others, of replicas and of the disk, as what was felt since the last look."""

from __future__ import annotations

from typing import NamedTuple

#: What a copy and its pace send themselves, and others seldom: what they do of it is not counted as theirs.
_OURS = frozenset(
    {
        "auth", "client|setname", "command", "copy", "dump", "eval_ro", "evalsha_ro", "exec", "exists", "hello",
        "hpexpiretime", "hscan", "info", "memory|usage", "multi", "persist", "pexpire", "pexpireat", "pexpiretime",
        "ping", "pttl", "rename", "restore", "scan", "script|load", "select", "sscan", "time", "type", "unlink",
        "unwatch", "watch", "xinfo|groups", "xinfo|stream",
    }
)  # fmt: skip


class Seen(NamedTuple):
    """In the order of throttle.Felt, from `others_per_s` on."""

    others_per_s: float | None
    replica_lag_s: float
    replica_lag_bytes: int
    aof_delays: int


class Load:
    """Turns INFO's running counts into what happened since the last look."""

    def __init__(self) -> None:
        self._calls: dict[str, int] | None = None
        self._at_s = 0.0
        self._delays: int | None = None

    def seen(self, info: dict[str, str], commands: dict[str, str] | None, now_s: float, own: int = 0) -> Seen:
        """Return what INFO's sections replication and persistence, and commandstats where it was asked, tell.

        `own`: how many commands, of those that others send too, were ours since the last look.
        """
        lag_s, lag_bytes = _replicas(info)
        delays = int(info.get("aof_delayed_fsync", "0"))
        since, self._delays = (0 if self._delays is None else max(0, delays - self._delays)), delays
        return Seen(self._others(commands, now_s, own), lag_s, lag_bytes, since)

    def _others(self, commands: dict[str, str] | None, now_s: float, own: int) -> float | None:
        if commands is None:
            self._calls = None
            return None
        calls = {name.removeprefix("cmdstat_"): _calls(line) for name, line in commands.items()}
        before, self._calls = self._calls, calls
        since_s, self._at_s = now_s - self._at_s, now_s
        if before is None or since_s <= 0:
            return None
        theirs = sum(max(0, n - before.get(name, 0)) for name, n in calls.items() if name not in _OURS)
        return max(0, theirs - own) / since_s


def _calls(line: str) -> int:
    first = line.partition(",")[0].removeprefix("calls=")
    return int(first) if first.isdecimal() else 0


def _replicas(info: dict[str, str]) -> tuple[float, int]:
    """Return how many seconds and bytes the last of the replicas is behind."""
    here = int(info.get("master_repl_offset", "0"))
    lag_s, lag_bytes = 0.0, 0
    for name, line in info.items():
        if not (name.startswith(("slave", "replica")) and "offset=" in line):
            continue
        facts = dict(part.split("=", 1) for part in line.split(",") if "=" in part)
        if facts.get("state") != "online":  # one that is being filled has its own limits
            continue
        lag_s = max(lag_s, float(facts.get("lag", "0")))
        lag_bytes = max(lag_bytes, here - int(facts.get("offset", here)))
    return lag_s, lag_bytes


__all__ = ["Load", "Seen"]
