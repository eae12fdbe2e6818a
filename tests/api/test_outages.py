"""The outages of all proxies in the JSON, and the marks of a status: silenced and acknowledged."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from django.db import OperationalError, connection

from proxyhealth import health
from proxyhealth.api import listing
from proxyhealth.models import Outage, Silence, WorkspaceProxy
from proxyhealth.testing import fake_snapshot
from tests.support.api import LIST, assert_error, signed_in
from tests.support.proxies import wait_for
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db

BEGIN = datetime(2026, 11, 20, 8, 30, tzinfo=UTC)
OUTAGES = f"{LIST}/outages"


def insert(minute, *, end=None, proxy=None, **values):
    """Insert the outage that began with this minute."""
    return Outage.objects.create(
        **{
            "proxy": proxy,
            "proxy_uuid": proxy.pk if proxy else uuid4(),
            "proxy_name": "paris",
            "status": "unreachable",
            "reason": "timeout",
            "began_at": BEGIN + timedelta(minutes=minute),
            "token": minute,
            "ended_at": end and BEGIN + timedelta(minutes=end),
            "end_token": end,
            **values,
        }
    )


def ids_of(response):
    return [each["outage"] for each in response.json()["outages"]]


def test_outages__shape(viewer):
    ended = insert(1, end=3, acknowledged_at=BEGIN, acknowledged_name="ana\u202e", note="the switch\nis old")
    insert(4, proxy_uuid=UUID(int=7), proxy_name="a/b", status="angry", reason="moon")
    response = viewer.get(OUTAGES)
    assert response.json() == {
        "outages": [
            {
                "outage": ended.pk + 1,
                "proxy_id": str(UUID(int=7)),
                "name": str(UUID(int=7)),  # unusable in a path
                "status": "unreachable",  # of a newer version
                "reason": "",
                "began_at": "2026-11-20T08:34:00.000000Z",
                "ended_at": None,
                "seconds": None,
                "acknowledged": None,
            },
            {
                "outage": ended.pk,
                "proxy_id": str(ended.proxy_uuid),
                "name": "paris",
                "status": "unreachable",
                "reason": "timeout",
                "began_at": "2026-11-20T08:31:00.000000Z",
                "ended_at": "2026-11-20T08:33:00.000000Z",
                "seconds": 120,
                "acknowledged": {
                    "by": "ana",
                    "at": "2026-11-20T08:30:00.000000Z",
                    "note": "the switch\nis old",
                },
            },
        ],
        "next_cursor": None,
        "stale": True,
        "stale_reason": "No round has ended yet. Are the Celery worker and beat running?",
    }
    assert response["Proxyhealth-Stale"] == "true"
    with fake_snapshot(paris="ok"):
        response = viewer.get(OUTAGES)
    assert (response.json()["stale"], response["Proxyhealth-Stale"]) == (False, "false")


def test_outages__open_or_ended(viewer):
    ended, open = insert(1, end=2), insert(3)
    assert ids_of(viewer.get(OUTAGES)) == [open.pk, ended.pk]
    assert ids_of(viewer.get(f"{OUTAGES}?open=true")) == [open.pk]
    assert ids_of(viewer.get(f"{OUTAGES}?open=false")) == [ended.pk]


@pytest.mark.parametrize("tokens", [[1, 2, 3, 4, 5], [1, 1, 1, 1, 1], [1, 2, 2, 2, 3]], ids=str)
def test_outages__pages_have_no_gaps(viewer, tokens):
    """Those of one round have the same token."""
    rows = [insert(token) for token in tokens]
    found, cursor = [], ""
    for length in (2, 2, 1):
        response = viewer.get(f"{OUTAGES}?limit=2{cursor}")
        assert len(ids_of(response)) == length
        found += ids_of(response)
        cursor = f"&before={response.json()['next_cursor']}"
        insert(9)
    assert cursor == "&before=None"
    first = [row.pk for row in reversed(rows)]
    assert found == first


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("page=2", "Unknown parameter 'page'. Valid parameters: open, before, limit."),
        ("open=1", "'open' must be true or false, not '1'."),
        ("open=true&open=true", "'open' must be given once, not 2 times."),
        ("before=", "'before' must be the next_cursor of a page, not ''."),
        ("before=1", "'before' must be the next_cursor of a page, not '1'."),
        ("before=-1-1", "'before' must be"),
        (f"before={'9' * 19}-1", "'before' must be"),
        ("before=1-%D9%A1", "'before' must be"),  # a digit of another script
        ("limit=0", "'limit' must be a number from 1 to 1,000, not '0'."),
        ("limit=1001", "'limit' must be a number from 1 to 1,000, not '1001'."),
    ],
)
def test_outages__invalid_parameters_are_400(viewer, query, detail):
    response = viewer.get(f"{OUTAGES}?{query}")
    assert_error(response, 400, "Bad query.")
    assert response.json()["detail"].startswith(detail)


def test_outages__need_the_permission(client, viewer):
    assert_error(client.get(OUTAGES), 401, "Not signed in.")
    assert_error(signed_in("view_outage").get(OUTAGES), 403, "Not allowed.")
    assert viewer.get(OUTAGES).status_code == 200
    assert viewer.post(OUTAGES).status_code == 405


def test_outages__etag_changes_with_an_outage(viewer):
    row = insert(1)
    headers = {"If-None-Match": viewer.get(OUTAGES)["ETag"]}
    assert viewer.get(OUTAGES, headers=headers).status_code == 304
    health.acknowledge(row, "ana")
    assert viewer.get(OUTAGES, headers=headers).status_code == 200


def test_outages__a_proxy_of_this_name_is_found_by_its_id(viewer):
    """It may be older than the name is reserved."""
    row = WorkspaceProxy.objects.create(name="outages")
    assert "outages" in viewer.get(f"{LIST}/outages").json()
    body = viewer.get(f"{LIST}/{row.pk}").json()
    assert (body["id"], body["name"]) == (str(row.pk), str(row.pk))


def test_outages__database_down_is_503(viewer):
    viewer.get(OUTAGES)

    def refuse(execute, sql, *args):
        if "proxyhealth_outage" in sql:
            raise OperationalError("gone")
        return execute(sql, *args)

    with connection.execute_wrapper(refuse):
        assert_error(viewer.get(OUTAGES), 503, "Not available.")


# The marks of a status


@pytest.fixture
def row():
    return WorkspaceProxy.objects.create(name="paris", url="http://127.0.0.1:1", labels={"region": "eu"})


def silence(proxies="paris", start=-60, end=3_600):
    """Silence proxies from and until these seconds from now."""
    now = datetime.now(UTC)
    starts, ends = (now + timedelta(seconds=seconds) for seconds in (start, end))
    return Silence.objects.create(proxies=proxies, starts=starts, ends=ends, reason="work")


def marks(client, name="paris"):
    (status,) = (each["status"] for each in client.get(LIST).json()["regions"] if each["name"] == name)
    return status["silenced"], status["acknowledged"]


def test_marks__null_without_a_silence_and_an_acknowledgement(viewer, row):
    insert(1, proxy=row)
    assert marks(viewer) == (None, None)
    status = viewer.get(f"{LIST}/paris").json()["status"]
    assert list(status)[-2:] == ["silenced", "acknowledged"]
    assert (status["silenced"], status["acknowledged"]) == (None, None)


def test_marks__acknowledged_while_the_outage_is_open(viewer, row):
    outage = insert(1, proxy=row)
    WorkspaceProxy.objects.create(name="oslo")
    health.acknowledge(outage, "ana", "the switch")
    outage.refresh_from_db()
    at = f"{outage.acknowledged_at:%Y-%m-%dT%H:%M:%S.%f}Z"
    assert marks(viewer) == (None, {"by": "ana", "at": at, "note": "the switch"})
    assert marks(viewer, "oslo") == (None, None)
    Outage.objects.update(ended_at=BEGIN)
    assert marks(viewer) == (None, None)


def test_marks__acknowledgement_is_taken_back(viewer, row):
    outage = insert(1, proxy=row)
    health.acknowledge(outage, "ana")
    assert marks(viewer)[1]["by"] == "ana"
    health.unacknowledge(outage)
    assert marks(viewer) == (None, None)


def test_marks__silenced_by_name_or_label(viewer, row):
    WorkspaceProxy.objects.create(name="oslo")
    by_name = silence()
    end = f"{by_name.ends:%Y-%m-%dT%H:%M:%S.%f}Z"
    assert (marks(viewer), marks(viewer, "oslo")) == ((end, None), (None, None))
    by_name.delete()
    assert marks(viewer) == (None, None)
    silence("region:eu")
    assert marks(viewer)[0]
    row.labels = {}
    row.save()
    assert marks(viewer) == (None, None)


def test_marks__silence_that_begins_and_ends_as_time_passes(viewer, row, configure):
    """No row changes at these moments."""
    configure(READ_INTERVAL=0)
    silence(start=0.3)
    wait_for(lambda: marks(viewer)[0], 10, "the silence begins")
    Silence.objects.all().delete()
    silence(end=0.3)
    wait_for(lambda: not marks(viewer)[0], 10, "the silence ends")


def test_marks__of_every_process_within_the_read_interval(viewer, row, configure):
    """Another process has written them: nothing tells this one."""
    outage = insert(1, proxy=row)
    configure(READ_INTERVAL=0.1)
    assert marks(viewer) == (None, None)
    etag = viewer.get(LIST)["ETag"]
    Outage.objects.filter(pk=outage.pk).update(acknowledged_at=BEGIN, acknowledged_name="ana")
    wait_for(lambda: marks(viewer)[1], 5, "the acknowledgement is seen")
    assert viewer.get(LIST)["ETag"] != etag


def test_marks__database_down_keeps_them(viewer, row):
    outage = insert(1, proxy=row)
    silence()
    health.acknowledge(outage, "ana")
    before = marks(viewer)
    with connection.execute_wrapper(refuse_queries):
        current = listing.current(now=True)
    assert current.stale
    assert before[0].encode() in current.one("paris").body
    assert b'"by":"ana"' in current.one("paris").body


def test_marks__unreadable_row_costs_only_its_own(viewer, row):
    insert(1, proxy=row, acknowledged_at=BEGIN, acknowledged_name="ana")
    insert(2)
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("UPDATE proxyhealth_outage SET acknowledged_at = 'nonsense' WHERE token = 2")
        else:
            cursor.execute("UPDATE proxyhealth_outage SET acknowledged_at = 'infinity' WHERE token = 2")
    assert marks(viewer)[1]["by"] == "ana"


def test_marks__are_not_in_the_regions(viewer, row):
    silence()
    assert "silenced" not in viewer.get("/api/v2/regions").content.decode()
