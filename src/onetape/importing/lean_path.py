"""Where a file of QuantConnect Lean lies, which says what it holds, and the time zone its times are in.

The layout is <type>/<market>/<resolution>/<ticker>/<date>_<kind>.zip, and for hours and days, one zip a ticker,
<type>/<market>/<resolution>/<ticker>[_<kind>].zip (Lean's Data/readme.md and Data/<type>/readme.md).
"""

from __future__ import annotations

import re
from datetime import date, datetime
from functools import lru_cache
from pathlib import Path, PurePath

import msgspec

TYPES = frozenset(
    ("equity", "option", "indexoption", "index", "future", "futureoption", "forex", "cfd", "crypto", "cryptofuture")
)
RESOLUTIONS = frozenset(("tick", "second", "minute", "hour", "daily"))
KINDS = frozenset(("trade", "quote", "openinterest"))
#: Prices of these are written in ten-thousandths.
SCALED = frozenset(("equity", "option", "indexoption"))
#: The same ticker is another thing on another of these markets: the market belongs to the symbol.
BROKERED = frozenset(("forex", "cfd", "crypto", "cryptofuture"))

_FUTURES = ("cme", "cbot", "nymex", "comex", "cfe")
#: dataTimeZone of Lean's market-hours database, where the folder does not bring its own.
_ZONES = {
    ("equity", "usa"): "America/New_York",
    ("option", "usa"): "America/New_York",
    ("equity", "india"): "Asia/Kolkata",
    ("index", "india"): "Asia/Kolkata",
    ("forex", "oanda"): "UTC",
    ("forex", "fxcm"): "UTC-05",
    ("cfd", "oanda"): "UTC",
    **{(kind, market): "UTC" for kind in ("future", "futureoption") for market in _FUTURES},
}
_OFFSET = re.compile(r"UTC([+-])(\d{1,2})")
_MEMBER = re.compile(
    r"(?P<date>\d{8})_(?P<ticker>.+?)_(?:(?P<resolution>tick|second|minute)_(?P<kind>trade|quote|openinterest)"
    r"|(?P<old_kind>trade|quote)_(?P<old_resolution>tick|second|minute))(?:_(?P<rest>.+))?\.csv",
    re.IGNORECASE,
)


class Place(msgspec.Struct, frozen=True):
    """What a path says. `day` is None for hours and days, whose rows have full dates."""

    type: str
    market: str
    resolution: str
    ticker: str
    kind: str
    day: date | None
    root: str


class Member(msgspec.Struct, frozen=True):
    """What the name of a file inside a zip says; `rest` is the contract."""

    day: date
    resolution: str
    kind: str
    rest: str


def place(path: PurePath) -> Place | None:
    """Return what a path says, or None if it is not laid out as Lean's."""
    parts = [part.lower() for part in path.parts]
    for at in range(len(parts) - 2, 1, -1):
        if parts[at] in RESOLUTIONS and parts[at - 2] in TYPES:
            break
    else:
        return None
    name = parts[-1].removesuffix(".zip")
    depth = len(parts) - 1 - at
    head, _, kind = name.rpartition("_")
    root = str(PurePath(*path.parts[: at - 2])) if at > 2 else "."
    if parts[at] in ("hour", "daily"):
        if depth != 1:
            return None
        if kind not in KINDS:
            head, kind = name, "quote" if parts[at - 2] in ("forex", "cfd") else "trade"
        return Place(parts[at - 2], parts[at - 1], parts[at], head, kind, None, root)
    style = head.partition("_")[2]  # options: 20140606_trade_american.zip
    if (kind not in KINDS and style in KINDS) or not head.isdecimal():
        head, kind = head.partition("_")[0] or name, style or kind
    day = _day(head)
    if depth != 2 or day is None or kind not in KINDS:
        return None
    return Place(parts[at - 2], parts[at - 1], parts[at], parts[at + 1], kind, day, root)


def member(name: str) -> Member | None:
    """Return what the name of a file in a zip says, or None if it is not one that Lean gives."""
    found = _MEMBER.fullmatch(PurePath(name).name)
    day = _day(found["date"]) if found else None
    if found is None or day is None:
        return None
    resolution, kind = found["resolution"] or found["old_resolution"], found["kind"] or found["old_kind"]
    return Member(day, resolution.lower(), kind.lower(), (found["rest"] or "").lower())


def _day(text: str) -> date | None:
    try:
        return datetime.strptime(text, "%Y%m%d").date() if len(text) == 8 else None
    except ValueError:
        return None


def zone(where: Place) -> str | None:
    """Return the IANA time zone of a place's times: by the folder's own market-hours database, else Lean's; or None."""
    names = (f"{where.type}-{where.market}-{where.ticker}", f"{where.type}-{where.market}-[*]")
    database = Path(where.root, "market-hours", "market-hours-database.json")
    found = None
    if database.is_file():
        own = _zones_of(database, database.stat().st_mtime_ns)
        found = next((own[name] for name in names if name in own), None)
    if found is None:
        found = _ZONES.get((where.type, where.market))
    if found is None and where.type in ("crypto", "cryptofuture"):
        found = "UTC"
    return None if found is None else iana(found)


def iana(name: str) -> str:
    """Return a zone's IANA name; "UTC-05" is a fixed offset there, five hours behind."""
    offset = _OFFSET.fullmatch(name)
    if offset is None:
        return name
    return f"Etc/GMT{'-' if offset[1] == '+' else '+'}{int(offset[2])}" if int(offset[2]) else "UTC"


class _Entry(msgspec.Struct):
    zone: str = msgspec.field(name="dataTimeZone", default="")


class _Database(msgspec.Struct):
    entries: dict[str, _Entry] = {}


@lru_cache(maxsize=4)
def _zones_of(database: Path, changed_ns: int) -> dict[str, str]:
    try:
        found = msgspec.json.decode(database.read_bytes(), type=_Database)
    except (OSError, msgspec.MsgspecError):
        return {}
    return {name.lower(): entry.zone for name, entry in found.entries.items() if entry.zone}
