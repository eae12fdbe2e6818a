"""Beat is killed: no more rounds run, and every reader is told so."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.chaos.polling import Poller

INTERVAL = 3
STALE_AFTER = 3 * INTERVAL
LEEWAY = 1.5  # from becoming stale to a poll that shows it


@pytest.mark.fault("beat killed")
def test_beat_killed__stale_after_three_intervals(deploy, verdict):
    deployment = deploy(interval=INTERVAL)
    for name in ("lima", "oslo"):
        deployment.add(name)
    deployment.start()
    with Poller(deployment) as poller:
        number = deployment.snapshot()["number"]
        poller.wait_until(lambda p: p.snapshot["number"] > number, 2 * INTERVAL, "a round by beat")
        deployment.beat.kill()
        poller.wait_until(lambda p: p.stale, STALE_AFTER + LEEWAY, "the snapshot is stale")
        first_stale = next(p for p in poller.polls if p.stale)
        assert "beat" in first_stale.snapshot["stale_reason"]
        assert "Stale." in deployment.health_page()
        assert deployment.metric("proxyhealth_snapshot_up") == 1
        age = first_stale.wall - deployment.metric("proxyhealth_last_round_timestamp_seconds")
        assert STALE_AFTER - 0.1 <= age <= STALE_AFTER + LEEWAY
        deployment.proxies["lima"].stop()
        deployment.beat.start()
        took = poller.wait_until(
            lambda p: not p.stale and p.statuses["lima"] == "unreachable",
            2 * INTERVAL,
            "the snapshot is correct",
        )
        assert "Stale." not in deployment.health_page()
    poller.check({"lima": ("ok", "unreachable"), "oslo": "ok"})
    # Fresh, then stale, then fresh, with no change in between.
    changes = [p.stale for before, p in pairwise(poller.polls) if p.stale != before.stale]
    assert changes == [True, False]
    verdict(
        f"{len(poller.polls)} polls, stale {age:.1f} s after the last round (limit {STALE_AFTER} s), "
        f"correct {took:.1f} s after beat is back (limit {2 * INTERVAL} s)"
    )
