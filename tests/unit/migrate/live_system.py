"""A small live system for tests: keys of every type, a writer that writes both sides, and the way to each phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import redis

from onetape.embedded import EmbeddedServer
from onetape.migrate.keys.dump import digest
from onetape.migrate.migration import Migration
from onetape.migrate.phases import state as states
from onetape.migrate.phases.phase import ORDER, Phase
from onetape.migrate.phases.state import State
from onetape.migrate.plans.plan import Plan
from onetape.migrate.steps.gate import Limits
from onetape.migrate.wire.endpoint import Endpoint

PLAN = Plan.parse(
    """
name = "live"
target_db = 1
[[rule]]
step = "indicators"
source_db = 5
pattern = "indicators:{symbol}:{name}"
target = "ind:{symbol}:{name}"
[[rule]]
step = "sessions"
source_db = 2
pattern = "session:{id}"
target = "sess:{id}"
"""
)
#: A gate for servers of tests: they keep nothing on disk.
LIMITS = Limits(volatile_ok=True)


class LiveSystem:
    """Old and new databases of one server, and a migration between them."""

    def __init__(self, server: EmbeddedServer, place: Path, **options: Any) -> None:
        self.server = server
        self.old, self.sessions, self.new = (self.client(db) for db in (5, 2, 1))
        self.ledger_path = place / "ledger"
        self.migration = Migration(server.url, plan=PLAN, ledger_path=self.ledger_path, **options)

    def client(self, db: int) -> redis.Redis:
        """Return a plain connection whose name counts as ours."""
        return redis.Redis(port=self.server.port, db=db, client_name="onetape-test")

    def fill(self) -> None:
        """Write keys of every type, some with an expiry, under old names."""
        self.old.set("indicators:S1:rsi", "61.5", ex=3600)
        self.old.set(b"indicators:S\xff:rsi", b"\x00\xff")
        self.old.hset("indicators:S2:bands", mapping={"upper": "2", "lower": "1"})
        self.old.rpush("indicators:S3:list", *range(10))
        self.old.sadd("indicators:S4:set", *range(1000))
        self.old.zadd("indicators:S5:zset", {"a": 1.5, "b": 2})
        self.old.xadd("indicators:S6:stream", {"x": 1}, id="5-1")
        for i in range(20):
            self.sessions.set(f"session:{i}", i)

    def write(self, name: str, value: Any, **options: Any) -> None:
        """Write a string under both names in one transaction, as a dual writer does."""
        pipe = self.old.pipeline(transaction=True)
        pipe.execute_command("SET", f"indicators:{name}", value)
        pipe.execute_command("SELECT", 1)
        pipe.execute_command("SET", f"ind:{name}", value)
        pipe.execute_command("SELECT", 5)
        pipe.execute()

    def to(self, phase: Phase) -> None:
        """Go forward to a phase."""
        steps = {
            Phase.DUAL_WRITING: lambda: self.migration.start(execute=True),
            Phase.BACKFILLED: self.migration.backfill,
            Phase.VERIFIED: lambda: self.migration.verify(pause_s=0),
            Phase.READS_SWITCHED: lambda: self.migration.switch_reads(execute=True),
            Phase.CUT_OVER: lambda: self.migration.cutover(limits=LIMITS, execute=True),
            Phase.FINISHED: lambda: self.migration.finish(execute=True),
        }
        now = self.phase
        for one in ORDER[now.place + 1 : phase.place + 1]:
            steps[one]()
            assert self.phase is one

    @property
    def state(self) -> State | None:
        """The state in Redis."""
        with Endpoint.connect(self.server.url) as endpoint:
            return states.load(endpoint, PLAN)

    @property
    def phase(self) -> Phase:
        """The present phase."""
        state = self.state
        return Phase.PLANNED if state is None else state.phase

    def dump(self, db: int) -> dict[bytes, tuple[bytes, int]]:
        """Return key → (digest of its DUMP, absolute expiry) of a database, without keys of onetape."""
        client = self.client(db)
        found = {}
        for key in client.keys("*"):
            if not key.startswith(b"onetape:"):
                found[key] = (digest(client.dump(key)), client.execute_command("PEXPIRETIME", key))
        return found
