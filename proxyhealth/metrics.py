"""The snapshot as Prometheus metrics, made for each scrape: every process answers the same."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxyhealth import store
from proxyhealth.conf import conf
from proxyhealth.report import RoundHistogram, Snapshot

OUTCOMES = ("success", "incomplete", "offline", "failure", "skipped")


class SnapshotCollector(Collector):
    """Reads the snapshot on ``collect()``; a proxy that is not in it has no series.

    With the cache out of reach there is nothing but ``proxyhealth_snapshot_up 0``: the last copies
    of different processes may differ.
    """

    def describe(self) -> list[Metric]:
        # A registry that gets no description collects at once, and that would ask the cache
        # while Django is still starting.
        return []

    def collect(self) -> Iterator[Metric]:
        snapshot = store.read()
        prefix = f"{conf.METRICS_NAMESPACE}_" if conf.METRICS_NAMESPACE else ""
        up = not snapshot.fault and snapshot.number > 0
        yield GaugeMetricFamily(
            f"{prefix}proxyhealth_snapshot_up", "Whether the snapshot can be read.", value=float(up)
        )
        if not snapshot.fault:
            yield from _families(f"{prefix}proxyhealth_", snapshot)


def _families(prefix: str, snapshot: Snapshot) -> Iterator[Metric]:
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
    if snapshot.checked_at:
        yield GaugeMetricFamily(
            f"{prefix}last_round_timestamp_seconds",
            "When the last full round began.",
            value=snapshot.checked_at.timestamp(),
        )
    results = GaugeMetricFamily(
        f"{prefix}health_check_results",
        "Status: unknown -3, unreachable -2, unhealthy -1, unregistered 0, ok 1.",
        labels=["proxy_id"],
    )
    info = GaugeMetricFamily(
        f"{prefix}proxy_info", "Always 1; the names of a proxy.", labels=["proxy_id", "name", "host"]
    )
    durations = GaugeMetricFamily(
        f"{prefix}probe_duration_seconds",
        "How long the last probe took, if a response came.",
        labels=["proxy_id"],
    )
    failures = GaugeMetricFamily(
        f"{prefix}probe_failure",
        "1 with the reason why a proxy is not ok; none if it is ok or not registered.",
        labels=["proxy_id", "reason"],
    )
    for status in snapshot.statuses.values():
        id = str(status.proxy.id)
        results.add_metric([id], status.status.number)
        info.add_metric([id, status.proxy.name, status.proxy_host], 1)
        if status.latency is not None:
            durations.add_metric([id], status.latency)
        if status.reason:
            failures.add_metric([id, status.reason], 1)
    yield from (results, info, durations, failures)


def _buckets(rounds: RoundHistogram) -> list[tuple[str, float]]:
    bounds = [*map(str, RoundHistogram.BOUNDS), "+Inf"]
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip(bounds, rounds.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


collector = SnapshotCollector()
