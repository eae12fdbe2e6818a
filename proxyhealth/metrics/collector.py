"""The Prometheus metrics of the snapshot, collected at each scrape, so that all processes report the same."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import accumulate
from typing import NamedTuple, Self
from uuid import UUID

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from proxyhealth.conf import conf
from proxyhealth.exceptions import StoreError
from proxyhealth.notifications import backlog, silences
from proxyhealth.notifications.silences import Times
from proxyhealth.rounds import broker
from proxyhealth.snapshot import ProxyStatus, RoundHistogram, Snapshot, convert
from proxyhealth.statuses import Status
from proxyhealth.storage import outbox, reader
from proxyhealth.storage.counters import TaskRuns
from proxyhealth.storage.reader import Activity
from proxyhealth.task_names import TaskName
from proxyhealth.texts import is_plain, without_controls
from proxyhealth.utils import FrozenMapping

OUTCOMES = ("success", "incomplete", "offline", "failure")
MAX_LABEL = 300


class ProxyIds(NamedTuple):
    """The label that all gauges of proxies have: its values, and its text in each series."""

    values: Sequence[str] = ()
    texts: Sequence[str] = ()

    @classmethod
    def of(cls, ids: Iterable[UUID]) -> Self:
        values = list(map(str, ids))
        return cls(values, [f'proxy_id="{value}"' for value in values])


class ProxyGauge(Metric):
    """A gauge with one series per proxy, stored as columns.

    ``values`` and each column of ``labels`` have one item per proxy, in the order of ``ids``. A proxy whose
    value is None has no series. prometheus_client takes 3 µs per sample, which would be most of the time of a
    large scrape. So :meth:`text` formats the columns itself. ``samples`` is for other users of the registry.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        values: Sequence[float | None],
        ids: ProxyIds,
        labels: Mapping[str, Sequence[str]] = FrozenMapping(),
    ) -> None:
        super().__init__(name, documentation, "gauge")
        self.values = values
        self.labels = {"proxy_id": ids.values, **labels}
        self._id_texts = ids.texts
        self._text = b""

    @property
    def samples(self) -> list[Sample]:
        return [
            Sample(self.name, dict(zip(self.labels, labels, strict=True)), value)
            for value, *labels in zip(self.values, *self.labels.values(), strict=True)
            if value is not None
        ]

    @samples.setter
    def samples(self, empty: list[Sample]) -> None:
        """Ignore the empty list that Metric sets."""

    def same_as(self, other: Self) -> bool:
        return (self.name, self.values, self.labels) == (other.name, other.values, other.labels)

    def text(self) -> bytes:
        """Return the series in version 0.0.4 of the text format. Later calls return the same bytes."""
        if not self._text:
            columns = [
                [f'{name}="{label}"' for label in _escape(column)]
                for name, column in self.labels.items()
                if name != "proxy_id"
            ]
            rows = map(",".join, zip(self._id_texts, *columns, strict=True)) if columns else self._id_texts
            few = 2 * len(set(self.values)) < len(self.values)
            texts = convert(self.values, repr) if few else map(repr, self.values)
            begin = f"{self.name}{{"
            lines = [
                f"{begin}{row}}} {text}\n" for row, text in zip(rows, texts, strict=True) if text != "None"
            ]
            head = f"# HELP {self.name} {self.documentation}\n# TYPE {self.name} gauge\n"
            self._text = "".join([head, *lines]).encode()
        return self._text


def _escape(labels: Sequence[str]) -> Sequence[str]:
    text = "".join(labels)
    if not any(character in text for character in '\\"\n'):
        return labels  # one search in all labels is ten times faster than one per label
    return [label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for label in labels]


def _visible(labels: Sequence[str]) -> Sequence[str]:
    if is_plain("".join(labels)):
        return labels
    # The text format escapes line feeds.
    return ["\n".join(map(without_controls, label[:MAX_LABEL].split("\n"))) for label in labels]


class _Silenced(NamedTuple):
    """The gauge of the silenced proxies. It is made anew only if the proxies or the silences have changed."""

    gauge: ProxyGauge | None = None
    statuses: Mapping[UUID, ProxyStatus] = {}
    in_force: Sequence[Times] = ()

    def update(self, prefix: str, statuses: Mapping[UUID, ProxyStatus]) -> Self:
        now = datetime.now(UTC)
        read = silences.current_in_time()
        name, in_force = f"{prefix}silenced", read.in_force(now)
        if (
            self.gauge
            and self.gauge.name == name
            and self.in_force == in_force
            and (statuses is self.statuses or not in_force)
        ):
            return self
        silenced = read.of((status.proxy for status in statuses.values()), now)
        documentation = "Always 1. Absent if the proxy is not silenced: its alerts are not sent."
        gauge = ProxyGauge(name, documentation, [1.0] * len(silenced), ProxyIds.of(silenced))
        return type(self)(gauge, statuses, in_force)


