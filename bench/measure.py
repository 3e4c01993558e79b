"""Measuring: whole runs that take turns, their medians and ratios, and the line of the table they become."""

from __future__ import annotations

import gc
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

#: One way of doing a thing: does it once, from its own beginning, and returns the figure.
Way = Callable[[], float]


class Line(msgspec.Struct):
    """One line of the table.

    `ours` and `theirs` are medians of `runs` whole runs, in `unit`. `ratio` is the median of the ratios of runs
    that followed each other, oriented so that more is better for ours. `target` is what to reach, `reached` whether
    it was; both None where a figure is for the record. `values` holds every run of ours, `peer_values` of theirs.
    """

    name: str
    unit: str
    ours: float
    runs: int
    peer: str = ""
    theirs: float | None = None
    ratio: float | None = None
    target: str = ""
    reached: bool | None = None
    values: list[float] = []
    peer_values: list[float] = []


class Setting(msgspec.Struct, frozen=True):
    """How a topic is to measure: where its files go, how many runs, and whether only to show that it works."""

    directory: Path
    runs: int
    quick: bool
    full: bool = False

    def scaled(self, whole: int, quick: int) -> int:
        """Return the size of the work: `whole`, or `quick` in a smoke run."""
        return quick if self.quick else whole

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a folder on the disk that is measured, empty, and removed afterwards."""
        path = Path(tempfile.mkdtemp(dir=self.directory))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def take_turns(ways: dict[str, Way], runs: int) -> dict[str, list[float]]:
    """Run the ways A B C, C B A, A B C ... and return every figure.

    The order turns so that a machine that grows slower over the minutes favours none.
    """
    figures: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for run in range(runs):
        for name in names if run % 2 == 0 else reversed(names):
            gc.collect()  # what the last way left behind is not this one's cost
            figures[name].append(ways[name]())
    return figures


def share_time(ways: dict[str, Callable[[int], object]], count: int, block: int, runs: int) -> dict[str, list[float]]:
    """Return each way's rates, one a run: `count` calls of each with 0, 1, 2, ..., in blocks that take turns.

    For calls so short that what the machine does meanwhile would touch one way more than another.
    """
    figures: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for run in range(runs):
        spent = dict.fromkeys(names, 0.0)
        for turn, at in enumerate(range(0, count, block)):
            for name in names if (run + turn) % 2 == 0 else reversed(names):
                act = ways[name]
                start = time.perf_counter()
                for i in range(at, min(at + block, count)):
                    act(i)
                spent[name] += time.perf_counter() - start
        for name in names:
            figures[name].append(count / spent[name])
    return figures


def rate(count: int, act: Callable[[], object]) -> float:
    """Return how many a second `act` did when it does `count`."""
    start = time.perf_counter()
    act()
    return count / (time.perf_counter() - start)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def alone(
    name: str,
    unit: str,
    values: list[float],
    *,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Line:
    """Return the line of a figure without a peer; `at_least`, `below` or `at_most` is its target."""
    ours = statistics.median(values)
    line = Line(name, unit, ours, len(values), values=values)
    if at_least is not None:
        line.target, line.reached = f">= {at_least:,g}", ours >= at_least
    if below is not None:
        line.target, line.reached = f"< {below:g}", ours < below
    if at_most is not None:
        line.target, line.reached = f"<= {at_most:g}", ours <= at_most
    return line


def beside(
    name: str,
    unit: str,
    values: list[float],
    peer: str,
    peer_values: list[float],
    *,
    ratio_at_least: float | None = None,
    more_is_better: bool = True,
) -> Line:
    """Return the line of a figure beside a peer's, run by run."""
    pairs = zip(values, peer_values, strict=True)
    ratio = statistics.median([ours / theirs if more_is_better else theirs / ours for ours, theirs in pairs])
    line = Line(
        name,
        unit,
        statistics.median(values),
        len(values),
        peer,
        statistics.median(peer_values),
        ratio,
        values=values,
        peer_values=peer_values,
    )
    if ratio_at_least is not None:
        line.target, line.reached = f">= {ratio_at_least:g} x", ratio >= ratio_at_least
    return line


def against(
    name: str,
    unit: str,
    values: list[float],
    peers: dict[str, list[float]],
    *,
    ratio_at_least: float | None = None,
    more_is_better: bool = True,
) -> list[Line]:
    """Return a line for each peer, the best one first: `ratio_at_least` is to be reached beside that one.

    Without a peer there is one line, and nothing to reach.
    """
    if not peers:
        return [alone(name, unit, values)]
    best_first = sorted(peers, key=lambda peer: statistics.median(peers[peer]), reverse=more_is_better)
    return [
        beside(
            name,
            unit,
            values,
            peer,
            peers[peer],
            ratio_at_least=ratio_at_least if peer == best_first[0] else None,
            more_is_better=more_is_better,
        )
        for peer in best_first
    ]
