"""Metrics: a view of a migration as Prometheus reads it, in one text or over HTTP on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from onetape.errors import ConfigInvalid
from onetape.migrate.phases.phase import ORDER
from onetape.migrate.watching.view import View

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_PREFIX = "onetape_migration_"
#: Field of the mirror's status → metric, help, and whether it only grows.
_MIRROR = {
    "lag_ms": ("mirror_lag_seconds", "Age of the oldest write that was not followed yet", False, 1e-3),
    "queue": ("mirror_queue_keys", "Hinted keys waiting", False, 1),
    "copied": ("mirror_copied", "Keys copied or added to", True, 1),
    "deleted": ("mirror_deleted", "Keys deleted because their leader was", True, 1),
    "merged": ("mirror_merged", "Ticks of hashes merged", True, 1),
    "kept": ("mirror_kept_keys", "Keys that differ and are left so", False, 1),
    "failed": ("mirror_failed_keys", "Keys that cannot be made equal", False, 1),
    "sweeps": ("mirror_sweeps", "Sweeps completed", True, 1),
    "sweep_found": ("mirror_sweep_found_keys", "Keys of the last sweep that no hint had told of", False, 1),
    "sweep_at_ms": ("mirror_sweep_timestamp_seconds", "When the last sweep ended", False, 1e-3),
    "foreign_writes_at_ms": ("mirror_foreign_write_timestamp_seconds", "When the sides last differed", False, 1e-3),
}


def families(view: View) -> Iterator[Metric]:
    """Yield a view's metrics. Counters of a client or a mirror begin anew when it does."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    def gauge(name: str, told: str, value: float) -> Metric:
        return GaugeMetricFamily(_PREFIX + name, told, value=value)

    def labelled(name: str, told: str, label: str, values: dict[str, float]) -> Metric:
        family = GaugeMetricFamily(_PREFIX + name, told, labels=[label])
        for key, value in values.items():
            family.add_metric([key], value)
        return family

    yield gauge("up", "Whether all that was asked answered", 0 if view.trouble else 1)
    yield labelled("phase", "1 for the present phase", "phase", {str(p): float(str(p) == view.phase) for p in ORDER})
    if view.state is not None:
        yield gauge("version", "Version of the state", view.state.version)
        yield gauge("read_share", "Share of reads that go to the new names first", view.state.read_share)
        yield gauge("shadow_share", "Share of reads that are compared", view.state.shadow_share)
        yield gauge("paused", "Whether copying stands still", view.state.paused)
        yield gauge("postponed", "Whether no cutover may begin", view.state.postponed)
    progress = view.progress
    if progress is not None:
        yield gauge("progress_keys", "Keys done by the command at work", progress.done)
        yield gauge("progress_keys_total", "Keys that the command at work has to do", progress.total)
        yield gauge("rate_keys_per_second", "Keys a second of the command at work", progress.rate_per_s)
        yield gauge("throttled", "Whether the command at work is slowed down", progress.reason is not None)
        if progress.left_s is not None:
            yield gauge("left_seconds", "Time left of the command at work", progress.left_s)
        waited = {why: float(seconds) for why, seconds in progress.waited.items()}
        yield labelled("throttled_seconds", "Time waited by the command at work", "reason", waited)
    keys = GaugeMetricFamily(_PREFIX + "keys", "Keys by step and outcome", labels=["step", "outcome"])
    for step, counts in view.steps.items():
        for outcome, number in counts.items():
            keys.add_metric([step, outcome], number)
    yield keys
    yield gauge("clients", "Clients that told of themselves", len(view.clients))
    yield gauge("clients_late", "Clients that have not acknowledged the present version", len(view.late))
    yield gauge("clients_silent", "Clients that were not heard of lately", len(view.silent))
    yield gauge("diverged_keys", "Keys whose sides may differ", view.diverged)
    yield CounterMetricFamily(_PREFIX + "reads_new", "Reads answered by the new names", value=view.reads.new_reads)
    yield CounterMetricFamily(_PREFIX + "reads_fallback", "Reads that fell back", value=view.reads.old_fallbacks)
    yield CounterMetricFamily(_PREFIX + "mismatches", "Compared reads that differed", value=view.reads.mismatches)
    if view.reads.fallback_rate is not None:
        yield gauge("fallback_ratio", "Share of the last minute's reads that fell back", view.reads.fallback_rate)
    for field, (name, told, grows, unit) in _MIRROR.items():
        value = (view.mirror or {}).get(field)
        if isinstance(value, int | float):
            family: Any = CounterMetricFamily if grows else GaugeMetricFamily
            yield family(_PREFIX + name, told, value=value * unit)


def text(view: View) -> str:
    """Return a view's metrics in Prometheus's text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Views(lambda: view))
    return generate_latest(registry).decode()


class Served:
    """Metrics served at http://127.0.0.1:PORT/metrics until closed; each request looks anew. Use it in `with`.

    `port` 0 takes a free one. Raises ConfigInvalid where the port cannot be had.
    """

    def __init__(self, view: Callable[[], View], port: int) -> None:
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Views(view))
        try:
            self._server, self._thread = start_http_server(port, "127.0.0.1", registry)
        except OSError as error:
            raise ConfigInvalid(
                f"metrics on port {port}: {error.strerror}", hint="give another --metrics-port"
            ) from error
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Views:
    """A collector, as Prometheus's client calls it."""

    def __init__(self, view: Callable[[], View]) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        yield from families(self._view())


__all__ = ["Served", "families", "text"]