class _ProxyMetrics(NamedTuple):
    """The gauges of one snapshot. The next scrape reuses all parts that have not changed."""

    prefix: str = ""
    statuses: Mapping[UUID, ProxyStatus] = {}
    totals: Sequence[Metric] = ()
    ids: ProxyIds = ProxyIds()
    gauges: Sequence[ProxyGauge] = ()

    def update(self, prefix: str, statuses: Mapping[UUID, ProxyStatus]) -> Self:
        if prefix == self.prefix and statuses is self.statuses:
            return self
        same_ids = list(statuses) == list(self.statuses)
        ids = self.ids if same_ids else ProxyIds.of(statuses)
        previous = {gauge.name: gauge for gauge in self.gauges}
        # A round changes the durations, but hardly ever the names.
        gauges = [
            old if (old := previous.get(new.name)) and old.same_as(new) else new
            for new in _proxy_gauges(prefix, ids, list(statuses.values()))
        ]
        return type(self)(prefix, statuses, _totals(prefix, statuses.values()), ids, gauges)


def metric_prefix() -> str:
    """Return the first part of all metric names."""
    return f"{conf.METRICS_NAMESPACE}_proxyhealth_" if conf.METRICS_NAMESPACE else "proxyhealth_"


class SnapshotCollector(Collector):
    """A collector that reads the cache at each scrape, and the snapshot only if it is new.

    If the cache is unreachable, ``proxyhealth_snapshot_up 0`` is the only series, because the last copies
    of different processes may differ.
    """

    def __init__(self) -> None:
        self._proxy_metrics = _ProxyMetrics()
        self._silenced = _Silenced()

    def describe(self) -> list[Metric]:
        # Without a description, the registry would call collect() while Django is still starting.
        return []

    def collect(self) -> Iterator[Metric]:
        activity = reader.read_activity()
        snapshot = activity.snapshot
        prefix = metric_prefix()
        # After the cache was emptied, a check of a few proxies adds statuses before the next full round.
        up = not snapshot.fault and snapshot.checked_at is not None
        yield _gauge(f"{prefix}snapshot_up", "1 if a snapshot of a full round exists and can be read.", up)
        if not snapshot.fault:
            yield from _snapshot_metrics(prefix, snapshot)
            yield from _round_metrics(prefix, activity)
            yield from _task_metrics(prefix, activity.tasks)
            yield from _history_metrics(prefix)
            yield from _delivery_metrics(prefix)
            # Threads need no lock: each assigns a complete and correct value.
            self._proxy_metrics = metrics = self._proxy_metrics.update(prefix, snapshot.statuses)
            yield from (*metrics.totals, *metrics.gauges)
            self._silenced = silenced = self._silenced.update(prefix, snapshot.statuses)
            if silenced.gauge:
                yield silenced.gauge


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=float(value))


def _snapshot_metrics(prefix: str, snapshot: Snapshot) -> Iterator[Metric]:
    yield _gauge(
        f"{prefix}snapshot_stale",
        "1 if the last full round is older than STALE_AFTER, or the prober is offline.",
        snapshot.stale,
    )
    yield _gauge(
        f"{prefix}prober_offline",
        "1 after a round that found proxies unreachable and no canary responding, until the next full round.",
        bool(snapshot.offline),
    )
    yield _gauge(
        f"{prefix}cache_refuses_rounds",
        "1 if a round is overdue and the cache refuses what it needs: writes, scripts, or commands.",
        bool(snapshot.refusal),
    )


def _totals(prefix: str, statuses: Collection[ProxyStatus]) -> list[Metric]:
    counts = Counter(status.status for status in statuses)
    proxies = GaugeMetricFamily(f"{prefix}proxies", "Number of proxies by status.", labels=["status"])
    for status in Status:
        proxies.add_metric([status], counts[status])
    with_warnings = sum(bool(status.report.warnings) for status in statuses)
    documentation = "Number of proxies whose report has warnings."
    return [proxies, _gauge(f"{prefix}proxies_with_warnings", documentation, with_warnings)]


def _round_metrics(prefix: str, activity: Activity) -> Iterator[Metric]:
    snapshot = activity.snapshot
    bounds = [*map(str, RoundHistogram.BOUNDS), "+Inf"]
    yield HistogramMetricFamily(
        f"{prefix}health_check_duration_seconds",
        "Duration of full rounds.",
        buckets=list(zip(bounds, accumulate(snapshot.rounds.counts), strict=True)),
        sum_value=snapshot.rounds.sum,
    )
    rounds = CounterMetricFamily(
        f"{prefix}rounds", f"Rounds by outcome: {', '.join(OUTCOMES)}.", labels=["outcome"]
    )
    for outcome in OUTCOMES:
        rounds.add_metric([outcome], snapshot.outcomes.get(outcome, 0))
    yield rounds
    yield CounterMetricFamily(
        f"{prefix}skipped_ticks",
        "Beat ticks skipped because a round was running or the last tick was too recent.",
        value=snapshot.outcomes.get("skipped", 0),
    )
    yield _gauge(f"{prefix}round_in_progress", "1 if a round is running.", activity.round_in_progress)
    if snapshot.checked_at:
        start = snapshot.checked_at.timestamp()
        yield _gauge(f"{prefix}last_round_timestamp_seconds", "Start of the last full round.", start)
    if snapshot.duration is not None:
        name = f"{prefix}last_round_duration_seconds"
        yield _gauge(name, "Duration of the last full round.", snapshot.duration)
    yield _gauge(f"{prefix}interval_seconds", "Time between two rounds (setting INTERVAL).", conf.INTERVAL)


