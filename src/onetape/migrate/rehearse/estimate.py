"""The estimate: from what a rehearsal measured to what the real run will take. Pure, but for looking at key sizes."""

from __future__ import annotations

from heapq import nlargest
from typing import Any

import msgspec

from onetape.migrate.backfill.backfill import DATASET_BYTES_UNSLICED
from onetape.migrate.copying.slice_decide import BLOCKS, SLICE_BYTES, SLICE_BYTES_OF_BLOCKS
from onetape.migrate.plans.plan import Plan
from onetape.migrate.report import key_text
from onetape.migrate.survey.listing import Listing, memory_usage
from onetape.migrate.wire.endpoint import Endpoint, parse_info

_BIGGEST = 10


class BigKey(msgspec.Struct, frozen=True, kw_only=True):
    """One of the biggest keys. `sliced`: it is copied in slices."""

    source_db: int
    key: str
    type: str
    bytes_used: int
    sliced: bool


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What the real run will take, in keys, bytes and seconds.

    `memory_factor`: the most memory that the copy's server used, over what it used before. `seconds`: step → seconds at
    the rate that was measured here; `seconds_paced`: at `keys_per_s_paced`. `steps`: step of the plan → keys.
    """

    keys: int
    bytes_to_copy: int
    memory_before: int
    memory_peak: int
    memory_factor: float
    keys_per_s: float
    keys_per_s_paced: float
    seconds: dict[str, float]
    seconds_paced: dict[str, float]
    steps: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return msgspec.structs.asdict(self)


def estimate(
    *, keys: int, bytes_to_copy: int, before: int, peak: int, took: dict[str, float], paced: float,
    steps: dict[str, int], scale: int,
) -> Estimate:  # fmt: skip
    """Return the estimate for `scale` times as many keys as were rehearsed.

    `took`: step → seconds, measured without a pace. `paced`: keys a second that the real run is to keep to.
    """
    whole = keys * scale
    seconds = {name: round(value * scale, 1) for name, value in took.items()}
    slow = {name: round(max(value * scale, whole / paced), 1) for name, value in took.items()}
    backfill_s = took.get("backfill", 0.0)
    return Estimate(
        keys=whole,
        bytes_to_copy=bytes_to_copy * scale,
        memory_before=before * scale,
        memory_peak=peak * scale,
        memory_factor=round(peak / before, 2) if before else 1.0,
        keys_per_s=round(keys / backfill_s, 1) if backfill_s else 0.0,
        keys_per_s_paced=paced,
        seconds=seconds,
        seconds_paced=slow,
        steps={step: number * scale for step, number in steps.items()},
    )


def biggest(endpoint: Endpoint, plan: Plan) -> tuple[BigKey, ...]:
    """Return the biggest keys that the plan moves, biggest first. Asks for the size of every key."""
    held = int(parse_info(endpoint.call("INFO", "memory")).get("used_memory_dataset", 0))
    slices = held > DATASET_BYTES_UNSLICED  # where all values together are small, none is asked for its size
    found: list[tuple[int, int, bytes]] = []
    listing = Listing(endpoint, plan)
    try:
        for step in plan.steps:
            for page in listing.pages(step):
                sizes = memory_usage(endpoint, page.db, page.keys)
                rows = [(size, page.db, key) for size, key in zip(sizes, page.keys, strict=True)]
                found = nlargest(_BIGGEST, [*found, *rows])
    finally:
        listing.close()
    keys = []
    for size, db, key in found:
        endpoint.select(db)
        kind = endpoint.call("TYPE", key)
        sliced = slices and size > (SLICE_BYTES_OF_BLOCKS if kind in BLOCKS else SLICE_BYTES)
        keys.append(BigKey(source_db=db, key=key_text(key), type=kind.decode(), bytes_used=size, sliced=sliced))
    return tuple(keys)
