import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from uuid import uuid4

import pytest
from celery.signals import worker_ready
from django.core.cache import caches
from django.db import OperationalError, connection

from project.celery import app
from proxyhealth import store, tasks
from proxyhealth.models import WorkspaceProxy
from proxyhealth.report import Status
from proxyhealth.rounds import RoundFailed
from tests.proxies import wait_for

pytestmark = pytest.mark.django_db


def raw_snapshot(redis_client):
    return redis_client.get(caches["default"].make_key("proxyhealth:snapshot"))


def refuse_queries(*args):
    raise OperationalError("the database is down")


def test_run_round__a_status_for_every_active_proxy(serve):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    WorkspaceProxy.objects.create(name="sydney", url=serve(report={"errors": ["x"]}).url)
    WorkspaceProxy.objects.create(name="oslo")
    WorkspaceProxy.objects.create(name="gone", url=serve().url, deleted=True)
    assert tasks.run_round()
    snapshot = store.read()
    assert {s.proxy.name: s.status for s in snapshot.statuses.values()} == {
        "paris": Status.OK,
        "sydney": Status.UNHEALTHY,
        "oslo": Status.UNREGISTERED,
    }
    assert {s.checked_at for s in snapshot.statuses.values()} == {snapshot.checked_at}
    assert snapshot.outcomes == {"success": 1}
    assert sum(snapshot.rounds.counts) == 1


def test_run_round__no_proxies_is_a_round_too():
    assert tasks.run_round()
    assert not store.read().stale


def test_run_round__an_unregistered_proxy_is_not_asked(serve):
    server = serve()
    WorkspaceProxy.objects.create(name="oslo", url="")
    tasks.run_round()
    assert server.requests == 0


def test_run_round__database_down_leaves_the_snapshot_byte_for_byte(serve, redis_client, caplog):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    tasks.run_round()
    before = raw_snapshot(redis_client)
    with connection.execute_wrapper(refuse_queries), pytest.raises(RoundFailed, match="the database is down"):
        tasks.run_round()
    assert raw_snapshot(redis_client) == before
    assert store.read().outcomes == {"success": 1, "failure": 1}
    assert "the database is down" in store.read().error
    assert "round failed: the proxies cannot be read from the database" in caplog.text


def test_run_round__after_a_failure_the_next_one_runs(serve):
    WorkspaceProxy.objects.create(name="paris", url=serve().url)
    with connection.execute_wrapper(refuse_queries), pytest.raises(RoundFailed):
        tasks.run_round()
    assert tasks.run_round()
    assert len(store.read().statuses) == 1


def test_run_round__does_not_overwrite_a_check_that_began_later(serve):
    server = serve()
    server.gate.clear()
    proxy = WorkspaceProxy.objects.create(name="paris", url=server.url)
    reading = store.take_ticket()  # the round began to read here, and its probe is slow
    slow = tasks.rounds.read_proxies()
    proxy.url = serve(report={"errors": ["new place"]}).url
    proxy.save()
    tasks.run_check([proxy.pk])
    server.gate.set()
    statuses = tasks.rounds.probe_all(slow, store.datetime.now(store.UTC))
    store.commit(statuses, reading, full_round=store.Round(store.datetime.now(store.UTC), 1))
    status = store.read().statuses[proxy.pk]
    assert (status.status, status.report.errors) == (Status.UNHEALTHY, ("new place",))


def test_run_round__is_skipped_and_counted_while_another_one_runs(caplog):
    with store.round_lock():
        assert not tasks.run_round()
    assert store.read().outcomes == {"skipped": 1}
    assert "round skipped" in caplog.text


def test_run_round__cache_down(settings):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    with pytest.raises(RoundFailed, match=r"the cache cannot be used: .*Connection refused"):
        tasks.run_round()


def test_run_round__can_be_followed_in_the_log(serve, caplog):
    caplog.set_level(logging.INFO, logger="proxyhealth")
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve(report={"errors": ["a\nround end b"]}).url)
    tasks.run_round()
    tasks.run_round()
    messages = [record.getMessage() for record in caplog.records if record.name == "proxyhealth.tasks"]
    start, change, end, *second = messages
    assert start.startswith("round start ticket=")
    assert start.endswith(" proxies=1")
    assert change == (
        f"status change proxy={proxy.pk} name=paris from=none to=unhealthy reason=report_errors "
        'error="a round end b"'
    )
    assert end.startswith("round end ticket=")
    assert end.endswith(" proxies=1 ok=0 unhealthy=1 unreachable=0 unregistered=0")
    assert " duration=0." in end
    assert len(second) == 2, "a status that stays is no change"


