"""The cluster: a Redis Cluster as one endpoint. Each command goes to the node that has its key's slot.

Pipelines are cut by node, sent to all of them, and put together again. MOVED and ASK are followed; a transaction
(MULTI to EXEC) goes whole to the node of its keys, which must share a slot. What a cluster cannot do (a database other
than 0, two keys of one command on different slots) is the error that the nodes give.
"""

from __future__ import annotations

import time
from binascii import crc_hqx
from collections.abc import Iterator, Sequence
from typing import Any

from onetape.errors import ConfigInvalid, EndpointError
from onetape.migrate.wire.address import Address, Host
from onetape.migrate.wire.endpoint import (
    Argument,
    Endpoint,
    ReplyError,
    command_name,
    commands_of,
    is_lost,
    pack,
    parse_info,
)

SLOTS = 16384

_KEYLESS = frozenset(
    b"MULTI EXEC DISCARD UNWATCH PING TIME INFO ROLE CONFIG ACL CLUSTER SCRIPT MODULE COMMAND CLIENT LATENCY WAIT"
    b" DBSIZE SELECT SCAN".split()
)
_KEY_SECOND = frozenset(b"MEMORY OBJECT XINFO XGROUP".split())
#: Commands of several keys that are as good as one of each, and whose replies add up.
_SUMMED = frozenset(b"EXISTS DEL UNLINK".split())
_ELSEWHERE = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN")
_ATTEMPTS = 8


