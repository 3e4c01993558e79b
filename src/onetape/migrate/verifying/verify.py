"""Verify: a second, independent reading of every key, in both directions, and what it proves.

Source to target: every key that a rule matches must be in the target with equal content, type and absolute
expiry, and its ticks and bars on the tape. Target to source: every target key that a rule could have written
must have its source, or a reason in the ledger. What differs is looked at again, in rounds with a pause, so that
live writers settle; what still differs is explained by the ledger, or not proven.

Nothing is written: the endpoint may be one that cannot. Memory does not grow with the number of keys, only with
that of differences, of which at most 100,000 are followed.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from itertools import groupby

from onetape.migrate.copying.decide import DIGEST_OPEN, MERGED_INTO, SLACK_BEFORE_7_MS
from onetape.migrate.keys import content, dump
from onetape.migrate.ledger.entry import NO_TICKS, NOT_LANDED, REENCODED, Entry, Outcome
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.plans.origin import Origin, Origins
from onetape.migrate.plans.plan import Matcher, Plan, Rule
from onetape.migrate.verifying.pairs import NO_SOURCE, Batch, Checker
from onetape.migrate.verifying.scan import Pages
from onetape.migrate.verifying.sealing import Sealer
from onetape.migrate.verifying.verdict import FINE, LISTED, Finding, Found, Verification, verdict_of
from onetape.migrate.wire.endpoint import Endpoint, pack
from onetape.migrate.wire.line import Line, Ticket
from onetape.tape import Tape

#: Told as the verify goes on: keys looked at so far, and about how many there are.
Progress = Callable[[int, int], None]

#: Whether a target, by its database and name, was there before our clients wrote both sides.
WasThere = Callable[[int, bytes], bool]

_BY_WHOM = (
    "both sides were written for a while, so that the ledger cannot tell which is newer: "
    "migrate start carries it over, or verify --repair --replace-newer"
)
_AGAIN = 1000
_LOOKS_AT_EXTRA = 3
#: Requests that the server has besides the one whose answer is worked on here.
_AHEAD = 1
_OPEN_MAX = 100_000
_STATE = b"onetape:migration:"  # of a live migration
_OURS = b"onetape:"  # temporary keys of a copy or a merge that was killed


def verify(
    endpoint: Endpoint,
    plan: Plan,
    ledger: Ledger | None = None,
    *,
    tape: Tape | None = None,
    rounds: int = 3,
    pause_s: float = 1.0,
    sample: int | None = None,
    on_progress: Progress | None = None,
    in_server: bool = True,
    listed_max: int = 100,
    sealing: Ledger | None = None,
    was_there: WasThere | None = None,
) -> Verification:
    """Compare every key that `plan` moves with its place, and return what that proves.

    `tape`: also check that ticks and bars are on it. `rounds`: how often at most a difference is looked at,
    `pause_s` apart. `sample`: only that many keys of each source database, and only from source to target.
    `in_server`: let the server decide equality by a script where it can. `listed_max`: differences and skips
    put in words. `sealing`: a ledger in a run, to be told what equal pairs hold. `was_there`: whether a target was
    there before both sides were written for a while; None where they never were, or are now. Raises EndpointError,
    LedgerUnusable.
    """
    started = time.monotonic()
    sealer = None if sealing is None else Sealer(endpoint, plan, sealing)
    run = _Run(endpoint, plan, Checker(endpoint, plan, tape, in_server, sealer), on_progress, sealer, was_there)
    for db in plan.source_dbs():
        run.sweep(db, sample)
    if sample is None:
        run.sweep_target()
    made = 1
    while made < rounds and run.unsettled():
        time.sleep(pause_s)
        run.look_again()
        made += 1
    if sealer is not None:
        sealer.finish(complete=sample is None)
    if ledger is not None:
        run.explain(ledger, tape is not None and sample is None)
    return run.result(made, time.monotonic() - started, listed_max, sample is not None)


#: Source database → (target, source key, rule).
_Wanted = dict[int, list[tuple[bytes, bytes, Rule]]]


def _exist(wanted: _Wanted) -> tuple[bytes, int]:
    """Return what asks how many of the source keys are there, two answers a database."""
    packed = [
        pack("SELECT", db) + pack("EXISTS", *[key for _target, key, _rule in items]) for db, items in wanted.items()
    ]
    return b"".join(packed), 2 * len(packed)


def _holds(state: tuple[bytes | None, int], stands: bytes | None, expire_ms: int, slack_ms: int) -> bool:
    payload, expires_ms = state
    # A server before 7.0 tells the time left only.
    return payload is not None and abs(expires_ms - expire_ms) <= slack_ms and dump.holds(stands, payload)


class _Run:
    def __init__(
        self,
        endpoint: Endpoint,
        plan: Plan,
        checker: Checker,
        on_progress: Progress | None,
        sealer: Sealer | None = None,
        was_there: WasThere | None = None,
    ) -> None:
        self._was_there = was_there
        self._endpoint = endpoint
        self._line = Line(endpoint)
        self._sealer = sealer
        self._plan = plan
        self._checker = checker
        self._on_progress = on_progress
        self._counts: dict[str, Counter[Finding]] = {step: Counter() for step in plan.steps}
        self.open: dict[tuple[int, bytes], Found] = {}
        self._listed: list[Found] = []
        self._unlisted = self._checked = self._unmatched = self._target_keys = self._done = 0
        self._in_place = plan.matcher(plan.target_db)
        self._total = self._count_keys()

    def sweep(self, db: int, sample: int | None) -> None:
        """Look at every key of a source database once.

        While the server compares some pages and scans for the next, the one that came is matched to the plan here,
        so that neither waits for the other.
        """
        pages, matcher = Pages(self._line, db, self._plan.scan_glob(db)), self._plan.matcher(db)
        left = sample
        asked: deque[tuple[Batch, Ticket | None]] = deque()
        while left != 0 and (keys := pages.next()) is not None:
            found, typed = self._matched(db, matcher, keys)
            if typed:
                self._line.settle()
                found += self._of_type(db, matcher, typed)
            batch = self._checker.batch(db, found if left is None else found[:left])
            left = None if left is None else left - len(batch.found)
            request = self._checker.request(batch)
            asked.append((batch, None if request is None else self._line.send(*request)))
            if len(asked) > _AHEAD:
                self._finish(*asked.popleft())
        while asked:
            self._finish(*asked.popleft())
        self._line.settle()
        if self._sealer is not None:
            self._sealer.read_waiting()

    def _finish(self, batch: Batch, ticket: Ticket | None) -> None:
        replies = None if ticket is None else self._line.take(ticket)
        plain = replies is not None and self._checker.needs_no_more(batch, replies)
        if not plain:
            self._line.settle()
        self._checker.finish(batch, replies)
        if plain and not self.open:  # nearly always, and nothing to be remembered of any
            for step, number in Counter([one.rule.step for one in batch.found]).items():
                self._counts[step][Finding.EQUAL] += number
        else:
            for one in batch.found:
                self._note(one)
        self._checked += len(batch.found)
        if self._sealer is not None and len(self._sealer.waiting) >= _AGAIN:
            self._line.settle()
            self._sealer.read_waiting()

    def _matched(self, db: int, matcher: Matcher, keys: list[bytes]) -> tuple[list[Found], list[bytes]]:
        """Return the keys that a rule takes whatever their type, and those whose type decides."""
        found, typed = [], []
        for key in keys:
            match = matcher.match(key)
            if match is None:
                self._unmatched += 1
            elif match[1].types:
                typed.append(key)
            else:
                found.append(Found(db, key, match[2], match[1]))
        self._progress(len(keys))
        return found, typed

    def _of_type(self, db: int, matcher: Matcher, keys: list[bytes]) -> list[Found]:
        if not keys:
            return []
        found = []
        self._endpoint.select(db)
        for key, kind in zip(keys, self._endpoint.pipeline([("TYPE", key) for key in keys]), strict=True):
            match = matcher.match_type(key, kind.decode())
            if match is not None:
                found.append(Found(db, key, match[2], match[1]))
            elif kind != b"none":
                self._unmatched += 1
        return found

    def sweep_target(self) -> None:
        """Look for keys of the target that a rule could have written, and that have no source."""
        origins = Origins(self._plan)
        pages = Pages(self._line, self._plan.target_db, None)
        asked: deque[tuple[_Wanted, Ticket]] = deque()
        while (keys := pages.next()) is not None:
            wanted: _Wanted = {}
            for target in keys:
                if target.startswith(_OURS):
                    if target.startswith(_STATE):
                        continue
                    leftover = Found(self._plan.target_db, target, target, self._plan.rules[0])
                    leftover.finding, leftover.told = Finding.EXTRA, "left by a run that was killed"
                    self._note(leftover)
                found = origins.of(target)
                if len(found) == 1 and (key := found[0].key) is not None:
                    db, rule = found[0].source_db, found[0].rule
                    if db in wanted:
                        wanted[db].append((target, key, rule))
                    else:
                        wanted[db] = [(target, key, rule)]
                    continue
                if any(key is None for _db, key, _rule in found):
                    self._line.settle()
                    self._merged_stream(target, found)
                    continue
                for db, key, rule in found:
                    if key is not None:
                        wanted.setdefault(db, []).append((target, key, rule))
            self._target_keys += len(keys)
            self._progress(len(keys))
            asked.append((wanted, self._line.send(*_exist(wanted))))
            if len(asked) > _AHEAD:
                self._sourced(*asked.popleft())
        while asked:
            self._sourced(*asked.popleft())
        self._line.settle()

    def _sourced(self, wanted: _Wanted, ticket: Ticket) -> None:
        """Note those of the wanted that are not there, unless all are."""
        there = self._line.take(ticket)[1::2]
        if there != [len(items) for items in wanted.values()]:
            self._line.settle()
            self._without_source(wanted)

    def _merged_stream(self, target: bytes, origins: list[Origin]) -> None:
        """Look at a stream that ticks are merged into: as a whole, once."""
        copied = [origin for origin in origins if origin.key is not None]
        in_place = self._in_place.match_type(target, "stream")  # it is its own source
        has_source = in_place is not None and in_place[2] == target and in_place[1].kind != "hash_ticks"
        for db, key, _rule in copied:
            self._endpoint.select(db)
            has_source = has_source or bool(key is not None and self._endpoint.call("EXISTS", key))
        named = (copied or origins)[0]
        found = Found(named.source_db, named.key or target, target, named.rule, once=True)
        if self._checker.merged_stream(found, has_source):
            self._note(found)

    def _without_source(self, wanted: dict[int, list[tuple[bytes, bytes, Rule]]]) -> None:
        sourced: set[bytes] = set()
        unsourced: dict[bytes, Found] = {}
        for db, items in wanted.items():
            self._endpoint.select(db)
            if self._endpoint.call("EXISTS", *(key for _target, key, _rule in items)) == len(items):
                sourced.update(target for target, _key, _rule in items)
                continue
            replies = self._endpoint.pipeline([("EXISTS", key) for _target, key, _rule in items])
            for (target, key, rule), there in zip(items, replies, strict=True):
                if there:
                    sourced.add(target)
                else:
                    unsourced[target] = Found(db, key, target, rule, Finding.EXTRA, NO_SOURCE)
        left = [extra for target, extra in unsourced.items() if target not in sourced]
        for _look in range(_LOOKS_AT_EXTRA):
            left = self._still_extra(left)
        for extra in left:
            self._note(extra)

    def _still_extra(self, found: list[Found]) -> list[Found]:
        """Return those whose target is there and whose source is not: a writer of both sides may have come between."""
        if not found:
            return []
        self._endpoint.select(self._plan.target_db)
        there = self._endpoint.pipeline([("EXISTS", one.target) for one in found])
        found = [one for one, exists in zip(found, there, strict=True) if exists]
        left: list[Found] = []
        for db in dict.fromkeys(one.source_db for one in found):
            some = [one for one in found if one.source_db == db]
            self._endpoint.select(db)
            sources = self._endpoint.pipeline([("EXISTS", one.key) for one in some])
            left += [one for one, exists in zip(some, sources, strict=True) if not exists]
        return left

    def unsettled(self) -> list[Found]:
        """Return the open differences that another look could settle."""
        return [found for found in self.open.values() if found.finding is not Finding.EXTRA and not found.once]

    def look_again(self) -> None:
        """Check the open differences once more."""
        again = self.unsettled()
        again.sort(key=lambda found: found.source_db)
        for db, group in groupby(again, key=lambda found: found.source_db):
            members = list(group)
            for at in range(0, len(members), _AGAIN):
                batch = members[at : at + _AGAIN]
                for found in batch:
                    self._counts[found.rule.step][found.finding] -= 1
                    del self.open[db, found.key]
                self._checker.finish(self._checker.batch(db, batch))
                for found in batch:
                    self._note(found)

    def explain(self, ledger: Ledger, of_tape: bool) -> None:
        """Find the reasons for open differences in the ledger: one reading of it, if there are any.

        And list the equal streams of which it says that some entries are no ticks: only it knows, for what was
        landed is not decoded again.
        """
        if of_tape:
            self._list_no_ticks(ledger)
        if not self.open:
            return
        began_ns = max((run.started_ns for run in ledger.runs() if run.command == "backfill"), default=None)
        for found in self.open.values():
            if found.event_ns is not None and began_ns is not None and found.event_ns > began_ns:
                self._explained(found, Finding.LATER, "its ticks came after the last backfill")
        newest: dict[tuple[int, bytes], Entry] = {}
        copied: dict[tuple[int, bytes], Entry] = {}
        unsourced = {found.target: found for found in self.open.values() if found.once and found.told == NO_SOURCE}
        for entry in ledger.entries():
            if entry.target in unsourced and entry.outcome in (Outcome.COPIED, Outcome.UNCHANGED):
                found = unsourced.pop(entry.target)
                self._explained(found, Finding.SOURCE_GONE, "the keys that were merged into it are no more")
            place = (entry.source_db, entry.key)
            if (entry.error or "").startswith((NO_TICKS, NOT_LANDED)):
                continue  # of the landing: it says nothing of the copy
            if place in self.open and entry.settled_ns is not None:
                newest[place] = entry
                if entry.written is not None:
                    copied[place] = entry
        for place, entry in newest.items():
            found = self.open[place]
            finding, told = self._reason(found, entry, copied.get(place))
            if finding is not None:
                self._explained(found, finding, told)
            elif entry.error:
                found.told += f"; the ledger says {entry.outcome}: {entry.error}"

    def _list_no_ticks(self, ledger: Ledger) -> None:
        known = {(found.source_db, found.key) for found in self._listed}
        for entry in ledger.notes():
            place, rule = (entry.source_db, entry.key), self._plan.rules[entry.rule]
            if rule.kind != "ticks" or place in known or place in self.open:
                continue
            known.add(place)
            self._endpoint.select(entry.source_db)
            if not self._endpoint.call("EXISTS", entry.key) or not self._counts[rule.step][Finding.EQUAL]:
                continue
            self._counts[rule.step][Finding.EQUAL] -= 1
            told = (entry.error or "").removeprefix(NO_TICKS)
            self._note(Found(*place, entry.target, rule, Finding.NOT_A_TICK, told))

    def _explained(self, found: Found, finding: Finding, told: str) -> None:
        self._counts[found.rule.step][found.finding] -= 1
        self._counts[found.rule.step][finding] += 1
        found.finding, found.told = finding, told

    def _reason(self, found: Found, newest: Entry, copied: Entry | None) -> tuple[Finding | None, str]:
        if found.finding is Finding.EXTRA:
            if newest.outcome in (Outcome.COPIED, Outcome.UNCHANGED):
                return Finding.SOURCE_GONE, "was copied; the source is no more"
            return None, ""
        if found.finding is Finding.DIFFERS and newest.error == DIGEST_OPEN:
            return None, ""
        if found.finding is Finding.DIFFERS and newest.outcome is Outcome.NEWER_TARGET_KEPT:
            theirs = self._was_there is None or self._was_there(self._plan.target_db, found.target)
            if newest.error is None and not theirs:
                found.told += f"; {_BY_WHOM}"
                return None, ""
            return Finding.NEWER_TARGET_KEPT, newest.error or "somebody newer wrote the target"
        if newest.outcome is Outcome.SKIPPED:
            return Finding.SKIPPED, newest.error or "skipped"
        if found.finding in (Finding.DIFFERS, Finding.CHANGING) and copied is not None:
            slack_ms = 0 if self._endpoint.has_expire_time else SLACK_BEFORE_7_MS
            source = self._state(found.source_db, found.key)
            target = self._state(self._plan.target_db, found.target)
            as_written = _holds(target, copied.written, copied.expire_ms, slack_ms)
            if as_written and copied.read != copied.written and copied.error != REENCODED:
                return Finding.NEWER_TARGET_KEPT, MERGED_INTO
            if as_written and not _holds(source, copied.read, copied.expire_ms, slack_ms):
                return Finding.STALE, "the target is as it was copied; the source was written since"
        return None, ""

    def _state(self, db: int, key: bytes) -> tuple[bytes | None, int]:
        self._endpoint.select(db)
        payload = self._endpoint.call("DUMP", key)
        return (payload if isinstance(payload, bytes) else None), content.expiry(self._endpoint, key)

    def result(self, rounds: int, seconds: float, listed_max: int, sampled: bool) -> Verification:
        """Return what was found, with the first of it in words."""
        open_now = list(self.open.values())
        bad = [found for found in open_now if found.finding not in LISTED]
        listed = self._listed + [found for found in open_now if found.finding in LISTED]
        for found in bad[:listed_max]:
            if found.finding is Finding.DIFFERS:
                self._checker.detail(found)
        counts = {
            step: {str(finding): number for finding, number in found.items() if number}
            for step, found in self._counts.items()
        }
        unlisted = self._unlisted + max(0, len(bad) - listed_max) + max(0, len(listed) - listed_max)
        return Verification(
            verdict=verdict_of(counts),
            counts=counts,
            differences=[found.line() for found in bad[:listed_max]],
            skips=[found.line() for found in listed[:listed_max]],
            unlisted=unlisted,
            checked=self._checked,
            unmatched=self._unmatched,
            target_keys=self._target_keys,
            rounds=rounds,
            seconds=seconds,
            sampled=sampled,
        )

    def _note(self, found: Found) -> None:
        if (found.source_db, found.key) in self.open:
            return  # SCAN gave it twice
        self._counts[found.rule.step][found.finding] += 1
        if found.finding in FINE:
            return
        if found.finding in LISTED and found.finding is not Finding.EXTRA:
            if len(self._listed) < _OPEN_MAX:
                self._listed.append(found)
            else:
                self._unlisted += 1
        elif len(self.open) < _OPEN_MAX:
            self.open[found.source_db, found.key] = found
        else:
            self._unlisted += 1

    def _count_keys(self) -> int:
        total = 0
        for db in (*self._plan.source_dbs(), self._plan.target_db):
            self._endpoint.select(db)
            total += int(self._endpoint.call("DBSIZE"))
        return total

    def _progress(self, keys: int) -> None:
        self._done += keys
        if self._on_progress is not None:
            self._on_progress(self._done, max(self._total, self._done))
