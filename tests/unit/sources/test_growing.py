"""A file that another program writes: what cannot be opened or read is waited out, and costs nothing meanwhile."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from tests import sierra_files as sierra
from tests.waiting import waited_for

from onetape.sources import growing, registry
from onetape.sources.growing import GrowingFile

DAY_US = 1_767_600_000_000_000  # 2026-01-05 08:00 UTC


def _sources(folder: Path) -> dict[str, dict[str, object]]:
    (folder / "ES.scid").write_bytes(sierra.header() + sierra.trade(DAY_US, 100.0))
    whole = [sierra.depth(DAY_US, 1), sierra.depth(DAY_US, 2, 6000.0, 5, 2, 1)]
    (folder / "ES.2026-01-05.depth").write_bytes(sierra.depth_header() + b"".join(whole))
    (folder / "ES.dly").write_text("Date, Open, High, Low, Close, Volume\n2026/01/05, 1, 1, 1, 1, 1\n")
    return {
        "scid": {"kind": "scid", "path": str(folder / "ES.scid")},
        "depth": {"kind": "depth", "folder": str(folder), "symbol": "ES"},
        "dly": {"kind": "dly", "path": str(folder / "ES.dly")},
    }


@pytest.mark.parametrize("kind", ["scid", "depth", "dly"])
def test_a_file_that_cannot_be_read_for_a_while_is_waited_out(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a share of the network that was away: ESTALE, EIO."""
    table, broken, pread = _sources(tmp_path)[kind], threading.Event(), os.pread
    broken.set()

    def reading(fd: int, count: int, offset: int) -> bytes:
        if broken.is_set():
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return pread(fd, count, offset)

    monkeypatch.setattr(growing.os, "pread", reading)
    source, given = registry.make(table), []
    thread = threading.Thread(target=lambda: given.extend(one for one in source if one.count), daemon=True)
    thread.start()
    try:
        waited_for(lambda: "Stale" in (source.stats.trouble or ""))
        assert source.stats.state == "waiting"
        broken.clear()
        waited_for(lambda: given)
        waited_for(lambda: source.stats.state == "live")
    finally:
        source.close()
        thread.join(60)
    assert not thread.is_alive()


def test_a_file_that_cannot_be_watched_leaves_no_descriptor_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")

    def refused(_path: Path) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(growing, "Waker", refused)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(OSError, match="Too many"):
            GrowingFile(path)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_a_pipe_in_the_place_of_a_file_hangs_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ES.scid")
    source = registry.make({"kind": "scid", "path": str(tmp_path / "ES.scid")})
    thread = threading.Thread(target=lambda: list(source), daemon=True)
    thread.start()
    waited_for(lambda: source.stats.state == "waiting")
    source.close()
    thread.join(60)
    assert not thread.is_alive()
