"""The commands: for each one of Redis and Valkey, where its keys stand and how its effect gets to the other side.

A line is a name, its keys, the type it implies, and its way. Keys: `w1` is written, `r2` only read, `w1..` all from
there on, `w1..-1` all but the last, `w1../2` every second one, `w#1` as many as argument 1 says, beginning after it,
`wSTREAMS` the first half after that word. Arguments count from 0, the name; of a container (XGROUP CREATE) the second
word is argument 1.

Ways: `same`: its effect goes by what the keys hold and nothing else, so that it can be given to both sides where they
are equal. `set`: what was there before does not matter. `relative`, `timed`, `expire`: a `set`, a `same`, an expiry
that tells a time from now on. `copy`: the other side is made what this one is. `xadd`, `xtrim`, `spop`, `claim`: see
weave.py. `read`. `plain`: it has no keys of data. `refuse`: it cannot be written to two sides. `flush`: refused where
it would hit data of the plan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

Way = Literal[
    "same", "set", "relative", "timed", "expire", "copy", "xadd", "xtrim", "spop", "claim", "read", "plain", "refuse",
    "flush",
]  # fmt: skip
Place = tuple[int, bool]  # where among the arguments, and whether it is written


class Command(NamedTuple):
    """What is known of a command.

    `single`: its only key is argument 1. `choose`: decides by the arguments, where they do. `names`: the reply tells
    names of keys. `split`: it can be given key by key, and the replies be put together. `timeout`: where it says how
    long it blocks (negative: from the end).
    """

    name: str
    keys: tuple[str, ...]
    kind: str | None
    way: Way
    single: bool
    writes: bool
    choose: Callable[[Sequence[Any]], Way] | None = None
    names: bool = False
    split: int = 0
    timeout: int | None = None

    def places(self, args: Sequence[Any]) -> list[Place]:
        """Return where the keys stand among these arguments. Raises ValueError, IndexError for malformed ones."""
        if self.single:
            return [(1, self.writes)]
        return [place for text in self.keys for place in _places(text, args)]


_KEYS = re.compile(r"([rw])(#?)(\d+|STREAMS)(\.\.)?(-\d+)?(?:/(\d+))?")


def _places(text: str, args: Sequence[Any]) -> list[Place]:
    if (parts := _KEYS.fullmatch(text)) is None:
        raise AssertionError(text)
    writes, counted, at, many, end, step = parts.groups()
    written = writes == "w"
    if at == "STREAMS":
        start = next(i for i, arg in enumerate(args) if i and word(arg) == "STREAMS") + 1
        return [(i, written) for i in range(start, start + (len(args) - start) // 2)]
    first, by = int(at), int(step or 1)
    if counted:
        return [(i, written) for i in range(first + 1, first + 1 + by * int(args[first]), by)]
    if many:
        return [(i, written) for i in range(first, len(args) + int(end or 0), by)]
    return [(first, written)]


def word(arg: Any) -> str:
    """Return an argument as a word in capitals, "" for one that is no text."""
    if isinstance(arg, str):
        return arg.upper()
    return bytes(arg).decode("latin-1").upper() if isinstance(arg, bytes | bytearray | memoryview) else ""


def _words(args: Sequence[Any], start: int) -> set[str]:
    return {word(arg) for arg in args[start:]}


def _way_of_set(args: Sequence[Any]) -> Way:
    options = _words(args, 3)
    if options & {"NX", "XX", "GET", "KEEPTTL", "IFEQ", "IFNE", "IFDEQ", "IFDNE"}:
        return "timed" if options & {"EX", "PX"} else "same"
    return "relative" if options & {"EX", "PX"} else "set"


def _way_of_getex(args: Sequence[Any]) -> Way:
    if len(args) == 2:
        return "read"
    return "timed" if _words(args, 2) & {"EX", "PX"} else "same"


def _way_of_restore(args: Sequence[Any]) -> Way:
    absolute = "ABSTTL" in _words(args, 4) or word(args[2]) == "0" or args[2] == 0
    return "same" if absolute else "copy"


def _way_of_sort(args: Sequence[Any]) -> Way:
    return "copy" if "STORE" in _words(args, 2) else "read"


def _way_of_georadius(args: Sequence[Any]) -> Way:
    return "copy" if _words(args, 2) & {"STORE", "STOREDIST"} else "read"


def _way_of_xadd(args: Sequence[Any]) -> Way:
    at = xadd_id_at(args)
    if at is None:
        return "xadd"
    return "xadd" if word(args[at]).endswith("*") or "~" in _words(args[:at], 2) else "same"


def _way_of_xtrim(args: Sequence[Any]) -> Way:
    return "xtrim" if "~" in _words(args, 2) else "same"


def _way_of_pfcount(args: Sequence[Any]) -> Way:
    return "same" if len(args) == 2 else "read"  # of one key it writes the count it found into the key


def _way_of_copy(args: Sequence[Any]) -> Way:
    return "refuse" if "DB" in _words(args, 3) else "copy"


def xadd_id_at(args: Sequence[Any]) -> int | None:
    """Return where the id of an XADD stands, None where there is none."""
    at = 2
    while at < len(args):
        option = word(args[at])
        if option in ("NOMKSTREAM", "KEEPREF", "DELREF", "ACKED"):
            at += 1
        elif option in ("MAXLEN", "MINID"):
            at += 3 if at + 1 < len(args) and word(args[at + 1]) in ("~", "=") else 2
        elif option in ("LIMIT", "IDMPAUTO"):
            at += 2
        elif option == "IDMP":
            at += 3
        else:
            return at
    return None


def _destination(args: Sequence[Any], words: tuple[str, ...]) -> list[Place]:
    return [(i + 1, True) for i, arg in enumerate(args[:-1]) if i > 1 and word(arg) in words]


_CHOOSE: dict[str, Callable[[Sequence[Any]], Way]] = {
    "SET": _way_of_set, "GETEX": _way_of_getex, "RESTORE": _way_of_restore, "SORT": _way_of_sort,
    "GEORADIUS": _way_of_georadius, "GEORADIUSBYMEMBER": _way_of_georadius, "XADD": _way_of_xadd,
    "XTRIM": _way_of_xtrim, "PFCOUNT": _way_of_pfcount, "COPY": _way_of_copy,
}  # fmt: skip

#: Replies that tell the names of keys, which must be the caller's.
_NAMES = frozenset(
    ("BLPOP", "BRPOP", "BZPOPMIN", "BZPOPMAX", "LMPOP", "BLMPOP", "ZMPOP", "BZMPOP", "XREAD", "XREADGROUP")
)
#: Commands that can be given key by key → arguments a key.
_SPLIT = {"DEL": 1, "UNLINK": 1, "EXISTS": 1, "TOUCH": 1, "MGET": 1, "MSET": 2}
_TIMEOUT = {"BLPOP": -1, "BRPOP": -1, "BZPOPMIN": -1, "BZPOPMAX": -1, "BLMOVE": -1, "BRPOPLPUSH": -1,
            "BLMPOP": 1, "BZMPOP": 1}  # fmt: skip

_TABLE = """
APPEND w1 string same
BITFIELD w1 string same
BITOP w2,r3.. string same
DECR w1 string same
DECRBY w1 string same
DELIFEQ w1 string same
DELEX w1 string same
GETDEL w1 string same
GETEX w1 string same
GETSET w1 string same
INCR w1 string same
INCRBY w1 string same
INCRBYFLOAT w1 string same
MSET w1../2 string set
MSETEX w#1/2 string same
MSETNX w1../2 string same
PFADD w1 string same
PFCOUNT w1.. string same
PFMERGE w1,r2.. string same
PSETEX w1 string relative
SET w1 string set
SETBIT w1 string same
SETEX w1 string relative
SETNX w1 string same
SETRANGE w1 string same

