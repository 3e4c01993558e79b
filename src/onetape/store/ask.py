"""Ask: the rows that answer a question, all at once, so that no statement is left open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw


def rows(connection: apsw.Connection, question: str, values: Sequence[Any] = ()) -> list[Any]:
    """Return all rows."""
    found: list[Any] = connection.execute(question, tuple(values)).fetchall()
    return found


def row(connection: apsw.Connection, question: str, values: Sequence[Any] = ()) -> Any:
    """Return the first row."""
    return rows(connection, question, values)[0]


def value(connection: apsw.Connection, question: str, values: Sequence[Any] = ()) -> Any:
    """Return the first value of the first row, or None."""
    found = rows(connection, question, values)
    return found[0][0] if found else None
