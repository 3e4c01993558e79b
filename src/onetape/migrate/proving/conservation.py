"""Conservation: what came of holding old keys, new keys and tape against each other, by symbol and day."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

OLD, NEW, TAPE = "old", "new", "tape"


class Balance(enum.StrEnum):
    """What a row amounts to. All but `EQUAL` and `MORE` are failures of a migration."""

    EQUAL = "equal"
    MORE = "more"  # nothing of old is lacking; new or tape hold ticks that old no longer has
    LOST = "lost"  # a side lacks what the ones before it hold
    DOUBLED = "doubled"  # a side holds a tick more often than the ones before it
    EXTRA = "extra"  # new holds what neither old nor tape has
    DIFFERS = "differs"  # it was not looked at closely enough to say which


FAILURES = frozenset({Balance.LOST, Balance.DOUBLED, Balance.EXTRA, Balance.DIFFERS})


class SideSums(msgspec.Struct, frozen=True, kw_only=True):
    """What the ticks of one symbol and day add up to on one side.

    `volume`: sum of the sizes, exact (see exact.number). Times are ms since the epoch, UTC, None without ticks; prices
    are those of the first and last moment with a trade, the least and the greatest one of it where it has several.
    `check`: 16 hex digits of all ticks in any order.
    """

    ticks: int = 0
    trades: int = 0
    volume: int | float | str = 0
    first_ms: int | None = None
    last_ms: int | None = None
    first_price: tuple[float, float] | None = None
    last_price: tuple[float, float] | None = None
    high: float | None = None
    low: float | None = None
    check: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One symbol and day. `tape` is None where no tape was given; `told` says in words what differs."""

    symbol: str
    day: str
    balance: Balance
    old: SideSums
    new: SideSums
    tape: SideSums | None = None
    told: tuple[str, ...] = ()


class BarSums(msgspec.Struct, frozen=True):
    """What bars add up to: how many, the exact sum of their volumes, and 16 hex digits of all of them in any order."""

    bars: int = 0
    volume: int | float | str = 0
    check: str = ""


class BarRow(msgspec.Struct, frozen=True, kw_only=True):
    """The bars of one symbol, interval and UTC day that were kept as bars: OHLC keys, old and new, and on the tape."""

    symbol: str
    interval: str
    day: str
    balance: Balance
    old: BarSums
    new: BarSums
    tape: BarSums | None = None
    told: tuple[str, ...] = ()


class Finding(msgspec.Struct, frozen=True):
    """Something worth knowing that is no row. `failure`: the migration is to blame, or nothing can be said.

    `kind`: "gap" (no ticks for a while: `side` "old" means that the data never had them, "new" or "tape" that they were
    lost on the way), "ohlc" (a stored bar is not what the ticks give: so in old already), "reading" (two readings of
    the same entries disagree), "unread" (a key that a rule of ticks takes and that cannot be read as ticks).
    """

    kind: str
    symbol: str
    day: str
    side: str
    told: str
    failure: bool = False


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What a side holds in all: `others` are entries that are no ticks and stay in Redis alone."""

    ticks: int = 0
    volume: int | float | str = 0
    others: int = 0
    bars: int = 0


class Conservation(msgspec.Struct, frozen=True, kw_only=True):
    """The result of conserve(). Rows are in order of symbol and day, days those of `zone`.

    `totals`: by side. `read_twice`: ticks of old that were read by other code as well, of all that there are; where
    the two readings disagree there is a finding. `doubled`: entries that were merged into a stream more than once.
    `ohlc_checked`: bars of old keys that were recomputed from ticks, `ohlc_unchecked`: those without ticks.
    `unlisted`: findings beyond those that are listed, by kind. `until_ms`: ticks at or after it were left out on all
    sides, None: none were.
    """

    zone: str
    rows: tuple[Row, ...]
    bars: tuple[BarRow, ...]
    findings: tuple[Finding, ...]
    totals: dict[str, Counts]
    read_twice: int
    doubled: int
    ohlc_checked: int
    ohlc_unchecked: int
    unlisted: dict[str, int]
    until_ms: int | None
    seconds: float

    @property
    def balances(self) -> list[Balance]:
        """Return what each row amounts to, those of ticks before those of bars."""
        return [*(row.balance for row in self.rows), *(row.balance for row in self.bars)]

    @property
    def equal(self) -> bool:
        """Return whether all sides are equal in every row, and nothing else says that something was lost."""
        return self.conserved and all(balance is Balance.EQUAL for balance in self.balances)

    @property
    def conserved(self) -> bool:
        """Return whether nothing was lost and nothing doubled: equal, or more than old now holds."""
        bad = any(balance in FAILURES for balance in self.balances)
        return not bad and not self.doubled and not any(finding.failure for finding in self.findings)

    @property
    def verdict(self) -> str:
        """Return it in one word or two: equal, conserved, not conserved."""
        return "equal" if self.equal else "conserved" if self.conserved else "not conserved"

    def days(self) -> list[dict[str, Any]]:
        """Return day, and ticks of old, new and tape (None without one) on it, in order of days."""
        found: dict[str, list[int]] = {}
        for row in self.rows:
            sums = found.setdefault(row.day, [0, 0, 0])
            for at, side in enumerate((row.old, row.new, row.tape)):
                sums[at] += 0 if side is None else side.ticks
        return [
            {"day": day, "old": old, "new": new, "tape": tape if TAPE in self.totals else None}
            for day, (old, new, tape) in sorted(found.items())
        ]

    def to_dict(self, rows_max: int | None = None) -> dict[str, Any]:
        """Return it as plain data; with `rows_max`, rows that are not equal first and no more equal ones than that."""
        facts: dict[str, Any] = msgspec.to_builtins(self)
        facts["days"] = self.days()
        facts["rows"], facts["rows_unlisted"] = _listed(facts["rows"], rows_max)
        facts["bars"], facts["bars_unlisted"] = _listed(facts["bars"], rows_max)
        facts["balances"] = {balance.value: self.balances.count(balance) for balance in Balance}
        return {"verdict": self.verdict, "equal": self.equal, "conserved": self.conserved, **facts}


def _listed(rows: list[dict[str, Any]], rows_max: int | None) -> tuple[list[dict[str, Any]], int]:
    if rows_max is None or len(rows) <= rows_max:
        return rows, 0
    odd = [row for row in rows if row["balance"] != "equal"]
    even = [row for row in rows if row["balance"] == "equal"]
    listed = odd + even[: max(0, rows_max - len(odd))]
    return listed, len(rows) - len(listed)


__all__ = ["FAILURES", "NEW", "OLD", "TAPE", "Balance", "BarRow", "BarSums", "Conservation", "Counts", "Finding", "Row",
           "SideSums"]  # fmt: skip
