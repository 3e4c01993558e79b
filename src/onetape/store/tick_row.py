"""One tick as the bytes of one record of a block, checked while it is packed: what single appends and writers do.

A row is the values of the columns it has, in the order of their bits (TICK_COLUMNS in store/block.py).
"""

from __future__ import annotations

import struct
import time
import zlib

import msgspec

from onetape.record import Tick
from onetape.store.block import ABSENT, TICK_COLUMNS
from onetape.store.layout import KIND_TICK

_astuple = msgspec.structs.astuple
_crc32 = zlib.crc32
_now_ns = time.time_ns
_HEAD = struct.Struct("<BBHIII").pack
_CRC = struct.Struct("<I").pack
#: The shapes most feeds send, packed without a loop: a trade with both sides of the book, a trade, a quote.
_FULL = struct.Struct("<qddddddI").pack
_FULL_SIDE = struct.Struct("<qddddddIb").pack
_TRADE = struct.Struct("<qddI").pack
_TRADE_SIDE = struct.Struct("<qddIb").pack
_QUOTE = struct.Struct("<qddddI").pack


def encode_tick(tick: Tick, symbol_id: int, source_id: int) -> bytes | None:
    """Return a block of one tick, appended now, or None as tick_row() does."""
    found = tick_row(tick, symbol_id, source_id)
    if found is None:
        return None
    at_ms = _now_ns() // 1_000_000
    body = _HEAD(1, KIND_TICK, at_ms & 0xFFFF, 1, found[0], at_ms >> 16) + found[1]
    return body + _CRC(_crc32(body))


def tick_row(tick: Tick, symbol_id: int, source_id: int) -> tuple[int, bytes] | None:
    """Return (bits, row) of a tick, or None if anything about it is invalid: the caller finds out what.

    It validates while it packs: a sum of floats is finite only if each of them is (`x - x` is 0.0 for a finite number
    only; a sum that overflows is left to the caller too). Raises what struct raises for values of a wrong type.
    """
    (_, ts, price, size, bid, ask, bid_size, ask_size, side, flags, open_, high, low, volume, vwap, trades, interest, _,
     received, _) = _astuple(tick)  # fmt: skip
    if not 0 <= ts < 0x7FFFFFFFFFFFFFFF:
        return None
    if (
        open_ is None
        and high is None
        and low is None
        and volume is None
        and vwap is None
        and trades is None
        and interest is None
        and received is None
        and flags == 0
        and source_id == 0
    ):
        quoted = bid is not None and ask is not None and bid_size is not None and ask_size is not None
        if price is not None and size is not None and (quoted or (bid is ask is bid_size is ask_size is None)):
            if quoted:
                total = price + size + bid + ask + bid_size + ask_size
                if total - total != 0.0 or size < 0.0 or bid_size < 0.0 or ask_size < 0.0:
                    return None
                if side == 0:
                    return 0x1007F, _FULL(ts, price, size, bid, ask, bid_size, ask_size, symbol_id)
                if side == 1 or side == -1:
                    return 0x9007F, _FULL_SIDE(ts, price, size, bid, ask, bid_size, ask_size, symbol_id, side)
                return None
            total = price + size
            if total - total != 0.0 or size < 0.0:
                return None
            if side == 0:
                return 0x10007, _TRADE(ts, price, size, symbol_id)
            if side == 1 or side == -1:
                return 0x90007, _TRADE_SIDE(ts, price, size, symbol_id, side)
            return None
        if quoted and price is size is None and side == 0:
            total = bid + ask + bid_size + ask_size
            if total - total != 0.0 or bid_size < 0.0 or ask_size < 0.0:
                return None
            return 0x10079, _QUOTE(ts, bid, ask, bid_size, ask_size, symbol_id)
    return _row_of_any(tick, symbol_id, source_id)


#: Every column but the session's, there or not: what a writer packs, so that its ticks make one run.
_WIDE_BITS = 0xF407F
_WIDE = struct.Struct("<qddddddqIIIb").pack
_NAN = float("nan")


def wide_row(tick: Tick, symbol_id: int, source_id: int) -> tuple[int, bytes] | None:
    """Return what tick_row() does, with the same columns for all ticks without a session's snapshot: absent or not."""
    (_, ts, price, size, bid, ask, bid_size, ask_size, side, flags, open_, high, low, volume, vwap, trades, interest, _,
     received, _) = _astuple(tick)  # fmt: skip
    if not (
        open_ is None
        and high is None
        and low is None
        and volume is None
        and vwap is None
        and trades is None
        and interest is None
    ):
        return _row_of_any(tick, symbol_id, source_id)
    if not 0 <= ts < 0x7FFFFFFFFFFFFFFF or side not in _SIDES:
        return None
    if received is None:
        received = ABSENT
    elif not 0 <= received < 0x7FFFFFFFFFFFFFFF:
        return None
    total = 0.0
    if price is None:
        price = _NAN
        if bid is None and ask is None:
            return None
    else:
        total += price
    if size is None:
        size = _NAN
    elif size < 0.0:
        return None
    else:
        total += size
    if bid is None:
        bid = _NAN
    else:
        total += bid
    if ask is None:
        ask = _NAN
    else:
        total += ask
    if bid_size is None:
        bid_size = _NAN
    elif bid_size < 0.0:
        return None
    else:
        total += bid_size
    if ask_size is None:
        ask_size = _NAN
    elif ask_size < 0.0:
        return None
    else:
        total += ask_size
    if total - total != 0.0:  # one of them is not finite, or their sum is not
        return _row_of_any(tick, symbol_id, source_id)
    return _WIDE_BITS, _WIDE(ts, price, size, bid, ask, bid_size, ask_size, received, symbol_id, source_id, flags, side)


_SIDES = frozenset((-1, 0, 1))
_FLOATS: tuple[tuple[str, int, bool], ...] = tuple(
    (name, 1 << bit, name in ("size", "bid_size", "ask_size", "volume", "open_interest"))
    for bit, (name, code) in enumerate(TICK_COLUMNS)
    if code == "<f8"
)
_TOLD = 0b11010  # price, bid, ask
_packers: dict[int, struct.Struct] = {}


def _packer(bits: int) -> struct.Struct:
    codes = {"<i8": "q", "<f8": "d", "<u4": "I", "<i1": "b"}
    known = _packers[bits] = struct.Struct(
        "<" + "".join(codes[code] for bit, (_, code) in enumerate(TICK_COLUMNS) if bits >> bit & 1)
    )
    return known


def _row_of_any(tick: Tick, symbol_id: int, source_id: int) -> tuple[int, bytes] | None:
    bits = 0x10001
    values: list[float | int] = [tick.ts_event_ns]
    add = values.append
    zero = 0.0
    for name, bit, not_negative in _FLOATS:
        if (x := getattr(tick, name)) is not None:
            if not_negative and not x >= 0.0:
                return None
            bits |= bit
            zero += x - x
            add(x)
    if zero != 0.0 or not bits & _TOLD:
        return None
    if (n := tick.trades) is not None:
        if n < 0:
            return None
        bits |= 0x2000
        add(n)
    if (n := tick.ts_recv_ns) is not None:
        if not 0 <= n < 0x7FFFFFFFFFFFFFFF:
            return None
        bits |= 0x4000
        add(n)
    add(symbol_id)
    if source_id:
        bits |= 0x20000
        add(source_id)
    if (n := tick.flags) != 0:
        bits |= 0x40000
        add(n)
    if (n := tick.side) != 0:
        if n not in (1, -1):
            return None
        bits |= 0x80000
        add(n)
    return bits, (_packers.get(bits) or _packer(bits)).pack(*values)
