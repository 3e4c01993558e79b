"""The state: one versioned record in Redis that every writer, reader and operator of a live migration watches.

It is a string of JSON under `onetape:migration:NAME` in the plan's target database. Each change makes its version
grow by one and is made under WATCH, so that of two operators one is told that the state moved. Clients hold a WATCH
on the key while they write: a transaction begun under an older version cannot be carried out.

Beside it, under the same name: `:clients` (a hash: client's id → its heartbeat), `:diverged` (a hash: source
database and key → why the two sides may differ), `:mirror` (the mirror's heartbeat) and `:operator` (the lease of
whoever is at work).
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from typing import Any
from urllib.parse import quote

import msgspec

from onetape import clock
from onetape.errors import EndpointError, OperatorBusy, PhaseRefused, StateMoved
from onetape.migrate.phases.phase import Phase
from onetape.migrate.plans.plan import OURS, Plan
from onetape.migrate.wire.endpoint import Endpoint, connect_again

PREFIX = OURS + b"migration:"
#: How long an operator's lease outlives the operator, ms.
LEASE_MS = 15_000
_ATTEMPTS = 5


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for a migration at one moment. Immutable; `change()` writes the next version.

    `read_share`: share of reads that go to the new names first, 0 to 1, from READS_SWITCHED on. `shadow_share`: share
    of reads that are compared with the other side. `mirrored`: there are writers that `migrate mirror` follows,
    because they cannot write both sides. `paused`: copying stands still. `postponed`: no cutover may begin.
    `throttle`: settings of the throttle. `entered`: the version with which this phase was entered; where it is still
    the same, nobody went back and forth. `changed_ms`: server's time of the last change, ms since the epoch.
    """

    version: int
    phase: Phase
    plan_name: str
    plan_hash: str
    target_db: int
    read_share: float = 0.0
    shadow_share: float = 0.0
    mirrored: bool = False
    paused: bool = False
    postponed: bool = False
    throttle: dict[str, Any] = {}
    entered: int = 0
    changed_ms: int = 0
    changed_by: str = ""
    reason: str = ""


class Names(msgspec.Struct, frozen=True):
    """The keys of one migration, all in `db`."""

    db: int
    state: bytes
    clients: bytes
    diverged: bytes
    mirror: bytes
    operator: bytes

    @classmethod
    def of(cls, plan: Plan) -> Names:
        """Return the keys of the plan's migration."""
        base = PREFIX + quote(plan.name, safe=" ").encode()  # a colon in a name must not look like one of ours
        parts = (b":clients", b":diverged", b":mirror", b":operator")
        return cls(plan.target_db, base, *(base + part for part in parts))


def decode(raw: bytes) -> State:
    """Return the state that a value says. Raises StateMoved for one that is none."""
    try:
        return msgspec.json.decode(raw, type=State)
    except msgspec.DecodeError as error:
        raise StateMoved(
            f"the migration's state in Redis cannot be read: {error}", hint="it was written by something else"
        ) from error


def load(endpoint: Endpoint, plan: Plan) -> State | None:
    """Return the state, None where no live migration was started. The endpoint's database is then the target's.

    Raises StateMoved where the state is that of another plan of the same name.
    """
    names = Names.of(plan)
    endpoint.select(names.db)
    raw = endpoint.call("GET", names.state)
    return None if raw is None else _of_plan(decode(raw), plan)


def _of_plan(state: State, plan: Plan) -> State:
    if state.plan_hash != plan.hash:
        raise StateMoved(
            f"the migration {plan.name!r} on this server goes by another plan: {state.plan_hash[:12]}, "
            f"not {plan.hash[:12]}",
            hint="give the plan it was started with, or another name",
        )
    return state


