"""The content of a key: what it holds, whatever its encoding and the order in which it was filled.

DUMP bytes differ for equal sets, hashes and shrunk encodings; these digests do not. A key is read in slices,
so memory is bounded by one slice (about 4 MB) however big the key is, unless a single element is bigger.

What is compared, by type:
    string   its bytes
    list     values in order
    set      members
    zset     members with the bits of their scores
    hash     fields, values, and the absolute expiry of a field where the server has such
    stream   entries with ids and fields; last-generated-id, entries-added, max-deleted-entry-id; groups with
             last-delivered-id, entries-read, consumers, and pending entries with consumer, delivery count
             and, up to 1,000 pending entries, delivery time
    other    (modules) the DUMP
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import msgspec

from onetape import clock
from onetape.errors import EndpointError
from onetape.migrate.keys.stream_state import stream_state
from onetape.migrate.wire.endpoint import Endpoint, ReplyError

_SLICE_BYTES = 4 * 1024 * 1024
_SLICE_ELEMENTS = 5000
_UNORDERED = (b"set", b"hash")
_DETAIL_ELEMENTS = 50_000  # up to here the first difference of a set or hash is looked for
#: Type → the command that tells how much of it there is.
LENGTH = {
    b"string": "STRLEN",
    b"list": "LLEN",
    b"set": "SCARD",
    b"zset": "ZCARD",
    b"hash": "HLEN",
    b"stream": "XLEN",
}

Element = tuple[bytes, bytes]  # what names it within the key, and what it holds


class Content(msgspec.Struct, frozen=True):
    """What a key holds. Equal `type`, `length` and `digest` (16 bytes) mean equal content.

    `expires_ms` is its absolute expiry, ms since the epoch, None for a key that stays.
    """

    type: str
    length: int
    digest: bytes
    expires_ms: int | None

    def same(self, other: Content) -> bool:
        """Return whether the content is equal; the expiry is not looked at."""
        return (self.type, self.length, self.digest) == (other.type, other.length, other.digest)

    def equals(self, other: Content, slack_ms: int = 0) -> bool:
        """Return whether content and expiry are equal, the expiries within `slack_ms`."""
        if not self.same(other) or (self.expires_ms is None) != (other.expires_ms is None):
            return False
        return abs((self.expires_ms or 0) - (other.expires_ms or 0)) <= slack_ms


def read_content(endpoint: Endpoint, key: bytes) -> Content | None:
    """Return the content of a key of the selected database, None if there is none.

    Not consistent by itself when the key changes meanwhile: see read_together. Raises EndpointError.
    """
    kind, expires = endpoint.pipeline([("TYPE", key), ("PEXPIRETIME", key)])
    if kind == b"none" or isinstance(kind, ReplyError):
        return None
    if isinstance(expires, ReplyError):  # a server before 7.0
        expires = _expiry_before_7(endpoint, key)
    length = int(endpoint.call(LENGTH[kind], key)) if kind in LENGTH else 1
    digest = _digest(endpoint, key, kind, length)
    return Content(kind.decode(), length, digest, expires if expires >= 0 else None)


def read_together(
    endpoint: Endpoint, places: Sequence[tuple[int, bytes]], attempts: int = 3
) -> list[Content | None] | None:
    """Return the contents of several (database, key) as of one moment, or None if they kept changing.

    A WATCH on all of them proves that nothing changed while they were read. The endpoint is left in the
    database of the last place.
    """
    for _attempt in range(attempts):
        for db, key in places:
            endpoint.pipeline([("SELECT", db), ("WATCH", key)])
        found = []
        try:
            for db, key in places:
                endpoint.select(db)
                found.append(read_content(endpoint, key))
        except EndpointError as error:
            if not is_changed(error):
                raise
            endpoint.call("UNWATCH")
            continue
        if endpoint.pipeline([("MULTI",), ("EXEC",)])[1] is not None:
            return found
    return None


def is_changed(error: EndpointError) -> bool:
    """Return whether an error means that a key became another type, or went, while it was read."""
    code = error.facts.get("code")
    return code in ("WRONGTYPE", "NOGROUP") or (code == "ERR" and "no such key" in error.message)


def differences(source: Content | None, target: Content | None) -> str:
    """Return in one line how two contents differ, "" if they do not."""
    if source is None or target is None:
        if source is target:
            return ""
        return "missing in the target" if target is None else "missing in the source"
    found = []
    if source.type != target.type:
        found.append(f"type {source.type} against {target.type}")
    elif source.length != target.length:
        found.append(f"length {source.length:,} against {target.length:,}")
    elif source.digest != target.digest:
        found.append(f"other content in a {source.type} of the same length {source.length:,}")
    if source.expires_ms != target.expires_ms:
        found.append(f"expiry {_moment(source.expires_ms)} against {_moment(target.expires_ms)}")
    return "; ".join(found)


def first_difference(endpoint: Endpoint, source: tuple[int, bytes], target: tuple[int, bytes]) -> str:
    """Return in one line how two keys of one type differ in their first differing element, "" if unknown.

    Reads slice by slice, both sides alternately, and stops at the first difference; sets and hashes of more
    than 50,000 elements are not looked into. "" also where one of them changes its type meanwhile.
    """
    try:
        return _first_difference(endpoint, source, target)
    except EndpointError as error:
        if not is_changed(error):
            raise
        return ""


def _first_difference(endpoint: Endpoint, source: tuple[int, bytes], target: tuple[int, bytes]) -> str:
    kinds = []
    for db, key in (source, target):
        endpoint.select(db)
        kinds.append(endpoint.call("TYPE", key))
    if kinds[0] != kinds[1]:
        return ""
    kind = kinds[0]
    if kind not in LENGTH:
        return ""
    if kind in _UNORDERED and int(endpoint.call(LENGTH[kind], target[1])) > _DETAIL_ELEMENTS:
        return ""
    sides = [_in_database(endpoint, db, key, kind) for db, key in (source, target)]
    if kind in _UNORDERED:
        ours, theirs = (dict(element for page in side for element in page) for side in sides)
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                return _told(name, ours.get(name), theirs.get(name), kind == b"hash")
        return ""
    pages = [(element for page in side for element in page) for side in sides]
    while True:
        one, other = next(pages[0], None), next(pages[1], None)
        if one is None and other is None:
            return ""
        if one != other:
            if one is not None and other is not None and one[0] == other[0]:
                return _told(one[0], one[1], other[1])
            names = [_shown(element[0]) if element else "the end" for element in (one, other)]
            return f"{names[0]} against {names[1]}"


def _in_database(endpoint: Endpoint, db: int, key: bytes, kind: bytes) -> Iterator[list[Element]]:
    """Yield the pages of a key, selecting its database before each, for readers that alternate."""
    endpoint.select(db)
    pages = _pages(endpoint, key, kind, slice_of(endpoint, key, int(endpoint.call(LENGTH[kind], key))))
    while True:
        endpoint.select(db)
        page = next(pages, None)
        if page is None:
            return
        yield page


def _digest(endpoint: Endpoint, key: bytes, kind: bytes, length: int) -> bytes:
    if kind not in LENGTH:
        return blake2b(endpoint.call("DUMP", key) or b"", digest_size=16).digest()
    digester = Digester(kind)
    for page in _pages(endpoint, key, kind, slice_of(endpoint, key, length)):
        digester.add(page)
    if digester.count > length and kind in _UNORDERED:
        # Repeats: then, and only then, each element's hash is kept to count it once.
        once = {_hashed(element) for page in _pages(endpoint, key, kind, _SLICE_ELEMENTS) for element in page}
        return (sum(once) % 2**128).to_bytes(16, "little")
    return digester.digest()


class Digester:
    """The digest of a key of a known type, from its elements slice by slice.

    Ordered types: of all elements in their order. Sets and hashes: the sum of the elements' hashes, which does not
    depend on their order and needs no memory; SCAN may repeat elements, which a `count` over the length tells.
    """

    def __init__(self, kind: bytes) -> None:
        self.count = 0
        self._kind = kind
        self._ordered = blake2b(kind, digest_size=16)
        self._sum = 0

    def add(self, elements: Sequence[Element]) -> None:
        """Take the next elements."""
        self.count += len(elements)
        if self._kind in _UNORDERED:
            self._sum += sum([_hashed(element) for element in elements])
        elif self._kind == b"string":  # however it was cut
            self._ordered.update(b"".join([part for _at, part in elements]))
        else:
            self._ordered.update(b"".join([framed(name, value) for name, value in elements]))

    def digest(self) -> bytes:
        """Return 16 bytes."""
        if self._kind in _UNORDERED:
            return (self._sum % 2**128).to_bytes(16, "little")
        return self._ordered.digest()


def slice_of(endpoint: Endpoint, key: bytes, length: int) -> int:
    """Return how many elements of a key make a slice of about 4 MB."""
    used = endpoint.pipeline([("MEMORY", "USAGE", key)])[0]
    average = used // length + 1 if isinstance(used, int) and length else 1
    return max(1, min(_SLICE_ELEMENTS, _SLICE_BYTES // average))


def _pages(endpoint: Endpoint, key: bytes, kind: bytes, count: int) -> Iterator[list[Element]]:
    if kind == b"string":
        at = 0
        while part := endpoint.call("GETRANGE", key, at, at + _SLICE_BYTES - 1):
            yield [(b"byte %d" % at, part)]
            at += len(part)
    elif kind == b"list":
        at = 0
        while values := endpoint.call("LRANGE", key, at, at + count - 1):
            yield [(b"index %d" % (at + i), value) for i, value in enumerate(values)]
            at += len(values)
    elif kind == b"zset":
        at = 0
        while flat := endpoint.call("ZRANGE", key, at, at + count - 1, "WITHSCORES"):
            yield [(flat[i], struct.pack("<d", float(flat[i + 1]))) for i in range(0, len(flat), 2)]
            at += len(flat) // 2
    elif kind == b"set":
        for members in _scan(endpoint, "SSCAN", key, count):
            yield [(member, b"") for member in members]
    elif kind == b"hash":
        for flat in _scan(endpoint, "HSCAN", key, count):
            yield _hash_page(endpoint, key, flat)
    else:
        yield from _stream_pages(endpoint, key, count)


def _scan(endpoint: Endpoint, command: str, key: bytes, count: int) -> Iterator[list[bytes]]:
    cursor = b"0"
    while True:
        cursor, flat = endpoint.call(command, key, cursor, "COUNT", count)
        yield flat
        if cursor == b"0":
            return


def _hash_page(endpoint: Endpoint, key: bytes, flat: list[bytes]) -> list[Element]:
    names, values = flat[::2], flat[1::2]
    if names and has_field_expiry(endpoint):
        times = endpoint.pipeline([("HPEXPIRETIME", key, "FIELDS", len(names), *names)])[0]
        if isinstance(times, list):
            return [(n, framed(v, b"%d" % t)) for n, v, t in zip(names, values, times, strict=True)]
    return [(n, framed(v, b"-1")) for n, v in zip(names, values, strict=True)]


def has_field_expiry(endpoint: Endpoint) -> bool:
    """Return whether fields of a hash can expire on this server."""
    """Return whether the server's hashes have fields that expire."""
    return endpoint.version >= ((9, 0) if endpoint.server == "valkey" else (7, 4))


