"""The listing: the keys of the source databases, each once, by step, while the databases live on.

Every database is scanned once, however many steps read from it: what a later step needs is kept in a
temporary file. SCAN may give a key twice when the server's table grows; a filter of bits tells the many keys
that are new from the few that may be repeats, and those are decided at the end of the scan against a file of
64-bit fingerprints. So memory stays flat: at most 32 MiB of bits, one page, and the few.
"""

from __future__ import annotations

import struct
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import IO, Any

import msgspec
import numpy as np

from onetape.migrate.plans.plan import Matcher, Plan
from onetape.migrate.wire.endpoint import Argument, Endpoint, ReplyError, pack

SCAN_COUNT = 1000
#: Pages that are mixed, see mixed(): 32,000 names of keys are held for it.
MIXED_PAGES = 32
#: How many unmatched keys of a database are named; all are counted.
UNMATCHED_NAMED = 1000

_FILTER_BITS_A_KEY = 32  # one key in 65 is then taken for a repeat at first
_FILTER_BITS_MAX = 2**28
_HEAD = struct.Struct("<IH")


class Page(msgspec.Struct):
    """Some keys of one source database: parallel lists of keys, targets and the rules' indexes."""

    db: int
    keys: list[bytes]
    targets: list[bytes]
    rules: list[int]


class Unmatched(msgspec.Struct):
    """Keys of a database that no rule matches: how many, and the first of them."""

    count: int
    first: list[bytes]


class Listing:
    """Lists the keys that some steps of a plan read (None: all steps).

    `total`: keys in their source databases at the start. `ahead`: nobody else uses the endpoint, so that a page can
    be asked for before it is needed. `to_watch`: the keys of a page will be watched, see mixed().
    """

    def __init__(
        self,
        endpoint: Endpoint,
        plan: Plan,
        wanted: tuple[str, ...] | None = None,
        *,
        ahead: bool = False,
        to_watch: bool = False,
    ) -> None:
        self._plan = plan
        steps = plan.steps if wanted is None else wanted
        dbs = dict.fromkeys(rule.source_db for rule in plan.rules if rule.step in steps)
        scanner = _Scanner(endpoint, ahead=ahead)
        self._sources = {db: _Source(scanner, plan, db, steps, to_watch=to_watch) for db in dbs}
        self.total = sum(source.total for source in self._sources.values())

    @property
    def unmatched(self) -> dict[int, Unmatched]:
        """The keys that no rule matches, by database, of what was scanned so far."""
        return {db: source.unmatched for db, source in self._sources.items()}

    @property
    def unmatched_count(self) -> int:
        """How many keys no rule matches, of what was scanned so far."""
        return sum(source.unmatched.count for source in self._sources.values())

    def pages(self, step: str) -> Iterator[Page]:
        """Yield the keys of a step. It may be left early: other steps find what was passed over."""
        for db in dict.fromkeys(rule.source_db for rule in self._plan.rules if rule.step == step):
            yield from self._sources[db].pages(step)

    def close(self) -> None:
        """Remove the temporary files."""
        for source in self._sources.values():
            source.close()


class _Scanner:
    """A connection that scans several databases, if it may, one page ahead of what is needed."""

    def __init__(self, endpoint: Endpoint, *, ahead: bool) -> None:
        self._endpoint = endpoint
        self._ahead = ahead
        self._asked: int | None = None  # the database whose page is on its way
        self._got: dict[int, Any] = {}

    def at(self, db: int) -> Endpoint:
        """Return the endpoint, with nothing on its way and the database selected."""
        if self._asked is not None:
            asked, self._asked = self._asked, None
            self._got[asked] = self._endpoint.receive(1)[0]
        if self._endpoint.db != db:
            self._endpoint.select(db)
        return self._endpoint

    def ask(self, db: int, scan: tuple[Argument, ...]) -> None:
        """Ask for a page that page() will want."""
        if self._ahead:
            self.at(db).send(pack(*scan))
            self._asked = db

    def page(self, db: int, scan: tuple[Argument, ...]) -> tuple[bytes, list[bytes]]:
        """Return the next cursor and the keys of a page, asked for or not."""
        endpoint = self.at(db)
        got = self._got.pop(db, None)
        if got is None or isinstance(got, ReplyError):
            got = endpoint.call(*scan)
        return got[0], got[1]


