"""A worker or beat is killed: the page of the prober, and the banner, name the one that is missing."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html import unescape

import pytest

from proxyhealth.storage.presence import GONE_AFTER
from tests.support.proxies import wait_for

PAGE = "/admin/proxyhealth/workspaceproxy/prober/"
INTERVAL = 1


def states(deployment):
    """Return the state of each part, and the text of the page."""
    page = deployment.page(PAGE)
    text = unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)))
    return dict(re.findall(r'<tr id="part-(\w+)" data-state="(\w+)"', page)), text


def wait_for_part(deployment, part, state, seconds):
    begin = datetime.now(UTC)
    wait_for(lambda: states(deployment)[0].get(part) == state, seconds, f"{part} is {state}")
    return (datetime.now(UTC) - begin).total_seconds()


@pytest.mark.fault("beat killed, then the worker")
def test_is_it_us__beat_killed_then_the_worker(deploy, verdict):
    deployment = deploy(interval=INTERVAL)
    deployment.add("lima")
    deployment.start()
    wait_for_part(deployment, "beat", "ok", 3 * INTERVAL)
    found, text = states(deployment)
    assert {found[part] for part in ("redis", "database", "workers", "beat", "queue", "rounds")} == {"ok"}
    assert "It is not us" in text
    assert "worker1@" in text
    assert "prefork" in text
    deployment.beat.kill()
    beat = wait_for_part(deployment, "beat", "failed", 10)
    found, text = states(deployment)
    assert (found["workers"], found["redis"], found["database"]) == ("ok", "ok", "ok")
    health = deployment.health_page()
    assert "Celery beat has sent no tick since" in health
    assert "No Celery worker" not in health
    assert "Are the Celery worker" not in health
    deployment.worker.kill()
    worker = wait_for_part(deployment, "workers", "failed", GONE_AFTER + 3)
    assert "No Celery worker runs. The last one, worker1@" in deployment.health_page()
    deployment.beat.start()
    wait_for_part(deployment, "beat", "ok", 10)
    health = deployment.health_page()
    assert "No Celery worker runs. The last one, worker1@" in health
    assert "Celery beat" not in health, "it has sent a tick, although no worker takes it"
    verdict(f"beat is named after {beat:.0f} s, and a worker after {worker:.0f} s")
