"""The write-ahead log, read without SQLite: how much of it is whole, and whether it belongs to its file.

The format is that of https://www.sqlite.org/fileformat2.html, "The Write-Ahead Log". Its checksum is linear, so that it
is computed for all frames at once: s1 += x0 + s2; s2 += x1 + s1 for each pair of words, modulo 2^32.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import apsw
import numpy as np

from onetape.store import ask, block, layout, peek, rows

_HEADER = struct.Struct(">IIIIIIII")
_FRAME_BYTES, _FRAMES_AT_ONCE = 24, 4096
_MAGIC = 0x377F0682
_LOOKS, _LOOK_AGAIN_S = 3, 0.002
_USER_VERSION_AT, _APPLICATION_ID_AT = 60, 68
#: Logs are read whole up to this size; of longer ones the frames are counted, and their checksums are left alone.
CHECKED_BYTES_MAX = 128 * 2**20


class Log(NamedTuple):
    """What is in a log. `frames` are whole, the first `committed` of them belong to finished commits.

    `suspect` follow a damaged one, though they belong to the same log: a finished commit among them was lost.
    """

    bytes: int
    page_bytes: int
    frames: int
    committed: int
    suspect: int
    pages: dict[int, int]  # page number → offset of its newest committed content


def read(path: Path) -> Log | None:
    """Return what is in the log of the tape at `path`, or None if it has none, or one that no SQLite would read."""
    try:
        with layout.wal_path(path).open("rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except OSError:
        return None


def _read(file: BinaryIO, size: int) -> Log | None:
    raw = file.read(_HEADER.size)
    if len(raw) < _HEADER.size:
        return None
    magic, _, page, _, *salts, one, two = _HEADER.unpack(raw)
    if magic & ~1 != _MAGIC or not 512 <= page <= 65536 or page & (page - 1):
        return None
    order = ">" if magic & 1 else "<"
    if _sums(np.frombuffer(raw[:24], order + "u4")[None, :], (0, 0)) != [(one, two)]:
        return None
    stride = _FRAME_BYTES + page
    heads, whole, state, checking = [np.zeros((0, 6), "<u4")], 0, (one, two), size <= CHECKED_BYTES_MAX
    while frames := file.read(
        stride * _FRAMES_AT_ONCE
    ):  # (mapped memory would crash where the log is cut off meanwhile)
        count = len(frames) // stride
        part = np.frombuffer(frames, "u1", count * stride).reshape(count, stride)
        told = np.ascontiguousarray(part[:, :_FRAME_BYTES]).view(">u4").reshape(-1, 6)
        of_it = (told[:, 2] == salts[0]) & (told[:, 3] == salts[1])
        same = count if of_it.all() else int(np.argmin(of_it))
        heads.append(told[:same])
        if checking and same:
            good, state = _intact(part[:same], told, order, state)
            whole, checking = whole + good, good == same
        elif size > CHECKED_BYTES_MAX:
            whole += same
        if same < _FRAMES_AT_ONCE:
            break
    told = np.concatenate(heads)
    commits = np.flatnonzero(told[:whole, 1])
    committed = int(commits[-1]) + 1 if len(commits) else 0
    pages = {int(number): _HEADER.size + at * stride for at, number in enumerate(told[:committed, 0].tolist())}
    rest = told[whole:]
    return Log(size, page, whole, committed, len(rest) if rest[:, 1].any() else 0, pages)


def _intact(frames: Any, told: Any, order: str, state: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Return how many frames from the first on have the checksum they carry, and the checksum after them."""
    words = np.concatenate((frames[:, :8], frames[:, _FRAME_BYTES:]), axis=1).view(order + "u4")
    for at, found in enumerate(_sums(words, state)):
        if found != (int(told[at, 4]), int(told[at, 5])):
            return at, state
        state = found
    return len(frames), state


