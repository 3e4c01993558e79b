"""The names of what the story's writers write: each has symbols of its own, so that nobody else counts with it."""

from __future__ import annotations

#: Symbols of a writer.
KEYS = 4


def symbol(number: int, at: int) -> str:
    """Return a symbol of writer `number`, `at` below KEYS."""
    return f"NFO:W{number}K{at}NOVFUT"


__all__ = ["KEYS", "symbol"]
