"""The verdict of a verify: what was found, class by class, and what it amounts to."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from onetape.migrate.plans.plan import Rule


class Finding(enum.StrEnum):
    """What was found of one key."""

    EQUAL = "equal"  # content, type and expiry of a copy
    MERGED = "merged"  # a hash tick that is in its stream
    GONE = "gone"  # the source went away while it was looked at
    # Listed: explained, and nothing is lost.
    SKIPPED = "skipped"  # a rule says so
    NEWER_TARGET_KEPT = "newer_target_kept"  # the ledger says that somebody newer wrote the target
    STALE = "stale"  # the target is what was copied; the source was written since
    LATER = "later"  # its ticks came after the last backfill: the next one brings them to their place
    NOT_A_TICK = "not_a_tick"  # copied or merged, but nothing that a tape could hold
    SOURCE_GONE = "source_gone"  # the ledger says that it was copied; the source is no more
    EXTRA = "extra"  # in the target, of a shape that a rule writes, and without a source
    # Not proven.
    MISSING = "missing"  # not in the target
    DIFFERS = "differs"
    CHANGING = "changing"  # kept changing while it was read
    NOT_ON_TAPE = "not_on_tape"
    FAILED = "failed"  # cannot be where the rule wants it, for what it holds


FINE = frozenset({Finding.EQUAL, Finding.MERGED, Finding.GONE})
LISTED = frozenset(
    {
        Finding.SKIPPED,
        Finding.NEWER_TARGET_KEPT,
        Finding.STALE,
        Finding.LATER,
        Finding.NOT_A_TICK,
        Finding.SOURCE_GONE,
        Finding.EXTRA,
    }
)

CONVERGED, WITH_SKIPS, NOT_PROVEN = "converged", "converged with listed skips", "not proven"
EXIT_CODES = {CONVERGED: 0, WITH_SKIPS: 3, NOT_PROVEN: 1}


class Found(msgspec.Struct):
    """One key and its place, with what was found of it; `told` says it in words.

    `event_ns` is when the tick of a hash that is missing happened. `once`: there is nothing to look at again.
    """

    source_db: int
    key: bytes
    target: bytes
    rule: Rule
    finding: Finding = Finding.EQUAL
    told: str = ""
    event_ns: int | None = None
    once: bool = False

    def line(self) -> str:
        """Return it as one line."""
        arrow = f" -> {_shown(self.target)}" if self.target != self.key else ""
        return f"{self.finding}: db {self.source_db} {_shown(self.key)}{arrow}: {self.told or 'no more is known'}"


class Verification(msgspec.Struct, frozen=True):
    """The result of a verify.

    `counts`: step → finding → keys. `differences` and `skips` are the first of each in words, `unlisted` how
    many more there are. `checked` source keys, `unmatched` source keys without a rule, `target_keys` looked at
    in the other direction, `rounds` made, `seconds` taken; `report` is the path of the JSON report, where one
    was written; `note` says why the verdict could not be recorded, where it could not.
    """

    verdict: str
    counts: dict[str, dict[str, int]]
    differences: list[str]
    skips: list[str]
    unlisted: int
    checked: int
    unmatched: int
    target_keys: int
    rounds: int
    seconds: float
    sampled: bool = False
    report: str | None = None
    note: str | None = None

    @property
    def exit_code(self) -> int:
        """Return 0 for converged, 3 for converged with listed skips, 1 for not proven."""
        return EXIT_CODES[self.verdict]

    @property
    def keys_per_s(self) -> float:
        """Return source keys checked a second, all rounds and both directions included."""
        return self.checked / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON would hold it."""
        facts: dict[str, Any] = msgspec.to_builtins(self)
        return {**facts, "exit_code": self.exit_code, "keys_per_s": round(self.keys_per_s)}


def verdict_of(counts: dict[str, dict[str, int]]) -> str:
    """Return what the counts amount to."""
    seen = {Finding(name) for found in counts.values() for name, number in found.items() if number}
    if seen <= FINE:
        return CONVERGED
    return WITH_SKIPS if seen <= FINE | LISTED else NOT_PROVEN


def _shown(key: bytes) -> str:
    text = key.decode("utf-8", "backslashreplace")
    text = text if text.isprintable() else repr(key)[2:-1]
    return text if len(text) <= 80 else text[:77] + "..."
