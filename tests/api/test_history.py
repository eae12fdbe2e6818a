"""The history of a proxy in the JSON: its transitions in pages, its uptime, and its last probes."""

import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext

from proxyhealth import health
from proxyhealth.models import Transition, Watch, WorkspaceProxy
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage import reader
from proxyhealth.storage.probes import add_probes
from proxyhealth.testing import fake_snapshot
from tests.support.api import LIST, assert_error

pytestmark = pytest.mark.django_db

BEGIN = datetime(2026, 11, 20, 8, 30, tzinfo=UTC)
PARIS = f"{LIST}/paris/history"
KEYS = ["transitions", "uptime", "recent", "next_cursor", "stale", "stale_reason"]


@pytest.fixture
def row():
    return WorkspaceProxy.objects.create(name="paris", url="http://127.0.0.1:1")


def change(row, number, before="ok", after="unreachable", **values):
    """Store the change of this number, which has the token ``number``."""
    values = {"reason": "timeout", "report": {"errors": ["no answer"]}, "watched": number, **values}
    return Transition.objects.create(
        proxy=row,
        proxy_uuid=row.pk,
        proxy_name=values.pop("proxy_name", row.name),
        before=before,
        after=after,
        at=BEGIN + timedelta(minutes=number),
        token=number,
        **values,
    )


def changes(row, count):
    return [change(row, number) for number in range(1, count + 1)]


def ids_of(response):
    return [each["transition"] for each in response.json()["transitions"]]


def store_probes(row, *results):
    """Store a probe of the row per minute until now, and return their times."""
    now = datetime.now(UTC).replace(microsecond=0)
    times = [now - timedelta(minutes=len(results) - number) for number in range(len(results))]
    for at, (status, reason, latency) in zip(times, results, strict=True):
        proxy = row.as_proxy()
        add_probes([ProxyStatus(proxy, "paris.example.com", status, reason, checked_at=at, latency=latency)])
    return times


def rfc3339(moment):
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"


def test_history__shape(viewer, row):
    first = change(row, 1, before="unknown", after="ok", reason="", report={})
    second = change(row, 2)
    body = viewer.get(PARIS).json()
    assert list(body) == KEYS
    assert body["transitions"] == [
        {
            "transition": second.pk,
            "name": "paris",
            "before": "ok",
            "after": "unreachable",
            "at": "2026-11-20T08:32:00.000000Z",
            "reason": "timeout",
            "report": {"errors": ["no answer"], "warnings": []},
        },
        {
            "transition": first.pk,
            "name": "paris",
            "before": "unknown",
            "after": "ok",
            "at": "2026-11-20T08:31:00.000000Z",
            "reason": "",
            "report": {"errors": [], "warnings": []},
        },
    ]
    assert list(body["uptime"]) == ["24h", "7d", "30d", "90d"]
    assert (body["recent"], body["next_cursor"]) == ([], None)


def test_history__of_a_proxy_without_changes(viewer, row):
    body = viewer.get(PARIS).json()
    assert body["transitions"] == []
    assert set(body["uptime"].values()) == {None}


def test_history__by_id_and_by_name(viewer, row):
    change(row, 1)
    paths = (f"{LIST}/{key}/history" for key in (row.pk, row.pk.hex, "paris", "PARIS"))
    assert len({viewer.get(path)["ETag"] for path in paths}) == 1


def test_history__only_of_this_proxy(viewer, row):
    other = WorkspaceProxy.objects.create(name="oslo")
    change(other, 1)
    mine = change(row, 2)
    assert ids_of(viewer.get(PARIS)) == [mine.pk]


def test_history__names_of_that_time(viewer, row):
    change(row, 1, proxy_name="lutetia")
    change(row, 2, proxy_name="a/b")  # unusable in a path
    names = [each["name"] for each in viewer.get(PARIS).json()["transitions"]]
    assert names == [str(row.pk), "lutetia"]


def test_history__values_of_a_newer_version(viewer, row):
    change(row, 1, before="sleepy", after="angry", reason="moon", report=["a"])
    (only,) = viewer.get(PARIS).json()["transitions"]
    assert (only["before"], only["after"], only["reason"]) == ("unknown", "unknown", "")
    assert only["report"] == {"errors": [], "warnings": []}


