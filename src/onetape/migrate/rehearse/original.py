"""The original of a rehearsal, brought into a private server: an RDB file, or a server that is only read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from onetape.embedded import EmbeddedServer, server_binaries
from onetape.errors import ConfigInvalid, EndpointError
from onetape.migrate.plans.plan import OURS, Plan
from onetape.migrate.report import key_text
from onetape.migrate.wire.endpoint import Endpoint, ReplyError

_PAGE_KEYS = 200
_BATCH_BYTES = 4 * 1024 * 1024
_LISTED = 20


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What was brought over: keys of the plan's databases, and the first of those that could not be, in words."""

    source: str
    keys: int
    refused: int = 0
    first_refused: tuple[str, ...] = ()


def server_for(plan: Plan, rdb: Path | None) -> EmbeddedServer:
    """Return a private server, running, with as many databases as the plan needs; with the content of an RDB file.

    Raises ConfigInvalid for a file that no server of this machine can load, EndpointError where there is no server.
    """
    databases = max(16, plan.target_db + 1, *(db + 1 for db in plan.source_dbs()))
    options = {"databases": str(max(databases, 64))}
    if rdb is None:
        return EmbeddedServer(options=options).start()
    _check_file(rdb)
    why = ""
    for binary in server_binaries().values():
        server = EmbeddedServer(binary, {**options, "dbfilename": "dump.rdb"})
        try:
            shutil.copyfile(rdb, server.directory / "dump.rdb")
            return server.start()
        except EndpointError as error:
            told = [line for line in server.log().splitlines() if "RDB" in line or "rror" in line]
            why = told[-1].strip() if told else error.message
            server.stop()
        except BaseException:
            server.stop()
            raise
    raise ConfigInvalid(f"{rdb}: no server of this machine can load it: {why}", hint="it may be of a newer server")


def _check_file(rdb: Path) -> None:
    try:
        with rdb.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ConfigInvalid(f"{rdb}: {error.strerror}", hint="give a file that SAVE or BGSAVE wrote") from error
    if not head.startswith((b"REDIS", b"VALKEY")):
        raise ConfigInvalid(f"{rdb} is no RDB file", hint="give a file that SAVE or BGSAVE wrote")


def count(endpoint: Endpoint, plan: Plan) -> int:
    """Return how many keys the plan's source databases hold."""
    total = 0
    for db in plan.source_dbs():
        endpoint.select(db)
        total += int(endpoint.call("DBSIZE"))
    return total


def copy(url: str, private: str, plan: Plan, *, every: int = 1, timeout_s: float = 10.0) -> Loaded:
    """Copy the plan's databases of a server into a private one. The original is read on a connection that cannot write.

    `every`: one key in so many, of the source databases. Keys keep type, content and absolute expiry. A key that the
    private server refuses is counted and named. Raises EndpointError.
    """
    refused: list[str] = []
    keys = failed = 0
    with (
        Endpoint.connect(url, writable=False, timeout_s=timeout_s) as reader,
        Endpoint.connect(private, timeout_s=60.0) as writer,
    ):
        for db in dict.fromkeys((*plan.source_dbs(), plan.target_db)):
            step = every if db in plan.source_dbs() else 1
            for page in _pages(reader, db, step):
                writer.select(db)
                for batch in _batches(reader, page):
                    bad = _move(reader, writer, batch)
                    keys += len(batch) - len(bad)
                    failed += len(bad)
                    refused += [f"db {db} {key_text(key)}: {why}" for key, why in bad[: _LISTED - len(refused)]]
        return Loaded(source=reader.address, keys=keys, refused=failed, first_refused=tuple(refused))


def _pages(reader: Endpoint, db: int, every: int) -> Iterator[list[bytes]]:
    cursor, seen = b"0", 0
    while True:
        reader.select(db)
        cursor, found = reader.call("SCAN", cursor, "COUNT", _PAGE_KEYS)
        keys = []
        for key in dict.fromkeys(found):
            if not key.startswith(OURS):
                if seen % every == 0:
                    keys.append(key)
                seen += 1
        if keys:
            yield keys
        if cursor == b"0":
            return


def _batches(reader: Endpoint, keys: list[bytes]) -> Iterator[list[bytes]]:
    sizes = reader.pipeline([("MEMORY", "USAGE", key, "SAMPLES", 1) for key in keys])
    batch: list[bytes] = []
    held = 0
    for key, size in zip(keys, sizes, strict=True):
        bytes_used = size if isinstance(size, int) else 0
        if batch and held + bytes_used > _BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(key)
        held += bytes_used
    if batch:
        yield batch


def _move(reader: Endpoint, writer: Endpoint, keys: list[bytes]) -> list[tuple[bytes, str]]:
    asked: list[tuple[Any, ...]] = []
    for key in keys:
        asked += [("DUMP", key), ("PTTL", key)]
    found = reader.pipeline([*asked, ("TIME",)])
    now_ms = int(found[-1][0]) * 1000 + int(found[-1][1]) // 1000
    bad: list[tuple[bytes, str]] = []
    commands: list[tuple[Any, ...]] = []
    sent: list[bytes] = []
    for place, key in enumerate(keys):
        payload, left_ms = found[2 * place], found[2 * place + 1]
        if isinstance(payload, ReplyError) or isinstance(left_ms, ReplyError):
            error = payload if isinstance(payload, ReplyError) else left_ms
            bad.append((key, error.message))
        elif payload is not None:
            until = ["ABSTTL"] if left_ms >= 0 else []
            commands.append(("RESTORE", key, now_ms + left_ms if left_ms >= 0 else 0, payload, "REPLACE", *until))
            sent.append(key)
    for key, reply in zip(sent, writer.pipeline(commands), strict=True):
        if isinstance(reply, ReplyError):
            bad.append((key, reply.message))
    return bad
