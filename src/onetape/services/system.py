"""The system: one tape, the feeds into it and the services on it, as whoever shows it sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from onetape.clock import now_ns
from onetape.services.service import Service

if TYPE_CHECKING:
    from onetape.services.charts import ChartService
    from onetape.services.patterns import PatternService
    from onetape.services.state import StateService
    from onetape.sources.book import Book
    from onetape.sources.feed import Feed
    from onetape.sources.source import Source
    from onetape.steady import SteadyTape


@dataclass(frozen=True, kw_only=True)
class System:
    """What runs together. `migration` returns a view of the live migration as plain data, None where there is none;
    `tasks` how each supervised task is.
    """

    tape: SteadyTape
    feeds: Mapping[str, Feed] = field(default_factory=dict)
    services: Mapping[str, Service] = field(default_factory=dict)
    migration: Callable[[], dict[str, Any] | None] = lambda: None
    tasks: Callable[[], list[dict[str, Any]]] = list
    started_ns: int = field(default_factory=now_ns)

    @property
    def patterns(self) -> PatternService | None:
        """The service of patterns, where it runs."""
        return self.services.get("patterns")  # type: ignore[return-value]

    @property
    def state(self) -> StateService | None:
        """The service of positions and risk, where it runs."""
        return self.services.get("state")  # type: ignore[return-value]

    @property
    def charts(self) -> ChartService | None:
        """The service of charts, where it runs."""
        return self.services.get("charts")  # type: ignore[return-value]

    def sources(self) -> Mapping[str, Source]:
        """Return the sources by name."""
        return {name: feed.source for name, feed in self.feeds.items()}

    def books(self) -> dict[str, Book]:
        """Return the order books that sources keep, by symbol; of two sources of one symbol the fresher."""
        found: dict[str, Book] = {}
        for source in self.sources().values():
            for symbol, book in dict(getattr(source, "books", {})).items():
                if symbol not in found or (book.at_ns or 0) > (found[symbol].at_ns or 0):
                    found[symbol] = book
        return found

    def healthy(self) -> tuple[bool, list[str]]:
        """Return whether the system does its work, and each reason why not. A waiting source is no reason: it waits."""
        reasons = [f"{task['name']}: {task['trouble']}" for task in self.tasks() if task.get("state") == "failed"]
        return not reasons, reasons

    def ready(self) -> tuple[bool, list[str]]:
        """Return whether it answers from the tape and all that was to be started is; and each reason why not."""
        _, reasons = self.healthy()
        status = self.tape.status
        if not status.on_tape:
            reasons.append(f"the tape is away: {status.reason}")
        reasons += [f"{task['name']}: {task['state']}" for task in self.tasks() if task.get("state") == "starting"]
        return not reasons, reasons

    def status(self) -> dict[str, Any]:
        """Return how everything is, as plain data."""
        healthy, reasons = self.healthy()
        return {
            "healthy": healthy,
            "reasons": reasons,
            "started_ms": self.started_ns // 1_000_000,
            "now_ms": now_ns() // 1_000_000,
            "tape": {"path": str(self.tape.path), **plain(self.tape.status)},
            "sources": {name: plain(feed.stats) for name, feed in self.feeds.items()},
            "services": {name: service.status() for name, service in self.services.items()},
            "tasks": self.tasks(),
        }


def plain(value: Any) -> dict[str, Any]:
    """Return a struct or a dataclass as a dict of plain data."""
    if isinstance(value, msgspec.Struct):
        return dict(msgspec.to_builtins(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return dict(value)
