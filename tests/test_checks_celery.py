"""The system checks of Celery's settings."""

from datetime import timedelta

import pytest
from celery import Celery
from django.core.checks import registry

from project.celery import app
from proxyhealth.checks import check_celery
from proxyhealth.rounds import broker
from proxyhealth.schedules import beat_schedule
from proxyhealth.task_names import TaskName


def ids(messages):
    return [message.id for message in messages]


@pytest.mark.parametrize("pool", ["gevent", "eventlet", "celery.concurrency.gevent:TaskPool"])
def test_checks__worker_pool_of_green_threads(monkeypatch, pool):
    assert check_celery in registry.registry.get_checks()
    monkeypatch.setitem(app.conf, "worker_pool", pool)
    (error,) = check_celery()
    assert error.id == "proxyhealth.E030"
    assert error.msg == f"CELERY_WORKER_POOL is {pool!r}, but probes need real threads."


@pytest.mark.parametrize(
    ("accepted", "serializer", "expected"),
    [
        (["json"], "yaml", []),
        (["yaml", "application/json"], "yaml", []),
        (["pickle"], "pickle", []),
        (["yaml"], "yaml", ["proxyhealth.E031"]),
        (["none"], "no such serializer", ["proxyhealth.E031"]),
    ],
)
def test_checks__serializer_without_shards(monkeypatch, accepted, serializer, expected):
    monkeypatch.setitem(app.conf, "accept_content", accepted)
    monkeypatch.setitem(app.conf, "task_serializer", serializer)
    messages = check_celery()
    assert ids(messages) == expected
    assert all("'json' to CELERY_ACCEPT_CONTENT" in message.hint for message in messages)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"accept_content": ["json"], "result_serializer": "json"}, []),
        ({"accept_content": ["pickle"], "task_serializer": "pickle"}, ["proxyhealth.E034"]),
        ({"result_accept_content": ["pickle"]}, ["proxyhealth.E034"]),
        ({"result_serializer": "pickle"}, ["proxyhealth.E034"]),
        ({"result_serializer": "pickle", "result_accept_content": ["pickle"]}, []),
        ({"result_serializer": "pickle", "result_backend": "disabled://"}, []),
        ({"result_expires": 5}, ["proxyhealth.E035"]),
        ({"result_expires": timedelta(seconds=5)}, ["proxyhealth.E035"]),
        ({"result_expires": timedelta(hours=1)}, []),
        ({"result_expires": None}, []),
        ({"task_create_missing_queues": False, "task_routes": {"*": {"queue": "no"}}}, ["proxyhealth.E033"]),
    ],
)
def test_checks__results_and_routes(monkeypatch, options, expected):
    host = Celery(set_as_current=False, broker="memory://", backend="cache+memory://")
    host.conf.update(options, beat_schedule=beat_schedule())
    monkeypatch.setattr(broker, "celery_app", lambda: host)
    assert ids(check_celery()) == expected
    host.close()


def test_checks__app_without_a_task_for_the_rounds(monkeypatch):
    host = Celery("shop", set_as_current=False, broker="memory://")
    host.conf.beat_schedule = beat_schedule()
    monkeypatch.setattr(broker, "celery_app", lambda: host)
    assert check_celery() == []
    host.conf.beat_schedule = {"report": {"task": "shop.report", "schedule": 60}}
    (warning,) = check_celery()
    assert warning.id == "proxyhealth.W007"
    assert warning.msg.startswith("The Celery app 'shop' has no periodic task for the rounds")
    host.add_periodic_task(60, host.tasks[TaskName.CHECK_ALL], name="another name")
    assert check_celery() == []
    host.close()


@pytest.mark.parametrize(
    ("interval", "hint"), [(2.5, "Set it to 2, or"), (0.5, "Set it to 1, or"), (60.0, ""), (0, "")]
)
def test_checks__fractions_in_table_of_schedules(configure, monkeypatch, interval, hint):
    configure(INTERVAL=interval)
    assert check_celery() == []
    scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
    monkeypatch.setitem(app.conf, "beat_scheduler", scheduler)
    messages = check_celery()
    assert ids(messages) == (["proxyhealth.E032"] if hint else [])
    assert all(message.hint.startswith(hint) for message in messages)


def test_checks__fractions_with_installed_django_celery_beat(configure, settings, monkeypatch, tmp_path):
    (tmp_path / "django_celery_beat").mkdir()
    (tmp_path / "django_celery_beat" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "django_celery_beat"]
    configure(INTERVAL=2.5)
    assert ids(check_celery()) == ["proxyhealth.E032"]
    configure(INTERVAL="soon")
    assert check_celery() == [], "check_settings reports it"