def change(
    endpoint: Endpoint, plan: Plan, expected: int, *, floor: int = 0, lease: Lease | None = None, **fields: Any
) -> State:
    """Write the next version of the state, if `expected` is still the present one (0: there is none), and return it.

    `floor`: a version that clients may know already; the new one is greater. `lease`: only while that is ours.

    One transaction: afterwards the change holds for every client, or nothing was changed. Raises StateMoved,
    OperatorBusy, EndpointError.
    """
    names = Names.of(plan)
    watched = (names.state,) if lease is None else (names.state, names.operator)
    endpoint.select(names.db)
    for _attempt in range(_ATTEMPTS):  # a lease that is renewed in that instant is no change
        endpoint.call("WATCH", *watched)
        try:
            if lease is not None:
                lease.confirm(endpoint.call("GET", names.operator))
            raw = endpoint.call("GET", names.state)
            found = None if raw is None else _of_plan(decode(raw), plan)
            if (found.version if found else 0) != expected:
                raise _moved(found)
        except BaseException:
            if not endpoint.closed:
                endpoint.call("UNWATCH")
            raise
        before = found or State(
            version=0, phase=Phase.PLANNED, plan_name=plan.name, plan_hash=plan.hash, target_db=plan.target_db
        )
        after = _next(before, max(expected, floor) + 1, server_ms(endpoint), fields)
        replies = endpoint.pipeline([("MULTI",), ("SET", names.state, msgspec.json.encode(after)), ("EXEC",)])
        if isinstance(replies[-1], Exception):
            raise EndpointError(f"the state cannot be written: {replies[-1]}", hint="nothing was changed")
        if replies[-1] is not None:
            return after
    raise _moved(load(endpoint, plan))


def _next(before: State, version: int, now_ms: int, fields: dict[str, Any]) -> State:
    told = {"changed_by": operator(), "reason": "", **fields}
    entered = before.entered if before.version and told.get("phase", before.phase) is before.phase else version
    return msgspec.structs.replace(before, **told, version=version, entered=entered, changed_ms=now_ms)


def _moved(found: State | None) -> StateMoved:
    now = "there is none any more" if found is None else f"it is {found.phase}, version {found.version}"
    by = f", changed by {found.changed_by}" if found is not None and found.changed_by else ""
    return StateMoved(
        f"the migration's state was changed meanwhile: {now}{by}", hint="look at onetape migrate status, then again"
    )


def without(state: State) -> State:
    """Return what a client goes by that knew this state and finds that the server has it no more.

    Mostly the same. After the cutover the old side counts again: the state was among the new keys, so those are likely
    to be gone with it, and what mirrored them must not be made what is left of them.
    """
    if state.phase is not Phase.CUT_OVER:
        return state
    return msgspec.structs.replace(state, phase=Phase.VERIFIED, read_share=0.0, shadow_share=0.0)


def server_ms(endpoint: Endpoint) -> int:
    """Return the server's time, ms since the epoch: one clock for all clients."""
    seconds, micros = endpoint.call("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


def operator() -> str:
    """Return who we are, for others to read: USER@HOST, process."""
    user = os.environ.get("SUDO_USER") or os.environ.get("USER") or f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()} process {os.getpid()}"