def test_run_check__just_these(serve):
    one = WorkspaceProxy.objects.create(name="one", url=serve().url)
    server = serve()
    WorkspaceProxy.objects.create(name="other", url=server.url)
    tasks.run_check([one.pk])
    assert list(store.read().statuses) == [one.pk]
    assert server.requests == 0


def test_run_check__takes_out_what_is_deleted_or_gone(serve):
    soft = WorkspaceProxy.objects.create(name="soft", url=serve().url)
    hard = WorkspaceProxy.objects.create(name="hard", url=serve().url)
    tasks.run_round()
    hard_id = hard.pk
    hard.delete()
    WorkspaceProxy.objects.filter(pk=soft.pk).update(deleted=True)
    tasks.run_check([soft.pk, hard_id, uuid4()])
    assert store.read().statuses == {}


def test_run_check__database_down_leaves_the_snapshot(serve, redis_client):
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    tasks.run_round()
    before = raw_snapshot(redis_client)
    with connection.execute_wrapper(refuse_queries), pytest.raises(RoundFailed):
        tasks.run_check([proxy.pk])
    assert raw_snapshot(redis_client) == before


def test_run_check__cache_down(settings):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    with pytest.raises(RoundFailed, match="the cache cannot be used"):
        tasks.run_check([uuid4()])


def queued(redis_client):
    return [json.loads(message)["headers"] for message in redis_client.lrange("celery", 0, -1)]


def test_request_check__a_round_expires_after_an_interval(redis_client):
    tasks.request_check().result(5)
    (task,) = queued(redis_client)
    assert task["task"] == "proxyhealth.tasks.check_all"
    expires = store.datetime.fromisoformat(task["expires"])
    assert 50 < (expires - store.datetime.now(store.UTC)).total_seconds() <= 60


def test_request_check__a_few(redis_client):
    ids = [uuid4(), uuid4()]
    tasks.request_check(ids).result(5)
    (task,) = queued(redis_client)
    assert task["task"] == "proxyhealth.tasks.check_proxies"
    assert all(str(id) in task["argsrepr"] for id in ids)


def test_request_check__nothing_sends_nothing(redis_client):
    tasks.request_check([]).result(5)
    assert queued(redis_client) == []


def test_request_check__what_comes_while_one_is_being_sent_becomes_one_task(monkeypatch):
    sending, go_on, tasks_sent = threading.Event(), threading.Event(), []

    def send(ids):
        sending.set()
        assert go_on.wait(5)
        tasks_sent.append(ids)

    monkeypatch.setattr(tasks, "_send", send)
    ids = [uuid4() for _ in range(1000)]
    futures = [tasks.request_check([ids[0]])]
    assert sending.wait(5)
    futures += [tasks.request_check([id]) for id in ids[1:]]
    go_on.set()
    for future in futures:
        future.result(5)
    assert tasks_sent == [{str(ids[0])}, {str(id) for id in ids[1:]}]


