import os
import socket
import subprocess
import sys
import threading
import time
from uuid import uuid4

import pytest
from django.db import connection

from project.celery import app
from proxyhealth.exceptions import RoundFailed
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import dispatch
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.pending import take_pending
from tests.support.proxies import queued
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db


def test_request_check__a_round_carries_when_it_was_asked_for(redis_client):
    before = take_token()
    dispatch.request_check().result(30)
    (task,) = queued(redis_client)
    assert task["task"] == "proxyhealth.tasks.check_all"
    asked = int(task["kwargsrepr"].removeprefix("{'asked': ").removesuffix("}"))
    assert before < asked < take_token()
    assert task["expires"] is None, "the clocks of hosts may differ"


def test_request_check__a_few_are_noted_and_one_task_is_sent(redis_client):
    ids = [uuid4() for _ in range(2500)]
    dispatch.request_check(ids[:1]).result(30)
    dispatch.request_check(ids[1:]).result(30)
    (task,) = queued(redis_client)
    assert task["task"] == "proxyhealth.tasks.check_proxies"
    assert take_pending() == set(ids)


def test_request_check__after_the_task_was_run_another_one_is_sent(redis_client):
    for _ in range(2):
        dispatch.request_check([uuid4()]).result(30)
        take_pending()
    assert len(queued(redis_client)) == 2


def test_request_check__that_could_not_be_sent_is_sent_with_the_next(redis_client, monkeypatch):
    def refuse(name, **options):
        raise ConnectionError("broker down")

    lost, later = uuid4(), uuid4()
    with monkeypatch.context() as down:
        down.setattr(dispatch, "_apply", refuse)
        assert dispatch.request_check([lost]).exception(30)
    dispatch.request_check([later]).result(30)
    assert len(queued(redis_client)) == 1
    assert take_pending() == {lost, later}


def test_request_check__with_the_cache_away_the_task_carries_the_ids(redis_client, settings):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    id = uuid4()
    dispatch.request_check([id]).result(30)
    dispatch.request_check().result(30)
    few, everything = queued(redis_client)[::-1]
    assert str(id) in few["argsrepr"]
    assert everything["kwargsrepr"] == "{'asked': None}"


def test_request_check__of_nothing_tells_how_the_last_one_fared(monkeypatch):
    def refuse(ids):
        raise ConnectionError("broker down")

    monkeypatch.setattr(dispatch, "_send", refuse)
    dispatch.request_check([uuid4()])
    assert "broker down" in str(dispatch.request_check([]).exception(30))
    monkeypatch.setattr(dispatch, "_send", lambda ids: None)
    dispatch.request_check([uuid4()])
    dispatch.request_check([]).result(30)


def test_request_check__nothing_sends_nothing(redis_client):
    dispatch.request_check([]).result(30)
    assert queued(redis_client) == []


def test_request_check__what_comes_while_one_is_being_sent_becomes_one_task(monkeypatch):
    under_way, go_on, tasks_sent = threading.Event(), threading.Event(), []

    def send(ids):
        under_way.set()
        assert go_on.wait(5)
        tasks_sent.append(ids)

    monkeypatch.setattr(dispatch, "_send", send)
    ids = [uuid4() for _ in range(1000)]
    futures = [dispatch.request_check([ids[0]])]
    assert under_way.wait(5)
    futures += [dispatch.request_check([id]) for id in ids[1:]]
    go_on.set()
    for future in futures:
        future.result(30)
    assert tasks_sent == [{str(ids[0])}, {str(id) for id in ids[1:]}]


def run_python(code, **env):
    """Run ``code`` as a process of the project's own; returns what it wrote."""
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "project.settings", **env}
    prelude = (
        "import os, time, django; django.setup()\nfrom proxyhealth.rounds.dispatch import request_check\n"
    )
    # Forking a process that has threads is what is tested, and what newer Pythons warn of.
    command = [sys.executable, "-W", "ignore", "-c", prelude + code]
    done = subprocess.run(command, timeout=90, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_request_check__broker_down_returns_at_once_and_says_so():
    done = run_python(
        "from tests.support.machine import at_most\n"
        "with at_most(0.2): future = request_check()\n"
        "print(future.exception(60))\n",
        REDIS_URL="redis://127.0.0.1:1/0",
    )
    assert "Connection refused" in done.stdout
    assert "could not be asked for a check, the next round does it" in done.stderr


def test_request_check__eager_runs_it_here(monkeypatch, serve):
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    dispatch.request_check([proxy.pk]).result(0)
    assert reader.read().statuses[proxy.pk].status is Status.OK
    dispatch.request_check().result(0)
    assert reader.read().checked_at is not None


def test_request_check__eager_failure_is_in_the_future(monkeypatch, caplog):
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    monkeypatch.setitem(app.conf, "task_eager_propagates", True)
    with connection.execute_wrapper(refuse_queries):
        future = dispatch.request_check([uuid4()])
    assert isinstance(future.exception(0), RoundFailed)


def test_request_check__survives_a_short_lived_process(redis_client):
    """A management command that saves and ends has sent what it had to send."""
    run_python("request_check()\n")
    assert [task["task"] for task in queued(redis_client)] == ["proxyhealth.tasks.check_all"]


def test_request_check__works_in_a_fork(redis_client):
    run_python(
        "request_check().result(30)\n"
        "pid = os.fork()\n"
        "if pid: os.waitpid(pid, 0)\n"
        "else: request_check().result(30)\n"
    )
    assert len(queued(redis_client)) == 2


def test_request_check__a_broker_that_says_nothing_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        done = run_python(
            "print(future.exception(60)) if (future := request_check()) else None\n",
            REDIS_URL=f"redis://127.0.0.1:{silent.getsockname()[1]}/0",
        )
    assert "Timeout" in done.stdout
    assert time.monotonic() - begin < 60
