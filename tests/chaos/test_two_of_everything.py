"""With two beats and two workers, rounds never overlap. A proxy outside of the app proves it."""

from __future__ import annotations

import re
import time
from itertools import pairwise

import pytest

from tests.chaos.polling import Poller
from tests.support.proxies import wait_for

INTERVAL = 2
DELAY = 0.6
ROUNDS = 8

_LINE = re.compile(r"round (start|end) token=(\d+) (?:duration=([\d.]+))?")


def count_ticks(worker):
    return len(re.findall("round (?:start|skipped)", worker.log_text()))


@pytest.mark.fault("two beats and two workers")
def test_two_beats_two_workers__rounds_never_overlap(deploy, verdict):
    deployment = deploy(interval=INTERVAL, beats=2, workers=2)
    slow = deployment.add("slow", delay=DELAY)
    deployment.add("quick")
    deployment.start()
    with Poller(deployment) as poller:
        begin = time.monotonic()
        # Chance decides which worker runs the rounds: one beat may always be first, and one worker get all of
        # its ticks.
        wait_for(
            lambda: (
                sum(request.begin >= begin for request in list(slow.requests)) >= ROUNDS
                and all(count_ticks(worker) > 2 for worker in deployment.workers)
            ),
            (ROUNDS + 3) * INTERVAL,
            "rounds run, and both workers get ticks",
        )
    assert not deployment.exited()
    for process in [*deployment.beats, *deployment.workers]:
        process.kill()
    poller.check({"slow": "ok", "quick": "ok"})

    # Two rounds never probed the proxy at the same time ...
    assert slow.most_at_once == 1
    requests = [request for request in slow.requests if request.begin >= begin]
    # ... and the logs of both workers agree. A token is the time of Redis in microseconds.
    spans = []
    for line in deployment.round_lines():
        event, token, duration = _LINE.search(line).groups()
        if event == "end":
            spans.append((int(token), int(token) + float(duration) * 1e6))
    overlaps = [(a, b) for a, b in pairwise(sorted(spans)) if b[0] < a[1]]
    assert not overlaps
    assert len(spans) >= len(requests) - 1
    verdict(
        f"{len(poller.polls)} polls, {len(spans)} rounds, "
        f"at most {slow.most_at_once} at once by the proxy's count, none overlap by their tokens"
    )
