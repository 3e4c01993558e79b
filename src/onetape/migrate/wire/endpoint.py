"""The endpoint: one raw connection to a Redis-compatible server, made for pipelines of packed commands.

redis-py spends several times more of Python's time on a command than the server does. Here a pipeline is one
buffer to send and one hiredis reader to feed, so the server is the limit and not the client.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

import hiredis

from onetape.errors import ConfigInvalid, EndpointError
from onetape.migrate.wire.address import Address

Argument = bytes | str | int | float

#: How often a service or cluster that is choosing a new master is tried: for a minute.
AGREEING_ATTEMPTS = 62
_RECEIVE_BYTES = 256 * 1024
#: Up to here a packet fits the socket buffers of both sides, so it can be sent before anything is received.
_SEND_AT_ONCE_BYTES = 64 * 1024

#: All that a connection with writable=False lets through; commands with subcommands are listed with each.
READ_COMMANDS = frozenset(
    b"""
    PING ECHO TIME SELECT AUTH HELLO ROLE DBSIZE INFO LASTSAVE READONLY QUIT
    SCAN KEYS RANDOMKEY EXISTS TYPE TTL PTTL EXPIRETIME PEXPIRETIME DUMP
    GET GETRANGE STRLEN MGET GETBIT BITCOUNT BITPOS BITFIELD_RO
    HGET HMGET HGETALL HKEYS HVALS HLEN HEXISTS HSTRLEN HSCAN HRANDFIELD
    HTTL HPTTL HEXPIRETIME HPEXPIRETIME
    LLEN LRANGE LINDEX LPOS SCARD SMEMBERS SISMEMBER SMISMEMBER SSCAN SRANDMEMBER SINTER SUNION SDIFF
    ZCARD ZRANGE ZRANGEBYSCORE ZREVRANGE ZSCORE ZMSCORE ZSCAN ZCOUNT ZRANK ZRANDMEMBER
    XLEN XRANGE XREVRANGE XREAD XPENDING PFCOUNT_RO GEOPOS GEODIST SORT_RO
    WATCH UNWATCH MULTI EXEC DISCARD EVAL_RO EVALSHA_RO
    """.split()
)
_READ_SUBCOMMANDS = {
    b"XINFO": frozenset({b"STREAM", b"GROUPS", b"CONSUMERS"}),
    b"OBJECT": frozenset({b"ENCODING", b"IDLETIME", b"FREQ", b"REFCOUNT"}),
    b"MEMORY": frozenset({b"USAGE", b"STATS"}),
    b"MODULE": frozenset({b"LIST"}),
    b"CONFIG": frozenset({b"GET"}),
    b"ACL": frozenset({b"WHOAMI", b"GETUSER", b"DRYRUN", b"CAT", b"LIST"}),
    b"COMMAND": frozenset({b"INFO", b"COUNT", b"DOCS", b"LIST"}),
    b"CLIENT": frozenset({b"ID", b"SETNAME", b"GETNAME", b"INFO", b"LIST", b"NO-EVICT", b"NO-TOUCH"}),
    b"CLUSTER": frozenset({b"INFO", b"SHARDS", b"SLOTS", b"MYID"}),
    b"SCRIPT": frozenset({b"LOAD", b"EXISTS"}),
    b"LATENCY": frozenset({b"LATEST", b"HISTORY"}),
}

_HINTS = {
    "NOAUTH": "the server wants a password: redis://USER:PASSWORD@HOST:PORT",
    "WRONGPASS": "check user and password in the URL",
    "NOPERM": "give this user the command and the keys with ACL SETUSER",
    "READONLY": "this is a replica: connect to the master",
    "OOM": "the server is at its maxmemory: raise it or free memory, then run again; the ledger resumes",
    "LOADING": "the server is still loading its data: try again when it is up",
    "MASTERDOWN": "this replica has lost its master: connect to the master",
    "MISCONF": "the server cannot save its snapshot and refuses writes: look at its log",
    "MOVED": "this is a node of a cluster, which has database 0 only",
    "CROSSSLOT": "this is a node of a cluster, which has database 0 only",
}


class ReplyError(Exception):
    """An error reply of the server, in the place of the result in a pipeline.

    `code` is its first word ("WRONGTYPE", "OOM", "READONLY", "NOPERM", "ERR", ...), `message` the whole line.
    """

    def __init__(self, message: str | bytes) -> None:
        text = message.decode("utf-8", "backslashreplace") if isinstance(message, bytes) else message
        super().__init__(text)
        self.message = text
        self.code = text.partition(" ")[0]


def pack(*args: Argument) -> bytes:
    """Return one command as RESP2 bytes. str is sent as UTF-8, float as its shortest exact text."""
    # hiredis 3.5 crashes if a signal (Ctrl-C) comes while it turns a number into text, so it gets none.
    texts = tuple([arg if isinstance(arg, str | bytes) else str(arg) for arg in args])
    packed: bytes = hiredis.pack_command(texts)  # type: ignore[arg-type]
    return packed


def command_name(args: Sequence[Any]) -> bytes:
    """Return a command's name in capitals."""
    name = args[0]
    return (name if isinstance(name, bytes) else str(name).encode()).upper()