def _stream_pages(endpoint: Endpoint, key: bytes, count: int) -> Iterator[list[Element]]:
    start = b"-"
    while entries := endpoint.call("XRANGE", key, start, "+", "COUNT", count):
        yield [(entry_id, framed(*fields)) for entry_id, fields in entries]
        start = b"(" + entries[-1][0]
    state = stream_state(endpoint, key)
    if state is not None:  # before 7.0 streams had no counters: then they are not compared
        yield (state if endpoint.has_expire_time else state.uncounted()).elements()


def framed(*parts: bytes) -> bytes:
    """Return parts as one value that tells them apart."""
    return b"".join([struct.pack("<Q", len(part)) + part for part in parts])


def _unframed(framed: bytes) -> list[bytes | None]:
    parts: list[bytes | None] = []
    at = 0
    while at < len(framed):
        end = at + 8 + int.from_bytes(framed[at : at + 8], "little")
        parts.append(framed[at + 8 : end])
        at = end
    return parts


def _hashed(element: Element) -> int:
    return int.from_bytes(blake2b(framed(*element), digest_size=16).digest(), "little")


def expiry(endpoint: Endpoint, key: bytes) -> int:
    """Return a key's absolute expiry in ms since the epoch, negative for none, from any server."""
    expires = endpoint.pipeline([("PEXPIRETIME", key)])[0]
    return _expiry_before_7(endpoint, key) if isinstance(expires, ReplyError) else int(expires)


def _expiry_before_7(endpoint: Endpoint, key: bytes) -> int:
    remaining, now = endpoint.pipeline([("PTTL", key), ("TIME",)])
    return -1 if remaining < 0 else remaining + int(now[0]) * 1000 + int(now[1]) // 1000


def _told(name: bytes, ours: bytes | None, theirs: bytes | None, framed: bool = False) -> str:
    values = [ours, theirs]
    if framed:  # a hash's value, and the expiry of the field
        parts = [[None, None] if side is None else _unframed(side) for side in values]
        at = 1 if parts[0][0] == parts[1][0] else 0
        values = [side[at] for side in parts]
    sides = ["absent" if side is None else _shown(side) for side in values]
    return f"{_shown(name)}: {sides[0]} against {sides[1]}"


def _shown(value: bytes) -> str:
    text = value[:100].decode("utf-8", "backslashreplace")
    text = text if text.isprintable() and text else repr(value[:100])[1:]
    return text if len(text) <= 60 else text[:57] + "..."


def _moment(expires_ms: int | None) -> str:
    return "none" if expires_ms is None else clock.to_text(expires_ms * 1_000_000)