class _Source:
    """One database on its way through SCAN, with what later steps need of it."""

    def __init__(self, scanner: _Scanner, plan: Plan, db: int, wanted: tuple[str, ...], *, to_watch: bool) -> None:
        self._scanner = scanner
        self._to_watch = to_watch
        self._plan = plan
        self._db = db
        self._matcher: Matcher = plan.matcher(db)
        self._steps = [rule.step for rule in plan.rules]
        self._wanted = wanted
        self._spools: dict[str, _Spool] = {}
        self._repeats: _Repeats | None = None
        self.total = int(scanner.at(db).call("DBSIZE"))
        self._scan: Iterator[Page] | None = None
        self.unmatched = Unmatched(0, [])

    def pages(self, step: str) -> Iterator[Page]:
        spool = self._spools.get(step)
        if spool is not None:
            yield from spool.pages(self._plan, self._db)
        if self._scan is None:
            self._scan = self._matched()
        for page in self._scan:
            mine = self._of_step(page, step)
            if mine.keys:
                yield mine

    def _of_step(self, page: Page, step: str) -> Page:
        """Return what of the page belongs to the step; the rest goes to the spools of the other steps."""
        steps = self._steps
        wanted = [steps[rule] for rule in page.rules]
        if wanted.count(step) == len(wanted):
            return page
        mine = Page(self._db, [], [], [])
        for at, other in enumerate(wanted):
            if other == step:
                mine.keys.append(page.keys[at])
                mine.targets.append(page.targets[at])
                mine.rules.append(page.rules[at])
            elif other in self._wanted:
                if other not in self._spools:
                    self._spools[other] = _Spool()
                self._spools[other].put(page.keys[at], page.rules[at])
        return mine

    def _matched(self) -> Iterator[Page]:
        for keys in self._new_keys():
            yield self._match(keys)

    def _match(self, keys: list[bytes]) -> Page:
        page = Page(self._db, [], [], [])
        match, typed = self._matcher.match, []
        if not self._matcher.by_type:
            hits = self._matcher.match_all(keys)
            if None not in hits:
                return Page(self._db, keys, [hit[1] for hit in hits if hit], [hit[0] for hit in hits if hit])
        for key in keys:
            hit = match(key)
            if hit is None:
                self._miss(key)
            elif hit[1].types:
                typed.append(key)
            else:
                page.rules.append(hit[0])
                page.keys.append(key)
                page.targets.append(hit[2])
        if typed:
            self._match_types(typed, page)
        return page

    def _match_types(self, keys: list[bytes], page: Page) -> None:
        kinds = self._scanner.at(self._db).pipeline([("TYPE", key) for key in keys])
        for key, kind in zip(keys, kinds, strict=True):
            name = "none" if isinstance(kind, ReplyError) else kind.decode()
            hit = self._matcher.match_type(key, name)
            if hit is not None:
                page.rules.append(hit[0])
                page.keys.append(key)
                page.targets.append(hit[2])
            elif name != "none":  # gone meanwhile is no reason to list it
                self._miss(key)

    def _miss(self, key: bytes) -> None:
        self.unmatched.count += 1
        if len(self.unmatched.first) < UNMATCHED_NAMED:
            self.unmatched.first.append(key)

    def _new_keys(self) -> Iterator[list[bytes]]:
        self._repeats = repeats = _Repeats(self.total)
        pages = (fresh for keys in self._scanned() if (fresh := repeats.fresh(keys)))
        yield from mixed(pages) if self._to_watch else pages
        late = repeats.resolved()
        for start in range(0, len(late), SCAN_COUNT):
            yield late[start : start + SCAN_COUNT]
        repeats.close()

    def _scanned(self) -> Iterator[list[bytes]]:
        glob = self._plan.scan_glob(self._db)
        extra: tuple[Argument, ...] = () if glob is None else (b"MATCH", glob)
        cursor = b"0"
        while True:
            cursor, keys = self._scanner.page(self._db, ("SCAN", cursor, *extra, "COUNT", SCAN_COUNT))
            if cursor != b"0":
                self._scanner.ask(self._db, ("SCAN", cursor, *extra, "COUNT", SCAN_COUNT))
            if keys:
                yield keys
            if cursor == b"0":
                return

    def close(self) -> None:
        for spool in self._spools.values():
            spool.close()
        if self._repeats is not None:
            self._repeats.close()


