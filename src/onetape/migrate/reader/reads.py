"""The read commands: where their keys stand, the type they imply, and what the reply to a missing key looks like.

Every command that Redis or Valkey flag as one that only reads is here or in KEYLESS; a test asks the servers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

Positions = Callable[[Sequence[Any]], Sequence[int]]


class Found(NamedTuple):
    """A read command: its name in capitals, the places of its keys among the arguments, the type it implies."""

    name: str
    places: Sequence[int]
    kind: str | None


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _first(_args: Sequence[Any]) -> Sequence[int]:
    return (1,)


def _second(_args: Sequence[Any]) -> Sequence[int]:
    return (2,)


def _all(args: Sequence[Any]) -> Sequence[int]:
    return range(1, len(args))


def _two(_args: Sequence[Any]) -> Sequence[int]:
    return (1, 2)


def _counted(args: Sequence[Any]) -> Sequence[int]:
    return range(2, 2 + int(args[1]))


def _of_script(args: Sequence[Any]) -> Sequence[int]:
    return range(3, 3 + int(args[2]))


def _streams(args: Sequence[Any]) -> Sequence[int]:
    start = next(i for i, arg in enumerate(args) if i and text_of(arg).upper() == "STREAMS") + 1
    return range(start, start + (len(args) - start) // 2)


def _table(names: str, kind: str | None, places: Positions = _first) -> dict[str, tuple[Positions, str | None]]:
    return dict.fromkeys(names.split(), (places, kind))


READS: dict[str, tuple[Positions, str | None]] = {
    **_table("GET GETRANGE SUBSTR STRLEN GETBIT BITCOUNT BITPOS BITFIELD_RO", "string"),
    **_table("MGET PFCOUNT", "string", _all),
    **_table("LCS", "string", _two),
    **_table("HGET HMGET HGETALL HKEYS HVALS HLEN HEXISTS HSTRLEN HSCAN HRANDFIELD", "hash"),
    **_table("HTTL HPTTL HEXPIRETIME HPEXPIRETIME", "hash"),
    **_table("LLEN LRANGE LINDEX LPOS", "list"),
    **_table("SCARD SMEMBERS SISMEMBER SMISMEMBER SSCAN SRANDMEMBER", "set"),
    **_table("SINTER SUNION SDIFF", "set", _all),
    **_table("SINTERCARD", "set", _counted),
    **_table("ZCARD ZCOUNT ZLEXCOUNT ZSCORE ZMSCORE ZRANK ZREVRANK ZSCAN ZRANDMEMBER ZRANGE ZRANGEBYSCORE", "zset"),
    **_table("ZRANGEBYLEX ZREVRANGE ZREVRANGEBYSCORE ZREVRANGEBYLEX", "zset"),
    **_table("GEODIST GEOHASH GEOPOS GEOSEARCH GEORADIUS_RO GEORADIUSBYMEMBER_RO", "zset"),
    **_table("ZINTER ZUNION ZDIFF ZINTERCARD", "zset", _counted),
    **_table("XLEN XRANGE XREVRANGE XPENDING", "stream"),
    **_table("XREAD", "stream", _streams),
    **_table("TYPE TTL PTTL EXPIRETIME PEXPIRETIME DUMP SORT_RO", None),
    **_table("EXISTS TOUCH", None, _all),
    **_table("EVAL_RO EVALSHA_RO FCALL_RO", None, _of_script),
    **{f"OBJECT {sub}": (_second, None) for sub in ("ENCODING", "IDLETIME", "FREQ", "REFCOUNT")},
    "MEMORY USAGE": (_second, None),
    **{f"XINFO {sub}": (_second, "stream") for sub in ("STREAM", "GROUPS", "CONSUMERS")},
}
#: Flagged as writes for what they can do with STORE; without it they read.
_UNLESS_STORED = {
    "SORT": (_first, None),
    "GEORADIUS": (_first, "zset"),
    "GEORADIUSBYMEMBER": (_first, "zset"),
}
_CONTAINERS = frozenset(("OBJECT", "MEMORY", "XINFO"))

#: Commands that name no key, or none whose content they read or write: they go where the client is.
KEYLESS = _words(
    """
    ACL ASKING AUTH BGREWRITEAOF BGSAVE CLIENT CLUSTER CLUSTERSCAN COMMAND CONFIG DBSIZE DEBUG DISCARD ECHO EXEC
    FAILOVER FUNCTION HELLO INFO KEYS LASTSAVE LATENCY LOLWUT MEMORY MODULE MONITOR MULTI OBJECT PING PSUBSCRIBE PSYNC
    PUBLISH PUBSUB PUNSUBSCRIBE QUIT RANDOMKEY READONLY READWRITE REPLICAOF REPLCONF RESET ROLE SAVE SCAN SCRIPT SELECT
    SHUTDOWN SLAVEOF SLOWLOG SPUBLISH SSUBSCRIBE SUBSCRIBE SUNSUBSCRIBE SYNC TIME UNSUBSCRIBE UNWATCH WAIT WAITAOF XINFO
    COMMANDLOG
    """
)

#: Their reply tells for sure whether there is such a key.
SURE = _words(
    "GET HGETALL HKEYS HVALS HLEN LLEN SCARD SMEMBERS ZCARD TYPE TTL PTTL EXPIRETIME PEXPIRETIME EXISTS DUMP TOUCH"
)
#: What each key adds to the reply is known, so several keys can be read one by one: MGET a b is GET a, GET b.
ONE_BY_ONE = {"MGET": "GET", "EXISTS": "EXISTS", "TOUCH": "TOUCH"}

#: Replies that may differ though the keys are equal: by chance, by time, by how the server keeps them.
NOT_COMPARED = _words(
    """
    SRANDMEMBER HRANDFIELD ZRANDMEMBER HSCAN SSCAN ZSCAN TTL PTTL HTTL HPTTL DUMP XPENDING TOUCH EVAL_RO EVALSHA_RO
    FCALL_RO SORT SORT_RO XREAD
    """
)
#: Their elements have no order.
UNORDERED = _words("SMEMBERS SINTER SUNION SDIFF HKEYS HVALS")
PAIRED = frozenset(("HGETALL",))
SCANS = frozenset(("HSCAN", "SSCAN", "ZSCAN"))


def text_of(arg: Any) -> str:
    """Return an argument as text, whatever it is: to recognise a word, not to read a value."""
    return arg.decode("latin-1") if isinstance(arg, bytes) else str(arg)


def bytes_of(arg: Any, encoding: str = "utf-8", errors: str = "strict") -> bytes:
    """Return an argument as redis-py will send it."""
    if isinstance(arg, bytes):
        return arg
    if isinstance(arg, str):
        return arg.encode(encoding, errors)
    return bytes(arg) if isinstance(arg, bytearray | memoryview) else str(arg).encode(encoding, errors)


def find(args: Sequence[Any]) -> Found | None:
    """Return what kind of read the arguments are, None for all that is no read of keys. `XINFO STREAM` may be one word
    or two, as redis-py has it.
    """
    name = args[0] if isinstance(args[0], str) else text_of(args[0])
    hit = READS.get(name)
    if hit is None:
        name = name.upper()
        hit = READS.get(name)
    shift = 0
    if hit is None:
        if name in _CONTAINERS and len(args) > 1:
            name = f"{name} {text_of(args[1]).upper()}"
            hit = READS.get(name)
        elif name in _UNLESS_STORED and not any(text_of(arg).upper() in ("STORE", "STOREDIST") for arg in args[2:]):
            hit = _UNLESS_STORED[name]
    elif " " in name:
        shift = 1
    if hit is None:
        return None
    try:
        places: Sequence[int] = hit[0](args)
    except (ValueError, IndexError, StopIteration):
        return None  # the server says what is wrong with it
    if shift:
        places = [place - shift for place in places]
    return Found(name, places, hit[1]) if places and places[-1] < len(args) else None


def name_of(args: Sequence[Any]) -> str:
    """Return a command's first word in capitals."""
    return text_of(args[0]).upper().partition(" ")[0]


def bare(reply: Any) -> bool:
    """Return whether a reply is one that a missing key gives. True also for some that an existing key can give."""
    if reply is None or reply is False:
        return True
    if isinstance(reply, bool):
        return False
    if isinstance(reply, int | float):
        return reply in (0, -1, -2)
    if isinstance(reply, bytes | str):
        return reply in (b"", "", b"none", "none")
    if isinstance(reply, dict):
        return all(bare(value) for value in reply.values())
    if isinstance(reply, list | tuple | set | frozenset):
        return all(bare(value) for value in reply)
    return isinstance(reply, ResponseError)


def missing(name: str, reply: Any) -> bool:
    """Return whether the reply to a command of SURE means that there is no such key."""
    if name in ("TTL", "PTTL", "EXPIRETIME", "PEXPIRETIME"):
        return bool(reply == -2)
    if name == "TYPE":
        return reply in (b"none", "none")
    return not reply and not isinstance(reply, bytes | str)


__all__ = ["KEYLESS", "NOT_COMPARED", "ONE_BY_ONE", "PAIRED", "READS", "SCANS", "SURE", "UNORDERED", "Found", "bare",
           "bytes_of", "find", "missing", "name_of", "text_of"]  # fmt: skip