def run_python(code, **env):
    """Run ``code`` as a process of the project's own; returns what it wrote."""
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "project.settings", **env}
    prelude = "import os, time, django; django.setup()\nfrom proxyhealth.tasks import request_check\n"
    # Forking a process that has threads is what is tested, and what newer Pythons warn of.
    command = [sys.executable, "-W", "ignore", "-c", prelude + code]
    done = subprocess.run(command, timeout=90, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_request_check__broker_down_returns_at_once_and_says_so():
    done = run_python(
        "begin = time.monotonic()\n"
        "future = request_check()\n"
        "assert time.monotonic() - begin < 0.2\n"
        "print(future.exception(60))\n",
        REDIS_URL="redis://127.0.0.1:1/0",
    )
    assert "Connection refused" in done.stdout
    assert "could not be asked for a check, the next round does it" in done.stderr


def test_request_check__eager_runs_it_here(monkeypatch, serve):
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    tasks.request_check([proxy.pk]).result(0)
    assert store.read().statuses[proxy.pk].status is Status.OK
    tasks.request_check().result(0)
    assert store.read().checked_at is not None


def test_request_check__eager_failure_is_in_the_future(monkeypatch, caplog):
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    monkeypatch.setitem(app.conf, "task_eager_propagates", True)
    with connection.execute_wrapper(refuse_queries):
        future = tasks.request_check([uuid4()])
    assert isinstance(future.exception(0), RoundFailed)


def test_request_check__survives_a_short_lived_process(redis_client):
    """A management command that saves and ends has sent what it had to send."""
    run_python("request_check()\n")
    assert [task["task"] for task in queued(redis_client)] == ["proxyhealth.tasks.check_all"]


def test_request_check__works_in_a_fork(redis_client):
    run_python(
        "request_check().result(5)\n"
        "pid = os.fork()\n"
        "if pid: os.waitpid(pid, 0)\n"
        "else: request_check().result(5)\n"
    )
    assert len(queued(redis_client)) == 2


def test_worker_ready__asks_for_the_first_round(redis_client):
    worker_ready.send(sender=None)
    (task,) = queued(redis_client)
    assert task["task"] == "proxyhealth.tasks.first_round"


def test_worker_ready__survives_a_broker_that_is_down(monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise ConnectionError("broker down")

    monkeypatch.setattr(tasks.first_round, "apply_async", refuse)
    worker_ready.send(sender=None)
    assert "the next tick brings one: broker down" in caplog.text


def test_first_round__is_not_needed_if_there_has_been_one():
    started = time.time()
    tasks.first_round(started)
    assert store.read().number == 1
    tasks.first_round(started)
    assert store.read().number == 1
    tasks.first_round(time.time())
    assert store.read().number == 2


def test_first_round__waits_for_the_lock_of_a_worker_that_was_killed(redis_client):
    lock = redis_client.lock(caches["default"].make_key("proxyhealth:round"), timeout=0.5)
    assert lock.acquire()
    tasks.first_round(time.time())
    assert store.read().number == 1


def test_run_check__in_an_emptied_cache_asks_for_a_full_round(serve, sent):
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    tasks.run_check([proxy.pk])
    wait_for(lambda: sent == [None])
    tasks.run_round()
    tasks.run_check([proxy.pk])
    tasks.request_check([]).result(5)
    assert sent == [None], "a snapshot that a round has been committed to needs no other"


@pytest.mark.parametrize("run", [tasks.run_round, lambda: tasks.run_check([uuid4()])])
def test_run__what_nobody_expected_is_a_failure_too(run, monkeypatch, caplog):
    def fail(*args):
        raise LookupError("a bug")

    monkeypatch.setattr(tasks.rounds, "probe_all", fail)
    with pytest.raises(RoundFailed, match=r"an error of proxyhealth.*a bug"):
        run()
    assert "failed unexpectedly" in caplog.text
    assert "LookupError: a bug" in caplog.text


def test_run_round__what_nobody_expected_is_counted(monkeypatch):
    monkeypatch.setattr(tasks.rounds, "probe_all", lambda *args: 1 / 0)
    with pytest.raises(RoundFailed):
        tasks.run_round()
    assert store.read().outcomes == {"failure": 1}
    assert "division by zero" in store.read().error


def test_log__a_name_that_looks_like_a_log_line_is_quoted(serve, caplog):
    caplog.set_level(logging.INFO, logger="proxyhealth")
    WorkspaceProxy.objects.create(name="a\nround end", url=serve().url)
    tasks.run_round()
    assert r'name="a\nround end" from=none' in caplog.text


def test_request_check__a_broker_that_says_nothing_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        done = run_python(
            "print(future.exception(60)) if (future := request_check()) else None\n",
            REDIS_URL=f"redis://127.0.0.1:{silent.getsockname()[1]}/0",
        )
    assert "Timeout" in done.stdout
    assert time.monotonic() - begin < 60


def test_request_check__another_broker_than_redis_gets_no_options_of_redis(monkeypatch):
    monkeypatch.setitem(app.conf, "broker_url", "memory://")
    with tasks._broker() as connection:
        assert connection is None


def test_tasks__run_what_they_say(serve):
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    tasks.check_proxies([str(proxy.pk)])
    assert store.read().checked_at is None
    tasks.check_all()
    assert store.read().checked_at is not None