# Pages


def test_pages__newest_first_without_gaps(viewer, row):
    rows = changes(row, 5)
    found, cursor = [], ""
    for length in (2, 2, 1):
        response = viewer.get(f"{PARIS}?limit=2{cursor}")
        assert len(ids_of(response)) == length
        found += ids_of(response)
        cursor = f"&before={response.json()['next_cursor']}"
    assert cursor == "&before=None"
    assert found == [each.pk for each in reversed(rows)]


def test_pages__stable_while_rows_are_added(viewer, row):
    rows = changes(row, 4)
    cursor = viewer.get(f"{PARIS}?limit=2").json()["next_cursor"]
    change(row, 9)
    assert ids_of(viewer.get(f"{PARIS}?limit=2&before={cursor}")) == [rows[1].pk, rows[0].pk]


def test_pages__full_last_page_has_no_next(viewer, row):
    changes(row, 2)
    assert viewer.get(f"{PARIS}?limit=2").json()["next_cursor"] is None


def test_pages__hundred_by_default(viewer, row):
    Transition.objects.bulk_create(
        Transition(
            proxy_uuid=row.pk, proxy_name="paris", before="ok", after="ok", at=BEGIN, token=n, watched=n
        )
        for n in range(101)
    )
    body = viewer.get(PARIS).json()
    assert (len(body["transitions"]), body["next_cursor"]) == (100, "1")
    assert len(viewer.get(f"{PARIS}?limit=1000").json()["transitions"]) == 101


def test_pages__cursor_before_everything(viewer, row):
    changes(row, 2)
    for cursor in ("0", "000000000000000000"):
        body = viewer.get(f"{PARIS}?before={cursor}").json()
        assert (body["transitions"], body["next_cursor"]) == ([], None)
    assert len(ids_of(viewer.get(f"{PARIS}?before={'9' * 18}"))) == 2


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("page=2", "Unknown parameter 'page'. Valid parameters: before, limit."),
        ("cursor=2", "Unknown parameter 'cursor'. Valid parameters: before, limit."),
        ("before=", "'before' must be the next_cursor of a page, not ''."),
        ("before=-1", "'before' must be the next_cursor of a page, not '-1'."),
        ("before=%D9%A1", "'before' must be"),  # a digit of another script
        (f"before={'9' * 19}", "'before' must be"),
        ("before=1%00", "'before' must be"),
        ("before=1&before=2", "'before' must be given once, not 2 times."),
        ("limit=0", "'limit' must be a number from 1 to 1,000, not '0'."),
        ("limit=1001", "'limit' must be a number from 1 to 1,000, not '1001'."),
        ("limit=1&limit=1", "'limit' must be given once, not 2 times."),
    ],
)
def test_pages__invalid_parameters_are_400(viewer, row, query, detail):
    response = viewer.get(f"{PARIS}?{query}")
    assert_error(response, 400, "Bad query.")
    assert response.json()["detail"].startswith(detail)


# Deleted proxies


def test_deleted__history_by_id(viewer, row):
    kept = change(row, 1)
    row.deleted = True
    row.save()
    removed = change(row, 2, before="unreachable", after="removed", reason="", report={})
    body = viewer.get(f"{LIST}/{row.pk}/history").json()
    assert [each["after"] for each in body["transitions"]] == ["removed", "unreachable"]
    assert_error(viewer.get(PARIS), 404, "Not found.")
    assert_error(viewer.get(f"{LIST}/{row.pk}"), 404, "Not found.")
    WorkspaceProxy.objects.all().delete()
    response = viewer.get(f"{LIST}/{row.pk}/history")
    assert ids_of(response) == [removed.pk, kept.pk]
    assert ids_of(viewer.get(f"{LIST}/{row.pk}/history?before=1")) == []


def test_deleted__name_belongs_to_the_new_proxy(viewer, row):
    change(row, 1)
    WorkspaceProxy.objects.update(deleted=True)
    new = WorkspaceProxy.objects.create(name="paris")
    mine = change(new, 2)
    assert ids_of(viewer.get(PARIS)) == [mine.pk]