def _task_metrics(prefix: str, tasks: Mapping[str, TaskRuns]) -> Iterator[Metric]:
    runs = CounterMetricFamily(
        f"{prefix}task_runs", "Runs of the Celery tasks by outcome.", labels=["task", "outcome"]
    )
    seconds = CounterMetricFamily(
        f"{prefix}task_runtime_seconds", "Total duration of the runs of the Celery tasks.", labels=["task"]
    )
    for task in TaskName:
        counts = tasks.get(task.short, TaskRuns())
        runs.add_metric([task.short, "success"], counts.success)
        runs.add_metric([task.short, "failure"], counts.failure)
        seconds.add_metric([task.short], counts.microseconds / 1_000_000)
    yield from (runs, seconds)
    length = broker.queue_length()
    if length is not None:
        yield _gauge(f"{prefix}tasks_waiting", "Messages waiting in the broker queue.", length)


def _history_metrics(prefix: str) -> Iterator[Metric]:
    # Not in the transaction of the snapshot: a Redis user without this permission must not lose it.
    with suppress(StoreError):
        documentation = "Changes and rounds that are in Redis, and not yet in the history in the database."
        yield _gauge(f"{prefix}history_outbox_entries", documentation, outbox.count_entries())


def _delivery_metrics(prefix: str) -> Iterator[Metric]:
    pending = GaugeMetricFamily(
        f"{prefix}deliveries_pending", "Deliveries that a channel has not accepted yet.", labels=["channel"]
    )
    overdue = GaugeMetricFamily(
        f"{prefix}deliveries_overdue_seconds",
        "Time since which a channel has not accepted a delivery that is due, or 0.",
        labels=["channel"],
    )
    done = CounterMetricFamily(
        f"{prefix}deliveries",
        "Deliveries by outcome: sent, failed (given up).",
        labels=["channel", "outcome"],
    )
    for row in backlog.read():
        (channel,) = _visible([row.channel])
        pending.add_metric([channel], row.pending)
        overdue.add_metric([channel], row.overdue)
        done.add_metric([channel, "sent"], row.sent)
        done.add_metric([channel, "failed"], row.failed)
    yield from (pending, overdue, done)


def _proxy_gauges(prefix: str, ids: ProxyIds, statuses: Sequence[ProxyStatus]) -> list[ProxyGauge]:
    numbers = {status: float(status.number) for status in Status}
    last = [status.last for status in statuses]
    return [
        ProxyGauge(
            f"{prefix}health_check_results",
            "Status: unknown to this version -3, unreachable -2, unhealthy -1, unregistered 0, ok 1.",
            [numbers[status.status] for status in statuses],
            ids,
        ),
        ProxyGauge(
            f"{prefix}raw_results",
            "Status that the last probe found, confirmed or not. Values as in health_check_results.",
            [numbers[status.status] for status in last],
            ids,
        ),
        ProxyGauge(
            f"{prefix}status_since_timestamp_seconds",
            "Time of the first probe that found the status. Absent if it is not known.",
            [status.since.timestamp() if status.since else None for status in statuses],
            ids,
        ),
        ProxyGauge(
            f"{prefix}proxy_info",
            "Always 1. The labels are the name of the proxy and the host of its URL.",
            [1.0] * len(statuses),
            ids,
            {
                "name": _visible([status.proxy.name for status in statuses]),
                "host": _visible([status.proxy_host for status in statuses]),
            },
        ),
        ProxyGauge(
            f"{prefix}probe_duration_seconds",
            "Duration of the last probe. Absent if no response came.",
            [status.latency for status in last],
            ids,
        ),
        ProxyGauge(
            f"{prefix}probe_failure",
            "Always 1. The label is the reason why the proxy is not ok. Absent if it is ok or unregistered.",
            [1.0 if status.reason else None for status in statuses],
            ids,
            {"reason": [status.reason for status in statuses]},
        ),
        ProxyGauge(
            f"{prefix}tls_not_after_timestamp_seconds",
            "Expiry date of the certificate. Absent if the last probe received none.",
            [status.tls_expires_at.timestamp() if status.tls_expires_at else None for status in statuses],
            ids,
        ),
    ]


collector = SnapshotCollector()
