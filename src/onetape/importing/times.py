"""Times in a file: texts of one form to nanoseconds since the epoch, UTC, a column at a time, to the last digit."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from onetape.clock import to_ns
from onetape.errors import ImportInvalid

#: Unit → how many decimals of it make a nanosecond.
_UNITS = {"s": 9, "ms": 6, "us": 3, "ns": 0}
#: Forms beside ISO 8601 that can mean one thing only: the year comes first.
_PATTERNS = (
    "%Y%m%d %H:%M:%S",
    "%Y%m%d %H:%M:%S.%f",
    "%Y%m%d %H:%M:%S %f",
    "%Y%m%d%H%M%S",
    "%Y%m%d",
    "%Y.%m.%d %H:%M",
    "%Y.%m.%d %H:%M:%S",
    "%Y.%m.%d %H:%M:%S.%f",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M:%S.%f",
    "%Y/%m/%d",
    "%Y.%m.%d",
)
_NUMBER = re.compile(r"[+-]?(\d{1,19})(?:\.\d*)?")
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?: ?(?:Z|[+-]\d{2}(?::?\d{2})?))?)?")
_ZONE = r":\d{2}(\.\d+)?(Z|[+-]\d{2}(:?\d{2})?)$"
#: Offsets are constant within a quarter of an hour of local time: what a zone is asked for, once each.
_SLOT_NS = 900_000_000_000
_BAD = np.int64(-1)

Array = npt.NDArray[Any]


class Times(NamedTuple):
    """`ns`, and where `bad` is set, why: "" not of this form, else a sentence."""

    ns: Array
    bad: Array
    why: str


def detect(text: str) -> str | None:
    """Return the form of a time: s, ms, us, ns (by its number of digits), iso, or a strptime pattern; None: unknown."""
    text = text.strip()
    if not (len(text) in (8, 14) and _fits(text, "%Y%m%d" if len(text) == 8 else "%Y%m%d%H%M%S")):
        number = _NUMBER.fullmatch(text)
        if number:
            digits = len(number[1].lstrip("0"))
            return "s" if digits <= 11 else "ms" if digits <= 14 else "us" if digits <= 17 else "ns"
    if _ISO.fullmatch(text):
        return "iso"
    return next((pattern for pattern in _PATTERNS if _fits(text, pattern)), None)


def _fits(text: str, pattern: str) -> bool:
    try:
        moment = datetime.strptime(text, pattern)
    except ValueError:
        return False
    return 1970 <= moment.year <= 2262


def check(form: str, zone: str) -> None:
    """Raise ImportInvalid unless form and zone can be used."""
    if form not in _UNITS and form not in ("auto", "iso") and "%" not in form:
        raise ImportInvalid(
            f"--time-format {form}: not known",
            hint="it is ns, us, ms, s, iso, or a pattern such as '%d/%m/%Y %H:%M:%S'",
        )
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError) as error:
        raise ImportInvalid(f"--timezone {zone}: not known", hint="such as Asia/Kolkata or America/New_York") from error


def read(texts: Any, form: str, zone: str) -> Times:
    """Return an Arrow string array's times. `zone` is for times that are written without an offset."""
    texts = pc.utf8_trim_whitespace(texts)
    if form in _UNITS:
        return _numbers(texts, _UNITS[form])
    if form == "iso":
        return _iso(texts, zone)
    return _pattern(texts, form, zone)


