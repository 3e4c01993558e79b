"""Text of the proof's page: whatever a key, a name or a reason holds, it is shown, and never obeyed by a browser."""

from __future__ import annotations

import html
import unicodedata
from typing import Any

_CUT = 400


def shown(value: Any) -> str:
    """Return a value as HTML text or attribute: escaped, with what cannot be seen written \\u{…}, and cut when long.

    Control characters, marks that turn the direction of writing and lone surrogates are what cannot be seen.
    """
    text = str(value)
    if len(text) > _CUT:
        text = text[: _CUT - 1] + "…"
    if not text.isascii() or not text.isprintable():
        text = "".join(one if _visible(one) else f"\\u{{{ord(one):x}}}" for one in text)
    return html.escape(text, quote=True)


def number(value: Any) -> str:
    """Return a count or a sum with commas; 15 digits of a float; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.15g}" if abs(value) < 1e15 else f"{value:.15g}"
    return f"{value:,}" if isinstance(value, int) else shown(value)


def _visible(char: str) -> bool:
    return char == " " or unicodedata.category(char)[0] not in "CZ"


__all__ = ["number", "shown"]
