"""The prober itself fails: the channels are told by whatever process is left, once, and so is the end."""

from __future__ import annotations

import time

import pytest

from tests.chaos.deployment import GUNICORN
from tests.chaos.fleet import ChaosProxy
from tests.notifications.story import Receiver
from tests.support.proxies import wait_for

INTERVAL = 2
STALE_AFTER = 3 * INTERVAL
LIMIT = STALE_AFTER + 15  # seconds until people are told
START = 5  # seconds for which a new process waits, in place of 30
RESTART = 20  # likewise, where all processes restart: they need that for a round

pytestmark = pytest.mark.patient

# Web servers of all kinds: with forks after the start, with a thread per request, and with an event loop.
COMMANDS = (
    f"{GUNICORN} --preload --workers 2",
    "exec python manage.py runserver --noreload 127.0.0.1:$WEB_PORT",
    "exec python -m uvicorn --lifespan off --port $WEB_PORT project.asgi:application",
)

ADD_CHANNEL = """
from django.utils.timezone import now
from proxyhealth.models import Channel
Channel.objects.create(name="ops", kind="webhook", target={url!r}, secret="s" * 32, listens_since=now())
"""


@pytest.fixture
def webhook():
    with Receiver() as webhook:
        yield webhook


class Site:
    """A deployment whose processes wait for no other any more, and the alarms that its channel was told."""

    def __init__(self, deployment, webhook):
        self.deployment = deployment
        self.webhook = webhook
        deployment.python(ADD_CHANNEL.format(url=webhook.url))
        for web, command in zip(deployment.webs, COMMANDS, strict=False):
            web.command = command
        deployment.start()
        self.keep_alive(START)

    def keep_alive(self, seconds):
        """Request each web server from time to time, as load balancers do."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for base in self.deployment.bases:
                self.deployment.client.get(f"{base}/readyz", timeout=10)
            time.sleep(0.2)

    def alarms(self):
        """Return the alarms in all messages: the kind, with a + for a begin."""
        return [
            each["kind"] + "+" * (each["ended_at"] is None)
            for body in list(self.webhook.bodies)
            for each in body["alarms"]
        ]

    def wait_until_told(self, *alarms, seconds=LIMIT):
        """Wait until the channel was told exactly these, and return the seconds until then."""
        begin = time.monotonic()
        wait_for(lambda: len(self.alarms()) >= len(alarms), seconds, f"the channel is told {alarms}")
        took = time.monotonic() - begin
        assert self.alarms() == list(alarms)
        return took


@pytest.fixture
def run(deploy, webhook):
    def run(*proxies, start=START, env=None, **options):
        env = {
            "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
            "PROXYHEALTH_GROUP_INTERVAL": "0",
            "WATCHDOG_START": start,
            **(env or {}),
        }
        deployment = deploy(interval=INTERVAL, env=env, **options)
        for name in proxies:
            deployment.add(name)
        return Site(deployment, webhook)

    return run


@pytest.mark.fault("worker and beat killed")
def test_no_round__web_servers_tell_once(run, verdict):
    site = run(webs=len(COMMANDS))
    deployment = site.deployment
    deployment.worker.kill()
    deployment.beat.kill()
    begun = site.wait_until_told("no_rounds+")
    site.keep_alive(STALE_AFTER)
    assert site.alarms() == ["no_rounds+"]
    deployment.worker.start()
    deployment.beat.start()
    ended = site.wait_until_told("no_rounds+", "no_rounds", seconds=60)
    site.keep_alive(STALE_AFTER)
    assert site.alarms() == ["no_rounds+", "no_rounds"]
    assert len(site.webhook.ids) == 2
    verdict(f"told after {begun:.1f} s (limit {LIMIT} s), once; its end {ended:.1f} s after the start")


@pytest.mark.fault("beat and web server killed")
def test_no_round__a_worker_tells(run, verdict):
    site = run()
    site.deployment.web.kill()
    site.deployment.beat.kill()
    begun = site.wait_until_told("no_rounds+")
    site.deployment.beat.start()
    ended = site.wait_until_told("no_rounds+", "no_rounds", seconds=60)
    verdict(f"told by a worker after {begun:.1f} s (limit {LIMIT} s), its end after {ended:.1f} s")


@pytest.mark.fault("Redis away for long")
def test_redis_away__told_once(run, verdict):
    site = run(webs=2)
    site.deployment.redis.kill()
    begun = site.wait_until_told("redis+")
    site.keep_alive(STALE_AFTER)
    assert site.alarms() == ["redis+"]
    site.deployment.start_redis()
    # The worker may wait for 30 s until it connects again.
    ended = site.wait_until_told("redis+", "redis", seconds=90)
    verdict(f"told after {begun:.1f} s (limit {LIMIT} s), once; its end {ended:.1f} s after the start")


@pytest.mark.fault("prober offline for long")
def test_prober_offline__told_once(run, verdict):
    canary = ChaosProxy("canary")
    try:
        site = run("lima", "oslo", env={"PROXYHEALTH_CANARY_URLS": canary.url})
        servers = [canary, *site.deployment.proxies.values()]
        for server in servers:
            server.stop()
        begun = site.wait_until_told("offline+")
        for server in servers:
            server.start()
        ended = site.wait_until_told("offline+", "offline")
    finally:
        canary.stop()
    assert not any(body["changes"] for body in site.webhook.bodies)  # nothing is known of the proxies
    verdict(f"told after {begun:.1f} s (limit {LIMIT} s), once; its end after {ended:.1f} s")


@pytest.mark.fault("rolling restart of everything")
def test_rolling_restart__tells_nobody(run, verdict):
    site = run(webs=2, start=RESTART)
    deployment = site.deployment
    for process in (*deployment.webs, *deployment.workers, *deployment.beats):
        process.restart()
    deployment.redis.kill()
    deployment.start_redis()
    deployment.wait_until_up()
    site.keep_alive(RESTART)
    assert site.alarms() == []
    verdict("nobody was told")


@pytest.mark.fault("channel away while worker and beat are dead")
def test_no_round__retried_without_a_worker(run, webhook, verdict):
    site = run()
    webhook.answers = [(503, {})]
    site.deployment.worker.kill()
    site.deployment.beat.kill()
    site.wait_until_told("no_rounds+")  # in vain
    again = site.wait_until_told("no_rounds+", "no_rounds+", seconds=30)
    assert len(set(webhook.ids)) == 1
    site.keep_alive(STALE_AFTER)
    assert len(webhook.ids) == 2
    verdict(f"refused at first, told again {again:.1f} s later under the same id")
