"""The recent probes in the Python API."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.probes import add_probes
from proxyhealth.testing import fake_snapshot
from tests.support.machine import at_most
from tests.support.values import a_round, make_proxy, make_status

PARIS = make_proxy()
ROW = WorkspaceProxy(pk=PARIS.id, url=PARIS.url)
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def probed():
    status = replace(make_status(PARIS), checked_at=NOW, latency=0.05)
    commit([status], take_token(), full_round=a_round())
    add_probes([status])
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
