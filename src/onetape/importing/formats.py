"""Formats: what a file can be, and the one way in which any of them gets onto a tape.

A format knows its files and finds parts in one; a part is a stream of records with an identity of its own, which it
yields in batches. Everything else is here, once: a file is checked to its end before the first record is stored,
every error names file, place and value, batches are known by the digest of the content and of how it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from onetape.errors import ConfigInvalid, ImportInvalid
from onetape.importing.format import BATCH_ROWS, Format, Options
from onetape.importing.job import Imported, Job, OnProgress, Room
from onetape.tape import Tape

_FLAGS = {"as_path": "as", "mapping": "map"}


def known() -> tuple[Format, ...]:
    """Return every format, in the order in which they are asked whether a file is theirs."""
    # Here, for they load PyArrow: who only names an option should not pay for it.
    from onetape.importing import columnar, dbn, dly, dukascopy, kite, lean, predecessor, recordings, scid

    return (
        lean.FORMAT,
        dbn.FORMAT,
        predecessor.FORMAT,
        columnar.PARQUET,
        columnar.ARROW,
        recordings.FORMAT,
        dukascopy.FORMAT,
        kite.FORMAT,
        scid.FORMAT,
        dly.FORMAT,
    )


def find(name: str) -> Format:
    """Return the format of a name. Raises ConfigInvalid."""
    for one in known():
        if one.name == name:
            return one
    names = ", ".join(one.name for one in known())
    raise ConfigInvalid(f"format {name!r} is not known", hint=f"it is one of {names}")


def detect(path: Path) -> Format | None:
    """Return the format whose files look like this one, or None."""
    return next((one for one in known() if one.detects(path)), None)


def files_in(path: Path, format: Format | None = None) -> Iterator[Path]:
    """Yield the file, or all files in a folder that a format takes for its own, in the order of their paths."""
    if not path.is_dir() or (detect(path) if format is None else format.detects(path)):
        yield path
        return
    for found in sorted(path.rglob("*")):
        if found.is_file() and (detect(found) if format is None else format.detects(found)):
            yield found


def import_file(
    tape: Tape | None,
    path: str | os.PathLike[str],
    format: str | None = None,
    options: Options | None = None,
    *,
    on_progress: OnProgress | None = None,
    seen: MutableMapping[str, str] | None = None,
) -> list[Imported]:
    """Import a file; without a tape only say what would be done. Return what became of each part of it.

    Every part is checked before the first one is stored. Imported again, also renamed or packed in another way, it
    changes nothing; after a kill, the same import goes on where it was. `seen` is shared by the files of one run, so
    that a session that comes twice is found without a tape too.

    Raises ImportInvalid with nothing stored; TapeError, with whole batches stored: import again to go on.
    """
    path, options = Path(path), options or Options()
    chosen = detect(path) if format is None else find(format)
    if not path.exists():
        raise ImportInvalid(f"{path}: no such file", hint="check the path")
    if chosen is None:
        raise ImportInvalid(f"{path}: not a format that is known", hint="say which it is: --format NAME")
    unused = options.given() - chosen.uses - {"on_invalid"}
    if unused:
        flags = ", ".join("--" + _FLAGS.get(name, name.replace("_", "-")) for name in sorted(unused))
        raise ConfigInvalid(f"{flags}: nothing in the format {chosen.name} for it", hint="leave it out")
    kept = Room(BATCH_ROWS)
    jobs = [Job(chosen, part, options, on_progress, kept) for part in chosen.parts(path, options)]
    for job in jobs:
        job.check(tape)
    seen = {} if seen is None else seen
    for job in jobs:
        job.find_repeat(tape, seen)
    if tape is not None:
        for job in jobs:
            job.store(tape)
    return [job.result(dry_run=tape is None) for job in jobs]


__all__ = ["Format", "Imported", "Options", "detect", "files_in", "find", "import_file", "known"]
