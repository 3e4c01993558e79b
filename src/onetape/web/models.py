"""Models: the shapes of what the API answers, for its description (OpenAPI). Times are ms since the epoch, UTC."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class Fault(BaseModel):
    """What went wrong."""

    code: str
    message: str
    hint: str = ""


class Error(BaseModel):
    """Every answer that is no success."""

    error: Fault


class Symbol(BaseModel):
    """What the tape holds of a symbol, and where it stands. `change` is since the session's or the UTC day's open."""

    symbol: str
    ticks: int
    first_ms: int | None
    last_ms: int | None
    price: float | None
    change: float | None
    change_pct: float | None
    bid: float | None
    ask: float | None
    age_ms: int | None


class Symbols(BaseModel):
    """Symbols by name. books: those of which a source keeps an order book, whatever was sought."""

    symbols: list[Symbol]
    more: bool
    books: list[str]


class Candles(BaseModel):
    """Bars ascending: [t_ms, open, high, low, close, volume, revision, complete]. `more`: there are older ones.

    gaps: [start_ms, end_ms, "missing" (a source says so) or "inferred" (silent for far longer than usual)].
    """

    symbol: str
    interval: str
    position: int | None
    bars: list[list[Any]]
    more: bool
    gaps: list[list[Any]]


class Tick(BaseModel):
    """One tick; what is absent is left out. t_ns is text: it has more digits than a number of JavaScript."""

    symbol: str
    t_ms: int
    t_ns: str
    price: float | None = None
    size: float | None = None
    bid: float | None = None
    ask: float | None = None
    bid_size: float | None = None
    ask_size: float | None = None
    side: int | None = None
    flags: int | None = None
    source: str | None = None
    seq: int | None = None


class Ticks(BaseModel):
    """The newest ticks, ascending."""

    symbol: str
    ticks: list[Tick]


class Depth(BaseModel):
    """An order book, best first: [price, size, orders]."""

    symbol: str
    at_ms: int | None
    bids: list[list[float | int]]
    asks: list[list[float | int]]


class Day(BaseModel):
    """One UTC day of a symbol: seconds covered, missing, closed and quiet, and how many ticks, about."""

    date: str
    covered: float
    missing: float
    closed: float
    quiet: float
    ticks: int


class Coverage(BaseModel):
    """Days ascending."""

    symbol: str
    days: list[Day]


class Act(BaseModel):
    """What a replay is to do. value: the time to go to in ms (seek), or how many times as fast (speed)."""

    action: Literal["pause", "play", "seek", "speed"]
    value: float | int | None = Field(default=None)


class Health(BaseModel):
    """Whether it is so, and each reason why not."""

    ok: bool
    reasons: list[str]
