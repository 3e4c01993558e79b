"""The mirror: for writers that cannot be changed, it makes the other side equal to what they write, until stopped.

Hints (keyspace notifications) say where to look, and sweeps look everywhere; what is done with a key is decided by
looking at both sides under WATCH, with the migration's state watched too. Before the cutover the new names follow the
old ones, after it the old names follow the new ones.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from onetape.errors import EndpointError, LedgerBusy, OperatorBusy, PhaseRefused
from onetape.migrate.backfill.fault_point import fault_point
from onetape.migrate.copying.slice_decide import is_content_digest
from onetape.migrate.landing.ticks import Lander
from onetape.migrate.ledger.entry import Outcome as Fate
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.mirror import notify
from onetape.migrate.mirror.bigs import Bigs
from onetape.migrate.mirror.hints import Hints
from onetape.migrate.mirror.judge import Act
from onetape.migrate.mirror.memory import OF_DUMP, Held, Memory, Place
from onetape.migrate.mirror.settle import WHY_KEPT, WHY_KEPT_GONE, Fence, FenceMoved, Outcome, Settler
from onetape.migrate.mirror.status import ALIVE_MS, MirrorStatus, decode_status
from onetape.migrate.mirror.sweep import Sweep
from onetape.migrate.mirror.ways import Pair, Ways
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import Names, State, change, decode, load, operator, required, server_ms
from onetape.migrate.plans.plan import Plan
from onetape.migrate.wire.endpoint import Endpoint, connect_again, is_lost
from onetape.tape import Tape

#: Hints followed at once.
_HINTS = 500
_BEAT_S = 1.0
#: A beat that takes longer means that events do not come any more.
_BEAT_LOST_S = 5.0
#: How long a server may be away before the mirror gives up, to be started again.
_AWAY_S = 600.0
#: Where an act found by a sweep counts as missed by hints, its hint has had so long to come in.
_MISSED_S = 3.0
_SETTLED = frozenset({Act.NOTHING, Act.EQUAL, Act.COPY, Act.REPLACE, Act.DELETE})
#: How long the first sweep waits for the listener, so that nothing falls between the two.
_LISTEN_S = 2.0
#: Keys that fail and are remembered at most.
_FAILING_MAX = 100_000


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a mirror runs.

    `sweep_every_s`: from the end of a sweep to the next one. `sweep_keys_per_s`: how fast it looks, at most. `once`:
    end after the first sweep, when no hint is left. `allow_flush`: a database that lost its keys without a word is
    meant to be so. `hints`: listen to notifications at all.
    """

    sweep_every_s: float = 60.0
    sweep_keys_per_s: float = 20_000.0
    once: bool = False
    allow_flush: bool = False
    hints: bool = True


class Mirror:
    """One mirror of one migration. run() it.

    `memory_path`: its own memory, kept over restarts. `ledger_path`: the migration's ledger: it is asked about pairs
    that the memory does not know, and told at the end what was mirrored. `tape`: where mirrored ticks and bars land.
    `on_status`: told each second where the mirror is.
    """

    def __init__(
        self,
        url: str,
        plan: Plan,
        memory_path: str | Path,
        *,
        ledger_path: str | Path | None = None,
        tape: Tape | None = None,
        options: Options | None = None,
        timeout_s: float = 10.0,
        on_status: Callable[[MirrorStatus], None] = lambda status: None,
        at: Callable[[str], None] | None = None,
    ) -> None:
        self._url = url
        self._plan = plan
        self._memory_path = Path(memory_path)
        self._ledger_path = None if ledger_path is None else Path(ledger_path)
        self._tape = tape
        self._options = options or Options()
        self._timeout_s = timeout_s
        self._on_status = on_status
        self._at = at or fault_point()

    def run(self, stop: threading.Event | None = None) -> MirrorStatus:
        """Mirror until `stop` is set, or the migration is finished; return the last status.

        Raises PhaseRefused where no live migration was started, or it is taken back to planned; OperatorBusy where
        another mirror is at work with this migration, LedgerBusy with this memory; SourceVanished; EndpointError when
        the server is away for good; LedgerUnusable.
        """
        with Memory.open(self._memory_path) as memory:
            run = _Run(self._url, self._plan, memory, self._ledger_path, self._tape, self._options, self._at)
            run.timeout_s, run.on_status = self._timeout_s, self._on_status
            return run.go(stop or threading.Event())


