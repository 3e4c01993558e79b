"""Comparing pairs of keys fast: equal DUMPs and equal absolute expiries, decided inside the server where it may.

Equal DUMP bytes mean equal content; unequal ones mean nothing yet, and are for content.py to look at closely.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from onetape.errors import EndpointError
from onetape.migrate.copying.decide import SLACK_BEFORE_7_MS
from onetape.migrate.keys import dump
from onetape.migrate.keys.dump import SEAL_BYTES
from onetape.migrate.ledger.pack import Sealed
from onetape.migrate.wire.endpoint import Endpoint, ReplyError, pack

Pair = tuple[bytes, bytes]  # source key, target key
_FOOTER_BYTES = 10

EQUAL, DIFFERENT, NO_SOURCE, NO_TARGET, EXPIRY, BIG = b"=", b"d", b"s", b"t", b"x", b"B"
#: Equal too, where seals are asked for, but of a type that has none.
UNSEALED = b"u"

# A server works off all that one client has sent before it turns to the next one: small calls, and few of them
# at a time, keep its other clients' waits near a millisecond. Pages of 1,000 keys were no faster, and tripled them.
PAIRS = 50
#: Above this a key is read in slices instead: a hundred DUMPs of it would be too much for server and client.
_BIG_BYTES = 256 * 1024

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
# The same, and of equal pairs the seal (see dump.py) and the expiry.
_SEALING = (
    _SCRIPT.replace("out = #KEYS / 2, {}", "out, seals, sealed_ms = #KEYS / 2, {}, {}, {}")
    .replace(
        "~= expiries[i] then code = 'x' end",
        f"""~= expiries[i] then code = 'x'
    elseif unsealed[string.byte(dump)] then code = 'u'
    else
      seals[#seals + 1] = string.sub(dump, -{SEAL_BYTES})
      sealed_ms[#sealed_ms + 1] = expiries[i]
    end""",
    )
    .replace("return table.concat(out)", "return {table.concat(out), table.concat(seals), sealed_ms}")
)
_SEALING = f"local unsealed = {{{', '.join(f'[{kind}] = true' for kind in dump.UNSEALED)}}}\n{_SEALING}"


class Request(NamedTuple):
    """Packed commands that only read, and how many replies they get."""

    packed: bytes
    replies: int


class Comparer:
    """Compares pairs between two databases of one server. Works on an endpoint that cannot write.

    `in_server`: whether a script does it (as long as the server lets one run); else both sides' DUMPs come
    here, which takes longer. `sealing`: the script tells the seals of equal pairs too.
    """

    def __init__(self, endpoint: Endpoint, in_server: bool = True, *, sealing: bool = False) -> None:
        self._endpoint = endpoint
        self._sealing = sealing
        self._sha: bytes | None = None
        if in_server:
            reply = endpoint.pipeline([("SCRIPT", "LOAD", _SEALING if sealing else _SCRIPT)])[0]
            self._sha = reply if isinstance(reply, bytes) and endpoint.version >= (7, 0) else None

    @property
    def in_server(self) -> bool:
        """Return whether the server's own script decides."""
        return self._sha is not None

    def request(self, source_db: int, target_db: int, pairs: Sequence[Pair]) -> Request | None:
        """Return what asks the server's script about these pairs, None where no script may run."""
        if self._sha is None:
            return None
        packed = []
        for at in range(0, len(pairs), PAIRS):
            keys = [key for pair in pairs[at : at + PAIRS] for key in pair]
            packed.append(pack("EVALSHA_RO", self._sha, len(keys), *keys, source_db, target_db))
        return Request(b"".join(packed), len(packed))

    def answer(self, replies: Sequence[Any]) -> bytes | None:
        """Return the codes in the replies to a request, None if the server refused: then codes() still works."""
        if any(isinstance(reply, ReplyError) for reply in replies):
            self._sha = None  # scripts flushed, forbidden or cut short
            return None
        return b"".join([reply[0] for reply in replies] if self._sealing else replies)

    def sealed(self, replies: Sequence[Any]) -> list[Sealed]:
        """Return the seals and expiries of the EQUAL pairs in the replies to a request, in their order."""
        found: list[Sealed] = []
        for _codes, seals, expiries in replies:
            each = [seals[at : at + SEAL_BYTES] for at in range(0, len(seals), SEAL_BYTES)]
            found += zip(each, expiries, strict=True)
        return found

    def codes(self, source_db: int, target_db: int, pairs: Sequence[Pair]) -> bytes:
        """Return one code a pair: EQUAL, DIFFERENT, NO_SOURCE, NO_TARGET, EXPIRY or BIG; no seals. Raises
        EndpointError.
        """
        request = self.request(source_db, target_db, pairs)
        if request is not None:
            found = self.answer(self._endpoint.exchange(*request))
            if found is not None:
                return found.replace(UNSEALED, EQUAL)
        return b"".join(self._by_dumps(source_db, target_db, pairs))

    def closer(self, source_db: int, target_db: int, pairs: Sequence[Pair], codes: bytes) -> bytes:
        """Return the codes as they are: on one server few pairs are DIFFERENT, and each is looked at by itself."""
        return codes

    def _by_dumps(self, source_db: int, target_db: int, pairs: Sequence[Pair]) -> Iterator[bytes]:
        for at in range(0, len(pairs), PAIRS):
            some = pairs[at : at + PAIRS]
            self._endpoint.select(source_db)
            sizes = self._endpoint.pipeline([("MEMORY", "USAGE", key, "SAMPLES", 1) for key, _ in some])
            big = [isinstance(size, int) and size > _BIG_BYTES for size in sizes]
            small = [pair for pair, is_big in zip(some, big, strict=True) if not is_big]
            codes = iter(self._of_dumps(source_db, target_db, small))
            yield from (BIG if is_big else next(codes) for is_big in big)

    def _of_dumps(self, source_db: int, target_db: int, pairs: Sequence[Pair]) -> list[bytes]:
        exact = self._endpoint.has_expire_time
        when = "PEXPIRETIME" if exact else "PTTL"
        commands: list[tuple[bytes | str | int, ...]] = []
        for db, side in ((source_db, 0), (target_db, 1)):
            commands += [("SELECT", db), ("TIME",)]
            commands += [command for pair in pairs for command in (("DUMP", pair[side]), (when, pair[side]))]
        replies = self._endpoint.pipeline(commands)
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise EndpointError(f"comparing keys: {reply.message}", code=reply.code)
        half = len(replies) // 2
        here, there = replies[2:half], replies[half + 2 :]
        # Two servers' clocks: what is left on either is added to its own time.
        apart_ms = 0 if exact else _ms(replies[1]) - _ms(replies[half + 1])
        slack_ms = 0 if exact else SLACK_BEFORE_7_MS
        return [_code(here[i], there[i], here[i + 1], there[i + 1], apart_ms, slack_ms) for i in range(0, len(here), 2)]


def _ms(time: Sequence[bytes]) -> int:
    return int(time[0]) * 1000 + int(time[1]) // 1000


def _code(
    source: bytes | None, target: bytes | None, source_ms: int, target_ms: int, apart_ms: int, slack_ms: int
) -> bytes:
    if source is None:
        return NO_SOURCE
    if target is None:
        return NO_TARGET
    # The footer, version and checksum, is the server's and not the value's.
    if source != target and source[:-_FOOTER_BYTES] != target[:-_FOOTER_BYTES]:
        return DIFFERENT
    if source_ms < 0 or target_ms < 0:
        return EQUAL if source_ms == target_ms else EXPIRY
    return EQUAL if abs(source_ms + apart_ms - target_ms) <= slack_ms else EXPIRY
