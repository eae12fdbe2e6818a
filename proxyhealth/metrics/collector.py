"""The snapshot as Prometheus metrics, made for each scrape: every process answers the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import repeat
from operator import attrgetter
from typing import Any
from uuid import UUID

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from proxyhealth.conf import conf
from proxyhealth.rounds import broker
from proxyhealth.snapshot import ProxyStatus, RoundHistogram, Snapshot
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.reader import TaskRuns

OUTCOMES = ("success", "incomplete", "offline", "failure")

TASKS = ("check_all", "check_shard", "check_proxies", "first_round", "finish_round", "finish_broken_round")


class SnapshotCollector(Collector):
    """Asks the cache on ``collect()``, and for the snapshot only if it is a new one; a proxy that is not in
    it has no series.

    With the cache out of reach there is nothing but ``proxyhealth_snapshot_up 0``: the last copies
    of different processes may differ.
    """

    def describe(self) -> list[Metric]:
        # A registry that gets no description collects at once, and that would ask the cache
        # while Django is still starting.
        return []

    def collect(self) -> Iterator[Metric]:
        activity = reader.read_activity()
        snapshot = activity.snapshot
        prefix = f"{conf.METRICS_NAMESPACE}_proxyhealth_" if conf.METRICS_NAMESPACE else "proxyhealth_"
        # What a check of a few has left in a cache that was emptied is no snapshot yet.
        up = not snapshot.fault and snapshot.checked_at is not None
        yield _gauge(f"{prefix}snapshot_up", "Whether there is a snapshot and it can be read.", up)
        if not snapshot.fault:
            yield from _of_snapshot(prefix, snapshot)
            yield from _of_rounds(prefix, activity)
            yield from _of_tasks(prefix, activity.tasks)
            yield from _of_proxies(prefix, snapshot.statuses)


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=float(value))


def _of_snapshot(prefix: str, snapshot: Snapshot) -> Iterator[Metric]:
    yield _gauge(
        f"{prefix}snapshot_stale",
        "Whether the snapshot is older than it should be, or the prober is offline.",
        snapshot.stale,
    )
    yield _gauge(
        f"{prefix}prober_offline",
        "Whether proxies seemed dead in the last round but no canary answered.",
        bool(snapshot.offline),
    )
    numbers = Counter(status.status for status in snapshot.statuses.values())
    proxies = GaugeMetricFamily(f"{prefix}proxies", "Proxies, by their status.", labels=["status"])
    for status in Status:
        proxies.add_metric([status], numbers[status])
    yield proxies


def _of_rounds(prefix: str, activity: reader.Activity) -> Iterator[Metric]:
    snapshot = activity.snapshot
    yield HistogramMetricFamily(
        f"{prefix}health_check_duration_seconds",
        "How long rounds took, from reading the proxies to the last answer.",
        buckets=_buckets(snapshot.rounds),
        sum_value=snapshot.rounds.sum,
    )
    outcomes = CounterMetricFamily(
        f"{prefix}rounds", f"Rounds, by how they ended: {', '.join(OUTCOMES)}.", labels=["outcome"]
    )
    for outcome in OUTCOMES:
        outcomes.add_metric([outcome], snapshot.outcomes.get(outcome, 0))
    yield outcomes
    yield CounterMetricFamily(
        f"{prefix}skipped_ticks",
        "Ticks that found a round running, or came too soon after another one.",
        value=snapshot.outcomes.get("skipped", 0),
    )
    yield _gauge(f"{prefix}round_in_progress", "Whether a round is running.", activity.round_in_progress)
    if snapshot.checked_at:
        yield _gauge(
            f"{prefix}last_round_timestamp_seconds",
            "When the last full round began.",
            snapshot.checked_at.timestamp(),
        )
    if snapshot.duration is not None:
        yield _gauge(
            f"{prefix}last_round_duration_seconds", "How long the last full round took.", snapshot.duration
        )
    yield _gauge(f"{prefix}interval_seconds", "Seconds between two rounds.", conf.INTERVAL)


def _buckets(rounds: RoundHistogram) -> list[tuple[str, float]]:
    bounds = [*map(str, RoundHistogram.BOUNDS), "+Inf"]
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip(bounds, rounds.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


def _of_tasks(prefix: str, tasks: Mapping[str, TaskRuns]) -> Iterator[Metric]:
    runs = CounterMetricFamily(
        f"{prefix}task_runs", "Runs of the Celery tasks, by how they ended.", labels=["task", "outcome"]
    )
    seconds = CounterMetricFamily(
        f"{prefix}task_runtime_seconds", "Seconds that runs of the Celery tasks took.", labels=["task"]
    )
    for task in TASKS:
        counts = tasks.get(task, TaskRuns())
        runs.add_metric([task, "success"], counts.success)
        runs.add_metric([task, "failure"], counts.failure)
        seconds.add_metric([task], counts.microseconds / 1_000_000)
    yield from (runs, seconds)
    waiting = broker.queue_length()
    if waiting is not None:
        yield _gauge(
            f"{prefix}tasks_waiting", "Messages that wait in the broker's queue for a worker.", waiting
        )


class Fleet:
    """The proxies of a snapshot, and their ids as text, which all gauges share."""

    _last: tuple[list[UUID], list[str]] = ([], [])

    def __init__(self, statuses: Mapping[UUID, ProxyStatus]) -> None:
        self.statuses = statuses

    @cached_property
    def ids(self) -> list[str]:
        # From one snapshot to the next they hardly ever change.
        ids = list(self.statuses)
        last = Fleet._last
        if ids != last[0]:
            last = Fleet._last = ids, [str(id) for id in ids]
        return last[1]


class ProxyGauge(Metric):
    """A gauge with a sample of each proxy whose ``value`` is a ``number``, and perhaps with more ``labels``.

    For thousands of them, prometheus_client's objects and its text take longer than everything else in a
    scrape. So its samples are made when they are asked for, and :meth:`text` is made without them.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        fleet: Fleet,
        value: Callable[[ProxyStatus], Any],
        number: Callable[[Any], float | None] | None = None,
        /,
        **labels: Callable[[ProxyStatus], str],
    ) -> None:
        super().__init__(name, documentation, "gauge")
        del self.samples  # an empty list, in the place of what is below
        self.fleet = fleet
        self._value = value
        self._number = number
        self._labels = labels

    @cached_property
    def columns(self) -> list[list[Any]]:
        """The proxies, their values, and each of their labels: two of which these are equal are equal."""
        statuses = self.fleet.statuses.values()
        get = [self._value, *self._labels.values()]
        return [list(self.fleet.statuses), *(list(map(of, statuses)) for of in get)]

    @property
    def _numbers(self) -> Iterable[float | None]:
        values = self.columns[1]
        return map(self._number, values) if self._number else values

    @cached_property
    def samples(self) -> list[Sample]:  # type: ignore[override]  # an attribute of every metric
        _, _, *labels = self.columns
        return [
            Sample(self.name, {"proxy_id": id, **dict(zip(self._labels, more, strict=True))}, number)
            for id, number, *more in zip(self.fleet.ids, self._numbers, *labels, strict=True)
            if number is not None
        ]

    def text(self) -> str:
        """What prometheus_client makes of it, in version 0.0.4 of the text format."""
        _, _, *labels = self.columns
        texts = [
            [f'",{name}="{_escaped(label)}' for label in column]
            for name, column in zip(self._labels, labels, strict=True)
        ]
        ends = map("".join, zip(*texts, strict=True)) if texts else repeat("")
        begin = f'{self.name}{{proxy_id="'
        lines = [
            f'{begin}{id}{end}"}} {number}\n'
            for id, number, end in zip(self.fleet.ids, self._numbers, ends, strict=False)
            if number is not None
        ]
        return "".join([f"# HELP {self.name} {self.documentation}\n# TYPE {self.name} gauge\n", *lines])


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _of_proxies(prefix: str, statuses: Mapping[UUID, ProxyStatus]) -> Iterable[ProxyGauge]:
    fleet = Fleet(statuses)
    return (
        ProxyGauge(
            f"{prefix}health_check_results",
            "Status: unknown -3, unreachable -2, unhealthy -1, unregistered 0, ok 1.",
            fleet,
            attrgetter("status"),
            {status: float(status.number) for status in Status}.__getitem__,
        ),
        ProxyGauge(
            f"{prefix}proxy_info",
            "Always 1; the names of a proxy.",
            fleet,
            lambda status: 1.0,
            name=attrgetter("proxy.name"),
            host=attrgetter("proxy_host"),
        ),
        ProxyGauge(
            f"{prefix}probe_duration_seconds",
            "How long the last probe took, if a response came.",
            fleet,
            attrgetter("latency"),
        ),
        ProxyGauge(
            f"{prefix}probe_failure",
            "1 with the reason why a proxy is not ok; none if it is ok or not registered.",
            fleet,
            attrgetter("reason"),
            lambda reason: 1.0 if reason else None,
            reason=attrgetter("reason"),
        ),
        ProxyGauge(
            f"{prefix}tls_not_after_timestamp_seconds",
            "When the certificate of a proxy ends, if one was seen.",
            fleet,
            attrgetter("tls_expires_at"),
            lambda expires_at: expires_at.timestamp() if expires_at else None,
        ),
    )


collector = SnapshotCollector()
