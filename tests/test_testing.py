import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.test import TestCase
from django.test.utils import CaptureQueriesContext, _TestState

from proxyhealth import health, isolation
from proxyhealth.checks import check_isolation, check_settings
from proxyhealth.exceptions import RoundFailed
from proxyhealth.metrics.collector import collector
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import broker
from proxyhealth.statuses import Reason, Status
from proxyhealth.testing import FakeStatus, active_fake, fake_snapshot, real_services
from tests.support.api import LIST, REGIONS, signed_in

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)

needs_database = pytest.mark.django_db


@pytest.fixture
def isolated(monkeypatch):
    """As in the tests of other projects, which have not chosen to use the real cache and broker."""
    monkeypatch.setattr(isolation, "_entered", ())
    health.reader.forget()


def create(name="paris", **values):
    return WorkspaceProxy.objects.create(name=name, **{"url": f"https://{name}.example.net", **values})


def by_name():
    return {name: status.status for name, status in health.snapshot().by_name.items()}


# Statuses


def test_fake__has_usual_details():
    with fake_snapshot({"US_East": "ok"}, oslo=("unreachable", "timeout"), rome="unregistered") as fake:
        ok, oslo, rome = (health.snapshot().by_name[name] for name in ("us_east", "oslo", "rome"))
    assert (ok.status, ok.reason, ok.proxy_host) == (Status.OK, Reason.NONE, "us-east.example.com")
    assert (ok.report.errors, ok.checked_at) == ((), fake.snapshot.checked_at)
    assert ok.latency
    assert (oslo.reason, oslo.report.errors, oslo.latency) == (Reason.TIMEOUT, ("timeout (fake)",), None)
    assert (rome.proxy.url, rome.proxy_host, rome.reason) == ("", "", Reason.NONE)
    assert (fake.snapshot.stale, fake.snapshot.outcomes["success"]) == (False, 1)


def test_fake__has_given_details():
    paris = FakeStatus(
        "unhealthy",
        "report_errors",
        errors=["disk full"],
        warnings=["slow"],
        latency=1.5,
        checked_at=LONG_AGO,
        tls_expires_at=LONG_AGO,
        url="http://paris.test:8080",
    )
    with fake_snapshot(paris=paris):
        status = health.snapshot().by_name["paris"]
    assert (status.report.errors, status.report.warnings, status.latency) == (("disk full",), ("slow",), 1.5)
    assert (status.checked_at, status.tls_expires_at) == (LONG_AGO, LONG_AGO)
    assert status.proxy_host == "paris.test:8080"


@pytest.mark.parametrize("status", ["unhealthy", "unreachable"])
def test_fake__of_a_failure_has_a_reason_and_an_error(status):
    with fake_snapshot(paris=status):
        paris = health.snapshot().by_name["paris"]
    assert paris.reason
    assert paris.report.errors


def test_fake__stale():
    with fake_snapshot(stale=True, paris="ok"):
        assert "No round has ended since" in health.snapshot().stale_reason
        assert health.proxy_hosts() == ["paris.example.com"]
    with fake_snapshot(stale=True, checked_at=datetime.now(UTC)):
        assert health.snapshot().stale
    with fake_snapshot(stale_reason="The cache cannot be read."):
        assert health.snapshot().stale_reason == "The cache cannot be read."


def test_fake__checked_at_makes_it_stale_when_it_is_old():
    with fake_snapshot(checked_at=LONG_AGO):
        assert health.snapshot().stale
    recent = datetime.now(UTC) - timedelta(seconds=1)
    with fake_snapshot(checked_at=recent) as fake:
        assert (fake.snapshot.checked_at, health.snapshot().stale) == (recent, False)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("okay", "Unknown status 'okay'. Valid: ok, unhealthy"),
        (("unreachable", "tired"), "Unknown reason 'tired'. Valid: invalid_url"),
        (("ok", "timeout"), "The status 'ok' has no reason"),
    ],
)
def test_fake__refuses_statuses_that_do_not_exist(value, message):
    with pytest.raises(ValueError, match=message):
        fake_snapshot(paris=value)


@pytest.mark.parametrize("value", [3, None, {"status": "ok"}])
def test_fake__refuses_other_types(value):
    with pytest.raises(TypeError, match="a status is a text, a tuple such as"):
        fake_snapshot(paris=value)


# Rows