class _Run:
    def __init__(
        self,
        url: str,
        plan: Plan,
        memory: Memory,
        ledger_path: Path | None,
        tape: Tape | None,
        options: Options,
        at: Callable[[str], None],
    ) -> None:
        self.timeout_s = 10.0
        self.on_status: Callable[[MirrorStatus], None] = lambda status: None
        self._url, self._plan, self._memory, self._tape = url, plan, memory, tape
        self._options, self._at = options, at
        self._names = Names.of(plan)
        self._beat = self._names.state + b":beat"
        self._token = secrets.token_hex(8)
        self._ledger_path = ledger_path
        self._ledger: Ledger | None = None
        self._endpoint: Endpoint | None = None
        self._hints: Hints | None = None
        self._stop = threading.Event()
        self._status = MirrorStatus(
            token=self._token, by=operator(), at_ms=0, phase="", back=False, hints=False, note="", lag_ms=None, queue=0,
            copied=0, deleted=0, merged=0, landed=0, kept=0, failed=0, sweeps=0, sweeping=None, sweep_at_ms=None,
            sweep_s=None, sweep_found=0, foreign_writes_at_ms=None, paused=False,
        )  # fmt: skip
        self._counts = dict.fromkeys(("copied", "deleted", "merged", "landed"), 0)
        self._suspects: dict[Place, tuple[float, int]] = {}  # acts of a sweep, until a hint tells of them
        self._found = (0, 0)  # of which sweep, how many
        self._foreign_s: float | None = None
        self._told_s = 0.0
        self._claimed = False
        self._pace_s = 0.0
        self._sweep: Sweep | None = None
        self._steps: Iterator[None] | None = None
        self._sweep_began_s = 0.0
        self._sweep_due_s = 0.0
        self._facts: dict[str, Any] = {}
        self._failing: dict[Place, int] = {}  # in which sweep it failed last
        self._bigs = Bigs(lambda: connect_again(url, timeout_s=self.timeout_s, attempts=3))

    # The loop

    def go(self, stop: threading.Event) -> MirrorStatus:
        self._stop = stop
        away_since_s: float | None = None
        try:
            while True:
                try:
                    self._begin()
                    away_since_s = None
                    self._work()
                    break
                except EndpointError as error:
                    if not is_lost(error) or stop.is_set():
                        raise
                    now_s = time.monotonic()
                    away_since_s = away_since_s or now_s
                    if now_s - away_since_s > _AWAY_S:
                        raise
                    self._drop()
                    stop.wait(0.5)
                    if stop.is_set():
                        break
            self._end()
            return self._status
        finally:
            self._tidy()
            self._drop()
            if self._hints is not None:
                self._hints.stop()

    def _begin(self) -> None:
        """Connect, look at the state, and get ready to follow."""
        endpoint = self._endpoint = connect_again(self._url, timeout_s=self.timeout_s, attempts=3)
        endpoint.pipeline([("CLIENT", "SETNAME", "onetape-mirror")])
        self._memory.bind(self._plan.hash, endpoint.run_id)
        state = self._usable(required(load(endpoint, self._plan)))
        if not state.mirrored:
            state = change(endpoint, self._plan, state.version, mirrored=True, reason="a mirror was started")
        self._claim(endpoint)
        self._claimed = True
        note = notify.ensure(endpoint, self._memory) if self._options.hints else "hints are switched off"
        self._facts["note"] = note
        self._face(state)
        if not note and self._hints is None:
            dbs = tuple(dict.fromkeys((*self._plan.source_dbs(), self._plan.target_db)))
            self._hints = Hints(self._url, dbs, self._beat)
            self._hints.start()
            deadline_s = time.monotonic() + _LISTEN_S
            while not self._hints.listening and time.monotonic() < deadline_s and not self._stop.wait(0.005):
                pass
            self._hints.lost = False
        self._steps = self._sweep = None
        self._sweep_due_s = 0.0  # after a connection was lost nothing is known of what was written meanwhile

    def _face(self, state: State) -> None:
        """Set direction and fence by the state."""
        endpoint = self._endpoint
        assert endpoint is not None
        endpoint.select(self._names.db)
        raw = endpoint.call("GET", self._names.state)
        state = self._usable(required(None if raw is None else decode(raw)))
        self._ways = Ways(self._plan, self._memory, back=state.phase.new_is_truth)
        self._settler = Settler(
            endpoint,
            self._memory,
            self._earlier,
            is_merged_into=self._ways.is_merged_into,
            bigs=self._bigs,
            at=self._at,
        )
        self._settler.fence = Fence(self._names.db, self._names.state, raw)
        self._lander = Lander(endpoint, self._plan.target_db, self._tape, self._plan.timezone)
        self._facts.update(phase=str(state.phase), back=self._ways.back, paused=state.paused)
        self._steps = self._sweep = None
        self._sweep_due_s = 0.0

    def _usable(self, state: State) -> State:
        if state.phase is Phase.FINISHED:
            self._stop.set()
        elif not state.phase.both_written:
            raise PhaseRefused(
                f"a mirror follows writers from dual_writing on, and this migration is in {state.phase}",
                hint="onetape migrate start --mirrored --execute begins it",
                phase=str(state.phase),
            )
        return state

    def _claim(self, endpoint: Endpoint) -> None:
        """Be the one mirror of this migration; one that was killed is waited for, until it is forgotten."""
        deadline_s = time.monotonic() + 2 * ALIVE_MS / 1000
        while True:
            endpoint.select(self._names.db)
            other = decode_status(endpoint.call("GET", self._names.mirror))
            if other is None or other.token == self._token:
                return
            if time.monotonic() > deadline_s:
                raise OperatorBusy(f"another mirror is at work with this migration: {other.by}", hint="one is enough")
            if self._stop.wait(0.2):
                return

    def _work(self) -> None:
        hints = self._hints
        while not self._stop.is_set():
            self._beat_and_tell()
            if self._facts.get("paused"):
                self._stop.wait(0.2)
                continue
            if hints is not None and hints.lost and self._facts["note"] == "":
                hints.lost = False
                self._sweep_due_s = min(self._sweep_due_s, time.monotonic() + 1.0) if self._status.sweeps else 0.0
                if self._steps is not None:
                    self._sweep_due_s = 0.0  # and once more after this one
            busy = self._follow_hints()
            if self._stop.is_set():
                break  # finished, perhaps: then not one step more, it would bring old keys back
            if self._step_of_sweep():
                busy = True
            if self._options.once and self._status.sweeps and not busy and self._steps is None and self._caught_up():
                return
            if not busy:
                if hints is not None:
                    hints.wait(0.02)
                else:
                    self._stop.wait(0.02)

    def _caught_up(self) -> bool:
        hints = self._hints
        return hints is None or not hints.listening or (hints.queue == 0 and hints.beat_missing_s() == 0)

    # Hints

    def _follow_hints(self) -> bool:
        hints = self._hints
        taken = [] if hints is None else hints.take(_HINTS)
        if not taken or hints is None:
            return False
        for hint in taken:
            self._suspects.pop((hint.db, hint.key), None)
        endpoint = self._endpoint
        assert endpoint is not None
        by_db: dict[int, list[bytes]] = {}
        gone: set[tuple[int, bytes]] = set()
        for hint in taken:
            if hint.db in self._ways.from_dbs:
                by_db.setdefault(hint.db, []).append(hint.key)
                if hint.gone:
                    gone.add((hint.db, hint.key))
        try:
            for db, keys in by_db.items():
                pairs, ticks = self._ways.of(endpoint, db, keys)
                told = frozenset(pair.place for pair in pairs if (pair.from_db, pair.from_key) in gone)
                if pairs:
                    self._settle(pairs, told, sweeping=False)
                if ticks:
                    self._merge(db, ticks)
        except (FenceMoved, EndpointError) as error:
            hints.put_back(taken)
            if isinstance(error, EndpointError):
                raise
            self._face_again()
        return True

    def _face_again(self) -> None:
        assert self._endpoint is not None
        self._face(required(load(self._endpoint, self._plan)))

    # Settling

    def _settle(self, pairs: Sequence[Pair], gone: frozenset[Place], *, sweeping: bool) -> None:
        for outcome in self._settler.settle(pairs, gone, sweeping=sweeping):
            self._take(outcome, sweeping)

    def _take(self, outcome: Outcome, sweeping: bool) -> None:
        pair = outcome.pair
        if outcome.error:
            self._fail(pair.place)
            self._facts["last_error"] = f"db {pair.from_db} {pair.from_key!r}: {outcome.error}"
            return
        self._failing.pop(pair.place, None)
        if outcome.act is Act.KEEP:
            self._keep(pair)
            return
        if outcome.acted:
            self._counts["deleted" if outcome.act is Act.DELETE else "copied"] += 1
            self._foreign_s = time.monotonic()
            if sweeping:
                place = (pair.from_db, pair.from_key)
                if self._hints is None or not self._hints.pending(*place):
                    self._suspects[place] = (time.monotonic(), self._status.sweeps)
        if outcome.act in (Act.EQUAL, Act.COPY, Act.REPLACE, Act.DELETE) and (
            settled := self._memory.settled([pair.place])
        ):
            self._tell_diverged(settled, None)
        if outcome.acted and outcome.act is not Act.DELETE and not self._ways.back:
            self._land(pair)

    def _fail(self, place: Place) -> None:
        if len(self._failing) < _FAILING_MAX:
            self._failing[place] = self._status.sweeps

    def _keep(self, pair: Pair) -> None:
        assert self._endpoint is not None
        self._endpoint.select(pair.from_db)
        why = WHY_KEPT if self._endpoint.call("EXISTS", pair.from_key) else WHY_KEPT_GONE
        at_ms = server_ms(self._endpoint)
        if self._memory.keep(pair.place, pair.new_key, pair.rule, why, at_ms):
            self._tell_diverged([pair.place], {"at_ms": at_ms, "why": why, "by": "mirror"})

    def _tell_diverged(self, places: Sequence[Place], fact: dict[str, Any] | None) -> None:
        assert self._endpoint is not None
        self._endpoint.select(self._names.db)
        fields = [b"%d:" % db + key for db, key in places]
        if fact is None:
            self._endpoint.call("HDEL", self._names.diverged, *fields)
        else:
            told = msgspec.json.encode(fact)
            self._endpoint.call("HSET", self._names.diverged, *(part for field in fields for part in (field, told)))

    def _merge(self, db: int, ticks: dict[int, list[bytes]]) -> None:
        for index, keys in ticks.items():
            rule = self._plan.rules[index]
            for result in self._lander.hash_ticks(keys, db, rule):
                self._counts["landed"] += result.ticks
                if result.outcome is Fate.COPIED:
                    self._counts["merged"] += 1
                    self._foreign_s = time.monotonic()
                elif result.outcome is Fate.FAILED:
                    self._fail((db, result.key))
                    self._facts["last_error"] = f"db {db} {result.key!r}: {result.error}"
                    continue
                self._failing.pop((db, result.key), None)

    def _land(self, pair: Pair) -> None:
        rule = self._plan.rules[pair.rule]
        if self._tape is None or rule.kind not in ("ticks", "ohlc"):
            return
        land = self._lander.stream if rule.kind == "ticks" else self._lander.ohlc
        self._counts["landed"] += land(pair.place[1], pair.place[0], rule).ticks

    # The sweep

    def _step_of_sweep(self) -> bool:
        now_s = time.monotonic()
        if self._steps is None:
            if now_s < self._sweep_due_s or (self._options.once and self._status.sweeps):
                return False
            self._begin_sweep()
        if now_s < self._pace_s:
            return False
        assert self._steps is not None
        try:
            next(self._steps)
        except StopIteration:
            self._end_sweep()
        except FenceMoved:
            self._face_again()
        return True

    def _begin_sweep(self) -> None:
        assert self._endpoint is not None
        self._open_ledger()
        back = self._ways.back
        to_dbs = self._plan.source_dbs() if back else (self._plan.target_db,)
        sent_s: list[float] = []

        def heard_all() -> bool:
            hints = self._hints
            if hints is None or not hints.listening:
                return True
            sent_s.append(time.monotonic())
            waited = sent_s[-1] - sent_s[0]
            beat_s = hints.beat_at_s
            return waited > 10.0 or (beat_s is not None and beat_s > sent_s[0] + _BEAT_S and hints.queue == 0)

        self._sweep = Sweep(
            self._endpoint,
            self._ways,
            self._memory,
            earlier=self._earlier,
            settle=lambda pairs, gone: self._settle(pairs, gone, sweeping=True),
            merge=self._merge,
            pace=self._pace,
            to_dbs=to_dbs,
            allow_flush=self._options.allow_flush,
            heard_all=heard_all,
        )
        self._steps = self._sweep.steps()
        self._sweep_began_s = time.monotonic()
        self._sweep_due_s = self._sweep_began_s + 10 * 365 * 86400

    def _pace(self, keys: int) -> None:
        now_s = time.monotonic()
        self._pace_s = max(now_s, self._pace_s) + keys / self._options.sweep_keys_per_s

    def _end_sweep(self) -> None:
        now_s = time.monotonic()
        assert self._endpoint is not None
        self._steps = self._sweep = None
        # What was not met failing again is no more.
        self._failing = {place: sweep for place, sweep in self._failing.items() if sweep >= self._status.sweeps}
        if not self._failing:
            self._facts["last_error"] = ""
        if self._sweep_due_s:
            self._sweep_due_s = now_s + self._options.sweep_every_s
        self._status = msgspec.structs.replace(
            self._status,
            sweeps=self._status.sweeps + 1,
            sweep_at_ms=server_ms(self._endpoint),
            sweep_s=round(now_s - self._sweep_began_s, 3),
        )
        self._at("swept")

    # The ledger

    def _open_ledger(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None
        if self._ledger_path is not None and self._ledger_path.exists():
            self._ledger = Ledger.open(self._ledger_path, mode="r")

    def _earlier(self, places: Sequence[Place]) -> dict[Place, Held]:
        """Return what the migration's ledger knows of pairs; an open digest says nothing."""
        found: dict[Place, Held] = {}
        if self._ledger is None:
            return found
        by_db: dict[int, list[bytes]] = {}
        for db, key in places:
            by_db.setdefault(db, []).append(key)
        for db, keys in by_db.items():
            for key, known in self._ledger.find(db, keys).items():
                if known.is_open or known.read != known.written:
                    continue
                digest = known.written if is_content_digest(known.written) else OF_DUMP + known.written
                found[db, key] = Held(known.target, digest, known.expire_ms)
        return found

    # Beat and status

    def _beat_and_tell(self) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s < _BEAT_S:
            return
        self._told_s = now_s
        endpoint, hints = self._endpoint, self._hints
        assert endpoint is not None
        lag_ms: float | None = None
        if hints is not None:
            if hints.beat_missing_s() > _BEAT_LOST_S:
                self._facts["note"] = notify.ensure(endpoint, self._memory)
                hints.cut()
                hints.lost = True
            endpoint.select(self._plan.source_dbs()[0])
            if hints.listening:
                hints.beat_sent()
            endpoint.call("SET", self._beat, "1", "PX", 60_000)
            oldest_s = hints.oldest_s()
            if hints.listening and hints.lag_ms is not None:
                lag_ms = max(hints.lag_ms, hints.beat_missing_s() * 1000 if hints.beat_missing_s() > 1 else 0.0)
                lag_ms += 0.0 if oldest_s is None else (now_s - oldest_s) * 1000
        for place, (since_s, sweep) in list(self._suspects.items()):
            if now_s - since_s > _MISSED_S:
                del self._suspects[place]
                self._found = (sweep, self._found[1] + 1 if self._found[0] == sweep else 1)
        self._publish(lag_ms)

    def _publish(self, lag_ms: float | None) -> None:
        endpoint, hints = self._endpoint, self._hints
        assert endpoint is not None
        sweep = self._sweep
        at_ms = server_ms(endpoint)
        foreign_ms = self._status.foreign_writes_at_ms
        if self._foreign_s is not None:
            foreign_ms, self._foreign_s = at_ms - round((time.monotonic() - self._foreign_s) * 1000), None
        self._status = msgspec.structs.replace(
            self._status,
            **self._counts,
            **self._facts,
            at_ms=at_ms,
            hints=hints is not None and hints.listening and not self._facts["note"],
            lag_ms=None if lag_ms is None else round(lag_ms, 1),
            queue=0 if hints is None else hints.queue,
            kept=self._memory.kept_count(),
            failed=len(self._failing),
            sweeping=None if sweep is None else min(1.0, sweep.done_keys / max(1, sweep.total_keys)),
            sweep_found=self._found[1] if self._found[0] == self._status.sweeps - 1 else 0,
            foreign_writes_at_ms=foreign_ms,
        )
        names = self._names
        endpoint.select(names.db)
        raw, told = endpoint.pipeline([("GET", names.state), ("GET", names.mirror)])
        other = decode_status(told)
        if other is not None and other.token != self._token:
            raise OperatorBusy(f"another mirror is at work with this migration: {other.by}", hint="one is enough")
        endpoint.call("SET", names.mirror, msgspec.json.encode(self._status), "PX", ALIVE_MS)
        self.on_status(self._status)
        assert self._settler.fence is not None
        if raw != self._settler.fence.raw:
            self._face_again()

    # The end

    def _end(self) -> None:
        endpoint = self._endpoint
        if endpoint is None or endpoint.closed:
            return
        self._publish(self._status.lag_ms)
        if self._ledger_path is not None:
            try:
                fold(self._memory, self._ledger_path, self._plan, endpoint)
            except LedgerBusy:
                pass  # a backfill is at work: the next mirror, or the next command that folds, tells it

    def _tidy(self) -> None:
        """Take away what is of a mirror at work, however it ended, if the server is there."""
        endpoint = self._endpoint
        if endpoint is None or endpoint.closed or not self._claimed:
            return
        try:
            notify.restore(endpoint, self._memory)
            endpoint.select(self._plan.source_dbs()[0])
            endpoint.pipeline([("UNWATCH",), ("UNLINK", self._beat)])
            endpoint.select(self._names.db)
            other = decode_status(endpoint.call("GET", self._names.mirror))
            if other is not None and other.token == self._token:
                endpoint.call("UNLINK", self._names.mirror)
        except EndpointError:
            pass  # both go by themselves

    def _drop(self) -> None:
        self._bigs.close()
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None


def fold(memory: Memory, ledger_path: Path, plan: Plan, endpoint: Endpoint) -> int:
    """Tell the migration's ledger what was mirrored; return how many pairs. Raises LedgerBusy, LedgerUnusable."""
    with Ledger.open(ledger_path) as ledger:
        ledger.bind(plan, address=endpoint.address, run_id=endpoint.run_id)
        ledger.begin_run("mirror")
        done = memory.fold(ledger)
        ledger.end_run()
        return done
