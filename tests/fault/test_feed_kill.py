"""A feed killed at any moment goes on where its tape is: nothing lost, nothing twice, whatever its identity."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import onetape

ROOT = Path(__file__).resolve().parents[2]
TOTAL = 30_000

CHILD = f"""
import random, sys, time
import onetape
from onetape.record import Tick
from onetape.sources.feed import Feed
from onetape.sources.source import Delivery, Source

class Counter(Source):
    kind = "counter"
    def resume(self, cursor):
        self.at = int(cursor or 0)
        if by_id:
            self.at = max(0, self.at - 500)     # tells again what it may have told
    def _deliveries(self):
        self._tell(state="live")
        while self.at < {TOTAL} and not self.stopped:
            count = min(random.choice((1, 1, 3, 20, 400)), {TOTAL} - self.at)
            span = range(self.at, self.at + count)
            ticks = [Tick("ESZ6", 1_700_000_000_000_000_000 + n, float(n), 1.0) for n in span]
            ids = [b"id%d" % n for n in span] if by_id else None
            self.at += count
            yield Delivery(ticks, ids=ids, cursor=str(self.at))
            time.sleep(random.choice((0, 0, 0.002)))

by_id = sys.argv[2] == "ids"
with onetape.open(sys.argv[1]) as tape:
    print("up", flush=True)
    Feed(Counter("c"), tape).run()
"""


@pytest.mark.parametrize("identity", ["cursor", "ids"])
def test_a_feed_killed_again_and_again_loses_and_doubles_nothing(tmp_path: Path, identity: str) -> None:
    chance = random.Random(identity)
    path, killed, ended = tmp_path / "t.db", 0, False
    for attempt in range(60):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), identity], stdout=subprocess.PIPE, cwd=ROOT)
        try:
            assert child.stdout is not None and child.stdout.readline() == b"up\n"
            if attempt < 8:
                time.sleep(chance.uniform(0.0, 0.25))
                child.send_signal(signal.SIGKILL)
            ended = child.wait(150) == 0
            killed += child.returncode == -signal.SIGKILL
        finally:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        if ended:
            break
    assert ended and killed
    with onetape.open(path) as tape:
        prices = tape.read("ESZ6", 0, 2**62, ["price"])["price"].to_pylist()
        assert prices == [float(n) for n in range(TOTAL)]
        assert tape.cursor("source:c") == str(TOTAL)
