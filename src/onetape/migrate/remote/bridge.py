"""The bridge: two servers as one endpoint, for whatever reads and writes both sides of a migration.

A number says server and database: those of the target's server begin at OTHER_SERVER. So all that was written for
two databases of one server (comparing, merging, landing) works between two servers, by the plan that away() gives;
and a key that keeps name and number of its database is, as it should be, another key over there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from onetape.migrate.plans.plan import Plan
from onetape.migrate.wire.endpoint import Argument, Endpoint, ReplyError, command_name, commands_of, pack

OTHER_SERVER = 1 << 20


def away(plan: Plan) -> Plan:
    """Return a plan whose target is the database of the same number on a bridge's other server."""
    return plan.with_target(OTHER_SERVER + plan.target_db)


class Bridge(Endpoint):
    """Two endpoints, of which `select` chooses. Whether a side may be written is that side's own matter.

    `server`, `version` are those of the side in use; `address` and `run_id` name both. A WATCH is remembered: UNWATCH
    and an empty transaction, which asks whether something changed, go to every side that watches.
    """

    def __init__(self, source: Endpoint, target: Endpoint) -> None:
        self.source = source
        self.target = target
        self._watching: list[Endpoint] = []
        self._on_their_way: deque[tuple[Endpoint, int]] = deque()
        self.address = f"{source.address} -> {target.address}"
        self.run_id = f"{source.run_id} -> {target.run_id}"
        self.writable = target.writable
        self.timeout_s = source.timeout_s
        self._turn(source)
        self.db = source.db

    def _turn(self, side: Endpoint) -> None:
        self._side = side
        self.server, self.version = side.server, side.version

    @property
    def has_expire_time(self) -> bool:
        """Return whether both servers know PEXPIRETIME."""
        return self.source.has_expire_time and self.target.has_expire_time

    @property
    def closed(self) -> bool:
        """Return whether one of the connections was closed or lost."""
        return self.source.closed or self.target.closed

    def close(self) -> None:
        """Close both connections."""
        self.source.close()
        self.target.close()

    def select(self, db: int) -> None:
        """Make `db` the database of what follows, on the server that its number says."""
        self._turn(self.source if db < OTHER_SERVER else self.target)
        real = db % OTHER_SERVER
        if self._side.db != real:
            self._side.select(real)
        self.db = db

    def call(self, *args: Argument) -> Any:
        """Send one command to the side in use and return its reply."""
        name = command_name(args)
        if name == b"SELECT":
            self.select(int(args[1]))
            return b"OK"
        if name in (b"WATCH", b"UNWATCH"):
            reply = self.pipeline([args])[0]
            if not isinstance(reply, ReplyError):
                return reply
        return self._side.call(*args)

    def pipeline(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Send all commands, each to the side that the last SELECT before it chose; return the replies in order."""
        names = [command_name(args) for args in commands]
        if names == [b"MULTI", b"EXEC"]:
            return self._ask_whether_changed(commands)
        if names == [b"UNWATCH"]:
            watching, self._watching = self._watching or [self._side], []
            return [[side.pipeline(commands)[0] for side in watching][-1]]
        self._send_parts(commands, names)
        return self.receive(len(commands))

    def _ask_whether_changed(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        watching, self._watching = self._watching or [self._side], []
        replies = [side.pipeline(commands) for side in watching]
        return next((reply for reply in replies if reply[-1] is None), replies[-1])

    def _send_parts(self, commands: Sequence[Sequence[Argument]], names: list[bytes]) -> None:
        packets: list[bytes] = []
        for args, name in zip(commands, names, strict=True):
            if name == b"SELECT":
                self._send_part(packets)
                packets = []
                db = int(args[1])
                self._turn(self.source if db < OTHER_SERVER else self.target)
                self._side.db, self.db = db % OTHER_SERVER, db
                args = ("SELECT", db % OTHER_SERVER)
            elif name == b"WATCH" and self._side not in self._watching:
                self._watching.append(self._side)
            elif name == b"EXEC":
                self._watching = [side for side in self._watching if side is not self._side]
            packets.append(pack(*args))
        self._send_part(packets)

    def _send_part(self, packets: list[bytes]) -> None:
        if packets:
            self._side.send(b"".join(packets))
            self._on_their_way.append((self._side, len(packets)))

    def send(self, packed: bytes) -> None:
        """Send packed commands, each to its side; receive() must fetch all their replies."""
        commands = commands_of(packed)
        self._send_parts(commands, [command_name(args) for args in commands])

    def receive(self, replies: int) -> list[Any]:
        """Return the next replies, from whichever side they come."""
        got: list[Any] = []
        while len(got) < replies:
            side, number = self._on_their_way.popleft()
            wanted = min(number, replies - len(got))
            if wanted < number:
                self._on_their_way.appendleft((side, number - wanted))
            got += side.receive(wanted)
        return got

    def exchange(self, packed: bytes, replies: int) -> list[Any]:
        """Send packed commands to their sides and return that many replies."""
        if b"SELECT" not in packed and not self._on_their_way:
            return self._side.exchange(packed, replies)
        self.send(packed)
        return self.receive(replies)
