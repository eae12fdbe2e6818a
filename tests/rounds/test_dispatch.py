import socket
import threading
import time
from uuid import uuid4

import pytest
import redis
from celery import Celery, current_app
from django.core.cache import caches
from django.db import connection

from project.celery import app
from proxyhealth.exceptions import RoundFailed
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import dispatch
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.pending import take_pending
from proxyhealth.task_names import TaskName
from tests.settings import REDIS_PORT
from tests.support.forks import run_in_fork, run_python
from tests.support.proxies import queued, wait_for
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db

# The first lines of the programs that new processes run
IMPORTS = """
from proxyhealth.rounds import dispatch
from proxyhealth.rounds.dispatch import request_check
"""


def test_request_check__round_has_token_of_request(redis_client):
    before = take_token()
    dispatch.request_check().result(30)
    (task,) = queued(redis_client)
    assert task["task"] == TaskName.CHECK_ALL
    token = int(task["kwargsrepr"].removeprefix("{'asked': ").removesuffix("}"))
    assert before < token < take_token()
    assert task["expires"] is None, "the clocks of hosts may differ"


def test_request_check__many_ids_are_one_task(redis_client):
    ids = [uuid4() for _ in range(2500)]
    dispatch.request_check(ids[:1]).result(30)
    dispatch.request_check(ids[1:]).result(30)
    (task,) = queued(redis_client)
    assert task["task"] == TaskName.CHECK_PROXIES
    assert take_pending() == set(ids)


def test_request_check__sends_again_after_task_has_run(redis_client):
    for _ in range(2):
        dispatch.request_check([uuid4()]).result(30)
        take_pending()
    assert len(queued(redis_client)) == 2


def test_request_check__one_task_waits_without_worker(redis_client, monkeypatch):
    """However long it waits. A task that a killed worker took out of the queue is sent again."""
    monkeypatch.setattr("proxyhealth.storage.pending._CLAIM_TIMEOUT", 20)
    key = caches["default"].make_key("proxyhealth:pending:sent")
    for _ in range(3):
        dispatch.request_check([uuid4()]).result(30)
        wait_for(lambda: not redis_client.exists(key), what="the task may be lost")
    assert len(queued(redis_client)) == 1
    redis_client.delete("celery")
    dispatch.request_check([uuid4()]).result(30)
    assert len(queued(redis_client)) == 1


def test_request_check__unsent_ids_are_sent_with_next(redis_client, monkeypatch):
    def refuse(name, **options):
        raise ConnectionError("broker down")

    lost, later = uuid4(), uuid4()
    with monkeypatch.context() as down:
        down.setattr(dispatch, "_apply", refuse)
        assert dispatch.request_check([lost]).exception(30)
    dispatch.request_check([later]).result(30)
    assert len(queued(redis_client)) == 1
    assert take_pending() == {lost, later}


def test_request_check__cache_down_puts_ids_into_task(redis_client, settings):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    id = uuid4()
    dispatch.request_check([id]).result(30)
    dispatch.request_check().result(30)
    check_proxies, check_all = queued(redis_client)[::-1]
    assert str(id) in check_proxies["argsrepr"]
    assert check_all["kwargsrepr"] == "{'asked': None}"


def test_request_check__no_ids_reports_last_result(monkeypatch):
    def refuse(ids):
        raise ConnectionError("broker down")

    monkeypatch.setattr(dispatch, "_send", refuse)
    dispatch.request_check([uuid4()])
    assert "broker down" in str(dispatch.request_check([]).exception(30))
    monkeypatch.setattr(dispatch, "_send", lambda ids: None)
    dispatch.request_check([uuid4()])
    dispatch.request_check([]).result(30)


def test_request_check__no_ids_sends_nothing(redis_client):
    dispatch.request_check([]).result(30)
    assert queued(redis_client) == []


def test_request_check__requests_during_send_are_one_task(monkeypatch):
    sending, go_on, sent = threading.Event(), threading.Event(), []

    def send(ids):
        sending.set()
        assert go_on.wait(5)
        sent.append(ids)

    monkeypatch.setattr(dispatch, "_send", send)
    ids = [uuid4() for _ in range(1000)]
    futures = [dispatch.request_check([ids[0]])]
    assert sending.wait(5)
    futures += [dispatch.request_check([id]) for id in ids[1:]]
    go_on.set()
    for future in futures:
        future.result(30)
    assert sent == [{str(ids[0])}, {str(id) for id in ids[1:]}]


def test_request_check__broker_down_returns_at_once():
    done = run_python(
        IMPORTS + "from tests.support.machine import at_most\n"
        "with at_most(0.2): future = request_check()\n"
        "print(future.exception(60))\n",
        REDIS_URL="redis://127.0.0.1:1/0",
    )
    assert "Connection refused" in done.stdout
    assert "no task could be requested, the next round makes up for it" in done.stderr


