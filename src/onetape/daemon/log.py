"""The log: one line an event, for people or as JSON, to standard error."""

from __future__ import annotations

import logging
import sys
from typing import IO, Any, Literal

import msgspec

from onetape.clock import to_text

#: What a LogRecord has by itself; anything else was given as `extra` and is a fact of the event.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """A JSON object a line: time, level, logger, message, the facts given as `extra`, and `error` with a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        told: dict[str, Any] = {
            "time": to_text(int(record.created * 1e9)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _OWN},
        }
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(told, enc_hook=str).decode()


class Plain(logging.Formatter):
    """Time, level, logger, message, facts: one line, unless there is a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        facts = "".join(f" {name}={value}" for name, value in vars(record).items() if name not in _OWN)
        level = record.levelname.lower()
        line = f"{to_text(int(record.created * 1e9))[:23]} {level:<7} {record.name}: {record.getMessage()}{facts}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def set_up(form: Literal["plain", "json"], *, level: int = logging.INFO, to: IO[str] | None = None) -> None:
    """Let every logger of the process write to `to` (standard error) in this form. Replaces what was set up before."""
    handler = logging.StreamHandler(to or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else Plain())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
