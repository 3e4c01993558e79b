"""The demo's folder: it makes room for a new run and never removes what it did not write."""

from __future__ import annotations

from pathlib import Path

import pytest

from onetape.demo.place import MARKER, Place
from onetape.errors import ConfigInvalid


def test_a_second_run_replaces_what_the_first_one_left_and_says_so(tmp_path: Path) -> None:
    first = Place(tmp_path / "demo")
    first.prepare()
    assert first.replaced is None
    report = first.folder / "migration_report_1.json"
    for path in (first.tape, first.ledger, report):
        path.write_text("of the first run")
    first.note(report)
    second = Place(tmp_path / "demo")
    second.prepare()
    assert second.replaced is not None and "3 files" in second.replaced
    assert [path.name for path in second.folder.iterdir()] == [MARKER]


def test_files_that_are_not_the_demos_stay(tmp_path: Path) -> None:
    first = Place(tmp_path / "demo")
    first.prepare()
    mine = first.folder / "my_notes.txt"
    mine.write_text("keep")
    first.tape.write_text("tape")
    first.note()
    Place(tmp_path / "demo").prepare()
    assert mine.read_text() == "keep"
    assert not first.tape.exists()


def test_a_folder_of_somebody_else_is_refused_and_untouched(tmp_path: Path) -> None:
    tape = tmp_path / "market_data.db"
    tape.write_text("a real tape")
    with pytest.raises(ConfigInvalid, match="not the demo's"):
        Place(tmp_path).prepare()
    assert tape.read_text() == "a real tape"
    assert list(tmp_path.iterdir()) == [tape]


def test_a_marker_cannot_point_out_of_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside.db"
    outside.write_text("not the demo's")
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / MARKER).write_text('{"made": "2025", "files": ["../outside.db", ".."]}')
    Place(folder).prepare()
    assert outside.read_text() == "not the demo's"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("a file")
    with pytest.raises(ConfigInvalid, match="not a folder"):
        Place(tmp_path / "demo").prepare()
