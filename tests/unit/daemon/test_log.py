"""Logs: one line an event, that a machine can read back."""

import io
import json
import logging

import pytest

from onetape.daemon import log, notify


@pytest.fixture
def restored():
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def test_a_json_line_carries_facts_and_the_traceback(restored):
    to = io.StringIO()
    log.set_up("json", to=to)
    logging.getLogger("onetape.x").info("stored %d", 3, extra={"symbol": "ES\nZ6", "rows": 3})
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("onetape.x").exception("failed")
    first, second = (json.loads(line) for line in to.getvalue().splitlines())
    assert first["message"] == "stored 3" and first["symbol"] == "ES\nZ6" and first["level"] == "info"
    assert first["time"].endswith("Z") or "+00:00" in first["time"]
    assert "ValueError: no" in second["error"]


def test_a_plain_line_is_one_line_with_its_facts(restored):
    to = io.StringIO()
    log.set_up("plain", to=to)
    logging.getLogger("onetape.x").warning("waiting", extra={"source": "es"})
    (line,) = to.getvalue().splitlines()
    assert "warning" in line and line.endswith("onetape.x: waiting source=es")


def test_the_service_manager_is_told_where_there_is_one(tmp_path, monkeypatch):
    import socket

    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.tell("READY=1")
    place = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place))
        monkeypatch.setenv("NOTIFY_SOCKET", str(place))
        assert notify.tell("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_the_watchdog_is_fed_at_half_of_its_patience(monkeypatch):
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert notify.watchdog_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert notify.watchdog_s() == 15
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert notify.watchdog_s() is None