@pytest.mark.parametrize("key", ["nobody", str(UUID(int=404)), "%00", "é"])
def test_unknown__is_404(viewer, row, key):
    assert_error(viewer.get(f"{LIST}/{key}/history"), 404, "Not found.")


# Uptime


def test_uptime__is_one_only_if_the_proxy_was_never_down(viewer, row):
    now, day = time.time_ns() // 1000, 86_400_000_000
    change(row, 1, "unknown", "ok", watched=0)
    change(row, 2, "ok", "unreachable", watched=15 * day)
    change(row, 3, "unreachable", "ok", watched=15 * day + 1000)
    Watch.objects.create(pk=1, token=now, watched=20 * day)
    with fake_snapshot(paris="ok"):
        first, second = (viewer.get(PARIS) for _ in range(2))
    assert first.json()["uptime"] == {"24h": 1, "7d": 0.999999, "30d": 0.999999, "90d": 0.999999}
    assert first["ETag"] == second["ETag"]


# Recent probes


def test_recent__newest_first(viewer, row):
    times = store_probes(row, (Status.OK, Reason.NONE, 0.042), (Status.UNREACHABLE, Reason.TIMEOUT, None))
    assert viewer.get(PARIS).json()["recent"] == [
        {"at": rfc3339(times[1]), "status": "unreachable", "reason": "timeout", "latency_ms": None},
        {"at": rfc3339(times[0]), "status": "ok", "reason": "", "latency_ms": 42},
    ]


def test_recent__cache_down_is_empty_and_says_so(viewer, row, stopped):
    change(row, 1)
    store_probes(row, (Status.OK, Reason.NONE, 0.042))
    health.force_update()
    assert viewer.get(PARIS)["Proxyhealth-Stale"] == "false"
    stopped()
    reader.forget()
    response = viewer.get(PARIS)
    body = response.json()
    assert (response.status_code, response["Proxyhealth-Stale"]) == (200, "true")
    assert (len(body["transitions"]), body["recent"], body["stale"]) == (1, [], True)
    assert body["stale_reason"].startswith("The cache cannot be read (")


def test_recent__cache_down_after_the_snapshot_was_read(viewer, row, stopped, configure):
    configure(READ_INTERVAL=60)
    health.force_update()
    assert viewer.get(PARIS).json()["stale"] is False
    stopped()
    body = viewer.get(PARIS).json()
    assert (body["recent"], body["stale"]) == ([], True)
    assert body["stale_reason"].startswith("The recent probes cannot be read (")


def test_fake_snapshot__history_without_the_cache(viewer, row):
    mine = change(row, 1)
    with fake_snapshot(paris="ok"):
        response = viewer.get(PARIS)
    assert ids_of(response) == [mine.pk]
    assert (response.json()["recent"], response.json()["stale"]) == ([], False)


# The protocol


def test_etag__changes_only_with_the_history(viewer, row):
    change(row, 1)
    first = viewer.get(PARIS)
    assert "Last-Modified" not in first
    headers = {"If-None-Match": first["ETag"]}
    assert viewer.get(PARIS, headers=headers).status_code == 304
    change(row, 2)
    second = viewer.get(PARIS, headers=headers)
    assert (second.status_code, second["ETag"] != first["ETag"]) == (200, True)


def test_database_down__is_503(viewer, row):
    viewer.get(PARIS)
    for failing in ("proxyhealth_transition", ""):  # only this table, or every query

        def refuse(execute, sql, *args, failing=failing):
            if failing in sql:
                raise OperationalError("gone")
            return execute(sql, *args)

        with connection.execute_wrapper(refuse):
            assert_error(viewer.get(PARIS), 503, "Not available.")


def test_queries__their_number_is_fixed(viewer, row):
    """One for the rows, two for their marks, one for the transitions, and five for the uptime."""
    Watch.objects.create(pk=1, token=50, watched=50)
    viewer.get(PARIS)  # reads the rows for all views
    numbers = []
    for count in (0, 1, 30):
        Transition.objects.all().delete()
        changes(row, count)
        with CaptureQueriesContext(connection) as queries:
            assert len(ids_of(viewer.get(f"{PARIS}?limit=20"))) == min(count, 20)
        numbers.append(sum("proxyhealth_" in query["sql"] for query in queries))
    assert numbers == [9, 9, 9]