def test_request_check__eager_runs_in_this_process(monkeypatch, serve):
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    dispatch.request_check([proxy.pk]).result(0)
    assert reader.read().statuses[proxy.pk].status is Status.OK
    dispatch.request_check().result(0)
    assert reader.read().checked_at is not None


def test_request_check__eager_failure_is_in_future(monkeypatch, caplog):
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    monkeypatch.setitem(app.conf, "task_eager_propagates", True)
    with connection.execute_wrapper(refuse_queries):
        future = dispatch.request_check([uuid4()])
    assert isinstance(future.exception(0), RoundFailed)


def test_request_check__eager_save_runs_no_round(monkeypatch, serve):
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    saved, other = serve(), serve()
    WorkspaceProxy.objects.create(name="oslo", url=other.url)
    proxy = WorkspaceProxy.objects.create(name="paris", url=saved.url)
    dispatch.request_check([proxy.pk]).result(0)
    assert (saved.requests, other.requests) == (1, 0)
    assert reader.read().statuses[proxy.pk].status is Status.OK
    assert reader.read().checked_at is None


def test_request_check__goes_to_app_of_django(redis_client):
    """Whichever app is current in the threads of the caller and of the sender."""
    other = Celery("other", broker=f"redis://127.0.0.1:{REDIS_PORT}/5")
    try:
        assert current_app.main == "other"
        dispatch.request_check().result(30)
        dispatch.request_check([uuid4()]).result(30)
        assert len(queued(redis_client)) == 2
        with redis.Redis(port=REDIS_PORT, db=5) as client:
            assert client.keys() == []
    finally:
        other.close()
        app.set_current()


def test_request_check__goes_to_current_app_of_caller(redis_client):
    """The default app, which is current in other threads, is the first one. Several are of Django."""
    done = run_python(
        IMPORTS + "from celery import Celery, _state\n"
        "second = Celery('second')\n"
        "second.config_from_object('django.conf:settings', namespace='CELERY')\n"
        "second.conf.broker_url = second.conf.broker_url.removesuffix('0') + '5'\n"
        "assert _state.default_app is not second\n"
        "request_check().result(30)\n"
        "second.close()\n"
        "_state.default_app.set_current()\n"
        "request_check([]).result(30)\n"
        "request_check().result(30)\n"
    )
    assert done.stderr == ""
    assert len(queued(redis_client)) == 1
    with redis.Redis(port=REDIS_PORT, db=5) as client:
        assert len(queued(client)) == 1


def test_request_task__for_later_waits_in_this_process(redis_client):
    """A worker that has received a message for later would end when it loses its broker."""
    dispatch.request_task(TaskName.DELIVER, 60)
    dispatch.request_task(TaskName.DELIVER, 0.3)
    dispatch.request_task(TaskName.RECHECK, 60)
    dispatch.flush(10)
    assert queued(redis_client) == []
    (task,) = wait_for(lambda: queued(redis_client))
    assert (task["task"], task["eta"]) == (TaskName.DELIVER, None)
    dispatch.hand_over(10)
    _, task = queued(redis_client)[::-1]
    assert task["task"] == TaskName.RECHECK
    assert task["eta"], "the process ends, so the broker keeps it"


def test_request_check__in_short_lived_process_is_sent(redis_client):
    """As in a management command that saves a proxy and ends."""
    run_python(IMPORTS + "request_check()\n")
    assert [task["task"] for task in queued(redis_client)] == [TaskName.CHECK_ALL]


def test_request_check__in_fork(redis_client):
    run_python(
        IMPORTS + "request_check().result(30)\n"
        "pid = os.fork()\n"
        "if pid: os.waitpid(pid, 0)\n"
        "else: request_check().result(30)\n"
    )
    assert len(queued(redis_client)) == 2


def test_request_check__in_fork_while_lock_is_held(redis_client):
    """The child sends its own request, at its end, and not those of its parent."""
    run_in_fork(IMPORTS, hold="dispatch._sender.value._changed.acquire()", child="request_check()")
    assert len(queued(redis_client)) == 1


def test_request_check__at_end_of_parent_and_child_is_sent(redis_client):
    run_python(
        IMPORTS + "request_check().result(30)\n"
        "pid = os.fork()\n"
        "request_check()\n"
        "if pid: sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert len(queued(redis_client)) == 3


def test_request_check__gives_up_on_silent_broker():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        done = run_python(
            IMPORTS + "print(future.exception(60)) if (future := request_check()) else None\n",
            REDIS_URL=f"redis://127.0.0.1:{silent.getsockname()[1]}/0",
        )
    assert "Timeout" in done.stdout
    assert time.monotonic() - begin < 60
