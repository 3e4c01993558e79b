"""The identity of a row of the predecessor's `market_data`: what an import knows it by, and an export tells the tape.

Rows of that table are added and never changed, so an import goes on behind the last row that the tape knows. It takes
them in windows of their ids, and the last row of each is remembered. An export remembers those of the file it writes:
they are the tape's own, and an import of that file takes only what was added to it since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

#: Rows of one window, by their ids: (k * WINDOW, (k + 1) * WINDOW]. Part of the identity of what was imported.
WINDOW = 8192
#: What tells a row from any other; columns that were added later must not make old rows new ones.
TELLING = ("symbol", "timestamp", "close", "created_at")


def mark(row_id: Any, row: Mapping[str, Any]) -> str:
    """Return the name of the cursor that says: this row, and those of lower ids beside it, are on the tape."""
    content = (row_id, *(row.get(name) for name in TELLING))
    return f"minhos:market_data:{hashlib.sha256(repr(content).encode()).hexdigest()}"
