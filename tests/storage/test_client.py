"""The connection to the cache, and how scripts run there."""

import pytest
from django.conf import settings as django_settings

from proxyhealth.exceptions import StoreError
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.counters import count_round
from proxyhealth.storage.lease import (
    begin_round,
    end_round,
    renewing_lease,
    take_token,
)
from proxyhealth.storage.pending import add_pending, take_pending
from proxyhealth.storage.plan import drop_plan, load_plan, save_plan
from tests.support.values import a_round, make_proxy, make_status


def run_every_script():
    begun = begin_round()
    count_round("failure", "x", begun.token)
    commit([make_status(make_proxy())], begun.token, full_round=a_round())
    end_round(begun.token)


def test_scripts__run_after_the_server_has_flushed_them(redis_client):
    run_every_script()
    redis_client.script_flush()
    run_every_script()
    assert reader.read().outcomes == {"success": 2, "failure": 2}


def test_scripts__run_after_a_restart_of_the_server(valkey, stopped):
    run_every_script()
    stopped()
    valkey.start()
    run_every_script()
    assert reader.read_anew().number >= 1


def test_commit__does_not_send_its_script_each_time(redis_client):
    commit([], 1)
    redis_client.config_resetstat()
    commit([], 2)
    commands = set(redis_client.info("commandstats"))
    assert "cmdstat_evalsha" in commands
    assert not {"cmdstat_eval", "cmdstat_script|load"} & commands


@pytest.mark.parametrize(
    "call",
    [
        take_token,
        begin_round,
        lambda: renewing_lease(1, 60).__enter__(),
        lambda: end_round(1),
        lambda: count_round("failure"),
        lambda: save_plan(1, ""),
        load_plan,
        lambda: drop_plan(1),
        lambda: add_pending(["x"]),
        take_pending,
        lambda: commit([], 1),
    ],
)
def test_server_down__raises_store_error(stopped, call):
    stopped()
    with pytest.raises(StoreError):
        call()


def test_key_prefix__keeps_deployments_apart(settings):
    commit([make_status(make_proxy())], take_token())
    other = {**django_settings.CACHES["default"], "KEY_PREFIX": "another"}
    settings.CACHES = {"default": other}
    assert reader.read().number == 0


def test_open_cache__does_not_hide_a_bug_of_ours():
    """A commit of something that is no status is not a failure of the cache."""
    for full_round in (None, a_round()):
        with pytest.raises(AttributeError):
            commit([None], take_token(), full_round=full_round)