HDEL w1 hash same
HEXPIRE w1 hash same
HEXPIREAT w1 hash same
HGETDEL w1 hash same
HGETEX w1 hash same
HINCRBY w1 hash same
HINCRBYFLOAT w1 hash same
HMSET w1 hash same
HPERSIST w1 hash same
HPEXPIRE w1 hash same
HPEXPIREAT w1 hash same
HSET w1 hash same
HSETEX w1 hash same
HSETNX w1 hash same

BLMOVE w1,w2 list same
BLMPOP w#2 list same
BLPOP w1..-1 list same
BRPOP w1..-1 list same
BRPOPLPUSH w1,w2 list same
LINSERT w1 list same
LMOVE w1,w2 list same
LMPOP w#1 list same
LPOP w1 list same
LPUSH w1 list same
LPUSHX w1 list same
LREM w1 list same
LSET w1 list same
LTRIM w1 list same
RPOP w1 list same
RPOPLPUSH w1,w2 list same
RPUSH w1 list same
RPUSHX w1 list same

SADD w1 set same
SDIFFSTORE w1,r2.. set same
SINTERSTORE w1,r2.. set same
SMOVE w1,w2 set same
SPOP w1 set spop
SREM w1 set same
SUNIONSTORE w1,r2.. set same

BZMPOP w#2 zset same
BZPOPMAX w1..-1 zset same
BZPOPMIN w1..-1 zset same
GEOADD w1 zset same
GEORADIUS r1,STORE zset copy
GEORADIUSBYMEMBER r1,STORE zset copy
GEOSEARCHSTORE w1,r2 zset same
ZADD w1 zset same
ZDIFFSTORE w1,r#2 zset same
ZINCRBY w1 zset same
ZINTERSTORE w1,r#2 zset same
ZMPOP w#1 zset same
ZPOPMAX w1 zset same
ZPOPMIN w1 zset same
ZRANGESTORE w1,r2 zset same
ZREM w1 zset same
ZREMRANGEBYLEX w1 zset same
ZREMRANGEBYRANK w1 zset same
ZREMRANGEBYSCORE w1 zset same
ZUNIONSTORE w1,r#2 zset same