class Lease:
    """The right to be the one operator at work, kept alive by a thread of its own until released or the process ends.

    A process that was stopped for longer than LEASE_MS may have lost it: check() finds out, and raises. What was
    copied by then did no harm (each copy is a compare-and-set), and a change of state holds only while the lease does.
    """

    def __init__(self, url: str, plan: Plan, command: str, *, timeout_s: float = 10.0) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._names = Names.of(plan)
        self._token = secrets.token_hex(8)
        self._told = msgspec.json.encode(
            {"token": self._token, "command": command, "by": operator(), "since": clock.to_text(clock.now_ns())}
        )
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._held_s = 0.0
        self.lost = False

    def __enter__(self) -> Lease:
        with self._connect() as endpoint:
            self._held_s = time.monotonic()
            if endpoint.call("SET", self._names.operator, self._told, "NX", "PX", LEASE_MS) is None:
                raise _busy(endpoint.call("GET", self._names.operator))
        self._thread = threading.Thread(target=self._renew, name="onetape-lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join(self._timeout_s)
        if not self.lost:
            try:
                with self._connect() as endpoint:
                    self._if_ours(endpoint, ("DEL", self._names.operator))
            except EndpointError:
                pass  # it ends by itself

    @property
    def held(self) -> bool:
        """Return whether it was taken and not given back; it may have been lost since."""
        return self._thread is not None and not self._done.is_set()

    def check(self) -> None:
        """Raise OperatorBusy if the lease was lost: to somebody else, or for so long that there may have been one."""
        if not self.lost and self._is_late():  # we stood still, and the thread that renews it with us
            with self._connect() as endpoint:
                self._keep(endpoint)
        if self.lost:
            raise OperatorBusy(
                "this operator stood still for so long that another one may be at work",
                hint="look at onetape migrate status, then run it again",
            )

    def confirm(self, raw: bytes | None) -> None:
        """Raise OperatorBusy unless the server says that the lease is ours. `raw`: what it says, under WATCH."""
        if raw is None:  # forgotten by the server; taken again, it changes under the WATCH, and we are asked again
            with self._connect() as endpoint:
                self._keep(endpoint)
        elif raw != self._told:
            self.lost = True
        self.check()

    def _is_late(self) -> bool:
        return time.monotonic() - self._held_s > LEASE_MS / 1000

    def _connect(self) -> Endpoint:
        return connect_again(self._url, db=self._names.db, timeout_s=self._timeout_s)

    def _renew(self) -> None:
        endpoint: Endpoint | None = None
        while not self._done.wait(LEASE_MS / 4000) and not self.lost:
            try:
                endpoint = endpoint or self._connect()
                self._keep(endpoint)
            except EndpointError:
                if endpoint is not None:
                    endpoint.close()
                endpoint = None
        if endpoint is not None:
            endpoint.close()

    def _keep(self, endpoint: Endpoint) -> None:
        """Renew it, or know that it is lost."""
        with self._lock:
            late, now_s = self._is_late(), time.monotonic()
            if not self._if_ours(endpoint, ("PEXPIRE", self._names.operator, LEASE_MS)):
                # Gone within its time, by a FLUSHDB: ours again if nobody else has it. After it, somebody may have come
                # and gone.
                again = ("SET", self._names.operator, self._told, "NX", "PX", LEASE_MS)
                if late or endpoint.call(*again) is None:
                    self.lost = True
                    return
            self._held_s = now_s

    def _if_ours(self, endpoint: Endpoint, act: tuple[Any, ...]) -> bool:
        """Do it if the lease is ours; return whether it is."""
        while True:
            endpoint.call("WATCH", self._names.operator)
            if endpoint.call("GET", self._names.operator) != self._told:
                endpoint.call("UNWATCH")
                return False
            if endpoint.pipeline([("MULTI",), act, ("EXEC",)])[-1] == [1]:
                return True


def _busy(raw: bytes | None) -> OperatorBusy:
    facts: dict[str, Any] = {}
    try:
        facts = msgspec.json.decode(raw or b"{}")
    except msgspec.DecodeError:
        pass
    told = f"{facts.get('command', 'a command')}, by {facts.get('by', 'somebody')} since {facts.get('since', '?')}"
    return OperatorBusy(
        f"another operator is at work with this migration: {told}",
        hint=f"wait for it; if it died, its lease ends within {LEASE_MS // 1000} s",
        **{name: value for name, value in facts.items() if name != "token"},
    )


def required(state: State | None) -> State:
    """Return the state, or raise PhaseRefused where no live migration was started."""
    if state is None:
        raise PhaseRefused(
            "no live migration was started on this server", hint="onetape migrate start begins one", phase="planned"
        )
    return state


__all__ = ["LEASE_MS", "PREFIX", "Lease", "Names", "State", "change", "decode", "load", "operator",
           "required", "server_ms", "without"]  # fmt: skip
