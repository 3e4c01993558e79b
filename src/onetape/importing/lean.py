"""Files of QuantConnect Lean: zips of CSV without a header line, of which the path says what they hold."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Generator
from datetime import date
from pathlib import Path, PurePath
from typing import Any

import msgspec

from onetape.errors import ImportInvalid
from onetape.importing import lean_path, lean_rows, times
from onetape.importing.csv_file import CsvFile
from onetape.importing.format import BATCH_ROWS, Batch, Format, Options, Part, Tell
from onetape.importing.lean_path import Member, Place
from onetape.importing.lean_rows import Reading

_LINE_BYTES_MAX = 4096
_AS = "say where it would lie in Lean's folder: --as equity/usa/minute/aig/20131007_trade.zip"


def _detects(path: Path) -> bool:
    try:
        if path.suffix.lower() != ".zip" or not zipfile.is_zipfile(path):
            return False
        if lean_path.place(path.absolute()) is not None:
            return True
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist()[:100] if not info.is_dir()]
        return bool(names) and all(lean_path.member(name) for name in names)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


def _parts(path: Path, options: Options) -> list[Part]:
    given = PurePath(options.as_path) if options.as_path is not None else path.absolute()
    place = lean_path.place(given)
    if place is None:
        raise ImportInvalid(
            f"{given}: this path does not say what the file holds, as those of Lean's folder do", hint=_AS
        )
    zone = lean_path.iana(options.timezone) if options.timezone is not None else lean_path.zone(place)
    if zone is None:
        raise ImportInvalid(
            f"{path}: the time zone of {place.type}/{place.market} is not known", hint="give it: --timezone Asia/Tokyo"
        )
    times.check("ms", zone)
    parts = [_File(path, name, place, zone, options) for name in _names(path)]
    if len(parts) > 1:
        for part in parts:
            if part.member is None and place.day is not None:
                raise ImportInvalid(f"{part.shown}: Lean gives no such name", hint="take it out of the zip")
    # Of a session that is there twice, the one with the day of the zip comes first: that one is kept.
    parts.sort(key=lambda part: (part.reading.day != place.day, part.reading.day or date.min, part.shown))
    return [*parts]


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ImportInvalid(f"{path}: not a zip that can be read: {error}", hint="get it again") from error
    names = [name for name in names if not name.startswith("__MACOSX/")]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ImportInvalid(f"{path}: it holds {twice!r} twice", hint="only one of them can be read: pack it anew")
    if not names:
        raise ImportInvalid(f"{path}: an empty zip", hint="get it again")
    return names


class _File(Part):
    """One CSV in a zip of Lean's."""

    def __init__(self, path: Path, name: str, place: Place, zone: str, options: Options) -> None:
        self.path, self.name = path, name
        self.shown = f"{path}!{name}"
        self.bytes_total = path.stat().st_size
        self.member = lean_path.member(name)
        self._check(place)
        self.reading = Reading(
            kind=place.kind,
            resolution=place.resolution,
            symbol=_symbol(place, self.member, name, options.symbol),
            source=options.source or place.market,
            zone=zone,
            scale=10_000.0 if place.type in lean_path.SCALED else 1.0,
            day=None if place.day is None else self.member.day if self.member else place.day,
        )
        self.how = msgspec.structs.asdict(self.reading)
        self.session = "day" if place.day is not None else None
        self.notes = [f"times in {zone}"] if zone != "UTC" else []

    def _check(self, place: Place) -> None:
        if self.member is None:
            return
        for what in ("resolution", "kind"):
            inside, outside = getattr(self.member, what), getattr(place, what)
            if inside != outside:
                raise ImportInvalid(f"{self.shown}: its name says {inside}, its path {outside}", hint="pack it anew")

    def batches(self, tell: Tell) -> Generator[Batch, None, str]:
        count = self._columns()
        if not count:
            return ""
        names = lean_rows.columns(self.reading.resolution, self.reading.kind, count)
        if names is None:
            wanted = lean_rows.expected(self.reading.resolution, self.reading.kind)
            what = f"{self.reading.resolution} {self.reading.kind}"
            raise ImportInvalid(f"{self.shown}, line 1: {count} columns, a {what} has {wanted}", hint="get it again")
        file = CsvFile(self.path, self.name, ",", names)
        found = file.batches(names, BATCH_ROWS, tell)
        first = 0
        while True:
            try:
                table = next(found)
            except StopIteration as end:
                return str(end.value)
            yield lean_rows.read(self.reading, table, _Line(file, first))
            first += table.num_rows

    def _columns(self) -> int:
        """Return how many columns the first line has; 0: there is none."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.name) as stream:
                line = stream.readline(_LINE_BYTES_MAX + 1)
        except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
            raise ImportInvalid(f"{self.shown}: cannot be unpacked: {error}", hint="get it again") from error
        except RuntimeError as error:  # it has a password
            raise ImportInvalid(f"{self.shown}: {error}", hint="unpack it first") from error
        if len(line) > _LINE_BYTES_MAX:
            raise ImportInvalid(f"{self.shown}, line 1: longer than {_LINE_BYTES_MAX} bytes", hint="this is not Lean's")
        text = line.decode("utf-8", "replace").strip()
        return len(next(csv.reader([text]))) if text else 0


class _Line:
    """Where a row stands."""

    def __init__(self, file: CsvFile, first: int) -> None:
        self._file, self._first = file, first

    def __call__(self, index: int) -> str:
        row = self._first + index
        return f"line {self._file.where([row]).get(row, (row + 1,))[0]}"


def _symbol(place: Place, member: Member | None, name: str, template: str | None) -> str:
    """Return the symbol: ticker and contract, and the market where the ticker is another thing on another one."""
    contract = member.rest if member is not None else ""
    if member is None and place.day is None:
        contract = PurePath(name).stem.lower().removeprefix(place.ticker).removeprefix(f"_{place.kind}").strip("_")
    ticker = place.ticker.upper()
    if template is None:
        template = "{ticker}{contract}.{market}" if place.type in lean_path.BROKERED else "{ticker}{contract}"
    shown = contract.upper() if contract.isdecimal() or not contract else f"_{contract.upper()}"
    facts: dict[str, Any] = {"ticker": ticker, "contract": shown, "market": place.market, "type": place.type}
    for field, value in facts.items():
        template = template.replace("{" + field + "}", value)
    return template


FORMAT = Format(
    name="lean",
    says="QuantConnect Lean: zips in folders such as equity/usa/minute/aig, ticks, trade and quote bars",
    detects=_detects,
    parts=_parts,
    uses=frozenset({"symbol", "source", "timezone", "as_path", "repeats"}),
)
