"""Thousands of statuses that contradict theirs at once, and wait for their confirmation."""

from __future__ import annotations

import json
import random
import re
import time
from itertools import pairwise

import pytest

from tests.chaos.random_fleet import RandomFleet
from tests.support.proxies import wait_for

COUNT = 2_000
CONCURRENCY = 256
INTERVAL = 10
RECHECK_AFTER = 0.5
LIMIT = 45  # on a busy machine

_CHECK_END = re.compile(r"check end token=(\d+)")
_ROUND_END = re.compile(r"round end token=(\d+)")


@pytest.fixture
def fleet():
    with RandomFleet(1, random.Random(1)) as fleet:
        fleet.settle("ok")
        yield fleet


@pytest.fixture
def deployment(deploy, fleet):
    settings = {"FAILURE_THRESHOLD": 3, "RECHECK_AFTER": RECHECK_AFTER, "CONCURRENCY": CONCURRENCY}
    env = {"DJANGO_SETTINGS_MODULE": "tests.chaos.settings", "PROXYHEALTH_SETTINGS": json.dumps(settings)}
    deployment = deploy(interval=INTERVAL, timeout=5, concurrency=2, env=env)
    (url,) = fleet.urls.values()
    deployment.add_rows({f"p{n:04}": url for n in range(COUNT)})
    deployment.redis.command = deployment.redis.command.replace("--appendonly no", "--appendonly yes")
    return deployment


def count(deployment, status):
    """Return the number of proxies with this status in the snapshot."""
    value = deployment.raw_snapshot()
    return json.loads(value)["judgements"]["status"].count(status) if value else 0


@pytest.mark.fault("2,000 failures at once, confirmed by the third")
def test_storm__rounds_go_on_and_all_are_confirmed(deployment, fleet, verdict):
    deployment.start_redis()
    deployment.worker.start()
    deployment.beat.start()
    wait_for(lambda: count(deployment, "ok") == COUNT, 30, "all are ok")
    began = time.monotonic()
    fleet.settle("unhealthy")
    wait_for(lambda: count(deployment, "unhealthy") == COUNT, LIMIT, "all are unhealthy")
    took = time.monotonic() - began
    rounds_before = len(_ROUND_END.findall(deployment.worker.log_text()))
    wait_for(
        lambda: len(_ROUND_END.findall(deployment.worker.log_text())) > rounds_before, LIMIT, "another round"
    )
    log = deployment.worker.log_text()
    rounds = [int(token) for token in _ROUND_END.findall(log)]
    late = max(later - earlier for earlier, later in pairwise(rounds)) / 1e6
    tasks = {int(token) for token in _CHECK_END.findall(log)}
    deployment.python(_WAIT_FOR_ROWS.format(count=2 * COUNT))
    assert late < 2 * INTERVAL, f"{late:.1f} s from one round to the next"
    # Two results each, in tasks of at most CONCURRENCY probes.
    assert len(tasks) <= 2 * (COUNT // CONCURRENCY + 1) + 2, f"{len(tasks)} tasks"
    verdict(
        f"all confirmed after {took:.1f} s by {len(tasks)} tasks, rounds at most {late:.1f} s apart "
        f"(interval {INTERVAL} s), one row each"
    )


_WAIT_FOR_ROWS = """
import time
from proxyhealth.models import Transition
end = time.monotonic() + 20
while (found := Transition.objects.count()) != {count}:
    assert time.monotonic() < end, f"{{found}} rows"
    time.sleep(0.1)
"""
