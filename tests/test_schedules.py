import pickle
import time
from datetime import UTC, datetime, timedelta

from project.celery import app
from proxyhealth.schedules import ClockSafeSchedule, beat_schedule
from proxyhealth.task_names import TaskName

ROUND = "proxyhealth-round"


def test_beat_schedule__of_settings_or_dictionary():
    entry = beat_schedule()[ROUND]
    assert entry["task"] == TaskName.CHECK_ALL
    assert type(entry["task"]) is str, "beat pickles it, perhaps for an older version"
    assert entry["schedule"].run_every == timedelta(seconds=60)
    assert entry["kwargs"] == {"gap": 30.0}
    entry = beat_schedule({"INTERVAL": 15})[ROUND]
    assert entry["schedule"].run_every == timedelta(seconds=15)
    assert entry["kwargs"] == {"gap": 7.5}


def test_beat_schedule__wrong_value_uses_default_interval():
    for value in ("soon", 1e300):
        entry = beat_schedule({"INTERVAL": value})[ROUND]
        assert entry["schedule"].run_every == timedelta(seconds=60)


def test_clock_safe_schedule__is_due_after_clock_step_back():
    schedule = pickle.loads(pickle.dumps(ClockSafeSchedule(60)))  # as beat's file keeps it
    now = datetime.now(UTC)
    assert schedule.is_due(now - timedelta(seconds=61)).is_due
    assert not schedule.is_due(now - timedelta(seconds=1)).is_due
    due, then = schedule.is_due(now + timedelta(hours=1))
    assert (due, then) == (True, 60)


def test_clock_safe_schedule__differs_once_after_clock_step(monkeypatch):
    schedule = ClockSafeSchedule(60)
    assert schedule == schedule
    assert schedule != ClockSafeSchedule(61)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3_600)
    assert schedule != schedule
    assert schedule == schedule


def test_beat_schedule__names_registered_tasks():
    assert {entry["task"] for entry in beat_schedule().values()} <= set(app.tasks)
    assert app.conf.beat_schedule == beat_schedule()


def test_beat_schedule__prunes_once_a_day():
    """Not after an interval, which a beat without its file begins anew with each restart."""
    entry = pickle.loads(pickle.dumps(beat_schedule()["proxyhealth-prune"]))
    assert (entry["task"], type(entry["task"])) == (TaskName.PRUNE_HISTORY, str)
    now = datetime.now(UTC)
    assert entry["schedule"].is_due(now - timedelta(hours=25)).is_due
    due, then = entry["schedule"].is_due(now)
    assert not due
    assert 0 <= then <= 24 * 3_600
