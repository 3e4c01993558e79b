"""SVG: the few shapes that the pictures are made of, and axes. Coordinates are pixels, rounded to a tenth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
GREEN, RED, BLUE, ORANGE, GREY, VIOLET = "#2f9e6e", "#d64545", "#2b6cb0", "#d97706", "#b8c2cc", "#7c5cbf"


def number(value: float) -> str:
    """A coordinate as text."""
    return (
        f"{value:.1f}".removesuffix(".0").replace("-0", "0") if abs(value) < 0.05 else f"{value:.1f}".removesuffix(".0")
    )


class Picture:
    """A picture of a size, to which shapes are added in the order in which they are painted."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._width, self._height, self._title = width, height, title
        self._shapes: list[str] = []

    def line(
        self, x1: float, y1: float, x2: float, y2: float, colour: str = INK, width: float = 1, dash: str = ""
    ) -> None:
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        at = f'x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"'
        self._shapes.append(f'<line {at} stroke="{colour}" stroke-width="{width}"{dashed}/>')

    def path(self, points: Iterable[tuple[float, float]], colour: str, width: float = 1.5, dash: str = "") -> None:
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        told = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self._shapes.append(
            f'<polyline points="{told}" fill="none" stroke="{colour}" stroke-width="{width}"'
            f' stroke-linejoin="round"{dashed}/>'
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        stroke: str = "none",
        dash: str = "",
        rx: float = 0,
    ) -> None:
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        at = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
        round_ = f' rx="{number(rx)}"' if rx else ""
        self._shapes.append(f'<rect {at}{round_} fill="{fill}" stroke="{stroke}"{dashed}/>')

    def dot(self, x: float, y: float, colour: str, radius: float = 3, filled: bool = True) -> None:
        fill = colour if filled else "#ffffff"
        self._shapes.append(
            f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(radius)}" fill="{fill}" stroke="{colour}"/>'
        )

    def cross(self, x: float, y: float, colour: str, size: float = 4) -> None:
        self.line(x - size, y - size, x + size, y + size, colour, 2)
        self.line(x - size, y + size, x + size, y - size, colour, 2)

    def text(self, x: float, y: float, words: str, anchor: str = "start", colour: str = INK, size: int = 12) -> None:
        at = f'x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"'
        self._shapes.append(f'<text {at} fill="{colour}" font-size="{size}">{escape(words)}</text>')

    def legend(self, x: float, y: float, entries: Sequence[tuple[str, str]], gap: float = 18) -> None:
        """Squares of colour with words, in a row."""
        for colour, words in entries:
            self.box(x, y - 9, 10, 10, colour)
            self.text(x + 15, y, words, colour=FAINT)
            x += 15 + 6.4 * len(words) + gap

    def save(self, path: Path) -> None:
        """Write the file."""
        size = f'width="{self._width}" height="{self._height}" viewBox="0 0 {self._width} {self._height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, sans-serif">'
        ground = f'<rect width="{self._width}" height="{self._height}" rx="6" fill="#ffffff"/>'
        title = f"<title>{escape(self._title)}</title>"
        path.write_text("\n".join([head, title, ground, *self._shapes, "</svg>", ""]), encoding="utf-8")


class Scale:
    """A straight line from what is measured to pixels."""

    def __init__(self, first: float, last: float, start: float, end: float) -> None:
        self._first, self._start, self._step = first, start, (end - start) / (last - first)

    def __call__(self, value: float) -> float:
        return self._start + (value - self._first) * self._step
