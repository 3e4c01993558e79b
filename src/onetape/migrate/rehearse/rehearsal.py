"""The rehearsal itself: load, measure a quiet run, take it back; then all phases under kills and live writers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from onetape.embedded import EmbeddedServer
from onetape.errors import OnetapeError
from onetape.migrate.keys import content
from onetape.migrate.migration import Migration
from onetape.migrate.phases.phase import Phase
from onetape.migrate.phases.state import Names, load
from onetape.migrate.plans.plan import OURS, Plan
from onetape.migrate.rehearse import original
from onetape.migrate.rehearse.child import Task, Told
from onetape.migrate.rehearse.estimate import BigKey, Estimate, biggest, estimate
from onetape.migrate.rehearse.writers import Counted, Writers
from onetape.migrate.watching.status import PlanCheck
from onetape.migrate.wire.endpoint import Endpoint, parse_info

#: Where each command is killed, in turn; a point that it does not pass is told as not reached.
KILLS: dict[str, tuple[str, ...]] = {
    "start": ("state_intended", "state_changed"),
    "backfill": (
        "slicing", "read", "intended", "acted", "recorded", "intended:2", "acted:2", "recorded:2", "landed", "merged",
    ),
    "switch_reads": ("state_intended", "state_changed"),
    "cutover": ("state_intended", "state_changed", "cut_over"),
    "rollback": ("sides_taken", "state_intended", "state_changed", "carried_over", "reversed"),
    "finish": ("sides_taken", "state_intended", "state_changed", "unlinked"),
    "undo": ("unlinked", "put_back", "undone"),
}  # fmt: skip
_STEP_TIMEOUT_S = 3600.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a rehearsal runs.

    `scale`: of a server, copy one key in so many, and multiply the estimate. `keys_per_s_paced`: the rate for the slow
    estimate. `kills`: whether commands are killed. `writers`: whether clients write meanwhile.
    """

    scale: int = 1
    keys_per_s_paced: float = 20_000.0
    kills: bool = True
    writers: bool = True


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one command. `killed`: at which point, "" where it was let end. `reached`: whether it came to it."""

    command: str
    killed: str
    reached: bool
    code: int
    seconds: float
    told: str


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """What a rehearsal found. `problems`: everything that speaks against the real run, [] for none."""

    plan: str
    plan_hash: str
    source: str
    server: str
    loaded: original.Loaded
    seconds: float
    estimate: Estimate | None
    biggest: tuple[BigKey, ...]
    unmatched: dict[str, int]
    warnings: tuple[str, ...]
    done: tuple[Done, ...]
    kills: int
    counted: Counted | None
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Return whether all phases went forward and back, and nothing was lost."""
        return not self.problems

    @property
    def exit_code(self) -> int:
        """Return 0 where it passed, 2 where the plan or the data are refused before anything is written, else 1."""
        return 0 if self.passed else 2 if self.estimate is None else 1

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**msgspec.to_builtins(self), "passed": self.passed, "exit_code": self.exit_code}


class Stopped(Exception):
    """A command failed, so that those after it would say nothing."""


def rehearse(
    plan_source: str,
    place: Path,
    *,
    rdb: Path | None = None,
    url: str = "",
    target_db: int | None = None,
    options: Options | None = None,
    on_step: Callable[[str], None] = lambda told: None,
) -> Rehearsal:
    """Rehearse a migration in the empty directory `place` and return what was found.

    `plan_source`: a plan's file or name. The original is the RDB file `rdb` or, on a connection that cannot write, the
    server `url`; it is not changed. `on_step`: told of each step as it begins. Raises PlanInvalid, ConfigInvalid,
    EndpointError where the original cannot be had; what goes wrong afterwards is in `problems`.
    """
    plan = Plan.load(plan_source)
    if target_db is not None:
        plan = plan.with_target(target_db)
    began_s = time.monotonic()
    on_step("loading")
    server = original.server_for(plan, rdb)
    try:
        if rdb is not None:
            with Endpoint.connect(server.url) as endpoint:
                loaded = original.Loaded(source=str(rdb), keys=original.count(endpoint, plan))
                _clear_ours(endpoint, plan)
        else:
            loaded = original.copy(url, server.url, plan, every=(options or Options()).scale)
        run = _Run(server, plan, plan_source, place, options or Options(), on_step)
        return run.all(loaded, began_s)
    finally:
        server.stop()


