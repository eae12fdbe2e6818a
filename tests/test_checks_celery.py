"""The system checks of Celery's settings."""

from datetime import timedelta

import pytest
from celery import Celery
from django.core.checks import registry

from project.celery import app
from proxyhealth.checks import check_celery
from proxyhealth.rounds import broker


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


@pytest.mark.parametrize(("interval", "hint"), [(2.5, "Set it to 2, or"), (0.5, "Set it to 1, or"), (60.0, ""), (0, "")])
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
