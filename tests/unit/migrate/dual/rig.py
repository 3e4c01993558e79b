"""What tests of dual write share: a plan, the state of a migration, and whether both sides are equal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import redis

from onetape.embedded import EmbeddedServer
from onetape.migrate.dual import DualRedis
from onetape.migrate.keys.content import read_content
from onetape.migrate.phases import state
from onetape.migrate.phases.phase import Phase
from onetape.migrate.plans.plan import Plan
from onetape.migrate.wire.endpoint import Endpoint

PLAN = Plan.parse(
    """
name = "dual"
target_db = 1
[[rule]]
step = "all"
source_db = 5
pattern = "a:{x}"
target = "n:{x}"
[[rule]]
step = "streams"
source_db = 5
pattern = "t:{x}"
target = "streams:{x}"
types = ["stream"]
[[rule]]
step = "texts"
source_db = 5
pattern = "t:{x}"
target = "texts:{x}"
types = ["string"]
[[rule]]
step = "elsewhere"
source_db = 6
pattern = "b:{x}"
target = "m:{x}"
"""
)
OLD_DB, NEW_DB = 5, 1


class Rig:
    """A server with a migration in some phase. `old` and `new` are plain clients of either side."""

    def __init__(self, server: EmbeddedServer, phase: Phase | None = Phase.DUAL_WRITING, plan: Plan = PLAN) -> None:
        self.server, self.plan = server, plan
        self.endpoint = Endpoint.connect(server.url)
        self.names = state.Names.of(plan)
        self.version = 0
        self.old = redis.Redis(port=server.port, db=OLD_DB)
        self.new = redis.Redis(port=server.port, db=NEW_DB)
        self._clients: list[DualRedis] = []
        if phase is not None:
            self.go(phase)

    def go(self, phase: Phase, **fields: Any) -> None:
        """Change the phase."""
        self.version = state.change(self.endpoint, self.plan, self.version, phase=phase, **fields).version

    def dual(self, **kwargs: Any) -> DualRedis:
        """Return a client that is closed with the rig."""
        client = DualRedis(port=self.server.port, **{"db": OLD_DB, "plan": self.plan, **kwargs})
        self._clients.append(client)
        return client

    def content(self, db: int, key: str) -> Any:
        """Return what a key holds, with its expiry."""
        self.endpoint.select(db)
        return read_content(self.endpoint, key.encode())

    def differing(self, slack_ms: int = 0) -> list[str]:
        """Return the parts of names a:X and n:X whose sides differ in content or expiry."""
        parts = {key[2:].decode() for key in self.old.keys("a:*")} | {key[2:].decode() for key in self.new.keys("n:*")}
        found = []
        for part in sorted(parts):
            one, other = self.content(OLD_DB, f"a:{part}"), self.content(NEW_DB, f"n:{part}")
            if (one is None) != (other is None) or (one is not None and not one.equals(other, slack_ms)):
                found.append(part)
        return found

    def diverged(self) -> dict[bytes, bytes]:
        """Return what was recorded."""
        found: dict[bytes, bytes] = self.new.hgetall(self.names.diverged)
        return found

    def close(self) -> None:
        """Close all."""
        for client in self._clients:
            client.close()
        self.old.close()
        self.new.close()
        self.endpoint.close()


@contextlib.contextmanager
def rigged(server: EmbeddedServer, phase: Phase | None = Phase.DUAL_WRITING, plan: Plan = PLAN) -> Iterator[Rig]:
    """A rig that is closed at the end."""
    rig = Rig(server, phase, plan)
    try:
        yield rig
    finally:
        rig.close()