@needs_database
def test_rows__saved_before_and_inside_match_by_name():
    paris = create("Paris")
    with fake_snapshot(paris="ok", oslo="unreachable", rome="unknown"):
        oslo, rome, nice = create("oslo"), create("rome"), create("nice")
        assert {id: status.status for id, status in health.health_status().items()} == {
            paris.pk: "ok",
            oslo.pk: "unreachable",
        }
        assert [health.status_of(row).status for row in (paris, rome, nice)] == ["ok", "unknown", "unknown"]
        assert health.proxy_hosts() == ["oslo.example.net", "paris.example.net"]
        oslo.url = "https://oslo.example.net:8443"
        oslo.save()
        assert health.status_of(oslo).proxy_host == "oslo.example.net:8443"


@needs_database
def test_rows__renamed_or_deleted_leave_the_snapshot():
    paris, oslo = create("paris"), create("oslo")
    with fake_snapshot(paris="ok", oslo="ok"):
        paris.name = "nice"
        paris.save()
        oslo.deleted = True
        oslo.save()
        assert by_name() == {}
        again = create("oslo")
        assert by_name() == {"oslo": "ok"}
        again.delete()
        assert by_name() == {}


@needs_database
def test_rows__without_signals_match_after_a_request():
    with fake_snapshot(paris="ok", oslo="ok"):
        (paris,) = WorkspaceProxy.objects.bulk_create([WorkspaceProxy(name="paris")])
        assert paris.pk not in health.health_status()
        health.request_check([paris.pk])
        assert paris.pk in health.health_status()
        (oslo,) = WorkspaceProxy.objects.bulk_create([WorkspaceProxy(name="oslo")])
        assert oslo.pk in health.force_update().statuses


@needs_database
def test_rows__one_query_at_the_beginning_only():
    paris = create()
    with (
        CaptureQueriesContext(
            connection,
        ) as queries,
        fake_snapshot(paris="ok"),
    ):
        assert len(queries) == 1
        health.request_check([paris.pk])
        health.status_of(paris)
        assert len(queries) == 1


@needs_database
def test_json__shows_each_change_at_once(configure):
    configure(READ_INTERVAL=60, PUBLIC_REGIONS=True)
    web = signed_in("view_workspaceproxy")
    create()
    with fake_snapshot(paris="ok"):
        assert [proxy["healthy"] for proxy in web.get(LIST).json()["regions"]] == [True]
        WorkspaceProxy.objects.update(display_name="Paris")
        assert [region["display_name"] for region in web.get(REGIONS).json()["regions"]] == ["Paris"]
        with fake_snapshot(paris="unhealthy", stale=True):
            response = web.get(LIST)
            assert response["Proxyhealth-Stale"] == "true"
            assert response.json()["regions"][0]["healthy"] is False


# Requests


@needs_database
def test_requests__are_recorded(sent):
    paris = create()
    with fake_snapshot(paris="ok") as fake:
        health.request_check([paris.pk]).result(timeout=0)
        health.request_check()
        health.request_check([])
        assert health.force_update() is health.snapshot()
    assert (fake.requested_checks, fake.forced_updates) == ([{paris.pk}, None], 1)
    health.request_check([]).result(timeout=10)
    assert sent == []


@needs_database
def test_requests__of_each_save_in_a_test_case():
    with fake_snapshot(paris="ok") as fake:
        paris, oslo = create(), create("oslo")
        with TestCase.captureOnCommitCallbacks(execute=True):
            paris.save()
            oslo.delete()
        assert [len(ids) for ids in fake.requested_checks] == [1, 1]


# Uses


def test_nested__the_innermost_counts():
    with fake_snapshot(paris="ok") as outer:
        with fake_snapshot(oslo="ok") as inner:
            health.request_check()
            assert (by_name(), active_fake()) == ({"oslo": "ok"}, inner)
        assert (by_name(), active_fake()) == ({"paris": "ok"}, outer)
    assert (outer.requested_checks, inner.requested_checks) == ([], [None])


def test_nested__left_in_another_order():
    first, second = fake_snapshot(paris="ok"), fake_snapshot(oslo="ok")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert by_name() == {"oslo": "ok"}
    second.__exit__(None, None, None)
    assert by_name() == {}


