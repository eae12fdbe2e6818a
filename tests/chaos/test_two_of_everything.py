"""Two beats and two workers: rounds never overlap, and the proof comes from outside."""

from __future__ import annotations

import re
import time
from itertools import pairwise

import pytest

from tests.chaos.polling import Poller
from tests.support.proxies import wait_for

INTERVAL = 2
DELAY = 0.6
INTERVALS = 10

_LINE = re.compile(r"round (start|end) token=(\d+) (?:duration=([\d.]+))?")


@pytest.mark.fault("two beats and two workers")
def test_two_of_everything__full_rounds_never_overlap(deploy, verdict):
    deployment = deploy(interval=INTERVAL, beats=2, workers=2)
    slow = deployment.add("slow", delay=DELAY)
    deployment.add("quick")
    deployment.start()
    with Poller(deployment) as poller:
        begin = time.monotonic()
        wait_for(lambda: time.monotonic() > begin + INTERVALS * INTERVAL, INTERVALS * INTERVAL + 1)
    assert not deployment.ended()
    for part in [*deployment.beats, *deployment.workers]:
        part.kill()
    poller.check({"slow": "ok", "quick": "ok"})

    # The proxy was never asked by two rounds at once ...
    assert slow.most_at_once == 1
    asked = [a for a in slow.asked if a.begin >= begin]
    assert len(asked) >= INTERVALS - 1, "rounds were left out"
    for worker in deployment.workers:
        # Who runs the rounds is chance: the ticks of one beat may all be the first, and go to one worker.
        ticks = re.findall("round (?:start|skipped)", worker.log_text())
        assert len(ticks) > 2, f"{worker.name} had no ticks: this shows nothing"
    # ... and both workers' logs say the same. A token is Redis' time in microseconds.
    rounds = {}
    for line in deployment.round_lines():
        what, token, duration = _LINE.search(line).groups()
        rounds.setdefault(int(token), {})[what] = float(duration or 0)
    spans = sorted((token, token + found["end"] * 1e6) for token, found in rounds.items() if "end" in found)
    overlaps = [(a, b) for a, b in pairwise(spans) if b[0] < a[1]]
    assert not overlaps
    assert len(spans) >= len(asked) - 1
    verdict(
        f"{len(poller.polls)} polls, {len(spans)} rounds in {INTERVALS} intervals, "
        f"at most {slow.most_at_once} at once by the proxy's own count, none overlap by their tokens"
    )
