"""The prober itself is offline: its probes say nothing about the proxies."""

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
def test_prober_offline__statuses_stay(deploy, canary, verdict):
    deployment = deploy(interval=INTERVAL, env={"PROXYHEALTH_CANARY_URLS": canary.url})
    for name in NAMES:
        deployment.add(name)
    deployment.start()
    proxies = deployment.proxies.values()

    def wait_for_a_round(poller):
        number = poller.polls[-1].snapshot["number"] if poller.polls else 0
        poller.wait_until(lambda p: p.snapshot["number"] > number, 4 * INTERVAL, "a round")

    with Poller(deployment) as poller:
        wait_for_a_round(poller)
        wait_for_a_round(poller)
        canary.stop()
        for proxy in proxies:
            proxy.stop()
        stale = poller.wait_until(
            lambda p: p.snapshot["stale_reason"].startswith("Prober offline"),
            4 * INTERVAL,
            "the answers say that the prober is offline",
        )
        assert "Prober offline" in deployment.health_page()
        for proxy in proxies:
            proxy.start()
        canary.start()
        took = poller.wait_until(all_are("ok"), LIMIT, "all proxies are ok")
    poller.check(dict.fromkeys(NAMES, "ok"))
    with Poller(deployment) as after:
        for proxy in proxies:
            proxy.stop()
        down = after.wait_until(
            all_are("unreachable"), LIMIT, "the proxies are down while the canary answers"
        )
    after.check(dict.fromkeys(NAMES, ("ok", "unreachable")))
    verdict(
        f"{len(poller.polls)} polls, no status changed, stale after {stale:.1f} s, correct after "
        f"{took:.1f} s (limit {LIMIT} s); while the canary answers, proxies are down after {down:.1f} s"
    )
