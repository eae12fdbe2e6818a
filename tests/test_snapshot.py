from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any
from uuid import UUID

import pytest

from proxyhealth.report import HealthReport
from proxyhealth.snapshot import Proxy, ProxyStatus, RoundHistogram, Snapshot
from proxyhealth.statuses import Reason, Status

MOMENT = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)


def make_proxy(number: int = 1, **values: Any) -> Proxy:
    defaults: dict[str, Any] = {
        "id": UUID(int=number),
        "name": f"proxy-{number}",
        "display_name": f"Proxy {number}",
        "icon": "/icon.svg",
        "url": f"http://proxy-{number}.example",
        "wildcard_hostname": "*.example",
        "version": "1.2.3",
        "deleted": False,
        "created_at": MOMENT,
        "updated_at": MOMENT + timedelta(seconds=1),
    }
    return Proxy(**{**defaults, **values})


def make_status(number: int = 1, status: Status = Status.OK, **values: Any) -> ProxyStatus:
    defaults: dict[str, Any] = {
        "proxy_host": f"proxy-{number}.example",
        "checked_at": MOMENT,
        "latency": 0.25,
    }
    return ProxyStatus(make_proxy(number), status=status, **{**defaults, **values})


def from_json(proxy: Proxy, checked_at: datetime | None, status: ProxyStatus) -> ProxyStatus:
    judgement = json.loads(json.dumps(status.judgement()))
    return next(ProxyStatus.from_judgements([proxy], checked_at, [judgement]))


def test_status__numbers_for_metrics() -> None:
    numbers = {"unknown": -3, "unreachable": -2, "unhealthy": -1, "unregistered": 0, "ok": 1}
    assert {status.value: status.number for status in Status} == numbers


def test_proxy_status__is_healthy_only_if_ok() -> None:
    assert [status for status in Status if make_status(status=status).healthy] == [Status.OK]


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("reason", Reason)
def test_proxy_status__json_round_trip(status: Status, reason: Reason) -> None:
    before = make_status(
        status=status, reason=reason, report=HealthReport(("é", "<b>"), ("w",)), tls_expires_at=MOMENT
    )
    assert from_json(before.proxy, before.checked_at, before) == before


def test_proxy_status__json_round_trip_without_a_check() -> None:
    before = make_status(status=Status.UNKNOWN, checked_at=None, latency=None, proxy_host="")
    assert before.judgement() == {"status": "unknown"}
    assert from_json(before.proxy, None, before) == before


def test_proxy_status__as_json() -> None:
    assert json.loads(json.dumps(make_status(report=HealthReport(("e",))).judgement())) == {
        "proxy_host": "proxy-1.example",
        "status": "ok",
        "errors": ["e"],
        "latency": 0.25,
    }


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ({"status": "fine", "reason": "why not"}, Status.UNKNOWN),
        ({"status": "unhealthy", "reason": "why not"}, Status.UNHEALTHY),
        ({}, Status.UNKNOWN),
    ],
)
def test_proxy_status__of_newer_version_is_read(data: dict[str, str], status: Status) -> None:
    read = next(ProxyStatus.from_judgements([make_proxy()], MOMENT, [data]))
    assert (read.status, read.reason) == (status, Reason.NONE)


def test_proxy_status__from_json_shares_one_empty_report() -> None:
    one, other = make_status(1), make_status(2)
    assert from_json(one.proxy, MOMENT, one).report is from_json(other.proxy, MOMENT, other).report


def test_proxy_status__judgement_has_only_results_of_the_probe() -> None:
    status = make_status(report=HealthReport(("e",), ("w",)), reason=Reason.REPORT_ERRORS)
    data = json.loads(json.dumps(status.judgement()))
    assert data.keys() == {"proxy_host", "status", "reason", "errors", "warnings", "latency"}
    assert next(ProxyStatus.from_judgements([status.proxy], status.checked_at, [data])) == status
    assert len(json.dumps(make_status().judgement())) < 100


def test_proxy_status__judgement_keeps_a_latency_of_0() -> None:
    status = make_status(latency=0.0)
    assert from_json(status.proxy, status.checked_at, status) == status


def test_proxy__as_json() -> None:
    assert json.loads(json.dumps(make_proxy().to_json())) == {
        "id": "00000000-0000-0000-0000-000000000001",
        "name": "proxy-1",
        "display_name": "Proxy 1",
        "icon": "/icon.svg",
        "url": "http://proxy-1.example",
        "wildcard_hostname": "*.example",
        "version": "1.2.3",
        "deleted": False,
        "created_at": "2024-02-29T23:59:59.123456Z",
        "updated_at": "2024-03-01T00:00:00.123456Z",
    }


def test_proxy__json_round_trip() -> None:
    before = make_proxy(name="x", display_name="Zürich “1”", url="", deleted=True)
    assert Proxy.from_json(json.loads(json.dumps(before.to_json()))) == before


def test_snapshot_stale__before_the_first_round() -> None:
    snapshot = Snapshot()
    assert snapshot.stale
    assert snapshot.stale_reason == "No round has ended yet. Are the Celery worker and beat running?"


