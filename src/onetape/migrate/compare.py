"""Comparing pairs of keys fast: equal DUMPs and equal absolute expiries, decided inside the server where it may.

Equal DUMP bytes mean equal content; unequal ones mean nothing yet, and are for content.py to look at closely.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onetape.errors import EndpointError
from onetape.migrate.endpoint import Endpoint, ReplyError, pack

Pair = tuple[bytes, bytes]  # source key, target key

EQUAL, DIFFERENT, NO_SOURCE, NO_TARGET, EXPIRY, BIG = b"=", b"d", b"s", b"t", b"x", b"B"

# One call of 100 pairs keeps the server for about a millisecond, so that its other clients hardly notice.
PAIRS = 100
_SCRIPTS_AT_ONCE = 8
#: Above this a key is read in slices instead: a DUMP of it would stop the server for too long.
_BIG_BYTES = 1024 * 1024

# The keys of a pair lie in two databases, so each side is asked in a loop of its own. MEMORY USAGE with one
# sample costs little; without the right to call it every key is taken as small.
_SCRIPT = f"""
local n, dumps, expiries, out = #KEYS / 2, {{}}, {{}}, {{}}
redis.call('SELECT', ARGV[1])
for i = 1, n do
  local key = KEYS[2 * i - 1]
  local used = redis.pcall('MEMORY', 'USAGE', key, 'SAMPLES', 1)
  if type(used) == 'number' and used > {_BIG_BYTES} then
    dumps[i] = true
  else
    dumps[i] = redis.call('DUMP', key)
    expiries[i] = redis.call('PEXPIRETIME', key)
  end
end
redis.call('SELECT', ARGV[2])
for i = 1, n do
  local key, dump, code = KEYS[2 * i], dumps[i], '='
  if dump == false then code = 's'
  elseif dump == true then code = 'B'
  else
    local other = redis.call('DUMP', key)
    if other == false then code = 't'
    elseif other ~= dump then code = 'd'
    elseif redis.call('PEXPIRETIME', key) ~= expiries[i] then code = 'x' end
  end
  out[i] = code
end
return table.concat(out)
"""


class Comparer:
    """Compares pairs between two databases of one server. Works on an endpoint that cannot write.

    `in_server`: whether a script does it (as long as the server lets one run); else both sides' DUMPs come
    here, which takes about three times as long.
    """

    def __init__(self, endpoint: Endpoint, in_server: bool = True) -> None:
        self._endpoint = endpoint
        self._sha: bytes | None = None
        if in_server:
            reply = endpoint.pipeline([("SCRIPT", "LOAD", _SCRIPT)])[0]
            self._sha = reply if isinstance(reply, bytes) and endpoint.version >= (7, 0) else None

    @property
    def in_server(self) -> bool:
        """Return whether the server's own script decides."""
        return self._sha is not None

    def codes(self, source_db: int, target_db: int, pairs: Sequence[Pair]) -> bytes:
        """Return one code a pair: EQUAL, DIFFERENT, NO_SOURCE, NO_TARGET, EXPIRY or BIG. Raises EndpointError."""
        if self._sha is not None:
            found = self._by_script(source_db, target_db, pairs)
            if found is not None:
                return found
            self._sha = None
        return b"".join(self._by_dumps(source_db, target_db, pairs))

    def _by_script(self, source_db: int, target_db: int, pairs: Sequence[Pair]) -> bytes | None:
        packed, found = [], []
        for at in range(0, len(pairs), PAIRS):
            keys = [key for pair in pairs[at : at + PAIRS] for key in pair]
            assert self._sha is not None
            packed.append(pack("EVALSHA_RO", self._sha, len(keys), *keys, source_db, target_db))
        for at in range(0, len(packed), _SCRIPTS_AT_ONCE):
            some = packed[at : at + _SCRIPTS_AT_ONCE]
            for reply in self._endpoint.exchange(b"".join(some), len(some)):
                if isinstance(reply, ReplyError):
                    return None  # scripts flushed, forbidden or cut short: the other way always works
                found.append(reply)
        return b"".join(found)

    def _by_dumps(self, source_db: int, target_db: int, pairs: Sequence[Pair]) -> Iterator[bytes]:
        for at in range(0, len(pairs), PAIRS):
            some = pairs[at : at + PAIRS]
            commands: list[tuple[bytes | str | int, ...]] = [("SELECT", source_db)]
            commands += [c for source, _ in some for c in (("DUMP", source), ("PEXPIRETIME", source))]
            commands.append(("SELECT", target_db))
            commands += [c for _, target in some for c in (("DUMP", target), ("PEXPIRETIME", target))]
            replies = self._endpoint.pipeline(commands)
            for reply in replies:
                if isinstance(reply, ReplyError):
                    raise EndpointError(f"comparing keys: {reply.message}", code=reply.code)
            here, there = replies[1 : 1 + 2 * len(some)], replies[2 + 2 * len(some) :]
            for i in range(0, len(here), 2):
                yield _code(here[i], there[i], here[i + 1], there[i + 1])


def _code(source: bytes | None, target: bytes | None, source_ms: int, target_ms: int) -> bytes:
    if source is None:
        return NO_SOURCE
    if target is None:
        return NO_TARGET
    if source != target:
        return DIFFERENT
    return EQUAL if source_ms == target_ms else EXPIRY
