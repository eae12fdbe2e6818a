"""Each complete round of real workers sends one heartbeat, also if their processes live for one task."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest

from tests.support.proxies import wait_for
from tests.support.servers import Server, response

INTERVAL = 3
ROUNDS = 3
PROXIES = ("lima", "oslo", "paris", "quito", "riga")
DELAY = 1.5  # seconds until the service answers


def answer_late(sock):
    time.sleep(DELAY)
    sock.sendall(response(b"OK"))


def is_over(deployment):
    """Return True if no round runs."""
    events = Counter(line.split("round ")[1].split()[0] for line in deployment.round_lines())
    return events["start"] == events["end"]


@pytest.mark.fault("processes of one task, shared rounds, slow heartbeats")
def test_heartbeat__one_per_round(deploy, verdict):
    with Server(answer_late) as server:
        settings = {"SHARD_SIZE": 2, "HEARTBEAT_URLS": [f"{server.url}/ping"]}
        deployment = deploy(
            interval=INTERVAL,
            workers=2,
            env={
                "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
                "PROXYHEALTH_SETTINGS": json.dumps(settings),
            },
        )
        for worker in deployment.workers:
            worker.command += " --max-tasks-per-child 1"
        for name in PROXIES:
            deployment.add(name)
        deployment.start()

        # A round of which a shard came too late is incomplete, and sends none.
        def ended():
            complete = f" proxies={len(PROXIES)} "
            return sum("round end token=" in line and complete in line for line in deployment.round_lines())

        wait_for(lambda: ended() >= ROUNDS, 90, "complete rounds have ended")
        deployment.beat.kill()
        wait_for(lambda: is_over(deployment), 30, "the last round has ended")
        wait_for(lambda: len(server.paths) >= ended(), 10, "each of them has sent a heartbeat")
        time.sleep(2 * DELAY)  # for those that are too many
        rounds, beats = ended(), len(server.paths)
    logs = "".join(worker.log_text() for worker in deployment.workers)
    assert "round shared" in logs
    assert "heartbeat failed" not in logs
    assert beats == rounds
    verdict(f"{rounds} complete rounds, {beats} heartbeats")
