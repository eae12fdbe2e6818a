"""The scripts must work whatever the server has in its cache of scripts."""

from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.counters import count_round
from proxyhealth.storage.lease import begin_round, end_round
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