def _sums(words: Any, state: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the running checksum after each row of words."""
    pairs = words.shape[1] // 2
    # What x0 and x1 of each pair add to (s1, s2) at the end, and what the state before the row adds.
    first, second = np.empty((pairs, 2), "u4"), np.empty((pairs, 2), "u4")
    a, b = (1, 1), (0, 1)  # of the last pair: s1 += x0, s2 += x0 + x1 + …
    grow: tuple[tuple[int, int], tuple[int, int]] = ((1, 0), (0, 1))
    for at in range(pairs - 1, -1, -1):
        first[at] = [_times(grow, a)[0], _times(grow, a)[1]]
        second[at] = [_times(grow, b)[0], _times(grow, b)[1]]
        (p, q), (r, s) = grow
        grow = ((p + q) % 2**32, (p + 2 * q) % 2**32), ((r + s) % 2**32, (r + 2 * s) % 2**32)
    native = words.astype("u4")
    added = [
        (
            (native[:, 0::2] * first[:, which]).sum(axis=1, dtype="u4")
            + (native[:, 1::2] * second[:, which]).sum(axis=1, dtype="u4")
        )
        for which in (0, 1)
    ]
    (p, q), (r, s) = grow
    out = []
    one, two = state
    for x, y in zip(added[0].tolist(), added[1].tolist(), strict=True):
        one, two = (p * one + q * two + x) % 2**32, (r * one + s * two + y) % 2**32
        out.append((one, two))
    return out


def _times(grow: tuple[tuple[int, int], tuple[int, int]], vector: tuple[int, int]) -> tuple[int, int]:
    (p, q), (r, s) = grow
    return (p * vector[0] + q * vector[1]) % 2**32, (r * vector[0] + s * vector[1]) % 2**32


def page(path: Path, number: int, log: Log | None) -> bytes:
    """Return a page of a tape as its last commit left it, without opening the file with SQLite."""
    if log is not None and number in log.pages and layout.wal_path(path).exists():
        with layout.wal_path(path).open("rb") as file:
            file.seek(log.pages[number] + _FRAME_BYTES)
            return file.read(log.page_bytes)
    head = peek.read(path, 0, 100)
    size = int.from_bytes(head[16:18], "big") or 512
    size = 65536 if size == 1 else size
    return peek.read(path, (number - 1) * size, size)


def version(path: Path, log: Log | None) -> int:
    """Return the format of a tape: PRAGMA user_version, without opening the file with SQLite."""
    return int.from_bytes(page(path, 1, log)[_USER_VERSION_AT : _USER_VERSION_AT + 4], "big")


def is_tape(path: Path) -> bool:
    """Return whether the file without its log is marked as a tape."""
    head = page(path, 1, None)
    return int.from_bytes(head[_APPLICATION_ID_AT : _APPLICATION_ID_AT + 4], "big") == layout.APPLICATION_ID


def misfit(connection: apsw.Connection, path: Path) -> str | None:
    """Return why the log cannot belong to the file, as far as a short look tells; None if nothing speaks against it.

    A log of another tape, or of an older copy, lays its pages over the file's. Then the tape was not made when the
    file says, or what every tape keeps true does not hold: the journal goes from the seal to the head without a hole.
    """
    seal, created_ns = ask.row(connection, "SELECT seal, created_ns FROM state")
    root = ask.value(connection, "SELECT rootpage FROM sqlite_schema WHERE name = 'state'")
    for _ in range(_LOOKS):
        in_file = _created_ns(path, int(root))
        if in_file is None or in_file == created_ns:
            break
        time.sleep(_LOOK_AGAIN_S)  # another process may have been writing that very page
    else:
        return f"it is of a tape made at {created_ns}, the file of one made at {in_file}"
    head, count, first = ask.row(
        connection,
        "SELECT (SELECT max(seq_last) FROM journal), ifnull(sum(count), 0), min(seq_last - count)"
        " FROM journal WHERE seq_last > ?",
        (seal,),
    )
    if head is None:
        return "the journal has no last position"
    if head < seal:
        return f"the journal ends at {head}, before what is sealed up to {seal}"
    if count != head - seal or (count and first != seal):
        return f"the journal holds {count} records behind the seal at {seal}, but its last position is {head}"
    other = _other_row(connection, path)
    return None if other is None else f"it has other records at position {other} than the file"


def _other_row(connection: apsw.Connection, path: Path) -> int | None:
    """Return the position of a row of the journal that is whole in the file, but another one with the log; or None.

    A row is written once, and emptied when it is sealed: a log that has other records there is not of this file.
    """
    root = int(ask.value(connection, "SELECT rootpage FROM sqlite_schema WHERE name = 'journal'"))
    for row in rows.newest(path, root):
        if not block.is_whole(row.payload):
            continue  # the file may be written at this moment; what is damaged proves nothing
        told = connection.execute("SELECT payload FROM journal WHERE seq_last = ?", (row.key,)).get
        if told and told != row.payload:
            return row.key
    return None


def _created_ns(path: Path, root: int) -> int | None:
    """Return when the tape in the file, without its log, was made; None where that cannot be read there.

    The one row of table `state`, in the only cell of its root page: sqlite.org/fileformat2.html, "B-tree Pages".
    """
    try:
        content = page(path, root, None)
        if content[0] != 0x0D or content[3:5] != b"\x00\x01":
            return None
        at = int.from_bytes(content[8:10], "big")
        _, at = rows.varint(content, at)  # of the payload's length, and of the row's key
        _, at = rows.varint(content, at)
        length, body = rows.varint(content, at)
        end, kinds = at + length, []
        while body < end:
            kind, body = rows.varint(content, body)
            kinds.append(kind)
        sizes = [(0, 1, 2, 3, 4, 6, 8, 8, 0, 0)[kind] for kind in kinds]
        value = content[end + sum(sizes[:4]) : end + sum(sizes[:5])]
    except (OSError, IndexError):
        return None
    return int.from_bytes(value, "big", signed=True)