def test_exception__leaves_nothing_behind(paris):
    before = health.health_status()
    with pytest.raises(ZeroDivisionError), fake_snapshot():
        1 / len(health.health_status())
    assert health.health_status() == before
    with pytest.raises(LookupError, match="No fake snapshot is active"):
        active_fake()


def test_decorator__function_and_coroutine_get_a_fake_each():
    fakes = []

    @fake_snapshot(paris="ok")
    def function(argument):
        fakes.append(active_fake())
        return argument, by_name()

    @fake_snapshot(paris="ok")
    async def coroutine():
        fakes.append(active_fake())
        return by_name()

    assert [function(1), function(2)] == [(1, {"paris": "ok"}), (2, {"paris": "ok"})]
    assert asyncio.run(coroutine()) == {"paris": "ok"}
    assert len(set(fakes)) == 3


def test_decorator__class_with_set_up_and_debug():
    @fake_snapshot(paris="ok")
    class Base(TestCase):
        databases = ()

        def setUp(self):
            assert by_name() == {"paris": "ok"}
            self.addCleanup(lambda: by_name()["paris"])

        def runTest(self):
            health.request_check()
            assert active_fake().requested_checks == [None]

    class Inherited(Base):
        pass

    for cls in (Base, Inherited):
        assert cls().run().wasSuccessful()
        cls().debug()


@fake_snapshot(paris="ok")
class TestOfPytest:
    name = "test"
    test_data = "not a function"

    def test_method__of_a_plain_class(self):
        assert by_name() == {"paris": "ok"}


def test_decorator__misuse_is_refused():
    with pytest.raises(TypeError, match="Use a with statement"):

        @fake_snapshot(paris="ok")
        def fixture():
            yield

    with pytest.raises(TypeError, match="As a decorator: @fake_snapshot"):
        fake_snapshot(lambda: None)
    with pytest.raises(TypeError, match="has no tests"):
        fake_snapshot()(type("Empty", (), {}))


@pytest.mark.django_db(transaction=True)
def test_coroutine__async_with_matches_earlier_rows():
    paris = create()

    async def statuses():
        async with fake_snapshot(paris="ok", oslo="ok"):
            oslo = await WorkspaceProxy.objects.acreate(name="oslo")
            return {paris.pk, oslo.pk} == set(health.health_status())

    assert async_to_sync(statuses)()


@needs_database
def test_coroutine__with_warns_of_earlier_rows(caplog):
    async def enter():
        with fake_snapshot(paris="ok"):
            return by_name()

    assert asyncio.run(enter()) == {"paris": "ok"}
    assert "use 'async with fake_snapshot()'" in caplog.text


def test_threads__all_read_the_fake():
    with fake_snapshot(paris="ok"), ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: tuple(by_name()), range(200))) == {("paris",)}


def test_threads__enter_and_leave_at_once():
    @fake_snapshot(paris="ok")
    def use(_):
        return by_name()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(use, range(200))) == [{"paris": "ok"}] * 200
    assert isolation.current() is None


# Without a fake


@pytest.mark.django_db(transaction=True)
def test_isolation__reads_and_sends_nothing(isolated, sent, configure, caplog):
    paris = create()
    health.request_check([paris.pk]).result(timeout=0)
    assert (health.health_status(), health.proxy_hosts(), broker.queue_length()) == ({}, [], None)
    assert (health.recent_probes(paris), health.last_trace(paris)) == ([], None)
    assert "proxyhealth.testing.fake_snapshot() gives them statuses" in health.snapshot().stale_reason
    with pytest.raises(RoundFailed, match="tests do not use the cache"):
        health.force_update()
    assert [metric.name for metric in collector.collect()] == ["proxyhealth_snapshot_up"]
    with real_services():
        assert health.snapshot().fault == ""
        health.request_check([]).result(timeout=10)
    assert sent == []


def test_isolation__settings_need_no_redis(isolated, settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    assert check_settings() == []
    with real_services():
        assert [message.id for message in check_settings()] == ["proxyhealth.E003"]


def test_check__warns_of_a_test_database_without_isolation(isolated, monkeypatch):
    assert check_isolation() == []
    monkeypatch.delattr(_TestState, "saved_data")
    assert [message.id for message in check_isolation()] == ["proxyhealth.W006"]
    with real_services():
        assert check_isolation() == []
    monkeypatch.setitem(connection.settings_dict, "NAME", "host")
    assert check_isolation() == []
