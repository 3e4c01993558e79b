"""The predecessors' addresses are a distribution of their own; where it is not installed, its folder is used."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
COMPAT = ROOT / "compat"

if importlib.util.find_spec("minhos") is None:
    sys.path.insert(0, str(COMPAT))


@pytest.fixture
def python_path() -> str:
    """What PYTHONPATH must be for another Python process to find the same modules as this one."""
    return os.pathsep.join(entry for entry in sys.path if entry)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, and a process in which nobody has asked for the adapter or the store yet."""
    from minhos.core import market_data_adapter, market_data_store

    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("ONETAPE_", "REDIS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(market_data_adapter, "_adapter", None)
    monkeypatch.setattr(market_data_store, "_store", None)
    yield tmp_path
    if market_data_store._store is not None:
        market_data_store._store.close()
