"""Writers of Sierra Chart's files, written from their description and not from the readers that are tested."""

from __future__ import annotations

import struct
from pathlib import Path

EPOCH_US = 25_569 * 86_400 * 1_000_000  # days from 1899-12-30 to 1970-01-01
FIRST, LAST = -1.99900095e37, -1.99900197e37


def header(header_bytes: int = 56, record_bytes: int = 40, version: int = 1, mark: bytes = b"SCID") -> bytes:
    raw = struct.pack("<4sIIHHI36s", mark, header_bytes, record_bytes, version, 0, 0, b"")
    return raw + bytes(max(0, header_bytes - len(raw)))


def record(
    ts_us: int,
    open_: float = 0.0,
    high: float = 0.0,
    low: float = 0.0,
    close: float = 100.0,
    trades: int = 1,
    volume: int = 1,
    bid_volume: int = 0,
    ask_volume: int = 1,
    record_bytes: int = 40,
) -> bytes:
    raw = struct.pack("<qffffIIII", ts_us + EPOCH_US, open_, high, low, close, trades, volume, bid_volume, ask_volume)
    return raw + b"\xee" * (record_bytes - len(raw))


def trade(ts_us: int, price: float, size: int = 1, *, bid: float = 0.0, ask: float = 0.0, sold: bool = False) -> bytes:
    return record(ts_us, 0.0, ask, bid, price, 1, size, size if sold else 0, 0 if sold else size)


def bar(ts_us: int, open_: float, high: float, low: float, close: float, volume: int = 10) -> bytes:
    return record(ts_us, open_, high, low, close, 3, volume, 4, volume - 4)


def write(path: Path, records: list[bytes], **of_header: int) -> Path:
    path.write_bytes(header(**of_header) + b"".join(records))
    return path


def depth_header(header_bytes: int = 64, record_bytes: int = 24) -> bytes:
    raw = struct.pack("<4sIII48s", b"SCDD", header_bytes, record_bytes, 1, b"")
    return raw + bytes(max(0, header_bytes - len(raw)))


def depth(ts_us: int, command: int, price: float = 0.0, size: int = 0, orders: int = 0, flags: int = 0) -> bytes:
    return struct.pack("<qBBHfII", ts_us + EPOCH_US, command, flags, orders, price, size, 0)
