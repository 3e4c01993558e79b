"""A live reader: asks for old names through the switched reader, and never sees a counter go back."""

from __future__ import annotations

import random
import sys
import time
from typing import Any

import msgspec

from onetape.demo.live.names import KEYS, symbol
from onetape.demo.process import until_told
from onetape.migrate.plans.plan import Plan
from onetape.migrate.reader import Reader

BEAT_S = 0.004


class Orders(msgspec.Struct, frozen=True):
    """`writers`: how many there are, whose keys are read."""

    url: str
    parent: int
    seed: int
    number: int
    writers: int


class Seen(msgspec.Struct):
    """What a reader saw. `back`: (key, counter seen, counter seen before it) where it went back."""

    number: int
    reads: int = 0
    missing: int = 0
    back: list[tuple[str, int, int]] = []
    longest_ms: float = 0.0
    seconds: float = 0.0
    client: dict[str, Any] = {}


def main(told: str) -> int:
    """Read until SIGTERM; then print what was seen."""
    orders = msgspec.json.decode(told, type=Orders)
    go_on = until_told(orders.parent)
    rnd, seen = random.Random(orders.seed + orders.number), Seen(orders.number)
    highest: dict[str, int] = {}
    started = time.monotonic()
    with Reader(orders.url, Plan.load(), name=f"demo-reader-{orders.number}") as reader:
        while go_on():
            begun = time.monotonic()
            key, count = _read(reader, symbol(rnd.randrange(orders.writers), rnd.randrange(KEYS)), rnd.randrange(3))
            seen.reads += 1
            seen.longest_ms = max(seen.longest_ms, (time.monotonic() - begun) * 1000)
            if count < highest.get(key, 0):
                seen.back.append((key, count, highest[key]))
            elif not count:
                seen.missing += 1
            highest[key] = max(count, highest.get(key, 0))
            time.sleep(BEAT_S)
        seen.client = msgspec.to_builtins(reader.status())
    seen.seconds = time.monotonic() - started
    sys.stdout.write(msgspec.json.encode(seen).decode() + "\n")
    return 0


def _read(reader: Reader, name: str, what: int) -> tuple[str, int]:
    """Return a key and its counter, 0 where it is not there (yet)."""
    if what == 0:
        key = f"indicators:{name}:rsi"
        value = reader.execute("GET", key, db=5)
        return key, 0 if value is None else msgspec.json.decode(value)["n"]
    if what == 1:
        key = f"volume_state:{name}"
        return key, int(reader.execute("HGET", key, "n", db=2) or 0)
    key = f"session:live:{name}"
    return key, int(reader.execute("LLEN", key, db=0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
