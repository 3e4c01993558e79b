"""A process that opens a tape: `python -m bench.opened PATH SYMBOL` prints its time to latest(), and its weight.

It loads nothing but onetape, so that what it weighs is a service's.
"""

from __future__ import annotations

import json
import sys
import time

import onetape
from bench.resident import weight


def main(path: str, symbol: str) -> None:
    """Open the tape once and print the figures."""
    start = time.perf_counter()
    tape = onetape.open(path, mode="r")
    found = tape.latest(symbol)
    ms = (time.perf_counter() - start) * 1000
    if found is None:
        raise SystemExit(f"{symbol} has no latest tick")
    print(json.dumps({"ms": ms, "rss": weight()["rss"]}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
