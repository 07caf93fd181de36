"""What is counted and measured, for Prometheus. The only module that knows its client.

The processes of one server add up to one answer if PROMETHEUS_MULTIPROC_DIR names a directory that
they share, as `registry serve` sees to; the client reads that variable itself.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from typing import Concatenate, ParamSpec

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

logger = logging.getLogger(__name__)

_REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_FETCH_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)


@dataclass(frozen=True)
class Reading:
    """A gauge that is read when it is asked for: value by repository, or whatever `label` is.

    Without a label there is one value, under "".
    """

    name: str
    help: str
    label: str = ""
    values: dict[str, float] = field(default_factory=dict)


_Given = ParamSpec("_Given")
_Counts = Callable[Concatenate["Metrics", _Given], None]


def _if_possible(count: _Counts[_Given]) -> _Counts[_Given]:
    """Counts nothing where the shared file has no descriptor or no room: nobody is refused for it,
    and nothing else is left undone.
    """

    @wraps(count)
    def counted(self: "Metrics", /, *given: _Given.args, **more: _Given.kwargs) -> None:
        try:
            count(self, *given, **more)
        except OSError as error:
            logger.warning("something is not counted: %s", error.strerror)

    return counted


class Metrics:
    """The counters of one process. Safe to share between threads."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self._requests = Counter(
            "registry_requests",
            "Requests, by the dialect they were asked in and what came of them: ok or an error.",
            ("dialect", "outcome"),
            registry=own,
        )
        self._seconds = Histogram(
            "registry_request_seconds",
            "Seconds until an answer began to be sent.",
            ("dialect",),
            registry=own,
            buckets=_REQUEST_BUCKETS,
        )
        self._links = Counter(
            "registry_links_signed", "Links handed out.", ("repository",), registry=own
        )
        self._fetches = Histogram(
            "registry_fetch_seconds",
            "Seconds that looking at an origin took, and fetching where something was new.",
            ("repository", "outcome"),
            registry=own,
            buckets=_FETCH_BUCKETS,
        )
        self._audit = Counter("registry_audit_rows", "Audit rows.", ("outcome",), registry=own)
        self._cached = Gauge(
            "registry_cache_entries",
            "What the living workers keep in memory.",
            ("cache",),
            registry=own,
            multiprocess_mode="livesum",
        )
        self._answers: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._signed: dict[str, Counter] = {}
        self._sizes: dict[str, float] = {}

    @_if_possible
    def answered(self, dialect: str, outcome: str, seconds: float) -> None:
        """Counts a request."""
        # To find the child of labels takes longer than to count with it.
        known = self._answers.get((dialect, outcome))
        if known is None:
            known = self._requests.labels(dialect, outcome), self._seconds.labels(dialect)
            self._answers[dialect, outcome] = known
        requests, duration = known
        requests.inc()
        duration.observe(seconds)

    @_if_possible
    def signed(self, repository: str, links: int) -> None:
        """Counts the links of an answer."""
        known = self._signed.get(repository)
        if known is None:
            known = self._signed[repository] = self._links.labels(repository)
        known.inc(links)

    @_if_possible
    def fetched(self, repository: str, outcome: str, seconds: float) -> None:
        """Counts a look at an origin, "ok" or "failed"."""
        self._fetches.labels(repository, outcome).observe(seconds)

    @_if_possible
    def audited(self, outcome: str, rows: int) -> None:
        """Counts audit rows, "written" or "lost"."""
        self._audit.labels(outcome).inc(rows)

    @_if_possible
    def cached(self, sizes: Iterable[tuple[str, float]]) -> None:
        """Takes note of the sizes of this process's caches."""
        for name, size in sizes:
            if self._sizes.get(name) != size:
                self._cached.labels(name).set(size)
                self._sizes[name] = size

    def text(self, readings: Iterable[Reading] = ()) -> bytes:
        """Everything in Prometheus' text format, of all processes where they share a directory."""
        registry = CollectorRegistry()
        try:
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        except ValueError:  # no directory is shared
            registry = self._registry
        now = CollectorRegistry()
        now.register(_Readings(readings))
        return generate_latest(registry) + generate_latest(now)


class _Readings:
    """What the client wants a collector to be."""

    def __init__(self, readings: Iterable[Reading]) -> None:
        self._readings = tuple(readings)

    def collect(self) -> Iterator[Metric]:
        for reading in self._readings:
            labels = [reading.label] if reading.label else []
            family = GaugeMetricFamily(reading.name, reading.help, labels=labels)
            for label, value in reading.values.items():
                family.add_metric([label] if labels else [], value)
            yield family


def forget(process: int) -> None:
    """Takes the gauges of a process that ended out of the sums."""
    mark_process_dead(process)  # type: ignore[no-untyped-call]
