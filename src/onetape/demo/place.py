"""The demo's folder: what a run leaves behind, and how the next run makes room without touching anything else."""

from __future__ import annotations

from pathlib import Path

import msgspec

from onetape.clock import now_ns, to_text
from onetape.errors import ConfigInvalid

#: The ledger is where the command line looks for it: beside the tape.
TAPE, LEDGER, MARKER = "market_data.db", "market_data.db.ledger", "onetape-demo.json"
_SUFFIXES = ("", "-wal", "-shm", ".lock")


class Marker(msgspec.Struct):
    """What the demo wrote into the folder, so that the next run knows what is its own."""

    made: str
    files: list[str]


class Place:
    """A folder of the demo. `replaced` names what an earlier run had left there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tape = folder / TAPE
        self.ledger = folder / LEDGER
        self.replaced: str | None = None

    def prepare(self) -> None:
        """Make the folder, or empty the one of an earlier run. Raises ConfigInvalid if it is somebody else's."""
        hint = "give another folder with --keep"
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigInvalid(f"{self.folder} is not a folder", hint=hint)
        self.folder.mkdir(parents=True, exist_ok=True)
        marker = self.folder / MARKER
        if marker.is_file():
            self._remove(marker)
        elif any(self.folder.iterdir()):
            raise ConfigInvalid(f"{self.folder} holds files that are not the demo's", hint=hint)
        self.note()

    def note(self, *files: Path) -> None:
        """Write down what this run leaves in the folder: the tape, the ledger, and these files."""
        names = {f"{name}{suffix}" for name in (TAPE, LEDGER) for suffix in _SUFFIXES}
        names |= {path.name for path in files if path.parent.absolute() == self.folder.absolute()}
        made = to_text(now_ns() // 1_000_000_000 * 1_000_000_000).removesuffix(".000Z") + "Z"
        marker = Marker(made, sorted(names))
        (self.folder / MARKER).write_bytes(msgspec.json.format(msgspec.json.encode(marker)))

    def _remove(self, marker: Path) -> None:
        try:
            left = msgspec.json.decode(marker.read_bytes(), type=Marker)
        except msgspec.DecodeError as error:
            raise ConfigInvalid(f"{marker} is damaged: {error}", hint="give another folder with --keep") from error
        names = [name for name in left.files if "/" not in name and (self.folder / name).is_file()]
        for name in names:
            (self.folder / name).unlink()
        if names:
            self.replaced = f"the {len(names)} files of the run of {left.made}"