XACK w1 stream same
XACKDEL w1 stream same
XADD w1 stream xadd
XAUTOCLAIM w1 stream claim
XCLAIM w1 stream claim
XDEL w1 stream same
XDELEX w1 stream same
XGROUP w2 stream same
XREADGROUP wSTREAMS stream claim
XSETID w1 stream same
XTRIM w1 stream same

COPY r1,w2 - copy
DEL w1.. - set
EXPIRE w1 - expire
EXPIREAT w1 - same
PERSIST w1 - same
PEXPIRE w1 - expire
PEXPIREAT w1 - same
RENAME w1,w2 - same
RENAMENX w1,w2 - same
RESTORE w1 - copy
SORT r1,STORE - copy
UNLINK w1.. - set
VADD w1 - copy
VREM w1 - copy
VSETATTR w1 - copy

EVAL w#2 - refuse
EVALSHA w#2 - refuse
FCALL w#2 - refuse
MIGRATE w3 - refuse
MOVE w1 - refuse
PFDEBUG w2 string refuse
RESTORE-ASKING w1 - refuse
FLUSHALL - - flush
FLUSHDB - - flush
SWAPDB - - flush
"""

_READS = """
r1 string: BITCOUNT BITFIELD_RO BITPOS GET GETBIT GETRANGE STRLEN SUBSTR DIGEST
r1.. string: MGET
r1,r2 string: LCS
r3,r4 string: STRALGO
r1 hash: HEXISTS HEXPIRETIME HGET HGETALL HKEYS HLEN HMGET HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSTRLEN HTTL HVALS
r1 list: LINDEX LLEN LPOS LRANGE
r1 set: SCARD SISMEMBER SMEMBERS SMISMEMBER SRANDMEMBER SSCAN
r1.. set: SDIFF SINTER SUNION
r#1 set: SINTERCARD
r1 zset: GEODIST GEOHASH GEOPOS GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH ZCARD ZCOUNT ZLEXCOUNT ZMSCORE ZRANDMEMBER
r1 zset: ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE
r#1 zset: ZDIFF ZINTER ZINTERCARD ZUNION
r1 stream: XLEN XPENDING XRANGE XREVRANGE
r2 stream: XINFO
rSTREAMS stream: XREAD
r1 -: DUMP EXPIRETIME PEXPIRETIME PTTL SORT_RO TTL TYPE
r1 -: VCARD VDIM VEMB VGETATTR VINFO VISMEMBER VLINKS VRANDMEMBER VRANGE VSIM
r1.. -: EXISTS TOUCH
r2 -: MEMORY OBJECT
r#2 -: EVALSHA_RO EVAL_RO FCALL_RO
"""

_PLAIN = """
ACL ASKING AUTH BGREWRITEAOF BGSAVE CLIENT CLUSTER CLUSTERSCAN COMMAND COMMANDLOG CONFIG DBSIZE DEBUG DISCARD ECHO EXEC
FAILOVER FUNCTION HELLO HOST: INFO KEYS LASTSAVE LATENCY LOLWUT MODULE MONITOR MULTI PFSELFTEST PING POST PSUBSCRIBE
PSYNC PUBLISH PUBSUB PUNSUBSCRIBE QUIT RANDOMKEY READONLY READWRITE REPLCONF REPLICAOF RESET ROLE SAVE SCAN SCRIPT
SELECT SENTINEL SHUTDOWN SLAVEOF SLOWLOG SPUBLISH SSUBSCRIBE SUBSCRIBE SUNSUBSCRIBE SYNC TIME UNSUBSCRIBE UNWATCH WAIT
WAITAOF WATCH
"""


class _Storing(Command):
    """A command that stores where a word says."""

    __slots__ = ()

    def places(self, args: Sequence[Any]) -> list[Place]:
        return [(1, False), *_destination(args, ("STORE", "STOREDIST"))]


class _Migrating(Command):
    """MIGRATE: one key, or, where that is empty, all after KEYS."""

    __slots__ = ()

    def places(self, args: Sequence[Any]) -> list[Place]:
        many = [i for i, arg in enumerate(args) if i > 5 and word(arg) == "KEYS"]
        return [(i, True) for i in range(many[-1] + 1, len(args))] if many and not args[3] else [(3, True)]


def _command(name: str, keys: str, kind: str, way: str) -> Command:
    texts = () if keys == "-" else tuple(keys.split(","))
    make = _Storing if "STORE" in texts else _Migrating if name == "MIGRATE" else Command
    return make(
        name=name,
        keys=texts,
        kind=None if kind == "-" else kind,
        way=way,  # type: ignore[arg-type]
        single=texts in (("w1",), ("r1",)),
        writes=way not in ("read", "plain"),
        choose=_CHOOSE.get(name),
        names=name in _NAMES,
        split=_SPLIT.get(name, 0),
        timeout=_TIMEOUT.get(name),
    )


def _compiled() -> dict[str, Command]:
    found = [_command(*line.split()) for line in _TABLE.splitlines() if line]
    for line in filter(None, _READS.splitlines()):
        head, _, names = line.partition(":")
        keys, kind = head.split()
        found += [_command(name, keys, kind, "read") for name in names.split()]
    found += [_command(name, "-", "-", "plain") for name in _PLAIN.split()]
    return {command.name: command for command in found}


#: Every command by its name in capitals.
COMMANDS = _compiled()


def find(args: Sequence[Any]) -> tuple[Command | None, Sequence[Any]]:
    """Return the command of these arguments (None: unknown), and the arguments with a name of two words split."""
    name = args[0] if isinstance(args[0], str) else word(args[0])
    command = COMMANDS.get(name) or COMMANDS.get(name.upper())
    if command is None and " " in name:
        args = (*name.split(), *args[1:])
        command = COMMANDS.get(args[0].upper())
    return command, args


__all__ = ["COMMANDS", "Command", "Place", "Way", "find", "word", "xadd_id_at"]
