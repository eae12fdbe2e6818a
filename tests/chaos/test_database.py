"""The worker loses its database; the web server still has it."""

from __future__ import annotations

import os

import pytest

from tests.chaos.polling import Poller
from tests.support.proxies import wait_for

INTERVAL = 4
LEEWAY = 2  # for a round and a poll


@pytest.mark.fault("database down during a round")
def test_database_down__snapshot_stays_then_correct(deploy, tmp_path, verdict):
    link = tmp_path / "link.sqlite3"
    deployment = deploy(interval=INTERVAL, worker_env={"DATABASE_URL": f"sqlite:///{link}"})
    for name in ("lima", "oslo"):
        deployment.add(name)

    def point_link_to(target):
        link.with_suffix(".new").symlink_to(target)
        os.replace(link.with_suffix(".new"), link)

    point_link_to(deployment.database)
    deployment.start()
    failed = 'proxyhealth_rounds_total{outcome="failure"}'
    with Poller(deployment) as poller:
        number = deployment.snapshot()["number"]
        poller.wait_until(lambda p: p.snapshot["number"] > number, 2 * INTERVAL, "a round by beat")
        assert deployment.metric(failed) == 0
        point_link_to(tmp_path)
        snapshot = deployment.raw_snapshot()
        deployment.proxies["lima"].stop()
        wait_for(lambda: deployment.metric(failed), INTERVAL + LEEWAY, "the metrics count a failed round")
        page = deployment.health_page()
        assert "Last failed round" in page
        assert "the proxies cannot be read from the database: unable to open database file" in page
        assert deployment.raw_snapshot() == snapshot
        point_link_to(deployment.database)
        took = poller.wait_until(
            lambda p: p.statuses["lima"] == "unreachable" and not p.stale, INTERVAL + LEEWAY, "lima is down"
        )
    assert deployment.metric(failed) == 1
    poller.check({"lima": ("ok", "unreachable"), "oslo": "ok"})
    verdict(
        f"{len(poller.polls)} polls, the same snapshot byte for byte, the error counted and shown, "
        f"correct after {took:.1f} s (limit {INTERVAL} s and the round)"
    )