def test_snapshot_stale__not_while_rounds_run() -> None:
    now = datetime.now(UTC)
    snapshot = Snapshot(checked_at=now, stale_at=now + timedelta(minutes=3))
    assert not snapshot.stale
    assert snapshot.stale_reason == ""


def test_snapshot_stale__when_rounds_stopped() -> None:
    snapshot = Snapshot(checked_at=MOMENT, stale_at=MOMENT + timedelta(minutes=3))
    assert snapshot.stale
    assert snapshot.stale_reason == (
        "No round has ended since the one of 2024-02-29 23:59:59 UTC. "
        "Are the Celery worker and beat running, and does the last round's error say more?"
    )


def test_snapshot_stale__after_failed_rounds() -> None:
    """A failed round has ended, so no sentence may say that none has."""
    failed = Snapshot(error="gone", error_at=MOMENT)
    assert failed.stale_reason.startswith("No full round has ended yet. ")
    failed = replace(failed, checked_at=MOMENT - timedelta(hours=1), stale_at=MOMENT)
    assert failed.stale_reason.startswith(
        "No full round has ended since the one of 2024-02-29 22:59:59 UTC. "
    )
    succeeded = replace(failed, checked_at=MOMENT, stale_at=MOMENT)
    assert succeeded.stale_reason.startswith("No round has ended since the one of ")


def test_snapshot_stale__exactly_at_stale_at() -> None:
    moment = datetime.now(UTC)
    assert Snapshot(checked_at=moment, stale_at=moment).stale


def test_snapshot_stale__with_a_fault() -> None:
    now = datetime.now(UTC)
    snapshot = Snapshot(checked_at=now, stale_at=now + timedelta(minutes=3), fault="Redis is away.")
    assert snapshot.stale
    assert snapshot.stale_reason == "Redis is away."


def test_snapshot_stale__is_computed_at_each_access() -> None:
    now = datetime.now(UTC)
    fresh = Snapshot(checked_at=now, stale_at=now + timedelta(hours=1))
    assert not fresh.stale
    assert replace(fresh, stale_at=now).stale


def test_snapshot_hosts__of_registered_proxies_without_repeats() -> None:
    statuses = [
        make_status(1, Status.OK),
        make_status(2, Status.UNREACHABLE),
        make_status(3, Status.UNREGISTERED, proxy_host=""),
        make_status(4, Status.OK, proxy_host="proxy-1.example"),
        make_status(5, Status.UNKNOWN),
        make_status(6, Status.OK, proxy_host="[::1]:80"),
    ]
    snapshot = Snapshot({status.proxy.id: status for status in statuses})
    assert snapshot.hosts == ["proxy-1.example", "proxy-2.example", "proxy-5.example", "[::1]:80"]
    assert snapshot.healthy_hosts == ["proxy-1.example", "[::1]:80"]


def test_snapshot_hosts__empty_snapshot() -> None:
    assert Snapshot().hosts == []
    assert Snapshot().healthy_hosts == []


def test_snapshot_by_name__is_lower_case_and_cached() -> None:
    paris = replace(make_status(1), proxy=make_proxy(1, name="Paris"))
    oslo = replace(make_status(2), proxy=make_proxy(2, name="oslo"))
    snapshot = Snapshot({status.proxy.id: status for status in (oslo, paris)})
    assert dict(snapshot.by_name) == {"paris": paris, "oslo": oslo}
    assert snapshot.by_name is snapshot.by_name
    assert Snapshot().by_name == {}


def test_snapshot_by_name__reused_name_has_the_later_status() -> None:
    before = make_status(1)
    after = replace(
        make_status(2), proxy=make_proxy(2, name="Proxy-1"), checked_at=MOMENT + timedelta(seconds=1)
    )
    unchecked = replace(make_status(3, Status.UNKNOWN, checked_at=None), proxy=make_proxy(3, name="proxy-1"))
    for order in permutations((before, after, unchecked)):
        snapshot = Snapshot({status.proxy.id: status for status in order})
        assert dict(snapshot.by_name) == {"proxy-1": after}


@pytest.mark.parametrize(
    ("seconds", "place"),
    [
        (0, 0),
        (0.001, 0),
        (0.0011, 1),
        (0.1, 5),
        (0.3, 6),
        (1, 7),
        (4.99, 8),
        (30, 10),
        (30.01, 11),
        (1e9, 11),
    ],
)
def test_round_histogram__counts_a_round_in_its_bucket(seconds: float, place: int) -> None:
    histogram = RoundHistogram().observe(seconds)
    assert [i for i, count in enumerate(histogram.counts) if count] == [place]
    assert histogram.counts[place] == 1
    assert histogram.sum == seconds


def test_round_histogram__sums_rounds() -> None:
    empty = RoundHistogram()
    histogram = empty.observe(0.2).observe(0.3).observe(40)
    assert sum(histogram.counts) == 3
    assert histogram.sum == pytest.approx(40.5)
    assert len(histogram.counts) == len(RoundHistogram.BOUNDS) + 1
    assert empty == RoundHistogram()
