"""Metrics: a running system as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from onetape.clock import now_ns
from onetape.errors import OnetapeError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from onetape.services.system import System
    from onetape.web.hub import Hub

_STATES = ("idle", "connecting", "live", "waiting", "ended", "failed")
_TAPE = {
    "head": ("tape_head", "Position of the newest record"),
    "unsealed": ("tape_unsealed_records", "Records that wait for the next seal"),
    "ticks": ("tape_ticks", "Ticks on the tape"),
    "symbols": ("tape_symbols", "Symbols on the tape"),
    "chunks": ("tape_chunks", "Chunks of the tape"),
    "quarantined": ("tape_quarantined_records", "Records in quarantine"),
    "file_bytes": ("tape_file_bytes", "Size of the file"),
    "wal_bytes": ("tape_log_bytes", "Size of the write-ahead log"),
    "recent_records": ("tape_recent_records", "Records kept in memory"),
}
_STEADY = {
    "held": ("steady_held_records", "Records in memory that are not on the tape yet", False),
    "dropped": ("steady_dropped_records", "Records that the memory had no room for", True),
    "written_back": ("steady_written_back_records", "Records that were held and are on the tape now", True),
    "outages": ("steady_outages", "How often the tape was away", True),
}
_SOURCE_COUNTS = {
    "records": "Records seen",
    "dropped": "Records lost on the way",
    "gaps": "Spans that are known to be missing",
    "duplicates": "Repeats left out",
    "refused": "Records that are not valid",
    "reconnects": "Connections made anew",
}


def text(system: System, hub: Hub) -> bytes:
    """Return all metrics in Prometheus's text format. Blocks."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected([*_tape(system), *_sources(system), *_services(system), *_web(hub), *_rest(system)]))
    return generate_latest(registry)


class _Collected:
    """A collector, as Prometheus's client calls it."""

    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        yield from self._found


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(f"onetape_{name}", told, value=value)


def _counter(name: str, told: str, value: float) -> Metric:
    return CounterMetricFamily(f"onetape_{name}", told, value=value)


def _tape(system: System) -> Iterator[Metric]:
    status = system.tape.status
    yield _gauge("tape_up", "Whether the tape can be used", float(status.on_tape))
    for field, (name, told, grows) in _STEADY.items():
        value = getattr(status, field, None)
        if value is not None:
            yield (_counter if grows else _gauge)(name, told, value)
    tape = system.tape.tape
    if tape is None:
        return
    try:
        stats = tape.stats()
    except (OnetapeError, OSError):  # it went away in this moment: tape_up says so next time
        return
    for field, (name, told) in _TAPE.items():
        yield _gauge(name, told, getattr(stats, field))


def _sources(system: System) -> Iterator[Metric]:
    states = GaugeMetricFamily("onetape_source_state", "1 for the present state", labels=["source", "state"])
    lag = GaugeMetricFamily("onetape_source_lag_seconds", "Arrival minus event time, newest", labels=["source"])
    age = GaugeMetricFamily("onetape_source_age_seconds", "Since the newest record arrived", labels=["source"])
    stored = CounterMetricFamily("onetape_source_stored_records", "Records stored", labels=["source"])
    counts = {
        field: CounterMetricFamily(f"onetape_source_{field}", told, labels=["source"])
        for field, told in _SOURCE_COUNTS.items()
    }
    for name, feed in system.feeds.items():
        own: Any = feed.stats
        stats = getattr(own, "source", own)
        for state in _STATES:
            states.add_metric([name, state], float(stats.state == state))
        if stats.lag_ms is not None:
            lag.add_metric([name], stats.lag_ms / 1e3)
        if stats.last_recv_ns is not None:
            age.add_metric([name], (now_ns() - stats.last_recv_ns) / 1e9)
        stored.add_metric([name], getattr(own, "stored", 0))
        for field, family in counts.items():
            family.add_metric([name], getattr(stats, field))
    yield from (states, lag, age, stored, *counts.values())


def _services(system: System) -> Iterator[Metric]:
    running = GaugeMetricFamily("onetape_service_running", "Whether the service runs", labels=["service"])
    for name, service in system.services.items():
        running.add_metric([name], float(bool(service.status().get("running", True))))
    yield running
    tasks = GaugeMetricFamily("onetape_task_up", "Whether a supervised task runs", labels=["task"])
    restarts = CounterMetricFamily("onetape_task_restarts", "How often it was started anew", labels=["task"])
    for task in system.tasks():
        tasks.add_metric([str(task["name"])], float(task.get("state") == "running"))
        restarts.add_metric([str(task["name"])], float(task.get("restarts") or 0))
    yield tasks
    yield restarts
    healthy, _ = system.healthy()
    ready, _ = system.ready()
    yield _gauge("healthy", "Whether nothing has failed", float(healthy))
    yield _gauge("ready", "Whether everything runs and the tape can be used", float(ready))
    yield _gauge("start_time_seconds", "When the system was started", system.started_ns / 1e9)


def _web(hub: Hub) -> Iterator[Metric]:
    counts = hub.fanout.counts
    yield _gauge("web_clients", "WebSocket clients", len(hub.clients))
    yield _gauge("web_groups", "Groups of clients that want the same", hub.fanout.groups)
    yield _gauge("web_channels", "Symbols and intervals that are followed", len(hub.fanout.channels))
    yield _gauge("web_frame_period_seconds", "Time between two frames of a client", hub.fanout.period_s)
    yield _counter("web_frames", "Frames written to clients", counts.frames)
    yield _counter("web_frames_made", "Frames made, each for all clients that want the same", counts.made)
    yield _counter("web_frame_bytes", "Bytes of frames written", counts.bytes)
    yield _counter("web_frames_passed_over", "Frames that slow clients did not get by themselves", counts.passed_over)
    yield _counter("web_clients_stalled", "Clients cut off because they took nothing", counts.stalled)
    yield _counter("web_clients_refused", "Clients refused because there were too many", hub.refused)


def _rest(system: System) -> Iterator[Metric]:
    found = system.migration()
    if found is None:
        return
    from onetape.migrate.watching.metrics import families
    from onetape.migrate.watching.view import View

    yield from families(msgspec.convert(found, View))
