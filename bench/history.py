"""History: a symbol's hour and day as Arrow, and all symbols' 1-minute bars, beside the peers.

A run of a way is the median of several calls in a row; every answer's rows and sums are compared before anything is
said of its speed.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from bench import day
from bench.measure import Line, Setting, against, alone, take_turns
from bench.peers.field import Field, PeerFailed, field

#: Where ours is read from, and what the line calls it.
_TAPES = {"bulk": "sealed, from one bulk append", "fed": "sealed, from appends of 50,000", "compact": "compacted"}
#: Ratio to reach beside the fastest peer.
_TARGETS = {
    "hour": {"bulk": 2.0, "fed": 2.0, "compact": 2.0},
    "day": {"bulk": 1.0, "fed": 1.0, "compact": 0.8},
}


def measure(setting: Setting) -> list[Line]:
    """Return the lines of reads and bars."""
    entered = field(setting)
    peers = entered.named("DuckDB", "ArcticDB", "Parquet", "chDB")
    for name in peers:
        entered.ready(name)
    tapes = [tape for tape in _TAPES if entered.tape(tape)]
    lines: list[Line] = []
    for symbol, which in ((day.BUSIEST, "busiest"), (day.MIDDLE, "middle")):
        for what, span in day.spans().items():
            lines += _reads(setting, entered, symbol, which, what, span, tapes, list(peers))
    return [*lines, *_bars(setting, entered)]


def _reads(
    setting: Setting,
    entered: Field,
    symbol: str,
    which: str,
    what: str,
    span: tuple[int, int],
    tapes: list[str],
    peers: list[str],
) -> list[Line]:
    asked = {"symbol": symbol, "start": span[0], "end": span[1], "repeat": setting.scaled(9, 2)}
    answers: dict[str, Any] = {}
    ways = {
        tape: partial(_median_ms, answers, tape, partial(entered.ours.ask, "read", name=tape, **asked))
        for tape in tapes
    }
    for name in peers:
        ways[name] = partial(_median_ms, answers, name, partial(entered.ready(name).ask, "read", **asked))
    figures = take_turns(ways, setting.runs)
    _same(answers, ("rows", "columns", "sum"))
    rows = answers[tapes[0]]["rows"]
    theirs = {name: figures[name] for name in peers}
    lines = []
    for tape in tapes:
        told = f"read() of the {which} symbol's {what}, {rows:,} ticks, {_TAPES[tape]}"
        found = against(told, "ms", figures[tape], theirs, ratio_at_least=_TARGETS[what][tape], more_is_better=False)
        lines += found if tape == tapes[0] else found[:1]
    return lines


def _bars(setting: Setting, entered: Field) -> list[Line]:
    peers = entered.named("DuckDB", "ArcticDB", "chDB")
    repeat = {"repeat": setting.scaled(3, 1)}
    answers: dict[str, Any] = {}
    ways = {
        "kept": partial(_median_ms, answers, "kept", partial(entered.ours.ask, "bars", **repeat)),
        "anew": partial(_median_ms, answers, "anew", partial(entered.ours.ask, "bars_anew", **repeat)),
    }
    for name in peers:
        ways[name] = partial(_median_ms, answers, name, partial(entered.ready(name).ask, "bars", **repeat))
    figures = take_turns(ways, min(setting.runs, 3))
    _same(answers, ("rows",))
    told = f"1-minute bars of all symbols, {answers['kept']['rows']:,} of {entered.total:,} ticks"
    return [
        alone(f"{told}, kept", "ms", figures["kept"], below=20),
        *against(
            f"{told}, folded from the ticks",
            "ms",
            figures["anew"],
            {name: figures[name] for name in peers},
            ratio_at_least=1.0,
            more_is_better=False,
        ),
    ]


def _median_ms(answers: dict[str, Any], name: str, ask: Any) -> float:
    answers[name] = answer = ask()
    return statistics.median(answer["ms"])


def _same(answers: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Raise where two answers differ: a fast wrong answer is no answer."""
    told = {name: tuple(answer[key] for key in keys) for name, answer in answers.items()}
    if len(set(told.values())) > 1:
        raise PeerFailed(f"the answers differ in {', '.join(keys)}: {told}")