def _numbers(texts: Any, decimals: int) -> Times:
    try:
        whole, fraction = texts.cast(pa.int64()).to_numpy(zero_copy_only=False), None
    except pa.ArrowInvalid:
        parts = pc.extract_regex(texts, r"^(?P<whole>[+-]?\d{1,19})(?:\.(?P<fraction>\d*))?$")
        digits = pc.utf8_ltrim(pc.fill_null(pc.struct_field(parts, "whole"), ""), "+-")
        over = pc.and_(pc.equal(pc.utf8_length(digits), 19), pc.greater(digits, str(2**63 - 1)))
        bad = pc.or_(parts.is_null(), over).to_numpy(zero_copy_only=False)
        whole = _integers(pc.if_else(over, "0", pc.struct_field(parts, "whole")))
        padded = pc.utf8_slice_codeunits(pc.utf8_rpad(pc.struct_field(parts, "fraction"), 9, "0"), 0, decimals)
        fraction = _integers(padded) if decimals else None
    else:
        bad = np.zeros(len(whole), dtype=bool)
    scale = 10**decimals
    bad = bad | (np.abs(whole) > (2**63 - 2) // scale - (scale > 1))
    ns = np.where(bad, 0, whole) * scale
    if fraction is not None:
        ns += np.where(whole < 0, -fraction, fraction)
    return Times(np.where(bad, _BAD, ns), bad, "")


def _integers(texts: Any) -> Array:
    plain = pc.if_else(pc.equal(pc.fill_null(texts, ""), ""), "0", texts)
    plain = pc.utf8_ltrim(plain, "+")
    return np.asarray(plain.cast(pa.int64()).to_numpy(zero_copy_only=False))


def _iso(texts: Any, zone: str) -> Times:
    if pc.any(pc.match_substring(texts, " ")).as_py():  # a blank before the offset is common, and not ISO
        texts = pc.replace_substring_regex(texts, r" ([+-]\d|Z)", r"\1")
    zoned = pc.match_substring_regex(texts, _ZONE)
    if pc.all(zoned).as_py():
        return _cast(texts, "UTC")
    if not pc.any(zoned).as_py():
        found = _cast(texts, None)
        return in_zone(found.ns, found.bad, zone)
    mask = zoned.to_numpy(zero_copy_only=False)
    aware = _cast(texts.filter(zoned), "UTC")
    naive = _cast(texts.filter(pc.invert(zoned)), None)
    local = in_zone(naive.ns, naive.bad, zone)
    ns, bad = np.empty(len(mask), dtype=np.int64), np.empty(len(mask), dtype=bool)
    ns[mask], bad[mask], ns[~mask], bad[~mask] = aware.ns, aware.bad, local.ns, local.bad
    return Times(ns, bad, local.why)


def _cast(texts: Any, zone: str | None) -> Times:
    kind = pa.timestamp("ns", zone)
    try:
        ns = texts.cast(kind).cast(pa.int64()).to_numpy(zero_copy_only=False)
        return Times(np.asarray(ns), np.zeros(len(ns), dtype=bool), "")
    except pa.ArrowInvalid:
        values = [_cast_one(text, kind) for text in texts.to_pylist()]
        bad = np.array([value is None for value in values], dtype=bool)
        return Times(np.array([-1 if value is None else value for value in values], dtype=np.int64), bad, "")


def _cast_one(text: str, kind: Any) -> int | None:
    try:
        return int(pa.scalar(text).cast(kind).value)
    except pa.ArrowInvalid:
        return None


def _pattern(texts: Any, pattern: str, zone: str) -> Times:
    known: dict[str, tuple[int, bool] | None] = {}
    count = len(texts)
    ns, bad, naive = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    for at, text in enumerate(texts.to_pylist()):
        if text not in known:
            known[text] = _parse(text, pattern)
        found = known[text]
        if found is None:
            bad[at] = True
        else:
            ns[at], naive[at] = found
    if not naive.any():
        return Times(np.where(bad, _BAD, ns), bad, "")
    local = in_zone(ns, bad | ~naive, zone)
    use = naive & ~bad
    return Times(np.where(use, local.ns, np.where(bad, _BAD, ns)), np.where(use, local.bad, bad), local.why)


def _parse(text: str, pattern: str) -> tuple[int, bool] | None:
    try:
        moment = datetime.strptime(text, pattern)
    except ValueError:
        return None
    ns = to_ns(moment)
    return (ns, moment.tzinfo is None) if abs(ns) < 2**63 else None


def in_zone(local: Array, bad: Array, zone: str) -> Times:
    """Return local times as UTC. A time that the clocks show twice or never is bad: a guess could be an hour off."""
    if zone == "UTC":
        return Times(np.where(bad, _BAD, local), bad, "")
    slots, which = np.unique(np.where(bad, 0, local) // _SLOT_NS, return_inverse=True)
    found = [_offsets(int(slot), ZoneInfo(zone)) for slot in slots]
    early = np.array([one for one, _ in found], dtype=np.int64)[which]
    late = np.array([other for _, other in found], dtype=np.int64)[which]
    unclear = (early != late) & ~bad
    wrong = bad | unclear
    why = f"the clocks of {zone} show this time twice or never; write times with an offset, or in UTC"
    return Times(np.where(wrong, _BAD, local - early), wrong, why if unclear.any() and not bad.any() else "")


def _offsets(slot: int, zone: ZoneInfo) -> tuple[int, int]:
    seconds = slot * (_SLOT_NS // 1_000_000_000)
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC).replace(tzinfo=None) + timedelta(seconds=seconds)
    except OverflowError:
        return 0, 0
    both = [moment.replace(tzinfo=zone, fold=fold).utcoffset() or timedelta() for fold in (0, 1)]
    return int(both[0].total_seconds()) * 1_000_000_000, int(both[1].total_seconds()) * 1_000_000_000
