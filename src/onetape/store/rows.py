"""Rows of the journal as they are in the file of a tape, read without SQLite and so without the log that lies over it.

The format is that of https://www.sqlite.org/fileformat2.html, "B-tree Pages" and "Cell Payload Overflow Pages". The
file may be written meanwhile: whatever makes no sense is left out, and a row's own checksum says whether it is whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from onetape.store import peek

_LEAF, _INTERIOR = 0x0D, 0x05
#: Pages that are looked at: an opening may take no longer because the journal is long.
_PAGES_MAX = 16
_PAYLOAD_BYTES_MAX = 256 * 1024
_NULL, _BLOB, _INTEGER_MAX = 0, 12, 9
_COLUMNS = 4


class Row(NamedTuple):
    """One row of the journal: its last position, and its block."""

    key: int
    payload: bytes


def newest(path: Path, root: int) -> Iterator[Row]:
    """Yield rows of the journal from the last page with rows backwards, as far as a short look goes."""
    try:
        yield from _rows(path, root)
    except (OSError, IndexError):
        return


def _rows(path: Path, root: int) -> Iterator[Row]:
    head = peek.read(path, 0, 100)
    size = int.from_bytes(head[16:18], "big") or 512
    size = 65536 if size == 1 else size
    usable, waiting = size - head[20], [root]
    for _ in range(_PAGES_MAX):
        if not waiting:
            return
        page = _page(path, waiting.pop(), size)
        count, after = int.from_bytes(page[3:5], "big"), 12 if page[0] == _INTERIOR else 8
        cells = [int.from_bytes(page[at : at + 2], "big") for at in range(after, after + 2 * count, 2)]
        if page[0] == _INTERIOR:
            waiting += [int.from_bytes(page[at : at + 4], "big") for at in cells]
            waiting.append(int.from_bytes(page[8:12], "big"))
        elif page[0] == _LEAF:
            for at in reversed(cells):
                row = _row(path, page, at, size, usable)
                if row is not None:
                    yield row


def _page(path: Path, number: int, size: int) -> bytes:
    page = peek.read(path, (number - 1) * size, size) if number > 1 else b""
    if len(page) < size:
        raise IndexError("no page")
    return page


def _row(path: Path, page: bytes, at: int, size: int, usable: int) -> Row | None:
    length, at = varint(page, at)
    key, at = varint(page, at)
    if length > _PAYLOAD_BYTES_MAX:
        return None
    here, least = usable - 35, (usable - 12) * 32 // 255 - 23
    if length > here:
        part = least + (length - least) % (usable - 4)
        local = part if part <= here else least
        content, follows = page[at : at + local], int.from_bytes(page[at + local : at + local + 4], "big")
        while len(content) < length:  # each page adds to it, so that a chain that goes in circles ends
            more = _page(path, follows, size)
            content, follows = content + more[4:usable], int.from_bytes(more[:4], "big")
    else:
        content = page[at : at + length]
    end, at = varint(content, 0)
    kinds = []
    while at < end:
        kind, at = varint(content, at)
        kinds.append(kind)
    if len(kinds) != _COLUMNS or kinds[0] != _NULL or max(kinds[1:3]) > _INTEGER_MAX or kinds[3] < _BLOB:
        return None  # a page that holds something else by now
    return Row(key, content[length - (kinds[3] - _BLOB) // 2 : length])


def varint(content: bytes, at: int) -> tuple[int, int]:
    """Return (value, where the next begins) of an integer of one to nine bytes. Raises IndexError."""
    value = 0
    for place in range(8):
        byte = content[at + place]
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            return value, at + place + 1
    return value << 8 | content[at + 8], at + 9