def _clear_ours(endpoint: Endpoint, plan: Plan) -> None:
    """Remove what an earlier migration left on the copy: this one begins from the start."""
    endpoint.select(plan.target_db)
    cursor = b"0"
    while True:
        cursor, keys = endpoint.call("SCAN", cursor, "MATCH", OURS + b"*", "COUNT", 1000)
        if keys:
            endpoint.call("UNLINK", *keys)
        if cursor == b"0":
            return


class _Run:
    def __init__(
        self,
        server: EmbeddedServer,
        plan: Plan,
        plan_source: str,
        place: Path,
        options: Options,
        on_step: Callable[[str], None],
    ) -> None:
        self._server = server
        self._plan = plan
        self._plan_source = plan_source
        self._place = place
        self._options = options
        self._on_step = on_step
        self._series = "quiet"
        self._done: list[Done] = []
        self._problems: list[str] = []
        self._took: dict[str, float] = {}

    def all(self, loaded: original.Loaded, began_s: float) -> Rehearsal:
        check: PlanCheck | None = None
        counted: Counted | None = None
        found: Estimate | None = None
        big: tuple[BigKey, ...] = ()
        if loaded.refused:
            self._problems.append(f"{loaded.refused:,} keys could not be loaded: {'; '.join(loaded.first_refused[:3])}")
        try:
            check = self._check()
            with Endpoint.connect(self._server.url, writable=False) as endpoint:
                big = biggest(endpoint, self._plan)
            before, peak = self._quiet()
            found = estimate(
                keys=check.keys_total, bytes_to_copy=check.bytes_to_copy, before=before, peak=peak, took=self._took,
                paced=self._options.keys_per_s_paced, steps=check.steps, scale=self._options.scale,
            )  # fmt: skip
            counted = self._under_fire()
        except Stopped as stopped:
            self._problems.append(str(stopped))
        except OnetapeError as error:
            self._problems.append(str(error))
        plan = self._plan
        return Rehearsal(
            plan=plan.name,
            plan_hash=plan.hash,
            source=loaded.source,
            server=self._server.binary.name,
            loaded=loaded,
            seconds=round(time.monotonic() - began_s, 1),
            estimate=found,
            biggest=big,
            unmatched={} if check is None else {str(db): keys.count for db, keys in check.unmatched.items()},
            warnings=() if check is None else check.warnings,
            done=tuple(self._done),
            kills=sum(1 for one in self._done if one.killed and one.reached),
            counted=counted,
            problems=tuple(self._problems),
        )

    def _check(self) -> PlanCheck:
        self._on_step("holding the plan against the keys")
        check = Migration(self._server.url, plan=self._plan, ledger_path=self._place / "none").plan()
        if check.refusals:
            raise Stopped("a backfill would be refused: " + "; ".join(check.refusals))
        return check

    # A quiet run, measured and taken back

    def _quiet(self) -> tuple[int, int]:
        with Endpoint.connect(self._server.url) as endpoint:
            endpoint.call("CONFIG", "RESETSTAT")
            before = int(parse_info(endpoint.call("INFO", "memory"))["used_memory"])
            held = self._held(endpoint)
        self._must("start")
        self._took["backfill"] = self._must("backfill").seconds
        self._took["verify"] = self._must("verify", codes=(0, 3)).seconds
        with Endpoint.connect(self._server.url, writable=False) as endpoint:
            peak = int(parse_info(endpoint.call("INFO", "memory"))["used_memory_peak"])
        self._took["rollback"] = self._must("rollback", given={"to": str(Phase.PLANNED)}).seconds
        self._took["undo"] = self._must("undo", killed=True, codes=(0, 3)).seconds
        with Endpoint.connect(self._server.url, writable=False) as endpoint:
            if self._held(endpoint) != held:
                self._problems.append("after undo the target database was not what it had been before")
        return before, peak

    def _held(self, endpoint: Endpoint) -> int:
        """Return a number that stands for all keys of the target database but those that expire, in any order."""
        total = 0
        endpoint.select(self._plan.target_db)
        cursor, seen = b"0", set()
        while True:
            cursor, keys = endpoint.call("SCAN", cursor, "COUNT", 500)
            for key in keys:
                if key in seen or key.startswith(OURS):
                    continue
                seen.add(key)
                one = content.read_content(endpoint, key)
                if one is not None and one.expires_ms is None:
                    named = content.framed(key, one.type.encode(), one.digest)
                    total += int.from_bytes(blake2b(named, digest_size=16).digest(), "little")
            if cursor == b"0":
                return total % 2**128

    # All phases, killed at every step, while clients write

    def _under_fire(self) -> Counted | None:
        self._series = "fire"
        writers = Writers(self._server.port, self._plan)
        if not self._options.writers or not writers.keys:
            self._phases()
            return None
        with writers:
            try:
                self._phases()
            except Stopped as stopped:
                self._problems.append(str(stopped))
        self._problems += [f"a writer failed: {told}" for told in writers.errors]
        with Endpoint.connect(self._server.url, writable=False) as endpoint:
            state = load(endpoint, self._plan)
        counted = writers.check(self._server.url, new=state is not None and state.phase.new_is_truth)
        self._problems += [f"a write was lost or doubled: {told}" for told in counted.wrong]
        return counted

    def _phases(self) -> None:
        self._must("start", killed=True)
        self._must("backfill", killed=True)
        self._verified()
        self._must("switch_reads", killed=True)
        self._must("cutover", killed=True)
        self._must("rollback", killed=True, given={"to": str(Phase.READS_SWITCHED)})
        self._must("verify", codes=(0, 3))
        self._must("cutover")
        self._must("finish", killed=True, codes=(0, 3), given={"quiet_for_s": 0.0})

    def _verified(self) -> None:
        told = self._must("verify", codes=(0, 3))
        if told.code == 3:
            lines = told.facts.get("lines", [])
            self._problems += [f"verify lists a skip: {line}" for line in lines[:3] if "newer_target_kept" in line]

    # Commands

    def _must(
        self, command: str, *, killed: bool = False, codes: Sequence[int] = (0,), given: dict[str, Any] | None = None
    ) -> Told:
        """Run a command, first killed at each of its points in turn, at last to its end. Raises Stopped if it fails."""
        told: Told | None = None
        if killed and self._options.kills:
            for point in KILLS.get(command, ()):
                told = self._once(command, given or {}, point)
                if told is None:
                    self._free()
                elif command != "backfill" or told.code == 2:
                    break  # it came to its end; only a backfill can be begun again
        if told is None or command == "backfill":
            told = self._once(command, given or {}, "")
        assert told is not None
        if told.code not in codes:
            why = told.error or "; ".join(map(str, told.facts.get("errors") or told.facts.get("lines") or ()))
            raise Stopped(f"{command} ended with code {told.code}: {why}")
        return told

    def _free(self) -> None:
        """End the lease of an operator who was killed, instead of waiting for it."""
        with Endpoint.connect(self._server.url) as endpoint:
            names = Names.of(self._plan)
            endpoint.select(names.db)
            endpoint.call("UNLINK", names.operator)

    def _once(self, command: str, given: dict[str, Any], point: str) -> Told | None:
        """Run a command once; return what it told, None where it was killed as it should be."""
        self._on_step(f"{command.replace('_', '-')}" + (f", killed at {point}" if point else ""))
        tape = self._place / f"{self._series}.db"
        task = Task(
            url=self._server.url,
            plan=self._plan_source,
            target_db=self._plan.target_db,
            ledger=str(self._place / f"{self._series}.ledger"),
            tape=str(tape),
            command=command,
            given=given,
        )
        env = {name: value for name, value in os.environ.items() if name != "ONETAPE_KILL_AT"}
        if point:
            env["ONETAPE_KILL_AT"] = point
        began_s = time.monotonic()
        process = subprocess.run(
            [sys.executable, "-P", "-m", "onetape.migrate.rehearse.child", msgspec.json.encode(task).decode()],
            env=env, capture_output=True, timeout=_STEP_TIMEOUT_S, check=False,
        )  # fmt: skip
        seconds = time.monotonic() - began_s
        if process.returncode == -signal.SIGKILL:
            self._note(command, point, True, -signal.SIGKILL, seconds, "")
            return None
        try:
            told = msgspec.json.decode(process.stdout, type=Told)
        except msgspec.DecodeError:
            last = process.stderr.decode("utf-8", "backslashreplace").strip().splitlines()[-1:]
            told = Told(code=1, seconds=seconds, error=f"it ended with {process.returncode}: {' '.join(last)}")
        self._note(command, point, False, told.code, told.seconds, told.error)
        return told

    def _note(self, command: str, point: str, reached: bool, code: int, seconds: float, told: str) -> None:
        one = Done(
            command=command, killed=point, reached=reached or not point, code=code, seconds=round(seconds, 3), told=told
        )
        self._done.append(one)
