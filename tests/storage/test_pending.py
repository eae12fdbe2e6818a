"""Proxies that wait for a check."""

from uuid import uuid4

from django.core.cache import caches

from proxyhealth.storage.pending import SendTask, add_pending, release_claim, take_pending
from tests.support.proxies import wait_for

HOUR = 3_600


def key(name):
    return caches["default"].make_key(f"proxyhealth:{name}")


def test_pending__many_requests_are_one_task():
    ids = [uuid4() for _ in range(3)]
    assert add_pending([str(ids[0])]) is SendTask.YES
    assert add_pending([str(ids[1]), str(ids[2])]) is SendTask.NO
    assert take_pending() == set(ids)
    assert take_pending() == set()
    assert add_pending([str(ids[0])]) is SendTask.YES


def test_pending__a_task_that_got_lost_is_sent_again(monkeypatch):
    monkeypatch.setattr("proxyhealth.storage.pending._CLAIM_TIMEOUT", 100)
    id = uuid4()
    assert add_pending([str(id)]) is SendTask.YES
    wait_for(lambda: add_pending([str(id)]) is SendTask.IF_LOST)
    assert take_pending() == {id}
    wait_for(lambda: add_pending([str(id)]) is SendTask.YES)
    release_claim()
    assert add_pending([str(id)]) is SendTask.YES, "the task was not sent, so it is in no queue"


def test_pending__a_claim_from_before_a_clock_step_is_ignored(redis_client):
    add_pending([str(uuid4())])
    redis_client.expire(key("pending:sent"), HOUR)
    assert add_pending([str(uuid4())]) is not SendTask.NO