def mixed(pages: Iterable[list[bytes]]) -> Iterator[list[bytes]]:
    """Yield all the keys of these pages again, in pages whose neighbours come from far apart.

    SCAN goes through the server's table so that the keys of a page have the low bits of their hashes in common. The
    server's small table of watched keys has the same hashes: a page watched together falls into a few of its chains,
    and every WATCH walks along one. Each page given out here has a share of each of the last pages that came in.
    """
    window: deque[list[bytes]] = deque(maxlen=MIXED_PAGES)
    out: list[bytes] = []
    for page in chain(pages, repeat([], MIXED_PAGES - 1)):
        window.appendleft(page)
        for age, held in enumerate(window):
            out += held[age::MIXED_PAGES]
        if len(out) >= SCAN_COUNT:
            yield out
            out = []
    if out:
        yield out


class _Repeats:
    """Tells keys that are new from keys that SCAN gave before."""

    def __init__(self, expected: int) -> None:
        bits = 1 << max(16, (min(_FILTER_BITS_MAX, expected * _FILTER_BITS_A_KEY) - 1).bit_length())
        self._mask = np.uint64(bits - 1)
        self._bits = np.zeros(bits // 8, np.uint8)
        self._file: IO[bytes] = _temporary()
        self._suspects: dict[int, bytes] = {}

    def fresh(self, keys: list[bytes]) -> list[bytes]:
        """Return the keys that are surely new; the others are kept for resolved()."""
        prints = np.fromiter(map(hash, keys), np.int64, len(keys))
        places = prints.view(np.uint64) & self._mask
        byte = (places >> np.uint64(3)).astype(np.int64)
        bit = np.left_shift(np.uint8(1), (places & np.uint64(7)).astype(np.uint8))
        doubtful = (self._bits[byte] & bit) != 0
        if len(set(keys)) != len(keys):  # twice in one page
            once = np.zeros(len(keys), bool)
            once[np.unique(prints, return_index=True)[1]] = True
            doubtful |= ~once
        np.bitwise_or.at(self._bits, byte, bit)
        if not doubtful.any():
            self._file.write(prints.tobytes())
            return keys
        self._file.write(prints[~doubtful].tobytes())
        for place in np.flatnonzero(doubtful):
            self._suspects[int(prints[place])] = keys[place]
        return [key for key, held in zip(keys, doubtful, strict=True) if not held]

    def resolved(self) -> list[bytes]:
        """Return, at the end of the scan, the kept keys that were new after all, each once."""
        if not self._suspects:
            return []
        prints = np.sort(np.fromiter(self._suspects, np.int64, len(self._suspects)))
        repeated = np.zeros(len(prints), bool)
        self._file.seek(0)
        while chunk := self._file.read(8 * 2**17):
            # The few are searched for the many: numpy's isin would sort the many.
            given = np.frombuffer(chunk, np.int64)
            places = np.minimum(np.searchsorted(prints, given), len(prints) - 1)
            repeated[places[prints[places] == given]] = True
        again = set(prints[repeated].tolist())
        return [key for one, key in self._suspects.items() if one not in again]

    def close(self) -> None:
        self._bits = np.zeros(0, np.uint8)  # the next database needs the room
        self._file.close()


class _Spool:
    """Keys of one step, kept on disk until the step's turn."""

    def __init__(self) -> None:
        self._file: IO[bytes] = _temporary()
        self._read_at = 0

    def put(self, key: bytes, rule: int) -> None:
        self._file.write(_HEAD.pack(len(key), rule) + key)

    def pages(self, plan: Plan, db: int) -> Iterator[Page]:
        while True:
            page = Page(db, [], [], [])
            self._file.seek(self._read_at)
            while len(page.keys) < SCAN_COUNT and (head := self._file.read(_HEAD.size)):
                size, rule = _HEAD.unpack(head)
                key = self._file.read(size)
                target = plan.rules[rule].target_of(key)
                if target is not None:
                    page.keys.append(key)
                    page.targets.append(target)
                    page.rules.append(rule)
            self._read_at = self._file.tell()
            self._file.seek(0, 2)
            if not page.keys:
                return
            yield page

    def close(self) -> None:
        self._file.close()


def _temporary() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="onetape-", buffering=2**16)


def memory_usage(endpoint: Endpoint, db: int, keys: list[bytes]) -> list[int]:
    """Return about how many bytes each key takes in the server's memory; 0 where it is gone or not told."""
    if endpoint.db != db:
        endpoint.select(db)
    packed = b"".join([b"*3\r\n$6\r\nMEMORY\r\n$5\r\nUSAGE\r\n$%d\r\n%b\r\n" % (len(k), k) for k in keys])
    return [n if n.__class__ is int else 0 for n in endpoint.exchange(packed, len(keys))]


__all__ = ["SCAN_COUNT", "Listing", "Page", "Unmatched", "memory_usage"]
