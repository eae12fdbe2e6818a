"""A web server starts while Redis is away: no region is down, and every answer says that it is stale."""

from __future__ import annotations

import signal
import sqlite3
import time
from contextlib import closing

import pytest
import requests

from tests.chaos.deployment import GUNICORN
from tests.chaos.processes import START_TIMEOUT
from tests.support.proxies import wait_for

CONFIRMED = "These are the last confirmed statuses, from the database."
UVICORN = "exec python -m uvicorn --port $WEB_PORT --lifespan off project.asgi:application"


def take_away(deployment, fault):
    if fault == "down":
        deployment.redis.kill()
    elif fault == "hangs":
        deployment.redis.signal(signal.SIGSTOP)
    else:
        deployment.redis.kill()
        deployment.worker.kill()  # no round fills the cache again
        deployment.start_redis()


def is_recorded(deployment):
    """Return True once the history has the statuses of both proxies, and a full round."""
    with closing(sqlite3.connect(deployment.database, timeout=10)) as connection:
        (count,) = connection.execute(
            "SELECT count(*) * (SELECT count(*) FROM proxyhealth_watch) FROM proxyhealth_transition"
        ).fetchone()
    return count == 2


def is_alive(deployment):
    try:
        return deployment.client.get(f"{deployment.base}/livez", timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.mark.fault("Web server ({server}) starts, Redis {fault}")
@pytest.mark.parametrize(
    ("server", "fault"),
    [("gunicorn", "down"), ("gunicorn", "hangs"), ("gunicorn", "empty"), ("uvicorn", "down")],
)
def test_web_starts_without_redis__serves_statuses(deploy, verdict, server, fault):
    deployment = deploy(interval=4)
    for name in ("lima", "oslo"):
        deployment.add(name)
    deployment.proxies["oslo"].report_errors("kaputt")
    deployment.web.command = {"gunicorn": GUNICORN, "uvicorn": UVICORN}[server]
    deployment.start()
    wait_for(lambda: is_recorded(deployment), 10, "the history has the first round")
    deployment.web.kill()
    take_away(deployment, fault)
    deployment.web.start()
    wait_for(lambda: is_alive(deployment), START_TIMEOUT, "the web server responds")
    begin = time.monotonic()
    body = deployment.api()
    took = time.monotonic() - begin
    assert {each["name"]: each["status"]["status"] for each in body["regions"]} == {
        "lima": "ok",
        "oslo": "unhealthy",
    }
    assert body["snapshot"]["stale"]
    assert body["snapshot"]["stale_reason"].endswith(CONFIRMED)
    assert CONFIRMED in deployment.health_page()
    ready = deployment.client.get(f"{deployment.base}/readyz", timeout=5)
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert took < 3
    verdict(f"statuses {took:.2f} s after the first request, /readyz degraded")
