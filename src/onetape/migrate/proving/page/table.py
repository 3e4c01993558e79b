"""Tables of the proof's page: cells whose text is escaped, in a frame that scrolls on a narrow screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from onetape.migrate.proving.page.text import number, shown


class Cell(NamedTuple):
    """A cell: `inside` is HTML already, `kind` a class ("n" a number, "k" a key, "t" text)."""

    inside: str
    kind: str = ""


def word(text: Any) -> Cell:
    """Return a cell of text."""
    return Cell(shown(text), "t" if len(str(text)) > 40 else "")


def key(name: Any) -> Cell:
    """Return a cell of a key, a path or another name that is to be read letter by letter."""
    return Cell(f"<code>{shown(name)}</code>" if name else "", "k")


def bad(text: Any) -> Cell:
    """Return a cell of text that stands out."""
    return Cell(shown(text), "bad-word")


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], rows_max: int, total: int | None = None) -> str:
    """Return a table of at most `rows_max` rows, "" for none; and how many of `total` (or of the rows) are left out."""
    if not rows:
        return ""
    listed = rows[:rows_max]
    numeric = [all(row[at].kind == "n" for row in listed) for at in range(len(head))]
    top = "".join(f'<th{" class=" + chr(34) + "n" + chr(34) if n else ""}>{shown(name)}</th>'
                  for name, n in zip(head, numeric, strict=True))  # fmt: skip
    lines = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in listed)
    more = max(len(rows), total or 0) - len(listed)
    told = f'<p class="soft">{number(more)} more are not shown here.</p>' if more > 0 else ""
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>{told}'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return (name, HTML) pairs as a list of facts."""
    return "<dl>" + "".join(f"<div><dt>{shown(name)}</dt><dd>{inside}</dd></div>" for name, inside in pairs) + "</dl>"


def _cell(cell: Cell) -> str:
    return f'<td class="{cell.kind}">{cell.inside}</td>' if cell.kind else f"<td>{cell.inside}</td>"


__all__ = ["Cell", "bad", "facts", "key", "table", "word"]
