"""Whatever dies, each transition is told to each channel, and what is told twice has the same id."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from contextlib import suppress
from datetime import UTC, datetime

import pytest

from tests.chaos.telling import Telling, check_mailbox, check_webhook
from tests.support.proxies import wait_for
from tests.support.recipients import Mailbox, Webhook

# For a longer run, on PostgreSQL:
# DATABASE=postgresql KILLS=200 python -m pytest tests/chaos/test_deliveries.py -k test_killed
KILLS = int(os.environ.get("KILLS", "10"))
SEED = os.environ.get("SEED", "1")
TRANSITIONS_PER_KILL = 2.5
WHOLE_WORKER = 0.03  # share of kills: a worker needs seconds to start
# Four changes of a proxy: with six in half an hour, it is flapping, and told differently.
COURSE = ("unreachable", "ok", "unhealthy", "ok")
INTERVAL = 1
LIMIT = 60  # seconds until all is told, on a busy machine


@pytest.fixture
def tell(deploy, postgresql):
    """``tell(webhook, ..., count=10)`` returns a deployment with these channels, and a mailbox."""

    def tell(*webhooks, count, interval=INTERVAL, delay=0, **settings):
        mailbox = Mailbox("mailbox")
        env = {
            "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
            "PROXYHEALTH_SETTINGS": json.dumps(settings),
            "EMAIL_URL": f"smtp://127.0.0.1:{mailbox.port}",
        }
        deployment = deploy(interval=interval, concurrency=3, env=env)
        if postgresql:
            deployment.use_database(postgresql.url())
        return Telling(deployment, count, mailbox, *webhooks, delay=delay)

    return tell


class Kills:
    """Kills of random processes of a worker, while proxies run through their ``COURSE``."""

    def __init__(self, telling, rng):
        self.telling = telling
        self.random = rng
        self.count = 0
        self.left = {name: list(COURSE) for name in telling.names}
        self._tasks = 0

    def cause(self, kills):
        turns = sum(map(len, self.left.values())) / kills
        due = 0.0
        while self.count < kills or self.left:
            self.wait_for_tasks(self.random.randint(1, 5))
            time.sleep(self.random.uniform(0, 0.3))
            due += turns
            while due >= 1 and self.turn_one():
                due -= 1
            if self.count < kills:
                self.kill_one()

    def wait_for_tasks(self, number):
        """Wait until the worker has received so many more tasks. As a supervisor does, start it again."""
        worker = self.telling.deployment.worker
        end = time.monotonic() + LIMIT
        while worker.log_text().count("] received") < self._tasks + number:
            assert time.monotonic() < end, "the worker receives no tasks"
            if worker.exited:
                worker.kill()
            if not worker.is_running:
                worker.start()
            time.sleep(0.05)
        self._tasks = worker.log_text().count("] received")

    def turn_one(self):
        """Turn a proxy whose last turn is seen. Return False if there is none."""
        statuses = self.telling.statuses()
        answers = self.telling.fleet.answers
        ready = [name for name in self.left if statuses.get(name) == answers[name][-1]]
        if not ready:
            return False
        name = self.random.choice(ready)
        self.telling.turn([name], self.left[name].pop(0))
        if not self.left[name]:
            del self.left[name]
        return True

    def kill_one(self):
        worker = self.telling.deployment.worker
        if self.random.random() < WHOLE_WORKER:
            worker.kill()
        elif children := worker.children():
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(children), signal.SIGKILL)
        else:
            return
        self.count += 1


def settle(telling):
    """Wait until nothing is left to tell. The time goes faster, so that pauses and claims end soon."""
    for webhook in telling.webhooks:
        webhook.settle()
    wait_for(telling.are_all("ok"), LIMIT, "all are ok")
    end = time.monotonic() + LIMIT
    while True:
        telling.let_time_pass(120)
        rows = telling.read()
        left = rows.pending()
        if not left:
            return rows
        assert time.monotonic() < end, f"not told: {left[:3]}, {rows.channels}"
        time.sleep(1)


@pytest.mark.fault("workers killed while channels are told")
def test_killed__each_transition_is_told_to_each_channel(tell, verdict):
    gone = Webhook("gone", "410")
    others = (
        Webhook("good"),
        Webhook("busy", "200", "429"),
        Webhook("broken", "200", "500"),
        Webhook("hanging", "200", "hang"),
        Webhook("closing", "200", "close"),
    )
    count = round(KILLS * TRANSITIONS_PER_KILL / len(COURSE))
    telling = tell(gone, *others, count=count, GROUP_INTERVAL=0.5)
    kills = Kills(telling, random.Random(SEED))
    with telling.running():
        kills.cause(KILLS)
        rows = settle(telling)
    assert len(rows.expected) >= len(COURSE) * count
    repeats = sum(check_webhook(webhook, rows) for webhook in others) + check_mailbox(telling.mailbox, rows)
    channel = rows.channels["gone"]
    assert {message.answer for message in gone.messages} == {"410"}
    assert len({message.id for message in gone.messages}) == 1
    assert not channel["enabled"], channel
    assert "410" in channel["last_error"]
    messages = sum(len(each.messages) for each in (*others, telling.mailbox))
    verdict(
        f"{kills.count} kills: {len(rows.expected)} transitions, each told to {len(others) + 1} channels, "
        f"in {messages} messages, of which {repeats} are repeats with the same id"
    )


@pytest.mark.fault("a channel away for an hour")
def test_channel_away__is_told_all_within_a_minute(tell, verdict):
    away = Webhook("away", is_away=True)
    telling = tell(away, count=8)
    with telling.running():
        for status in COURSE:
            attempts = count_attempts(telling)
            telling.turn(telling.names, status)
            wait_for(telling.are_all(status), 20, "the statuses are seen")
            wait_for(lambda attempts=attempts: count_attempts(telling) > attempts, 20, "it was tried again")
            telling.let_time_pass(3_600 / len(COURSE))
        attempts = count_attempts(telling)
        wait_for(lambda: count_attempts(telling) > attempts, 20, "it was tried after an hour")
        away.start()
        began, skipped = time.monotonic(), 0.0
        while (rows := telling.read()).pending("away"):
            # Until the next attempt, or the end of a rest, the time goes faster.
            if (seconds := wait_of(rows, "away")) > 1:
                telling.let_time_pass(seconds)
                skipped += seconds
            assert time.monotonic() - began < LIMIT, rows.channels
            time.sleep(0.1)
        took = away.accepted[-1].at - began + skipped
    check_webhook(away, rows)
    assert took < 60, f"{took:.0f} s"
    assert len(away.accepted) <= 3
    verdict(
        f"{len(rows.expected)} changes told in {len(away.accepted)} messages, in order, {took:.0f} s after "
        "its return (limit 60 s)"
    )


@pytest.mark.fault("Redis killed while a delivery waits")
def test_redis_killed_while_delivery_waits__is_told(tell, verdict):
    """A worker that holds a task for later ends with Redis. What is due later must be no such task."""
    webhook = Webhook("webhook")
    telling = tell(webhook, count=1, delay=5)
    deployment = telling.deployment
    with telling.running():
        worker = deployment.worker.pid
        telling.turn(telling.names, "unreachable")
        wait_for(lambda: telling.read().pending("webhook"), 20, "a delivery waits for the delay")
        deployment.redis.kill()
        deployment.worker.wait_for_log("Connection to broker lost")
        deployment.start_redis()
        back = time.monotonic()
        wait_for(lambda: not telling.read().pending(), LIMIT, "all is told")
        took = time.monotonic() - back
        rows = telling.read()
    assert not deployment.exited()
    assert deployment.worker.pid == worker
    assert len(rows.expected) == 1
    check_webhook(webhook, rows)
    verdict(f"the worker went on, told {took:.1f} s after Redis is back")


def wait_of(rows, channel):
    """Return the seconds until a channel is tried again, or until its rest is over."""
    begun = [row["next_attempt_at"] for row in rows.pending(channel) if row["message"]]
    moment = min(begun, default=rows.channels[channel]["rests_until"])
    until = datetime.fromisoformat(f"{moment}+00:00") if moment else datetime.now(UTC)
    return (until - datetime.now(UTC)).total_seconds()


def count_attempts(telling):
    return max((row["attempts"] for row in telling.read().deliveries if row["channel"] == "away"), default=0)


@pytest.mark.fault("2,000 proxies fail at once")
def test_storm__two_messages_a_channel_name_all(tell, verdict):
    webhook = Webhook("webhook")
    telling = tell(webhook, count=1, interval=5)
    (url,) = telling.fleet.urls.values()
    telling.fleet.urls = {f"p{n:04}": url for n in range(2_000)}
    with telling.running():
        began = time.monotonic()
        telling.fleet.settle("unreachable")
        servers = webhook, telling.mailbox
        wait_for(
            lambda: all(names_in(server) == set(telling.names) for server in servers), LIMIT, "all are told"
        )
        wait_for(lambda: not telling.read().pending(), LIMIT, "all is marked as sent")
        rows = telling.read()
    took = max(message.at for server in servers for message in server.messages) - began
    for server in servers:
        assert len(server.messages) <= 2, [message.text[:200] for message in server.messages]
    check_webhook(webhook, rows)
    verdict(
        f"all named after {took:.1f} s in {len(webhook.messages)} message(s) to a webhook, and "
        f"{len(telling.mailbox.messages)} mail(s) (limit 2 in 60 s)"
    )


def names_in(server):
    """Return the names of the proxies in the messages."""
    if isinstance(server, Webhook):
        return {change["proxy"]["name"] for message in server.messages for change in message.changes}
    words = {word.strip(".,:;()*") for message in server.messages for word in message.text.split()}
    return {word for word in words if word[:1] == "p" and word[1:].isdigit()}
