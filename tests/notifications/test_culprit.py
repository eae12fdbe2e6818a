"""The part that is missing while no round ends: the sentences, and what they must not claim."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from django.utils.translation import override

from proxyhealth import health
from proxyhealth.models import Alarm
from proxyhealth.notifications import culprit as culprits
from proxyhealth.notifications.culprit import culprit, describe
from proxyhealth.notifications.watchdog import View
from proxyhealth.snapshot import Snapshot
from proxyhealth.storage import presence
from proxyhealth.storage.presence import GONE_AFTER, Presence, Sign
from proxyhealth.task_names import TaskName
from tests.support.proxies import wait_for
from tests.support.values import NOW

LATE = 1_000.0  # seconds, with an INTERVAL of 60


def sign(age=1.0, since=None, **values):
    return Sign(NOW - timedelta(seconds=age), age, values, since)


def worker(age=1.0, **values):
    known = {"name": "celery@a", "takes": ["celery"], "connected": True, "concurrency": 2, "active": 0}
    return sign(age, **{**known, **values})


BEAT, TICK, WORKER = sign(host="b", pid=7), sign(), worker()
GOOD = Presence([WORKER], [BEAT], TICK, {}, sign(10_000))
BUSY = {"active": 2, "tasks": [["shop.report", 720.0], ["shop.mail", 3.0]]}
ROUNDS = {"active": 2, "tasks": [[TaskName.CHECK_ALL, 720.0], [TaskName.CHECK_SHARD, 3.0]]}

AT_LATE = "2026-11-22 07:43:20 UTC"
CASES = {
    "nothing": (GOOD, ""),
    "nothing is known": (Presence(), ""),
    "redis was emptied a moment ago": (Presence(begun=sign(GONE_AFTER - 1)), ""),
    "beat is silent": (
        GOOD._replace(beats=[sign(LATE)], tick=sign(LATE)),
        f"Celery beat has sent no tick since {AT_LATE}.",
    ),
    "an earlier beat reports nothing, but its ticks are taken": (GOOD._replace(beats=[]), ""),
    "a beat that began, and sent no tick yet": (GOOD._replace(tick=sign(LATE)), "no worker has taken a tick"),
    "there was never a beat": (
        GOOD._replace(beats=[], tick=None, begun=sign(LATE)),
        f"No tick of Celery beat has been seen since {AT_LATE}.",
    ),
    "a beat that cannot send": (
        GOOD._replace(beats=[sign(host="b", error="Connection refused")]),
        "Celery beat runs on b, but it cannot send its ticks: Connection refused",
    ),
    "a beat with a longer interval": (GOOD._replace(beats=[sign(LATE, interval=900)]), ""),
    "a damaged interval": (GOOD._replace(beats=[sign(LATE, interval=1e300)], tick=None), "no tick since"),
    "the worker was killed": (
        GOOD._replace(workers=[worker(LATE)]),
        f"No Celery worker runs. The last one, celery@a, was last seen at {AT_LATE}.",
    ),
    "the worker was stopped": (
        GOOD._replace(workers=[worker(LATE, stopped=True)]),
        f"No Celery worker runs. The last one, celery@a, was stopped at {AT_LATE}.",
    ),
    "there was never a worker": (
        GOOD._replace(workers=[], tick=None),
        "No Celery worker has been seen since 2026-11-22 05:13:20 UTC.",
    ),
    "workers of an earlier version": (GOOD._replace(workers=[]), ""),
    "one of two workers was killed": (GOOD._replace(workers=[WORKER, worker(LATE)]), ""),
    "worker and beat": (
        GOOD._replace(workers=[worker(LATE)], beats=[sign(LATE)], tick=sign(LATE)),
        f"was last seen at {AT_LATE}. Celery beat has sent no tick since {AT_LATE}.",
    ),
    "no worker takes the queue": (
        GOOD._replace(workers=[worker(takes=[], missing=["celery"])]),
        "No Celery worker is known to take tasks from the queue celery.",
    ),
    "two workers take two queues": (
        GOOD._replace(workers=[worker(missing=["checks"]), worker(takes=["checks"], missing=["celery"])]),
        "",
    ),
    "the worker lost its broker": (
        GOOD._replace(workers=[worker(connected=False)]),
        "The Celery worker celery@a runs, but it is not connected to the broker.",
    ),
    "busy with tasks of the host": (
        GOOD._replace(workers=[worker(**BUSY)]),
        "All workers are busy, for example with shop.report for 12 min 1 s.",
    ),
    "one of two is busy": (GOOD._replace(workers=[worker(**BUSY), WORKER]), ""),
    "a round that does not end": (
        GOOD._replace(workers=[worker(**ROUNDS)]),
        "tasks.check_all for 12 min",
    ),
    "busy with a short round": (
        GOOD._replace(workers=[worker(active=2, tasks=[[TaskName.CHECK_ALL, 3.0]])]),
        "",
    ),
    "redis was away": (
        GOOD._replace(workers=[worker(LATE)], beats=[sign(LATE)], tick=sign(LATE), settled_for=5.0),
        "",
    ),
    "ticks go elsewhere": (
        GOOD._replace(tick=sign(LATE)),
        f"Celery beat and a worker run, but no worker has taken a tick since {AT_LATE}.",
    ),
    "damaged values": (
        GOOD._replace(workers=[worker(takes=7, tasks=[1, ["x"], ["x", "y"]], active="2")]),
        "is not connected",
    ),
}


@pytest.mark.parametrize(("signs", "text"), CASES.values(), ids=CASES)
def test_describe__says_what_is_missing(signs, text):
    found = describe(signs)
    assert (text in found) if text else (found == ""), found


@pytest.fixture
def stale(configure):
    """A snapshot that is stale only because no round ends."""
    return replace(Snapshot(), checked_at=NOW, stale_at=NOW + timedelta(seconds=1))


def test_culprit__only_while_no_round_ends(redis_client, stale):
    presence.note_worker("a", {"name": "celery@a", "stopped": True})
    assert culprit(stale).startswith("No Celery worker runs.")
    assert culprit(Snapshot(checked_at=NOW, stale_at=NOW + timedelta(days=9_000))) == ""
    for field in ("fault", "offline", "refusal"):
        culprits.forget()
        assert culprit(replace(stale, **{field: "x"})) == "", "it has a reason of its own"


def test_culprit__waits_after_redis_is_back(redis_client, stale):
    """While Redis was away, nobody could give a sign: that is no reason to say that nobody runs."""
    presence.note_worker("a", {"name": "celery@a", "stopped": True})
    assert culprit(replace(stale, fault="The cache cannot be read.")) == ""
    assert culprit(stale) == ""
    culprits._copy.value.failed_at -= GONE_AFTER
    assert culprit(stale).startswith("No Celery worker runs.")


def test_culprit__without_redis(stopped, stale):
    stopped()
    assert culprit(stale) == ""


def test_culprit__rounds_that_fail(redis_client, stale):
    presence.note_worker("a", {"name": "celery@a", "takes": ["celery"]})
    presence.note_beat("b", {})
    failed = replace(stale, error="the database is gone", error_at=NOW + timedelta(seconds=1))
    assert culprit(failed) == "Celery beat and a worker run. The error of the last round says what is wrong."
    assert "says what is wrong" in failed.why_stale(culprits.utc, culprit(failed))


def test_why_stale__is_english_for_alarms(redis_client, stale):
    presence.note_worker("a", {"name": "celery@a", "stopped": True})
    with override("de"):
        text = culprits.why_stale(stale)
    assert text.startswith(
        "No round has ended since the one of 2026-11-22 08:00:00 UTC. No Celery worker runs."
    )
    assert "Are the Celery worker" not in text


@pytest.mark.django_db(transaction=True)
def test_alarm__names_the_missing_worker(redis_client, configure, monkeypatch):
    configure(INTERVAL=0.05, STALE_AFTER=0.1)
    health.force_update()
    presence.note_worker("a", {"name": "celery@a", "stopped": True})
    monkeypatch.setattr("proxyhealth.notifications.watchdog._PATIENCE", 0)
    view = View(start=0)
    wait_for(lambda: (view.look(), Alarm.objects.exists())[1])
    assert "No Celery worker runs. The last one, celery@a, was stopped at" in Alarm.objects.get().detail
