"""The plan of a shared round."""

from django.core.cache import caches

from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import (
    begin_round,
    end_round,
)
from proxyhealth.storage.plan import drop_plan, load_plan, save_plan
from tests.support.values import a_round


def key(name):
    return caches["default"].make_key(f"proxyhealth:{name}")


def test_plan__is_kept_until_its_round_is_committed(redis_client):
    first = begin_round()
    assert save_plan(first.token, "plän")
    assert redis_client.ttl(key("plan")) > 3_600
    end_round(first.token)
    second = begin_round()
    assert second.left_over
    assert load_plan() == "plän"
    commit([], first.token, full_round=a_round(), lease=second.token)
    assert load_plan() == ""


def test_plan__of_a_round_is_touched_by_no_other(redis_client):
    slept = begin_round()
    redis_client.delete(key("lease"))
    other = begin_round()
    assert save_plan(other.token, "the other's")
    assert not save_plan(slept.token, "mine")
    drop_plan(slept.token)
    assert load_plan() == "the other's"
    drop_plan(other.token)
    assert load_plan() == ""
