"""The words: what the story says of what it measured. Each function returns paragraphs; nothing is printed here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from onetape.demo.legacy import Survey
from onetape.demo.market import Instrument
from onetape.demo.proof import Proof
from onetape.demo.writers import Tally
from onetape.migrate.migration import PlanCheck
from onetape.migrate.report import Report, UnmatchedKeys, key_text
from onetape.migrate.verifying.verdict import Verification


def of_market(instruments: Sequence[Instrument], seed: int, samples: Path | None) -> str:
    """Say how much of the market is real and how much simulated."""
    real = [one for one in instruments if one.real]
    recorded, total = sum(len(one.ticks) for one in real), sum(len(one.ticks) for one in instruments)
    made = f"{total - recorded:,} ticks of {len(instruments) - len(real)} symbols come from a simulator (seed {seed})"
    if not real:
        why = "there is no sample data here" if samples is None else f"nothing of use is in {samples}"
        return f"Market: {made}, not from a market: {why}."
    venues = Counter[str]()
    for one in real:
        venues[(one.origin or "").partition(",")[0]] += len(one.ticks)
    told = ", ".join(f"{venue} {count:,}" for venue, count in venues.most_common())
    return f"Market: {recorded:,} real ticks of {len(real)} instruments, as recorded ({told}), from {samples}; {made}."


def of_legacy(survey: Survey, told: dict[str, int], seconds: float) -> list[str]:
    """Say what is in the old databases."""
    held = ", ".join(f"{count:,} in database {db}" for db, count in survey.keys.items())
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(survey.types.items(), key=lambda kv: -kv[1]))
    return [
        f"{sum(survey.keys.values()):,} keys: {held}; {survey.expiring:,} of them expire. By type: "
        f"{kinds}. Filled in {seconds:.1f} s.",
        f"{told['ticks in streams']:,} ticks are in {survey.streams} streams with {survey.groups} consumer groups and "
        f"{survey.pending:,} pending entries, {told['ticks in hashes']:,} in hashes.",
        "Among the keys: binary values, empty values, names that are not text, symbols with colons, a set of 100,000.",
    ]


def of_unmatched(plan: PlanCheck) -> str:
    """Name the keys of no rule."""
    return f"{_unmatched(plan.unmatched)} match no rule: they are listed, and stay where they are."


def _unmatched(unmatched: dict[int, UnmatchedKeys]) -> str:
    named = [f"{key_text(key)} in {db}" for db, keys in unmatched.items() for key in keys.first]
    more = f" and {len(named) - 8:,} more" if len(named) > 8 else ""
    return f"{sum(keys.count for keys in unmatched.values()):,} keys ({', '.join(named[:8])}{more})"


def of_backfill(report: Report) -> str:
    """Say how fast it was and what came onto the tape."""
    return (
        f"{report.keys:,} keys in {report.seconds:.1f} s, {report.keys_per_s:,.0f} keys/s; "
        f"{report.ticks_landed:,} ticks and bars new on the tape, {report.ticks_known:,} known."
    )


def of_tally(tally: Tally) -> list[str]:
    """Say what the writers did, and why they had to stop."""
    return [
        f"They made {tally.writes:,} writes in {tally.seconds:.1f} s ({tally.writes / tally.seconds:,.0f}/s): "
        f"{sum(tally.streams.values()):,} stream entries, {sum(tally.hashes.values()):,} tick hashes, "
        f"{sum(tally.indicators.values()):,} indicators; {len(tally.created)} keys are new, {tally.deleted} deleted.",
        "Why stop: a backfill copies what was there when it looked, so a source that moves is always a moment ahead. "
        "Dual write, which lets the writers go on through the switch, comes in a later release.",
    ]


def of_verify(found: Verification) -> str:
    """Say what was compared."""
    times = f"{found.rounds} round" + ("s" if found.rounds > 1 else "")
    return (
        f"{found.checked:,} keys against their new places by content, type and absolute expiry, ticks and bars "
        f"against the tape, and {found.target_keys:,} new keys back to their sources: {times}, {found.seconds:.1f} s, "
        f"{found.keys_per_s:,.0f} keys/s."
    )


def of_proof(found: Proof) -> list[str]:
    """Say what was looked for, number by number."""
    return [
        f"All {found.legacy_ticks:,} ticks of the legacy system are on the tape once, equal bit for bit to what was "
        "generated or read from the files: time, prices, sizes, side.",
        f"All {found.stream_writes:,} live stream entries are in the target and on the tape, number 1 to the last, "
        f"each once. The last of {found.hash_writes:,} writes to tick hashes and of {found.indicator_writes:,} to "
        f"indicators arrived, and so did {found.created} keys that were created meanwhile.",
    ]
