"""The view: where a live migration is at one moment, for a screen, for metrics and for a page. Reads only."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from onetape import clock
from onetape.errors import EndpointError, LedgerUnusable, MigrationError, StateLost
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.phases import published
from onetape.migrate.phases import state as states
from onetape.migrate.phases.helm import Helm
from onetape.migrate.phases.phase import ORDER, Phase
from onetape.migrate.phases.published import At
from onetape.migrate.phases.state import State, server_ms
from onetape.migrate.wire.endpoint import Endpoint

#: A client whose last heartbeat is older is silent: it may be gone, or stand still.
SILENT_MS = 10_000
#: Counting a ledger reads it through: at most every so many seconds, and for at most that share of the time.
_COUNT_EVERY_S, _COUNT_SHARE = 5.0, 0.05
_CLIENTS_MAX = 1000


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """One client of the migration, as its heartbeat tells. `acknowledged`: it knows the present version of the state.

    `silent_ms`: for how long nothing was heard of it, None where that is not more than SILENT_MS. `facts`: all of it.
    """

    id: str
    name: str
    kind: str
    version: int
    acknowledged: bool
    silent_ms: int | None
    facts: dict[str, Any]


class Reads(msgspec.Struct, frozen=True):
    """All readers' counts together. `fallback_rate`: share of the last minute's switched reads that found nothing under
    the new name and something under the old one, None where nothing was read.
    """

    new_reads: int
    old_fallbacks: int
    fallback_rate: float | None
    shadow: int
    mismatches: int


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Where a migration is. Times in ms since the epoch, by the server's clock where it can be asked.

    `phase` and `phases` (all of them, in order); `state` is None where no live migration was started, and `trouble`
    says what could not be found out. `progress`: of the command at work. `steps`: step → outcome → keys, from the
    ledger. `mirror`: its status, as it tells it. `silent` and `late`: ids of clients that were not heard of, and that
    have not acknowledged the present version.
    """

    at_ms: int
    address: str
    plan: str
    plan_hash: str
    target_db: int
    phase: str
    phases: tuple[str, ...] = tuple(str(phase) for phase in ORDER)
    trouble: str = ""
    state: State | None = None
    operator: dict[str, Any] | None = None
    progress: At | None = None
    steps: dict[str, dict[str, int]] = {}
    verdict: str | None = None
    mirror: dict[str, Any] | None = None
    clients: tuple[Client, ...] = ()
    reads: Reads = Reads(0, 0, None, 0, 0)
    diverged: int = 0

    @property
    def outcomes(self) -> dict[str, int]:
        """Outcome → keys, of all steps."""
        sums: dict[str, int] = {}
        for counts in self.steps.values():
            for name, number in counts.items():
                sums[name] = sums.get(name, 0) + number
        return sums

    @property
    def late(self) -> tuple[str, ...]:
        """Clients that have not acknowledged the present version, by id."""
        return tuple(client.id for client in self.clients if not client.acknowledged)

    @property
    def silent(self) -> tuple[str, ...]:
        """Clients that were not heard of lately, by id."""
        return tuple(client.id for client in self.clients if client.silent_ms is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, with times also as ISO 8601."""
        facts: dict[str, Any] = msgspec.to_builtins(self)
        return {
            **facts,
            "at": clock.to_text(self.at_ms * 1_000_000),
            "outcomes": self.outcomes,
            "late": list(self.late),
            "silent": list(self.silent),
        }


class Viewer:
    """Looks at a migration again and again, on one connection that cannot write. Use it in `with`, from any thread."""

    def __init__(self, helm: Helm) -> None:
        self._helm = helm
        self._endpoint: Endpoint | None = None
        self._counted: tuple[dict[str, dict[str, int]], str | None] = ({}, None)
        self._count_due_s = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None

    def view(self) -> View:
        """Return where the migration is now. What cannot be asked is told in `trouble`; nothing is raised for it."""
        with self._lock:
            return self._view()

    def _view(self) -> View:
        plan = self._helm.plan
        steps, verdict, ledger_trouble = self._count()
        facts: dict[str, Any] = {
            "at_ms": clock.now_ns() // 1_000_000, "address": "", "phase": str(Phase.PLANNED), "trouble": ledger_trouble,
        }  # fmt: skip
        try:
            if self._endpoint is None or self._endpoint.closed:
                self._endpoint = Endpoint.connect(self._helm.url, writable=False, timeout_s=self._helm.timeout_s)
            facts.update(self._asked(self._endpoint))
        except EndpointError as error:
            self.close()
            facts["trouble"] = error.message
            try:
                known = self._helm.known()
            except MigrationError:
                known = None
            if known is not None:
                facts["phase"] = str(known[0])
        return View(
            plan=plan.name, plan_hash=plan.hash, target_db=plan.target_db, steps=steps, verdict=verdict, **facts
        )

    def _asked(self, endpoint: Endpoint) -> dict[str, Any]:
        helm = self._helm
        at_ms = server_ms(endpoint)
        facts: dict[str, Any] = {"at_ms": at_ms, "address": endpoint.address}
        try:
            state = helm.look(endpoint)
        except StateLost as lost:
            state, facts["trouble"] = states.load(endpoint, helm.plan), str(lost)
        except MigrationError as error:  # of another plan, or unreadable
            if isinstance(error, EndpointError):
                raise
            return {**facts, "trouble": str(error)}
        progress = published.read(endpoint, helm.names)
        if state is None:
            known = _ledger_phase(helm)
            return {**facts, "progress": progress, **({"phase": known} if known else {})}
        told = helm.clients(endpoint)
        return {
            **facts,
            "phase": str(state.phase),
            "state": state,
            "progress": progress,
            "operator": _without_token(helm.told(endpoint, helm.names.operator)),
            "mirror": _without_token(helm.told(endpoint, helm.names.mirror)),
            "clients": tuple(_client(name, told[name], state, at_ms) for name in sorted(told)[:_CLIENTS_MAX]),
            "reads": _reads(told),
            "diverged": _count_of(endpoint, helm),
        }

    def _count(self) -> tuple[dict[str, dict[str, int]], str | None, str]:
        now_s = time.monotonic()
        if not self._helm.ledger_path.exists():
            return {}, None, ""
        if now_s >= self._count_due_s:
            try:
                with Ledger.open(self._helm.ledger_path, mode="r") as ledger:
                    self._counted = (ledger.counts(), ledger.state("verdict"))
            except LedgerUnusable as error:
                return *self._counted, error.message
            took_s = time.monotonic() - now_s
            self._count_due_s = now_s + max(_COUNT_EVERY_S, took_s / _COUNT_SHARE)
        return *self._counted, ""


def _count_of(endpoint: Endpoint, helm: Helm) -> int:
    endpoint.select(helm.names.db)
    # HLEN is a read, and the hash may hold a hundred thousand keys.
    return int(endpoint.call("HLEN", helm.names.diverged))


def _ledger_phase(helm: Helm) -> str:
    if not helm.ledger_path.exists():
        return ""
    try:
        with Ledger.open(helm.ledger_path, mode="r") as ledger:
            return ledger.state("phase") or ""
    except LedgerUnusable:
        return ""


def _client(name: str, told: Mapping[str, Any], state: State, now_ms: int) -> Client:
    version = _whole(told.get("version"))
    silent_ms = max(0, now_ms - _whole(told.get("at_ms")))
    return Client(
        id=name,
        name=str(told.get("name") or ""),
        kind=str(told.get("kind") or ""),
        version=version,
        acknowledged=version >= state.version,
        silent_ms=silent_ms if silent_ms > SILENT_MS else None,
        facts=dict(told),
    )


def _reads(clients: Mapping[str, Mapping[str, Any]]) -> Reads:
    def total(field: str) -> int:
        return sum(_whole(told.get(field)) for told in clients.values())

    # A client tells its rate and how many reads it is of: many reads weigh more.
    switched, fell_back = 0, 0.0
    for told in clients.values():
        rate, number = told.get("fallback_rate_60s"), _whole(told.get("switched_60s"))
        if isinstance(rate, int | float) and number:
            switched += number
            fell_back += rate * number
    rate_now = fell_back / switched if switched else None
    return Reads(total("new_reads"), total("old_fallbacks"), rate_now, total("shadow"), total("mismatches"))


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _without_token(facts: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if facts is None else {name: value for name, value in facts.items() if name != "token"}


__all__ = ["Client", "Reads", "View", "Viewer"]
