"""A proxy fails for good: three failures confirm it soon, long before the next round."""

from __future__ import annotations

import time

import pytest

from tests.support.proxies import wait_for

pytestmark = pytest.mark.patient


@pytest.mark.fault("a proxy that {kind}, three failures needed")
@pytest.mark.parametrize(("kind", "limit"), [("refuses", 15), ("is silent", 35)])
def test_dead_proxy__is_confirmed_in_time(deploy, verdict, kind, limit):
    deployment = deploy(interval=60, timeout=5, env={"PROXYHEALTH_FAILURE_THRESHOLD": 3})
    proxy = deployment.add("lima")
    deployment.start()
    statuses = []

    def is_confirmed():
        (region,) = deployment.api()["regions"]
        status = region["status"]
        statuses.append((status["status"], bool(status.get("raw"))))
        return status["status"] == "unreachable"

    if kind == "refuses":
        proxy.stop()
    else:
        proxy.be_silent()
    deployment.python("from proxyhealth.health import request_check; request_check().result(30)")
    began = time.monotonic()
    wait_for(is_confirmed, limit, "the failure is confirmed")
    took = time.monotonic() - began
    assert list(dict.fromkeys(statuses))[-2:] == [("ok", True), ("unreachable", False)]
    verdict(f"confirmed after {took:.1f} s (limit {limit} s)")
