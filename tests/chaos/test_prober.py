"""The prober itself is cut off: that says nothing about the proxies."""

from __future__ import annotations

import pytest

from tests.chaos.fleet import ChaosProxy
from tests.chaos.polling import Poller

INTERVAL = 4
LIMIT = 2 * INTERVAL
NAMES = ("lima", "oslo", "quito")


@pytest.fixture
def canary():
    canary = ChaosProxy("canary")
    yield canary
    canary.stop()


def all_are(status):
    return lambda p: set(p.statuses.values()) == {status} and not p.stale


@pytest.mark.fault("prober offline")
def test_prober_offline__no_proxy_is_blamed(deploy, canary, verdict):
    deployment = deploy(interval=INTERVAL, env={"PROXYHEALTH_CANARY_URLS": canary.url})
    for name in NAMES:
        deployment.add(name)
    deployment.start()
    proxies = deployment.proxies.values()

    def between_rounds(poller):
        number = poller.polls[-1].snapshot["number"] if poller.polls else 0
        poller.wait_until(lambda p: p.snapshot["number"] > number, 4 * INTERVAL, "a round")

    with Poller(deployment) as poller:
        between_rounds(poller)
        between_rounds(poller)
        canary.stop()
        for proxy in proxies:
            proxy.stop()
        told = poller.wait_until(
            lambda p: p.snapshot["stale_reason"].startswith("Prober offline"), 4 * INTERVAL, "offline is said"
        )
        assert "Prober offline" in deployment.health_page()
        for proxy in proxies:
            proxy.start()
        canary.start()
        took = poller.wait_until(all_are("ok"), LIMIT, "right again")
    poller.check(dict.fromkeys(NAMES, "ok"))
    with Poller(deployment) as after:
        for proxy in proxies:
            proxy.stop()
        blamed = after.wait_until(all_are("unreachable"), LIMIT, "with the canary alive they are down")
    after.check(dict.fromkeys(NAMES, ("ok", "unreachable")))
    verdict(
        f"{len(poller.polls)} polls, no proxy was blamed, stale after {told:.1f} s, right again after "
        f"{took:.1f} s (limit {LIMIT} s); with the canary alive they are down after {blamed:.1f} s"
    )
