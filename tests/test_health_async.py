"""The async versions of the functions in ``health``."""

import asyncio
import inspect
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings as django_settings
from django.core.cache import caches
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import dispatch
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import begin_round, take_token
from tests.settings import REDIS_PORT
from tests.support.proxies import wait_for
from tests.support.redis_relay import RedisRelay
from tests.support.values import a_round, make_proxy, make_status

PARIS = make_proxy()
READS = ["ahealth_status", "aproxy_hosts", "asnapshot", "astatus_of"]
every_read = pytest.mark.parametrize("name", READS)


@pytest.fixture
def relay(settings):
    """A relay between this process and Redis, which has a snapshot."""
    relay = RedisRelay(REDIS_PORT)
    with relay.running() as url:
        settings.CACHES = {"default": {**django_settings.CACHES["default"], "LOCATION": url}}
        commit([make_status(PARIS)], take_token(), full_round=a_round())
        yield relay


def read(name):
    arguments = [WorkspaceProxy(pk=PARIS.id, url=PARIS.url)] if name == "astatus_of" else []
    return getattr(health, name)(*arguments)


def reads_of_redis(redis_client):
    return redis_client.info("commandstats").get("cmdstat_getrange", {"calls": 0})["calls"]


@pytest.fixture
def overdue_copy(relay, configure, monkeypatch):
    configure(READ_INTERVAL=0.01)
    monkeypatch.setattr(reader, "_GRACE", 0.01)
    assert not health.snapshot().stale
    wait_for(lambda: reader._reader.value._is_overdue(reader._GRACE), 2)


def test_all__each_function_has_an_async_version():
    functions = [name for name in health.__all__ if not inspect.isclass(getattr(health, name))]
    is_async = {name: inspect.iscoroutinefunction(getattr(health, name)) for name in functions}
    assert is_async == {name: name.startswith("a") and name[1:] in functions for name in functions}
    blocking = {name for name in functions if not is_async[name]} - {"outages"}  # a queryset, which is lazy
    assert {f"a{name}" for name in blocking} == {*filter(is_async.get, functions)}


# Reads


def test_reads__return_the_objects_of_the_sync_ones(relay, configure):
    configure(READ_INTERVAL=60)

    async def main():
        assert await health.asnapshot() is health.snapshot()
        assert await health.ahealth_status() is health.health_status()
        assert await health.aproxy_hosts() is health.proxy_hosts() != []
        assert await health.aproxy_hosts(healthy_only=True) is health.proxy_hosts(healthy_only=True)
        assert (await read("astatus_of")).status is Status.OK

    asyncio.run(main())


@every_read
def test_reads__of_a_fresh_copy_never_suspend(relay, configure, name):
    configure(READ_INTERVAL=60)
    health.snapshot()
    with pytest.raises(StopIteration):  # the coroutine has returned, without a thread or an event loop
        read(name).send(None)


def assert_loop_goes_on(relay, name):
    """The loop itself ends the hang of Redis. A read that blocked the loop would time out."""

    async def main():
        task = asyncio.create_task(read(name))
        for _ in range(5):
            await asyncio.sleep(0.005)
        assert not task.done()
        relay.delivers.set()
        await task

    relay.delivers.clear()
    asyncio.run(main())
    assert not health.snapshot().stale


@every_read
def test_reads__without_a_copy_leave_the_loop_free(relay, name):
    assert_loop_goes_on(relay, name)


def test_reads__of_an_overdue_copy_leave_the_loop_free(overdue_copy, relay):
    assert_loop_goes_on(relay, "asnapshot")


def test_reads__of_a_hundred_callers_are_one(relay, configure, redis_client):
    configure(READ_INTERVAL=60)
    redis_client.config_resetstat()

    async def main():
        return await asyncio.gather(*(health.asnapshot() for _ in range(100)))

    snapshots = asyncio.run(main())
    assert len({id(snapshot) for snapshot in snapshots}) == 1
    assert reads_of_redis(redis_client) == 1
    names = [thread.name for thread in threading.enumerate()]
    assert sum(name.startswith("proxyhealth reader") for name in names) <= 1


def test_reads__get_the_copy_during_another_read(relay, configure):
    configure(READ_INTERVAL=0)
    copy = health.snapshot()
    with reader._reader.value._refresh_lock, pytest.raises(StopIteration) as returned:
        health.asnapshot().send(None)
    assert returned.value.value is copy


def test_reads__of_a_cache_that_hangs_get_a_stale_copy(overdue_copy, relay, monkeypatch):
    monkeypatch.setattr(reader, "_TIMEOUT", 0.1)

    async def main():
        relay.delivers.clear()
        late, *others = await asyncio.gather(*(health.asnapshot() for _ in range(10)))
        assert late.stale_reason == "The cache does not respond. This is the last snapshot that was read."
        assert PARIS.id in late.statuses
        assert all(other is late for other in others)
        relay.delivers.set()
        while (await health.asnapshot()).stale:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), 10))


def test_reads__cancelled_leave_nothing_behind(relay, configure, caplog):
    configure(READ_INTERVAL=60)
    relay.delivers.clear()
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(health.asnapshot(), 0.05))
    relay.delivers.set()  # the thread now gets its reply, and the event loop of its caller is closed
    assert not asyncio.run(health.asnapshot()).stale
    assert caplog.text == ""


