"""One run of one way to move or check the keys, in a process of its own, so that its memory is its own.

`python -m bench.mover WAY PORT FOLDER [--number N] [--other PORT]` prints one line of JSON: seconds, keys, peak MiB.

    backfill  ours: scan, match, ledger, digests, compare-and-set copy (again: the same once more, with its ledger)
    live      ours in a live migration that start began: scan, match, ledger, compare-and-set copy, the digests being
              left to the verify. --number: at that many keys a second
    gentle    the same with the throttle on: others' p99 is to stay under --number times what it was before
    verify    ours: both directions, content, type and expiry; of a live migration the digests too
    start     not measured: begins the live migration
    others    see blind.py: copies, raw_copies, one_by_one (--number: of so many keys), to_another_server
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from bench import blind
from bench.child import bind_to_parent
from onetape.migrate.migration import Migration
from onetape.migrate.plans.plan import Plan
from onetape.migrate.report import Report
from onetape.migrate.throttling.throttle import Settings

_PLAN = Path(__file__).with_name("plan.toml")


class _Asked(argparse.Namespace):
    way: str
    port: int
    folder: Path
    number: float
    other: int | None


def main() -> None:
    """Do it once and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=_WAYS)
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=float, default=0)
    parser.add_argument("--other", type=int)
    asked = parser.parse_args(namespace=_Asked())
    start = time.perf_counter()
    moved = _WAYS[asked.way](asked)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "keys": moved, "peak_mib": _peak_mib()}))


def _start(asked: _Asked) -> int:
    _migration(asked).start(execute=True)
    return 0


def _backfill(asked: _Asked) -> int:
    return _moved(_migration(asked).backfill())


def _live(asked: _Asked) -> int:
    throttle = Settings(keys_per_s=asked.number) if asked.number else None
    return _moved(_migration(asked).backfill(throttle=throttle))


def _gentle(asked: _Asked) -> int:
    return _moved(_migration(asked).backfill(throttle=Settings(latency_times=asked.number)))


def _moved(report: Report) -> int:
    done = {"copied", "unchanged"}
    return sum(number for counts in report.steps.values() for outcome, number in counts.items() if outcome in done)


def _verify(asked: _Asked) -> int:
    result = _migration(asked).verify()
    if result.verdict != "converged":
        raise RuntimeError(f"{result.verdict}: {result.differences[:3]}")
    return result.checked


def _migration(asked: _Asked) -> Migration:
    url, other = f"redis://127.0.0.1:{asked.port}", None
    if asked.other is not None:
        other = f"redis://127.0.0.1:{asked.other}"
    ledger = asked.folder / "ledger"
    return Migration(url, target_url=other, plan=Plan.load(_PLAN), ledger_path=ledger, report_dir=asked.folder)


def _to_another_server(asked: _Asked) -> int:
    assert asked.other is not None
    return blind.to_another_server(asked.port, asked.other)


def _peak_mib() -> float:
    # Not getrusage: its maximum survives exec, so it may be that of whoever started us.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


_WAYS: dict[str, Callable[[_Asked], int]] = {
    "start": _start,
    "backfill": _backfill,
    "live": _live,
    "gentle": _gentle,
    "verify": _verify,
    "copies": lambda asked: blind.copies(asked.port),
    "raw_copies": lambda asked: blind.raw_copies(asked.port),
    "one_by_one": lambda asked: blind.one_by_one(asked.port, int(asked.number)),
    "to_another_server": _to_another_server,
}

if __name__ == "__main__":
    bind_to_parent()
    main()
