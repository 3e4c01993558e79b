"""The unmerging: ticks that were merged into streams are taken out again, while they are somewhere else too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from onetape.migrate.landing.hash_ticks import HashTickReader
from onetape.migrate.landing.merge import merged_identity
from onetape.migrate.phases.undone import Hand, Undone
from onetape.migrate.plans.origin import Origins
from onetape.migrate.plans.plan import OURS, Plan
from onetape.migrate.verifying.scan import Scan
from onetape.migrate.wire.endpoint import Endpoint
from onetape.tape import Tape

_PAGE = 1000

ELSEWHERE = "ticks in it are nowhere else: their hashes were written since, and the tape does not have them"
OTHERS = "somebody else's entries are in it: only ours were taken out"
GROUPS = "it has consumer groups: only our entries were taken out"


class Unmerge:
    """Takes merged ticks out of streams by `hand`; `done` is told of each stream.

    `is_copy`: whether a stream was copied as well: then it is looked at as one.
    """

    def __init__(
        self,
        reader: Endpoint,
        plan: Plan,
        tape: Tape | None,
        hand: Hand,
        done: Undone,
        is_copy: Callable[[bytes], bool],
        check: Callable[[], None],
    ) -> None:
        self._reader = reader
        self._plan = plan
        self._tape = tape
        self._hand = hand
        self._done = done
        self._is_copy = is_copy
        self._check = check
        self._of_sources: set[bytes] | None = None

    def run(self) -> None:
        """Look at all streams that hold merged ticks alone, or beside somebody else's entries."""
        if not any(rule.kind == "hash_ticks" and not rule.skip for rule in self._plan.rules):
            return
        origins, in_place = Origins(self._plan), self._plan.matcher(self._plan.target_db)
        scan = Scan(self._reader, self._plan.target_db, None)
        while not scan.done:
            for key in scan.first():
                found = origins.of(key)
                copies = [(one.source_db, one.key) for one in found if one.key is not None]
                if len(copies) < len(found) and not key.startswith(OURS) and not self._any_there(copies):
                    self._check()
                    self._merged_stream(key, own=in_place.match(key) is not None, pure=not copies)

    def _any_there(self, places: list[tuple[int, bytes]]) -> bool:
        """Return whether one of the streams is there that the stream could be a copy of: then it is met as its twin."""
        for db, key in places:
            self._reader.select(db)
            if self._reader.call("EXISTS", key):
                return True
        return False

    def _merged_stream(self, stream: bytes, *, own: bool, pure: bool) -> None:
        db = self._plan.target_db
        self._hand.watch([stream])
        self._reader.select(db)
        if self._reader.call("TYPE", stream) != b"stream":
            return
        merged, others = self._entries(stream)
        if not merged or (others and not pure and self._is_copy(stream)):
            return
        if self.nowhere_else(stream):
            self._done.add("kept", db, stream, ELSEWHERE)
            return
        groups = self._reader.call("XINFO", "GROUPS", stream)
        if others or groups or own:
            self._take_out(stream, merged, others)
        elif self._hand.remove([stream]):
            self._done.add("removed", db, stream)
            self._done.entries += len(merged)
        else:
            self._done.add("failed", db, stream, "it was written meanwhile: run it again")

    def _take_out(self, stream: bytes, merged: list[bytes], others: int) -> None:
        db = self._plan.target_db
        if self._hand.write:
            self._hand.endpoint.call("UNWATCH")  # entries of ours are ours, whatever is added meanwhile
            self._hand.endpoint.select(db)
            for at in range(0, len(merged), _PAGE):
                self._hand.endpoint.call("XDEL", stream, *merged[at : at + _PAGE])
        self._done.entries += len(merged)
        self._done.add("kept", db, stream, OTHERS if others else GROUPS)

    def _entries(self, stream: bytes) -> tuple[list[bytes], int]:
        """Return the ids of merged entries, and how many others there are."""
        merged: list[bytes] = []
        others = 0
        for page in self._stream(stream):
            for id, fields in page:
                if merged_identity(fields) is None:
                    others += 1
                else:
                    merged.append(id)
        return merged, others

    def _stream(self, stream: bytes) -> Iterator[list[Any]]:
        start = b"-"
        while True:
            self._reader.select(self._plan.target_db)
            page = self._reader.call("XRANGE", stream, start, "+", "COUNT", _PAGE)
            if not page:
                return
            yield page
            start = b"(" + page[-1][0]

    def nowhere_else(self, stream: bytes) -> bool:
        """Return whether a merged tick of the stream is neither in its hash any more nor on the tape."""
        sources: set[bytes] | None = None
        for page in self._stream(stream):
            identities = [found for _id, fields in page if (found := merged_identity(fields)) is not None]
            if identities and self._tape is not None:
                known = self._tape.has_ids(identities)
                identities = [one for one, there in zip(identities, known, strict=True) if not there]
            if not identities:
                continue
            if sources is None:
                sources = self._identities_of_sources()
            if not sources.issuperset(identities):
                return True
        return False

    def _identities_of_sources(self) -> set[bytes]:
        """Return the identities of all ticks that are in hashes now."""
        if self._of_sources is not None:
            return self._of_sources
        found: set[bytes] = set()
        for index, rule in enumerate(self._plan.rules):
            if rule.kind != "hash_ticks" or rule.skip:
                continue
            matcher = self._plan.matcher(rule.source_db)
            scan = Scan(self._reader, rule.source_db, self._plan.scan_glob(rule.source_db))
            while not scan.done:
                keys = [key for key in scan.first() if (hit := matcher.match(key)) is not None and hit[0] == index]
                ticks, _ = HashTickReader(self._reader, self._plan.timezone).read(keys, rule.source_db, rule)
                found.update(tick.identity for tick in ticks if not tick.gone and tick.why is None)
        self._of_sources = found
        return found


__all__ = ["ELSEWHERE", "Unmerge"]
