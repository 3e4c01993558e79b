"""The helm: how a command looks at the state of a live migration and changes it, so that a kill anywhere is no harm.

What Redis says is the truth, and the ledger's history is written around it: the intent before, the end after. A command
that was killed between is ended by the next one, from what the state says. A state that is gone, or older than the one
that the ledger knows, was forgotten by the server (FLUSHDB, SWAPDB, a restart from an old snapshot): that is said, and
never taken for a migration that has not begun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from onetape.errors import EndpointError, LedgerBusy, LedgerUnusable, OperatorBusy, StateLost, StateMoved
from onetape.migrate.phases import state as states
from onetape.migrate.phases.history import NOT_DONE, History, begun
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import Lease, Names, State
from onetape.migrate.plans.plan import Plan
from onetape.migrate.wire.endpoint import Endpoint, connect_again, is_lost

#: How far a state that is written anew goes over the greatest version that is known: clients may know later ones.
VERSIONS_APART = 1000
_ATTEMPTS = 8


class Helm:
    """One migration as its operators see it. Holds no connection between calls.

    `at` is told of each point passed: "state_intended", "state_changed", "state_recorded". `notes`: what could not be
    done after a change that holds.
    """

    def __init__(
        self,
        url: str,
        plan: Plan,
        ledger_path: Path,
        *,
        timeout_s: float = 10.0,
        at: Callable[[str], None] = lambda point: None,
    ) -> None:
        self.url = url
        self.plan = plan
        self.ledger_path = ledger_path
        self.timeout_s = timeout_s
        self.at = at
        self.names = Names.of(plan)
        self.notes: list[str] = []
        self._lease: Lease | None = None

    def connect(self, *, writable: bool = True) -> Endpoint:
        """Return a connection. Raises EndpointError."""
        if writable:
            return connect_again(self.url, timeout_s=self.timeout_s)
        return Endpoint.connect(self.url, writable=False, timeout_s=self.timeout_s)

    def lease(self, command: str) -> Lease:
        """Return the right to be the only operator, to be used in `with`; in it, a phase changes only while it is ours.

        Raises OperatorBusy.
        """
        self._lease = Lease(self.url, self.plan, command, timeout_s=self.timeout_s)
        return self._lease

    def look(self, endpoint: Endpoint) -> State | None:
        """Return the present state, None where no live migration was started. Writes nothing. Raises StateLost."""
        known = self.known()  # first: it is written after the state, so it is never ahead of one that is read later
        found = states.load(endpoint, self.plan)
        if known is None:
            return found
        phase, version = known
        if found is None and phase is Phase.PLANNED:
            return None  # nothing depended on it
        if found is None:
            where = self._elsewhere(endpoint)
            raise StateLost(
                f"the server has forgotten the state of the migration {self.plan.name!r}: the ledger knows it in "
                f"{phase}, version {version}, and there is none in database {self.plan.target_db}" + where,
                hint=_way_back(phase),
                phase=phase.value, version=version,
            )  # fmt: skip
        if found.version < version:
            raise StateLost(
                f"the state on the server is older than the one in the ledger: {found.phase}, version {found.version}, "
                f"against {phase}, version {version}: the server was restored from an older snapshot",
                hint=_way_back(phase),
                phase=phase.value, version=version,
            )  # fmt: skip
        return found

    def known(self) -> tuple[Phase, int] | None:
        """Return (phase, version) of the live migration that the ledger knows, None for none or no ledger."""
        if not self.ledger_path.exists():
            return None
        with History(self.ledger_path, mode="r") as history:
            return history.live

    def knows(self) -> bool:
        """Return whether the ledger knows a live migration, or that one was about to begin."""
        if not self.ledger_path.exists():
            return False
        with History(self.ledger_path, mode="r") as history:
            return history.live is not None or any(
                not one.outcome.startswith(NOT_DONE) for one in history.transitions()
            )  # one that was about to be made may have been

    def own(self, now: State | None) -> None:
        """Raise LedgerUnusable where a live migration is under way that this ledger knows nothing of.

        It would not know what was copied and deleted, nor whose rights a fence has taken.
        """
        if now is None or self.knows():
            return
        by = f", changed by {now.changed_by}" if now.changed_by else ""
        raise LedgerUnusable(
            f"the ledger {self.ledger_path} knows nothing of the live migration {self.plan.name!r} that is under way: "
            f"{now.phase}, version {now.version}{by}",
            hint="give the ledger that it was started with (--ledger); where that is lost, "
            "onetape migrate rollback --force --execute leads back without it",
        )

    def _elsewhere(self, endpoint: Endpoint) -> str:
        for db in self.plan.source_dbs():
            if db == self.plan.target_db:
                continue
            endpoint.select(db)
            if endpoint.call("EXISTS", self.names.state):
                return f"; it is in database {db} now: were the two swapped?"
        return ""

    @contextmanager
    def history(self, endpoint: Endpoint) -> Iterator[History]:
        """Open the history of this plan and server, making the ledger if there is none."""
        begun(self.ledger_path, self.plan, address=endpoint.address, run_id=endpoint.run_id)
        with History(self.ledger_path) as history:
            yield history

    def shift(
        self,
        endpoint: Endpoint,
        command: str,
        now: State | None,
        to: Phase,
        *,
        forced: bool = False,
        floor: int = 0,
        **fields: Any,
    ) -> State:
        """Change the state from `now` to phase `to`, and tell the history before and after.

        Raises StateMoved, and OperatorBusy where this operator's lease is lost.
        """
        before = Phase.PLANNED if now is None else now.phase
        reason = str(fields.get("reason", ""))
        with self.history(endpoint) as history:
            if now is not None:
                history.reconcile(now)
            row = history.intend(command, before, to, states.operator(), reason, forced)
            self.at("state_intended")
            floor = max(floor, history.version_max if now is None else 0)
            expected = 0 if now is None else now.version
            try:
                lease = self._lease if self._lease is not None and self._lease.held else None
                after = states.change(endpoint, self.plan, expected, floor=floor, lease=lease, phase=to, **fields)
            except (StateMoved, OperatorBusy) as moved:
                history.refuse(row, moved.message)
                raise
            except EndpointError as error:
                after = self._after_all(error, to, max(expected, floor) + 1)
            self.at("state_changed")
            try:
                history.end(row, after)
            except (LedgerUnusable, LedgerBusy) as error:  # the change holds; the next command takes it from the state
                self.notes.append(f"the change is made, and not in the history yet: {error.message}")
            self.at("state_recorded")
            return after

    def _after_all(self, error: EndpointError, to: Phase, version: int) -> State:
        """The connection was lost on the way: return the state where the change was made all the same, else raise."""
        if not is_lost(error):
            raise error
        with self.connect() as again:
            found = states.load(again, self.plan)
        if found is None or (found.phase, found.version, found.changed_by) != (to, version, states.operator()):
            raise error
        return found

    def set(self, endpoint: Endpoint, **fields: Any) -> State:
        """Change settings of the state, whatever its phase, against changes of others. Raises PhaseRefused."""
        for attempt in range(_ATTEMPTS):
            now = states.required(self.look(endpoint))
            if all(getattr(now, name) == value for name, value in fields.items()):
                return now
            try:
                after = states.change(endpoint, self.plan, now.version, **fields)
            except StateMoved:
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            if self.ledger_path.exists():
                with History(self.ledger_path) as history:
                    history.reconcile(after)
            return after
        raise AssertionError("unreachable")

    def restored_floor(self, endpoint: Endpoint) -> int:
        """Return a version that no client can know a greater one of, for a state that is written anew."""
        known = [0]
        if self.ledger_path.exists():
            with History(self.ledger_path, mode="r") as history:
                known.append(history.version_max)
        for facts in self.clients(endpoint).values():
            version = facts.get("version")
            known.append(version if isinstance(version, int) else 0)
        return max(known) + VERSIONS_APART

    def clients(self, endpoint: Endpoint) -> dict[str, dict[str, Any]]:
        """Return what the clients say of themselves, by their id; what cannot be read is {}."""
        return {name: _json(value) for name, value in self._hash(endpoint, self.names.clients).items()}

    def diverged(self, endpoint: Endpoint) -> dict[bytes, dict[str, Any]]:
        """Return the keys whose sides may differ, b"DB:KEY" → why and since when."""
        endpoint.select(self.names.db)
        flat = endpoint.call("HGETALL", self.names.diverged)
        return {flat[i]: _json(flat[i + 1]) for i in range(0, len(flat), 2)}

    def forget_diverged(self, endpoint: Endpoint, settled: dict[bytes, dict[str, Any]]) -> None:
        """Take keys off that list, given with what was told of them: those told anew meanwhile stay on it."""
        if not settled:
            return
        endpoint.select(self.names.db)
        endpoint.call("WATCH", self.names.diverged)
        now = self.diverged(endpoint)
        same = [field for field, facts in settled.items() if now.get(field) == facts]
        if same:
            endpoint.pipeline([("MULTI",), ("HDEL", self.names.diverged, *same), ("EXEC",)])
        else:
            endpoint.call("UNWATCH")

    def told(self, endpoint: Endpoint, key: bytes) -> dict[str, Any] | None:
        """Return what is told under one of the migration's keys (mirror, operator), None where nothing is."""
        endpoint.select(self.names.db)
        raw = endpoint.call("GET", key)
        return None if raw is None else _json(raw)

    def _hash(self, endpoint: Endpoint, key: bytes) -> dict[str, bytes]:
        endpoint.select(self.names.db)
        flat = endpoint.call("HGETALL", key)
        return {flat[i].decode("utf-8", "backslashreplace"): flat[i + 1] for i in range(0, len(flat), 2)}


def _json(raw: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _way_back(phase: Phase) -> str:
    if phase is Phase.CUT_OVER:
        return (
            "the new names were the truth, and the old ones mirrored them: "
            "onetape migrate rollback --execute goes back to the old ones, as they are"
        )
    if phase is Phase.FINISHED:
        return "onetape migrate start --execute writes it back as finished"
    if phase is Phase.PLANNED:
        return "onetape migrate start --execute writes it back as planned"
    return "onetape migrate start --execute writes it back as dual_writing; then backfill and verify again"


__all__ = ["VERSIONS_APART", "Helm"]
