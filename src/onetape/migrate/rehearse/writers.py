"""Writers of a rehearsal: clients that write both sides, and count, so that a lost write shows."""

from __future__ import annotations

import threading
import time

import msgspec
import redis

from onetape.migrate.dual import DualRedis
from onetape.migrate.plans.plan import Plan
from onetape.migrate.wire.endpoint import Endpoint

_KEYS_A_RULE = 8
_PAUSE_S = 0.002


class Counted(msgspec.Struct, frozen=True):
    """What the writers did: writes that were answered, and keys whose counter is not what was answered."""

    writes: int
    keys: int
    wrong: tuple[str, ...]


class Writers:
    """Threads that add to counters under old names while the rehearsal goes on. Use it in `with`, then check()."""

    def __init__(self, port: int, plan: Plan) -> None:
        self._plan = plan
        self._places: list[tuple[int, bytes, bytes]] = []
        for rule in plan.rules:
            if rule.skip or rule.kind != "copy" or (rule.types and "string" not in rule.types) or rule.transform:
                continue
            for number in range(_KEYS_A_RULE):
                key = rule.sample(b"onetape-rehearsal-%d" % number)
                hit = plan.matcher(rule.source_db).match_type(key, "string")
                if hit is not None and hit[1] is rule and (rule.source_db, key) != (plan.target_db, hit[2]):
                    self._places.append((rule.source_db, key, hit[2]))
        self._port = port
        self._done = threading.Event()
        self._least: dict[tuple[int, bytes], int] = {}
        self._most: dict[tuple[int, bytes], int] = {}
        self._writes = 0
        self.errors: list[str] = []
        self._thread = threading.Thread(target=self._write, name="onetape-rehearsal", daemon=True)

    @property
    def keys(self) -> int:
        """How many keys they write."""
        return len(self._places)

    def __enter__(self) -> Writers:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Write no more."""
        self._done.set()
        self._thread.join(30)

    def _write(self) -> None:
        dbs = dict.fromkeys(db for db, _, _ in self._places)
        clients = {db: DualRedis(port=self._port, db=db, plan=self._plan, name="rehearsal") for db in dbs}
        try:
            while not self._done.is_set() and self._places:
                for db, key, _ in self._places:
                    place = (db, key)
                    self._most[place] = self._most.get(place, 0) + 1
                    try:
                        clients[db].incr(key)
                    except redis.RedisError as error:
                        if len(self.errors) < 5:
                            self.errors.append(f"db {db} {key!r}: {error}")
                        continue  # it may have been done all the same: `most` counts it, `least` does not
                    self._least[place] = self._least.get(place, 0) + 1
                    self._writes += 1
                    if self._done.is_set():
                        break
                    time.sleep(_PAUSE_S)
        finally:
            for client in clients.values():
                client.close()

    def check(self, url: str, *, new: bool) -> Counted:
        """Return what was counted, held against the new names or the old ones."""
        wrong = []
        with Endpoint.connect(url, writable=False) as endpoint:
            for db, key, target in self._places:
                endpoint.select(self._plan.target_db if new else db)
                value = int(endpoint.call("GET", target if new else key) or 0)
                least, most = self._least.get((db, key), 0), self._most.get((db, key), 0)
                if not least <= value <= most:
                    name = (target if new else key).decode("utf-8", "backslashreplace")
                    wrong.append(f"{name} holds {value:,}, written {least:,}")
        return Counted(self._writes, len(self._places), tuple(wrong))