def test_reads__share_a_read_between_event_loops(relay, configure, redis_client):
    configure(READ_INTERVAL=60)
    redis_client.config_resetstat()
    relay.delivers.clear()
    threads = [threading.Thread(target=asyncio.run, args=(health.asnapshot(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    relay.delivers.set()
    for thread in threads:
        thread.join(10)
    assert reads_of_redis(redis_client) == 1


def test_reads__do_not_wait_for_busy_threads(relay):
    """Neither for those of the event loop, nor for the one that queries the database."""
    free = threading.Event()

    async def main():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        busy = [
            asyncio.create_task(sync_to_async(free.wait, thread_sensitive=is_sensitive)())
            for is_sensitive in (True, False)
        ]
        await asyncio.sleep(0.01)
        assert not (await health.asnapshot()).stale
        free.set()
        await asyncio.gather(*busy)

    asyncio.run(main())


@pytest.mark.django_db
def test_statuses_of__makes_one_query(serve, django_assert_num_queries):
    paris = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    health.force_update()
    with django_assert_num_queries(1):
        (status,) = async_to_sync(health.astatuses_of)(WorkspaceProxy.objects.active())
    assert (status.proxy.id, status.status) == (paris.pk, Status.OK)
    old = async_to_sync(health.astatuses_of)(WorkspaceProxy.objects.active(), reader.Snapshot())
    assert [status.status for status in old] == [Status.UNKNOWN]


# Rounds


@pytest.mark.django_db
def test_force_update__sees_the_rows_of_a_transaction(serve):
    """A TestCase of Django runs its coroutines so."""
    paris = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    assert list(async_to_sync(health.aforce_update)().statuses) == [paris.pk]


@pytest.mark.django_db(transaction=True)
def test_force_update__closes_the_connection_of_its_thread(serve, monkeypatch):
    paris = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    closed, wrapper = [], type(connections["default"])

    def close(connection):
        closed.append(threading.current_thread().name)

    health.snapshot()  # the thread that reads the database instead of the empty cache
    monkeypatch.setattr(wrapper, "close", close)
    assert list(asyncio.run(health.aforce_update()).statuses) == [paris.pk]
    assert closed == ["proxyhealth round_0"]


@pytest.mark.django_db(transaction=True)
def test_force_update__a_hundred_callers_share_rounds(serve):
    """A caller needs a round that begins after its call, and on a busy machine, they do not call at once."""
    WorkspaceProxy.objects.create(name="paris", url=serve().url)

    async def main():
        return await asyncio.gather(*(health.aforce_update() for _ in range(100)))

    assert max(snapshot.number for snapshot in asyncio.run(main())) <= 5


@pytest.mark.django_db(transaction=True)
def test_force_update__cancelled_completes_its_round(serve, redis_client, caplog):
    WorkspaceProxy.objects.create(name="paris", url=serve(delay=0.2).url)

    lease = caches["default"].make_key("proxyhealth:lease")

    async def main():
        task = asyncio.create_task(health.aforce_update())
        while not redis_client.exists(lease):
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert redis_client.exists(lease)

    asyncio.run(asyncio.wait_for(main(), 10))
    wait_for(lambda: not redis_client.exists(lease), 5)
    assert health.snapshot().outcomes == {"success": 1}
    assert caplog.text.count("ERROR") == 0


@pytest.mark.django_db
def test_force_update__raises_its_error(monkeypatch):
    monkeypatch.setattr("proxyhealth.health.steps.lease_limit", lambda count: 0.1)
    begin_round()
    with pytest.raises(health.RoundFailed, match="another round is still running"):
        async_to_sync(health.aforce_update)()


def test_force_update__sync_one_is_refused_in_a_coroutine():
    """It could not query the database, but would take the lease and count a failed round before."""

    async def main():
        health.force_update()

    with pytest.raises(SynchronousOnlyOperation, match=r"await aforce_update\(\)"):
        asyncio.run(main())
    assert health.snapshot().outcomes == {}


# Requests for checks


def test_request_check__returns_when_the_broker_has_it(sent):
    asyncio.run(health.arequest_check([PARIS.id]))
    assert sent == [{str(PARIS.id)}]
    asyncio.run(health.arequest_check())
    assert sent[1:] == [None]


def test_request_check__raises_the_error_of_the_broker(monkeypatch):
    def fail(ids):
        raise ConnectionError("refused")

    monkeypatch.setattr(dispatch, "_send", fail)
    with pytest.raises(ConnectionError, match="refused"):
        asyncio.run(health.arequest_check([PARIS.id]))


def test_request_check__cancelled_is_sent_all_the_same(monkeypatch):
    sent, broker = [], threading.Event()

    def send(ids):
        broker.wait(10)
        sent.append(ids)

    monkeypatch.setattr(dispatch, "_send", send)
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(health.arequest_check([PARIS.id]), 0.05))
    broker.set()
    asyncio.run(health.arequest_check())  # the sender still runs
    assert sent == [{str(PARIS.id)}, None]


def test_request_check__its_future_cannot_be_cancelled(sent):
    future = health.request_check([PARIS.id])
    assert isinstance(future, Future)
    assert not future.cancel()
    future.result(10)
    health.request_check().result(10)
    assert sent == [{str(PARIS.id)}, None]


@pytest.mark.django_db(transaction=True)
def test_request_check__follows_an_async_save(sent):
    row = WorkspaceProxy(name="paris", url=PARIS.url)
    id = str(row.pk)
    for change in (row.asave, row.adelete):
        asyncio.run(change())
        dispatch._sender.value.flush(10)
    assert sent == [{id}, {id}]