def is_read(args: Sequence[Any]) -> bool:
    """Return whether the command is one that cannot change data."""
    name = command_name(args)
    if name in READ_COMMANDS:
        return True
    allowed = _READ_SUBCOMMANDS.get(name)
    return allowed is not None and len(args) > 1 and command_name(args[1:]) in allowed


def is_lost(error: EndpointError) -> bool:
    """Return whether the error means that the connection is gone, so that connecting again can help."""
    return error.facts.get("code") in ("CUT", "TIMEOUT", "UNREACHABLE", "LOADING")


class Endpoint:
    """One connection. Not for several threads at once.

    `db` is the selected database, `server` "valkey" or "redis", `version` that server's own version,
    `run_id` what the server calls this run of itself, `address` HOST:PORT or the socket's path.
    With writable=False every command that is not known to be a read is refused before a byte is sent. A
    SELECT inside a pipeline is the caller's to undo: `db` follows select() alone.
    """

    def __init__(self, sock: socket.socket, *, address: str, writable: bool, timeout_s: float) -> None:
        self._sock = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._reader = hiredis.Reader(replyError=ReplyError)
        self._closed = False
        self._demoted = False
        self.address = address
        self.writable = writable
        self.timeout_s = timeout_s
        self.db = 0
        self.server: Literal["valkey", "redis"] = "redis"
        self.version: tuple[int, ...] = (0,)
        self.run_id = ""

    @classmethod
    def connect(cls, url: str, *, db: int = 0, writable: bool = True, timeout_s: float = 10.0) -> Endpoint:
        """Connect, log in, select `db` and learn the server's version.

        `url`: see address.py; of a sentinel:// the master is asked for anew with every connect. A database in the
        URL's path is ignored: rules name theirs. `timeout_s` bounds the connect and every wait for the next bytes
        of a reply.
        Raises ConfigInvalid for an URL that is none, EndpointError for all that goes wrong with the server.
        """
        where = Address.parse(url)
        if where.scheme == "cluster":
            raise ConfigInvalid(f"{where.name} is a Redis Cluster", hint="a cluster can be a target only: --target URL")
        return cls._connect(where, db=db, writable=writable, timeout_s=timeout_s)

    @classmethod
    def _connect(cls, where: Address, *, db: int, writable: bool, timeout_s: float) -> Endpoint:
        sock, name = where.open(timeout_s)
        endpoint = cls(sock, address=name, writable=writable, timeout_s=timeout_s)
        try:
            if where.password is not None:
                endpoint.call("AUTH", *([where.user] if where.user else []), where.password)
            endpoint._identify()
            endpoint.pipeline(
                [("CLIENT", "SETNAME", "onetape-migrator")]
            )  # so that a census can tell; refused is no harm
            if where.scheme == "sentinel":
                endpoint._follow_master(where.name)
            if db:
                endpoint.select(db)
        except BaseException:
            endpoint.close()
            raise
        return endpoint

    def _follow_master(self, name: str) -> None:
        """From here on, a server that is no master (any more) counts as a lost connection."""
        try:
            role = self.call("ROLE")[0]
        except EndpointError as error:
            if error.facts.get("code") != "NOPERM":
                raise
            role = b"master"
        if role != b"master":  # the sentinels have not agreed yet
            raise EndpointError(f"{self.address} is no master", hint="wait for the failover", code="UNREACHABLE")
        self.address = name
        self._reader = hiredis.Reader(replyError=self._watch_for_demotion)

    def _watch_for_demotion(self, message: str) -> ReplyError:
        error = ReplyError(message)
        self._demoted = self._demoted or error.code == "READONLY"
        return error

    def _identify(self) -> None:
        try:
            info = parse_info(self.call("INFO", "server"))
            self.server = "valkey" if info.get("server_name") == "valkey" else "redis"
            version = info.get("valkey_version") or info.get("redis_version", "0")
            self.run_id = info.get("run_id", "")
        except EndpointError as error:
            if error.facts.get("code") != "NOPERM":
                raise
            hello = self.call("HELLO")  # every user may say hello
            facts = {hello[i]: hello[i + 1] for i in range(0, len(hello) - 1, 2)}
            self.server = "valkey" if facts.get(b"server") == b"valkey" else "redis"
            version = facts.get(b"version", b"0").decode()
        self.version = tuple(int(part) for part in version.split(".") if part.isdecimal())

    @property
    def closed(self) -> bool:
        """Return whether the connection was closed or lost."""
        return self._closed

    def fileno(self) -> int:
        """Return the connection's descriptor, for a program that goes on with it; not over TLS, which is in us."""
        return self._sock.fileno()

    @property
    def is_tls(self) -> bool:
        """Return whether the connection goes over TLS."""
        return self._tls

    @property
    def has_expire_time(self) -> bool:
        """Return whether the server knows PEXPIRETIME (Redis 7.0, every Valkey)."""
        return self.server == "valkey" or self.version >= (7, 0)

    def call(self, *args: Argument) -> Any:
        """Send one command and return its reply. Raises EndpointError for an error reply."""
        self._refuse_writes([args])
        self._send(pack(*args))
        reply = self.receive(1)[0]
        if isinstance(reply, ReplyError):
            self._raise_reply(reply, args)
        return reply

    def pipeline(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Send all commands at once and return their replies in order, errors as ReplyError objects."""
        if not commands:
            return []
        self._refuse_writes(commands)
        self._send(b"".join([pack(*args) for args in commands]))
        return self.receive(len(commands))

    def exchange(self, packed: bytes, replies: int) -> list[Any]:
        """Send packed commands and return that many replies: the fast path of pipeline()."""
        self.send(packed)
        return self.receive(replies)

    def send(self, packed: bytes) -> None:
        """Send packed commands; receive() must fetch all their replies before anything else is asked.

        On a connection that may not write, the buffer is parsed and every command in it checked first.
        """
        if not self.writable:
            self._refuse_writes(commands_of(packed))
        self._send(packed)

    def _send(self, packed: bytes) -> None:
        try:
            if len(packed) <= _SEND_AT_ONCE_BYTES or self._tls:
                self._sock.sendall(packed)
            else:
                self._send_while_receiving(packed)
        except OSError as error:
            self._raise_cut(error)

    def _send_while_receiving(self, packed: bytes) -> None:
        # The server answers the first commands while the last ones are still on their way: whoever only sends
        # fills the server's output buffer, and may be cut off for it.
        rest = memoryview(packed)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN | select.POLLOUT)
        while rest:
            events = poll.poll(self.timeout_s * 1000)
            if not events:
                raise TimeoutError
            if events[0][1] & ~select.POLLOUT:
                self._feed()
            if events[0][1] & select.POLLOUT:
                rest = rest[self._sock.send(rest[: 4 * _SEND_AT_ONCE_BYTES]) :]

    def _feed(self) -> None:
        data = self._sock.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self._reader.feed(data)

    def receive(self, replies: int) -> list[Any]:
        """Return the next replies, waiting for them; error replies are ReplyError objects in place."""
        got: list[Any] = []
        reader = self._reader
        try:
            while len(got) < replies:
                reply = reader.gets()
                if reply is False:  # not a value of RESP2: it means that bytes are missing
                    self._feed()
                else:
                    got.append(reply)
            if self._demoted:  # a failover that left our connection open: whoever is asked next must be the master
                raise ConnectionResetError("the server is no master any more")
        except OSError as error:
            self._raise_cut(error)
        except hiredis.ProtocolError as error:
            self.close()
            raise EndpointError(
                f"{self.address} does not speak the Redis protocol",
                hint="check host and port",
                code="PROTOCOL",
            ) from error
        return got

    def select(self, db: int) -> None:
        """Make `db` the database of what follows. Raises EndpointError where there is no such database."""
        self.call("SELECT", db)
        self.db = db

    def abort(self) -> None:
        """End what waits for the server, from another thread: it raises EndpointError."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection. May be called twice."""
        if not self._closed:
            self._closed = True
            self._sock.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _refuse_writes(self, commands: Sequence[Sequence[Any]]) -> None:
        if self.writable:
            return
        for args in commands:
            if not is_read(args):
                shown = b" ".join(a if isinstance(a, bytes) else str(a).encode() for a in args[:2])
                raise EndpointError(
                    f"{shown[:40].decode('utf-8', 'backslashreplace')!r} on a connection that may not write",
                    hint="nothing was sent; a dry run, a plan and a verify only read",
                    code="NOT_WRITABLE",
                )

    def _raise_reply(self, reply: ReplyError, args: Sequence[Any]) -> NoReturn:
        name = command_name(args).decode("utf-8", "backslashreplace")
        code = reply.code
        if code == "ERR" and ("invalid password" in reply.message or "without any password" in reply.message):
            code = "WRONGPASS"
        raise EndpointError(f"{self.address}: {name}: {reply.message}", hint=_HINTS.get(code, ""), code=code)

    def _raise_cut(self, error: OSError) -> NoReturn:
        self.close()
        if isinstance(error, TimeoutError):
            raise EndpointError(
                f"{self.address}: no answer for {self.timeout_s:g} s",
                hint="the server is busy or the network is cut; run again to resume",
                code="TIMEOUT",
            ) from error
        raise EndpointError(
            f"{self.address}: the connection was lost: {error}",
            hint="see that the server runs, then run again to resume",
            code="CUT",
        ) from error


def parse_info(reply: bytes) -> dict[str, str]:
    """Return an INFO reply as a dict of its lines."""
    lines = reply.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def connect_again(
    url: str, *, db: int = 0, writable: bool = True, timeout_s: float = 10.0, attempts: int | None = None
) -> Endpoint:
    """Connect, trying `attempts` times while the server is away, with pauses between (see pause_s).

    None: 6 times, which takes 3 s; behind sentinels, who need their time to agree on a master, for a minute.
    """
    attempts = attempts or (AGREEING_ATTEMPTS if url.startswith("sentinel:") else 6)
    for attempt in range(attempts):
        try:
            return Endpoint.connect(url, db=db, writable=writable, timeout_s=timeout_s)
        except EndpointError as error:
            if not is_lost(error) or attempt == attempts - 1:
                raise
        time.sleep(pause_s(attempt, attempts))
    raise AssertionError("unreachable")


def pause_s(attempt: int, attempts: int) -> float:
    """Return how many seconds to wait after an attempt, counted from 0: 0.1, 0.2, 0.4 ...; at most 1 if many follow."""
    pause: float = 0.1 * 2**attempt
    return pause if attempts <= 6 else min(1.0, pause)


def commands_of(packed: bytes) -> list[list[bytes]]:
    """Return the commands in a packed buffer.

    They are arrays of bulk strings, which a reader of replies reads.
    """
    reader = hiredis.Reader()
    reader.feed(packed)
    commands = []
    while (command := reader.gets()) is not False:
        if not isinstance(command, list) or not command or not isinstance(command[0], bytes):
            raise ValueError("exchange() takes packed commands")
        commands.append(command)
    if reader.has_data():
        raise ValueError("exchange() takes whole commands")
    return commands
