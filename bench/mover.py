"""One run of one way to move or check the keys, in a process of its own, so that its memory is its own.

`python -m bench.mover WAY PORT FOLDER [KEYS]` prints one line of JSON: seconds, keys, peak MiB.

    backfill  ours: scan, match, ledger, digests, compare-and-set copy (again: the same once more, with its ledger)
    bulk      ours while writers write both sides: scan, match, ledger, copy; the verify takes the digests. With KEYS:
              at that many keys a second
    verify    ours: both directions, content, type and expiry
    blind     redis-py: SCAN, and pipelines of 1,000 COPY ... DB 1 REPLACE
    single    redis-py, as the predecessor did: SCAN, then TYPE, DUMP, PTTL, RESTORE, each a round trip, for KEYS keys
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import redis

from bench import keys
from onetape.migrate.migration import Migration
from onetape.migrate.plan import Plan
from onetape.migrate.report import Report
from onetape.migrate.throttle import Settings

_PLAN = Path(__file__).with_name("plan.toml")
_PIPELINE = 1000

#: First word of a key → its new beginning: what a blind copy's author would write, cheaper than rules.
_RENAMED = {
    b"volume_state": b"vol:state",
    b"volume_averages": b"vol:baseline",
    b"volume_profile": b"vol:profile",
    b"indicators": b"ind:other",
    b"session": b"sys:session",
    b"system": b"sys:system",
    b"ticks": b"ticks:historical",
}


def main(way: str, port: int, folder: Path, count: int) -> None:
    """Do it once and print the figures."""
    start = time.perf_counter()
    moved = _WAYS[way](port, folder, count)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "keys": moved, "peak_mib": _peak_mib()}))


def _backfill(port: int, folder: Path, _count: int) -> int:
    return _moved(_migration(port, folder).backfill())


def _bulk(port: int, folder: Path, count: int) -> int:
    throttle = Settings(keys_per_s=count) if count else None
    return _moved(_migration(port, folder).backfill(digests="verify", throttle=throttle))


def _moved(report: Report) -> int:
    done = {"copied", "unchanged"}
    return sum(number for counts in report.steps.values() for outcome, number in counts.items() if outcome in done)


def _verify(port: int, folder: Path, _count: int) -> int:
    result = _migration(port, folder).verify()
    if result.verdict != "converged":
        raise RuntimeError(f"{result.verdict}: {result.differences[:3]}")
    return result.checked


def _migration(port: int, folder: Path) -> Migration:
    url = f"redis://127.0.0.1:{port}"
    return Migration(url, plan=Plan.load(_PLAN), ledger_path=folder / "ledger", report_dir=folder)


def _blind(port: int, _folder: Path, _count: int) -> int:
    moved = 0
    for db in keys.SOURCES:
        client = redis.Redis(port=port, db=db)
        found = client.scan_iter(count=_PIPELINE)
        while page := list(islice(found, _PIPELINE)):
            pipeline = client.pipeline(transaction=False)
            for key in page:
                pipeline.copy(key, _new_name(key), destination_db=keys.TARGET, replace=True)
            moved += sum(pipeline.execute())
        client.close()
    return moved


def _single(port: int, _folder: Path, count: int) -> int:
    target = redis.Redis(port=port, db=keys.TARGET)
    moved = 0
    for client, key in islice(_all_keys(port), count):
        client.type(key)
        payload, left_ms = client.dump(key), client.pttl(key)
        target.restore(_new_name(key), max(0, left_ms), payload, replace=True)
        moved += 1
    return moved


def _all_keys(port: int) -> Iterator[tuple[redis.Redis, bytes]]:
    """Yield keys of all source databases in turn, so that the first of them are a fair sample."""
    clients = [redis.Redis(port=port, db=db) for db in keys.SOURCES]
    scans = [client.scan_iter(count=_PIPELINE) for client in clients]
    while True:
        found = [(client, key) for client, scan in zip(clients, scans, strict=True) for key in islice(scan, 10)]
        if not found:
            return
        yield from found


def _new_name(key: bytes) -> bytes:
    family, _, rest = key.partition(b":")
    return _RENAMED[family] + b":" + rest


def _peak_mib() -> float:
    # Not getrusage: its maximum survives exec, so it may be that of whoever started us.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


_WAYS: dict[str, Callable[[int, Path, int], int]] = {
    "backfill": _backfill,
    "bulk": _bulk,
    "verify": _verify,
    "blind": _blind,
    "single": _single,
}

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 0)
