"""The recent probes, and the trace of the last one, in the Python API."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds.recheck import run_check
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.probes import add_probes
from proxyhealth.storage.traces import add_traces
from proxyhealth.testing import fake_snapshot
from tests.support.machine import at_most
from tests.support.values import COURSE, TRACE, a_round, make_proxy, make_status

PARIS = make_proxy()
ROW = WorkspaceProxy(pk=PARIS.id, url=PARIS.url)
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def probed():
    status = replace(make_status(PARIS), checked_at=NOW, latency=0.05)
    commit([status], take_token(), full_round=a_round())
    add_probes([status])
    add_traces([replace(status, course=COURSE)], take_token())
    assert not health.snapshot().fault


def test_recent_probes__of_a_row_or_an_id(probed):
    for proxy in (ROW, PARIS.id):
        assert health.recent_probes(proxy) == [(NOW, "ok", "", 0.05)]
        assert asyncio.run(health.arecent_probes(proxy)) == [(NOW, "ok", "", 0.05)]
    assert health.recent_probes(make_proxy("oslo").id) == []


def test_recent_probes__fake_has_none(probed):
    with fake_snapshot(paris="ok"):
        assert health.recent_probes(PARIS.id) == []


def test_recent_probes__cache_down_is_an_empty_list(probed, settings, configure, caplog):
    configure(READ_INTERVAL=60)
    health.reader.read_anew()
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    assert health.recent_probes(ROW) == []
    assert "the recent probes cannot be read: " in caplog.text
    health.reader.read_anew()
    caplog.clear()
    with at_most(0.1):
        assert health.recent_probes(ROW) == [], "it does not wait for a cache that has just failed"
    assert not caplog.records


def test_last_trace__of_a_row_or_an_id(probed):
    for proxy in (ROW, PARIS.id):
        assert health.last_trace(proxy) == TRACE
        assert asyncio.run(health.alast_trace(proxy)) == TRACE
    assert health.last_trace(make_proxy("oslo").id) is None


def test_last_trace__fake_has_none(probed):
    with fake_snapshot(paris="ok"):
        assert health.last_trace(PARIS.id) is None


def test_last_trace__cache_down_is_none(probed, settings, configure, caplog):
    configure(READ_INTERVAL=60)
    health.reader.read_anew()
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    assert health.last_trace(ROW) is None
    assert "the trace of the last probe cannot be read: " in caplog.text
    health.reader.read_anew()
    with at_most(0.1):
        assert health.last_trace(ROW) is None, "it does not wait for a cache that has just failed"


@pytest.mark.parametrize("run", [lambda _: health.force_update(), lambda key: run_check([key])])
def test_last_trace__is_that_of_the_last_result(paris, run):
    run(paris.pk)
    trace = health.last_trace(paris)
    assert trace.checked_at == health.status_of(paris).last.checked_at
    assert (trace.status, trace.reason, trace.error) == ("unhealthy", "report_errors", "")
    assert trace.requests[0].status_code == 200
