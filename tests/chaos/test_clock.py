"""The clock jumps by an hour, for all processes at once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.chaos.deployment import HOOKS
from tests.chaos.polling import Poller

INTERVAL = 3
LIMIT = 2 * INTERVAL + 2
STALE_AFTER = 3 * INTERVAL
LEEWAY = 2.0  # for a round and a poll

LIBRARIES = [
    Path("/usr/lib") / f"{machine}-linux-gnu/faketime/libfaketimeMT.so.1" for machine in ("x86_64", "aarch64")
]


class Clock:
    """The clock of all processes that start with the environment ``env``."""

    def __init__(self, folder, library):
        self._file = folder / "clock"
        self.hours = 0
        self.jump(0)
        self.env = {
            "PYTHONPATH": HOOKS,
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": self._file,
            "FAKETIME_NO_CACHE": 1,  # a jump takes effect at once
            "FAKETIME_DONT_FAKE_MONOTONIC": 1,
            "DONT_FAKE_MONOTONIC": 1,  # the name in other versions
        }

    def jump(self, hours):
        self.hours += hours
        new = self._file.with_suffix(".new")
        new.write_text(f"{self.hours * 3600:+d}")
        os.replace(new, self._file)


@pytest.fixture
def clock(tmp_path):
    for library in LIBRARIES:
        if library.exists():
            return Clock(tmp_path, library)
    message = "libfaketime is not installed (Debian: apt-get install faketime)"
    if os.environ.get("CI"):
        pytest.fail(message)
    return pytest.skip(message)


@pytest.mark.fault("clock moved by {hours:+d} h")
@pytest.mark.parametrize("hours", [-1, 1], ids=["back", "forward"])
def test_clock_jumps__rounds_go_on(deploy, clock, verdict, hours):
    deployment = deploy(interval=INTERVAL, env=clock.env)
    lima, oslo, _ = (deployment.add(name) for name in ("lima", "oslo", "quito"))
    silent = deployment.add("silent")
    silent.be_silent()
    deployment.start()
    # Not beside the poller: with two threads, libfaketime makes each look at a clock slow.
    number = deployment.snapshot()["number"]
    with Poller(deployment) as poller:
        # Between two rounds ...
        poller.wait_until(lambda p: p.snapshot["number"] > number, LIMIT, "a round by beat")
        clock.jump(hours)
        lima.stop()
        first = poller.wait_until(
            lambda p: p.statuses["lima"] == "unreachable" and not p.stale, LIMIT, "lima is down"
        )
        # ... and during one.
        silent.wait_for_request(LIMIT)
        clock.jump(hours)
        oslo.stop()
        second = poller.wait_until(
            lambda p: p.statuses["oslo"] == "unreachable" and not p.stale, LIMIT, "oslo is down"
        )
        # Then no more rounds. By a clock set back, the snapshot seems fresh for one more hour. By a clock set
        # forward, it seems stale at once: so wait for one more round first.
        number = poller.polls[-1].snapshot["number"]
        clock.jump(hours)
        if hours > 0:
            poller.wait_until(lambda p: p.snapshot["number"] > number and not p.stale, LIMIT, "a round")
        deployment.beat.kill()
        killed = time.monotonic()
        poller.wait_until(lambda p: p.stale, STALE_AFTER + LEEWAY, "the snapshot is stale")
    final = poller.polls[-1].snapshot["checked_at"]
    last = next(p.at for p in poller.polls if p.snapshot["checked_at"] == final)
    stale_after = next(p.at for p in poller.between(killed) if p.stale) - last
    assert abs(stale_after - STALE_AFTER) < LEEWAY
    poller.check(
        {"lima": ("ok", "unreachable"), "oslo": ("ok", "unreachable"), "quito": "ok", "silent": "unreachable"}
    )
    verdict(
        f"{len(poller.polls)} polls, correct after {first:.1f} s, and {second:.1f} s with the jump during a "
        f"round (limit {LIMIT} s); with beat killed stale after {stale_after:.1f} s "
        f"(limit {STALE_AFTER} s)"
    )


@pytest.mark.fault("clock set back, worker killed during a round")
def test_clock_set_back_and_worker_killed__no_hour_lost(deploy, clock, verdict):
    """The keys of the dead round expire within seconds, although the clock that set them is an hour ahead."""
    deployment = deploy(interval=INTERVAL, concurrency=1, env=clock.env)
    lima = deployment.add("lima")
    silent = deployment.add("silent", traced=True)
    silent.be_silent()
    deployment.start()
    with Poller(deployment) as poller:
        request = silent.wait_for_request(LIMIT)
        clock.jump(-1)
        deployment.worker.kill()
        assert request.end is None
        lima.stop()
        deployment.worker.start()
        took = poller.wait_until(
            lambda p: p.statuses["lima"] == "unreachable" and not p.stale,
            LIMIT,
            "lima is down",
            since=request.begin,
        )
    poller.check({"lima": ("ok", "unreachable"), "silent": "unreachable"})
    verdict(f"{len(poller.polls)} polls, never a wrong status, correct after {took:.1f} s (limit {LIMIT} s)")