def slot_of(key: bytes) -> int:
    """Return the slot of a key: of what is between its first { and the next }, if there is something, else of all."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


class Cluster(Endpoint):
    """Connections to the masters of a cluster, made as they are needed. Not for several threads at once."""

    def __init__(self, where: Address, *, writable: bool, timeout_s: float) -> None:
        self._where = where
        self.address = where.name
        self.writable = writable
        self.timeout_s = timeout_s
        self.db = 0
        self._nodes: dict[Host, Endpoint] = {}
        self._slots: list[Host | None] = [None] * SLOTS
        self._masters: list[Host] = []
        self._watching: list[Host] = []
        self._held: list[Any] = []
        self._closed = False

    @classmethod
    def connect(cls, url: str, *, db: int = 0, writable: bool = True, timeout_s: float = 10.0) -> Cluster:
        """Connect to a cluster by any of its nodes. Raises ConfigInvalid, EndpointError."""
        where = Address.parse(url)
        cluster = cls(where, writable=writable, timeout_s=timeout_s)
        try:
            cluster._learn(where.hosts)
            first = cluster._node(cluster._masters[0])
            cluster.server, cluster.version = first.server, first.version
            cluster.run_id = cluster.address
            if db:
                cluster.select(db)
        except BaseException:
            cluster.close()
            raise
        return cluster

    def _learn(self, hosts: Sequence[Host]) -> None:
        """Ask one of the nodes which of them has which slots. Raises EndpointError where a slot has none."""
        failure: EndpointError | None = None
        for host in hosts:
            try:
                node = self._node(host)
                state = parse_info(node.call("CLUSTER", "INFO")).get("cluster_state")
                ranges = node.call("CLUSTER", "SLOTS")
            except EndpointError as error:
                if error.facts.get("code") == "ERR":
                    raise ConfigInvalid(
                        f"{host[0]}:{host[1]} is no node of a cluster", hint="redis://HOST:PORT"
                    ) from error
                self._drop(host)
                failure = error
                continue
            slots: list[Host | None] = [None] * SLOTS
            for first, last, master, *_replicas in ranges:
                owner = ((master[0] or b"").decode() or host[0], int(master[1]))
                slots[first : last + 1] = [owner] * (last - first + 1)
            if state != "ok" or None in slots:
                failure = EndpointError(
                    f"{self.address}: the cluster is not whole", hint="see CLUSTER INFO", code="UNREACHABLE"
                )
                continue
            self._slots = slots
            self._masters = list(dict.fromkeys(one for one in slots if one is not None))
            return
        raise failure or EndpointError(f"{self.address}: no node answers", code="UNREACHABLE")

    def _node(self, host: Host) -> Endpoint:
        node = self._nodes.get(host)
        if node is None or node.closed:
            where = self._where.node(*host)
            node = Endpoint._connect(where, db=0, writable=self.writable, timeout_s=self.timeout_s)
            self._nodes[host] = node
        return node

    def _drop(self, host: Host) -> None:
        node = self._nodes.pop(host, None)
        if node is not None:
            node.close()

    def masters(self) -> list[Endpoint]:
        """Return the connections to the masters, in the order of their first slots."""
        return [self._node(host) for host in self._masters]

    @property
    def closed(self) -> bool:
        """Return whether it was closed, or a node's connection was lost."""
        return self._closed or any(node.closed for node in self._nodes.values())

    @property
    def has_expire_time(self) -> bool:
        """Return whether the servers know PEXPIRETIME."""
        return self.server == "valkey" or self.version >= (7, 0)

    def close(self) -> None:
        """Close all connections."""
        self._closed = True
        for node in self._nodes.values():
            node.close()

    def select(self, db: int) -> None:
        """Accept database 0, the only one."""
        if db != 0:
            raise EndpointError(
                f"{self.address}: a cluster has database 0 only", hint="give a plan with target_db = 0", code="ERR"
            )
        self.db = 0

    def call(self, *args: Argument) -> Any:
        """Send one command to the node of its key and return its reply."""
        reply = self.pipeline([args])[0]
        if isinstance(reply, ReplyError):
            self._raise_reply(reply, args)
        return reply

    def pipeline(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Send every command to its node and return the replies in order, errors as ReplyError objects."""
        self._refuse_writes(commands)
        try:
            return self._pipeline(commands)
        except EndpointError as error:
            if is_lost(error):  # of what was sent to the other nodes, answers may be on their way
                self.close()
            raise

    def _pipeline(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        replies: list[Any] = [None] * len(commands)
        units = list(_units(commands))
        for attempt in range(_ATTEMPTS):
            units = self._round(commands, units, replies)
            if not units:
                break
            if attempt > 1:
                time.sleep(0.05 * 2**attempt)
            self._learn([*self._masters, *self._where.hosts])
        return replies

    def _round(self, commands: Sequence[Sequence[Argument]], units: list[range], replies: list[Any]) -> list[range]:
        """Ask once; return the units whose slot is elsewhere."""
        of_node: dict[Host, list[range]] = {}
        for unit in units:
            special = self._special(commands[unit.start]) if len(unit) == 1 else None
            if special is not None:
                replies[unit.start] = special()
                continue
            if len(unit) == 2 and command_name(commands[unit.start]) == b"MULTI":
                replies[unit.start : unit.stop] = self._ask_whether_changed()
                continue
            of_node.setdefault(self._host_of(commands, unit), []).append(unit)
        for host, mine in of_node.items():
            self._node(host).send(b"".join([pack(*commands[at]) for unit in mine for at in unit]))
        again = []
        for host, mine in of_node.items():
            for unit in mine:
                got = self._node(host).receive(len(unit))
                replies[unit.start : unit.stop] = got
                if self._went_elsewhere(host, commands, unit, got, replies):
                    again.append(unit)
        return again

    def _went_elsewhere(
        self, host: Host, commands: Sequence[Sequence[Argument]], unit: range, got: list[Any], replies: list[Any]
    ) -> bool:
        """Return whether to ask again, elsewhere. A transaction that watches is over instead: something changed."""
        refused = next((one for one in got if isinstance(one, ReplyError) and one.code in _ELSEWHERE), None)
        if len(unit) > 1:
            watched = host in self._watching
            if refused is None or not watched:
                self._watching = [one for one in self._watching if one != host]
                return refused is not None
            self._watching.remove(host)
            replies[unit.stop - 1] = None
            return False
        if refused is not None and refused.code == "ASK":
            _ask, _slot, place = refused.message.split()[:3]
            name, _, port = place.rpartition(":")
            node = self._node((name or host[0], int(port)))
            replies[unit.start] = node.pipeline([("ASKING",), commands[unit.start]])[1]
            return False
        return refused is not None

    def _host_of(self, commands: Sequence[Sequence[Argument]], unit: range) -> Host:
        keys = [key for at in unit if (key := key_of(commands[at])) is not None]
        host = self._slots[slot_of(keys[0])] if keys else self._masters[0]
        assert host is not None
        if command_name(commands[unit.start]) == b"WATCH" and host not in self._watching:
            self._watching.append(host)
        return host

    def _special(self, args: Sequence[Argument]) -> Any:
        """Return what answers a command that is not one node's, None where it is."""
        name = command_name(args)
        if name == b"SELECT":
            return lambda: self._selected(int(args[1]))
        if name == b"DBSIZE":
            return lambda: sum(int(node.call("DBSIZE")) for node in self.masters())
        if name == b"UNWATCH":
            return self._unwatch
        if name == b"SCAN":
            return lambda: self._scan(args)
        if name == b"WATCH" and len(args) > 2:
            return lambda: self.pipeline([("WATCH", key) for key in args[1:]])[-1]
        if name in _SUMMED and len(args) > 2:
            return lambda: sum(self.call(args[0], key) for key in args[1:])
        return None

    def _selected(self, db: int) -> bytes:
        self.select(db)
        return b"OK"

    def _unwatch(self) -> bytes:
        for host in self._watching:
            self._node(host).call("UNWATCH")
        self._watching.clear()
        return b"OK"

    def _ask_whether_changed(self) -> list[Any]:
        replies = [self._node(host).pipeline([("MULTI",), ("EXEC",)]) for host in self._watching or self._masters[:1]]
        self._watching.clear()
        return next((reply for reply in replies if reply[-1] is None), replies[-1])

    def _scan(self, args: Sequence[Argument]) -> list[Any]:
        """Scan node after node: the cursor says which node, too."""
        number = len(self._masters)
        cursor, at = divmod(int(args[1]), number)
        inner, keys = self._node(self._masters[at]).call("SCAN", cursor, *args[2:])
        if inner == b"0":
            at += 1
            return [b"0" if at == number else b"%d" % at, keys]
        return [b"%d" % (int(inner) * number + at), keys]

    def send(self, packed: bytes) -> None:
        """Do packed commands; receive() gives their replies."""
        self._held += self.pipeline(commands_of(packed))

    def receive(self, replies: int) -> list[Any]:
        """Return the next replies."""
        got, self._held = self._held[:replies], self._held[replies:]
        return got

    def exchange(self, packed: bytes, replies: int) -> list[Any]:
        """Do packed commands and return their replies."""
        return self.pipeline(commands_of(packed))


def key_of(args: Sequence[Argument]) -> bytes | None:
    """Return the first key of a command, None for one without."""
    name = command_name(args)
    if name in _KEYLESS:
        return None
    at = 2 if name in _KEY_SECOND else 1
    if name in (b"EVAL", b"EVALSHA", b"EVAL_RO", b"EVALSHA_RO"):
        at = 3
    if len(args) <= at:
        return None
    key = args[at]
    return key if isinstance(key, bytes) else str(key).encode()


def _units(commands: Sequence[Sequence[Argument]]) -> Iterator[range]:
    """Yield the places of what goes to one node together: single commands, and whole transactions."""
    at = 0
    while at < len(commands):
        end = at + 1
        if command_name(commands[at]) == b"MULTI":
            while end < len(commands) and command_name(commands[end - 1]) != b"EXEC":
                end += 1
        yield range(at, end)
        at = end
