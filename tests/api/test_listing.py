import json
import threading
from uuid import uuid4

import pytest
from django.db import OperationalError, connection
from django.test import Client

from proxyhealth import health
from proxyhealth.api import inventory, listing
from proxyhealth.api.query import EVERYTHING, Selection
from proxyhealth.models import WorkspaceProxy
from proxyhealth.report import HealthReport
from proxyhealth.snapshot import ProxyStatus, Snapshot
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from tests.support.api import LIST, REGIONS
from tests.support.machine import at_most
from tests.support.proxies import wait_for
from tests.support.values import NOW, a_round, make_status

pytestmark = pytest.mark.django_db


def regions(client, path=LIST):
    response = client.get(path)
    assert response.status_code == 200
    return {region["name"]: region for region in response.json()["regions"]}


def commit_ok(full=True, status=Status.OK):
    """A round that finds every proxy of the database the same."""
    statuses = [ProxyStatus(p, "host", status, checked_at=NOW) for p in inventory.read(now=True).proxies]
    token = take_token()
    commit(statuses, token, full_round=a_round() if full else None)


def test_listing__a_snapshot_that_changes_between_two_polls(viewer, serve):
    server = serve()
    WorkspaceProxy.objects.create(name="paris", url=server.url)
    health.force_update()
    first = viewer.get(LIST).json()
    assert first["regions"][0]["healthy"] is True
    server.report = {"errors": ["out of order"]}
    health.force_update()
    second = viewer.get(LIST).json()
    assert second["regions"][0]["healthy"] is False
    assert second["regions"][0]["status"]["report"]["errors"] == ["out of order"]
    assert second["snapshot"]["number"] == first["snapshot"]["number"] + 1
    assert regions(viewer, REGIONS)["paris"]["healthy"] is False
    assert viewer.get(f"{LIST}/paris").json() == second["regions"][0]


def test_listing__a_proxy_that_moved_is_unknown_until_it_was_probed(viewer, serve):
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    health.force_update()
    assert regions(viewer)["paris"]["healthy"] is True
    proxy.url = "http://127.0.0.1:1"
    proxy.save()
    moved = regions(viewer)["paris"]
    assert moved["path_app_url"] == "http://127.0.0.1:1"
    assert moved["healthy"] is False
    assert moved["status"]["status"] == "unknown"
    assert regions(viewer, REGIONS)["paris"]["healthy"] is False


def test_listing__a_proxy_that_was_renamed_keeps_its_status(viewer, paris):
    paris.name = "lutetia"
    paris.save()
    assert regions(viewer)["lutetia"]["status"]["reason"] == "report_errors"
    assert viewer.get(f"{LIST}/paris").status_code == 404
    assert viewer.get(f"{LIST}/Lutetia").status_code == 200


def test_listing__what_was_saved_a_moment_ago_is_found_at_once(viewer, configure):
    configure(READ_INTERVAL=60)
    assert viewer.get(f"{LIST}/paris").status_code == 404
    WorkspaceProxy.objects.create(name="paris")
    assert viewer.get(f"{LIST}/paris").json()["status"]["status"] == "unknown"


def test_listing__a_check_of_what_was_saved_a_moment_ago(operator, configure, sent):
    configure(READ_INTERVAL=60)
    operator.get(LIST)
    paris = WorkspaceProxy.objects.create(name="paris")
    assert operator.post(f"{LIST}/paris/check").status_code == 202
    health.request_check([]).result(30)
    assert sent == [{str(paris.pk)}]


def test_primary__is_a_region_and_no_proxy(viewer, operator, paris, configure, sent):
    configure(PRIMARY={"url": "https://example.com", "display_name": "Here", "icon": "/here.png"})
    assert list(regions(viewer, REGIONS)) == ["primary", "paris"], "it is the first"
    primary = regions(viewer, REGIONS)["primary"]
    assert primary.pop("id") == "4fd35a71-71ef-5a55-a9d9-aa75c889a6d0"
    assert primary == {
        "name": "primary",
        "display_name": "Here",
        "icon_url": "/here.png",
        "healthy": True,
        "path_app_url": "https://example.com",
        "wildcard_hostname": "",
    }
    assert list(regions(viewer)) == ["paris"]
    assert viewer.get(f"{LIST}/primary").status_code == 404
    assert operator.post(f"{LIST}/primary/check").status_code == 404


def test_primary__is_selected_as_the_others_are(viewer, paris, configure):
    id = uuid4()
    configure(PRIMARY={"url": "https://example.com", "id": id, "wildcard_hostname": "*.example.com"})
    assert regions(viewer, REGIONS)["primary"]["id"] == str(id)
    assert regions(viewer, REGIONS)["primary"]["display_name"] == "Primary"
    assert list(regions(viewer, f"{REGIONS}?healthy=true")) == ["primary"]
    assert list(regions(viewer, f"{REGIONS}?healthy=false")) == ["paris"]
    assert list(regions(viewer, f"{REGIONS}?q=EXAMPLE.com")) == ["primary"]
    page = viewer.get(f"{REGIONS}?limit=1").json()
    assert [region["name"] for region in page["regions"]] == ["primary"]
    page = viewer.get(f"{REGIONS}?limit=1&cursor={page['next_cursor']}").json()
    assert [region["name"] for region in page["regions"]] == ["paris"]
    assert page["next_cursor"] is None


def test_primary__comes_and_goes_with_the_setting(viewer, paris, configure):
    assert "primary" not in regions(viewer, REGIONS)
    configure(PRIMARY={"url": "https://example.com"})
    assert "primary" in regions(viewer, REGIONS)
    configure(PRIMARY=None)
    assert "primary" not in regions(viewer, REGIONS)


def test_no_snapshot__everything_is_unknown_and_stale(viewer):
    WorkspaceProxy.objects.create(name="paris", url="http://127.0.0.1:1")
    response = viewer.get(LIST)
    body = response.json()
    assert body["regions"][0]["status"]["status"] == "unknown"
    assert body["snapshot"]["number"] == 0
    assert body["snapshot"]["stale"] is True
    assert response["Proxyhealth-Stale"] == "true"
    assert regions(viewer, REGIONS)["paris"]["healthy"] is False


def test_redis_down__the_last_statuses_and_why_they_may_be_old(viewer, paris, stopped):
    before = viewer.get(LIST).json()
    stopped()
    response = viewer.get(LIST)
    assert response.status_code == 200
    after = response.json()
    assert after["regions"] == before["regions"]
    assert after["snapshot"]["stale"] is True
    assert "The cache cannot be read" in after["snapshot"]["stale_reason"]
    assert response["Proxyhealth-Stale"] == "true"
    assert viewer.get(REGIONS)["Proxyhealth-Stale"] == "true"


def test_redis_down__from_the_start(viewer, stopped):
    WorkspaceProxy.objects.create(name="paris", url="http://127.0.0.1:1")
    stopped()
    body = viewer.get(LIST).json()
    assert body["regions"][0]["status"]["status"] == "unknown"
    assert body["snapshot"]["stale"] is True


def test_redis_down__a_check_is_taken(operator, paris, stopped):
    stopped()
    with at_most(3):
        assert operator.post(f"{LIST}/paris/check").status_code == 202


def test_database_down__regions_for_everybody_are_still_there(paris, configure):
    configure(PUBLIC_REGIONS=True)
    before = Client().get(REGIONS)
    assert before["Proxyhealth-Stale"] == "false"

    def refuse(*args):
        raise OperationalError("gone")

    with connection.execute_wrapper(refuse):
        during = Client().get(REGIONS)
        listing.forget()
        inventory.forget()
        without_copy = Client().get(REGIONS)
    assert during.json() == before.json()
    assert during["Proxyhealth-Stale"] == "true"
    assert without_copy.status_code == 503
    assert Client().get(REGIONS)["Proxyhealth-Stale"] == "false"


def test_ten_thousand__are_all_there_and_in_order(viewer, django_assert_num_queries):
    WorkspaceProxy.objects.bulk_create(
        WorkspaceProxy(name=f"proxy-{i:05}", url=f"http://127.0.0.1:{i + 1}") for i in range(10_000)
    )
    commit_ok()
    with django_assert_num_queries(6):
        body = viewer.get(LIST).json()
    assert [region["name"] for region in body["regions"]] == [f"proxy-{i:05}" for i in range(10_000)]
    assert all(region["healthy"] for region in body["regions"])
    assert list(regions(viewer, f"{LIST}?q=proxy-0999")) == [f"proxy-0999{i}" for i in range(10)]
    cursor, found = "", []
    while cursor is not None:
        page = viewer.get(f"{LIST}?limit=1000{cursor and f'&cursor={cursor}'}").json()
        found += page["regions"]
        cursor = page["next_cursor"]
    assert found == body["regions"]


def test_bytes__are_those_of_the_shapes_of_any_text(viewer, serve):
    text = "\"\\ \u2028 </script> é 🌍 '"
    server = serve(report={"errors": [text], "warnings": [text]})
    WorkspaceProxy.objects.create(name="x", display_name=text, version=text[:20], url=server.url)
    health.force_update()
    region = regions(viewer)["x"]
    assert region["display_name"] == text
    assert region["version"] == text[:20]
    assert len(region["status"]["report"]["errors"]) == 1
    assert region["status"]["report"]["errors"][0].startswith('"\\ ')


def test_bytes__a_lone_surrogate_spoils_nothing(viewer):
    WorkspaceProxy.objects.create(name="paris")
    rows = inventory.read().proxies
    broken = ProxyStatus(rows[0], "", Status.UNREGISTERED, checked_at=NOW, reason="\ud800")
    parts = listing.Parts.read()._replace(
        snapshot=Snapshot(statuses={rows[0].id: broken}), stale_reason="\udfff"
    )
    body = listing.Listing(parts).select("proxies", EVERYTHING).body
    assert json.loads(body)["regions"][0]["status"]["reason"] == "?"


def test_current__is_the_same_until_something_changes(paris):
    before = listing.current()
    assert listing.current() is before
    bytes_before = before.select("proxies", EVERYTHING)
    assert listing.current().select("proxies", EVERYTHING) is bytes_before
    commit_ok()
    after = listing.current()
    assert after is not before
    assert after.select("proxies", EVERYTHING) is not bytes_before
    assert before.select("proxies", EVERYTHING) is bytes_before, "who has the one before has it whole"


def test_current__what_says_the_same_stays_as_it_was_compressed(paris):
    before = listing.current().select("regions", EVERYTHING)
    assert before.gzipped
    health.force_update()
    assert listing.current().select("regions", EVERYTHING) is before


def test_current__what_was_compressed_is_compressed_for_all(paris, monkeypatch):
    for i in range(10):
        WorkspaceProxy.objects.create(name=f"p{i}")
    assert listing.current().select("proxies", EVERYTHING).gzipped
    commit_ok()
    made = listing.current().select("proxies", EVERYTHING)
    monkeypatch.setattr("gzip.compress", None)
    assert made.gzipped, "it was made with the listing"


@pytest.fixture
def current_while_making(monkeypatch):
    """What ``listing.current()`` is for one who makes it, and for another one meanwhile."""

    def run(seconds=0.0):
        making, go_on = threading.Event(), threading.Event()
        entries = listing._Entries
        found = []

        def slow(*args):
            making.set()
            assert go_on.wait(5)
            return entries(*args)

        def other():
            making.wait(5)
            if seconds:
                threading.Timer(seconds, go_on.set).start()
            found.append(listing.current())
            go_on.set()

        monkeypatch.setattr(listing, "_Entries", slow)
        # Threads have connections of their own, which see nothing of this test's transaction.
        rows = inventory.read()
        monkeypatch.setattr(inventory, "read", lambda epoch=0, now=False: rows)
        thread = threading.Thread(target=other)
        thread.start()
        maker = listing.current()
        thread.join(5)
        return maker, *found

    return run


def test_current__what_nobody_asks_for_any_more_is_not_made(paris):
    listing.current().select("proxies", EVERYTHING)
    commit_ok()
    assert list(listing.current()._whole) == ["proxies"]
    commit_ok()
    assert list(listing.current()._whole) == []


def test_current__while_one_makes_it_the_others_have_the_one_before(paris, configure, current_while_making):
    configure(READ_INTERVAL=60)
    before = listing.current()
    commit_ok(status=Status.UNREACHABLE)
    reader.read_anew()
    maker, other = current_while_making()
    assert other is before
    assert maker is not before


def test_current__while_one_makes_it_the_others_wait_if_the_one_before_is_old(paris, current_while_making):
    before = listing.current()
    commit_ok(status=Status.UNREACHABLE)
    maker, other = current_while_making(seconds=0.2)
    assert other is maker is not before


def test_current__who_is_overtaken_does_not_go_back(paris, monkeypatch):
    """Between what a thread has read and its turn, another one reads and makes something newer."""
    read = listing.Parts.read
    newer = []

    def overtaken(now=False):
        parts = read(now)
        monkeypatch.setattr(listing.Parts, "read", read)
        commit_ok(status=Status.UNREACHABLE)
        newer.append(listing.current())
        return parts

    for now in (False, True):
        listing.current()
        commit_ok()
        monkeypatch.setattr(listing.Parts, "read", overtaken)
        assert listing.current(now=now) is newer[-1]


def test_current__a_question_that_is_not_answered_holds_nobody_up(paris):
    """The database hangs while one asks it for an unknown proxy: the others hear what rounds find out."""
    assert listing.current().find("paris").status == Status.UNHEALTHY
    asked, go_on = threading.Event(), threading.Event()
    found = []

    def hang(execute, *args):
        asked.set()
        assert go_on.wait(10)
        return execute(*args)

    def other():
        asked.wait(5)
        status = make_status(health.snapshot().statuses[paris.pk].proxy, Status.UNREACHABLE)
        commit([status], take_token(), full_round=a_round())
        found.append(listing.current())
        go_on.set()

    thread = threading.Thread(target=other)
    thread.start()
    with connection.execute_wrapper(hang):
        listing.current(now=True)
    thread.join(5)
    assert found[0].find("paris").status == Status.UNREACHABLE
    assert found[0].stale
    assert not listing.current().stale


def test_current__readers_in_many_threads_see_whole_snapshots_one_after_the_other(monkeypatch):
    WorkspaceProxy.objects.create(name="paris")
    rows = inventory.read()
    monkeypatch.setattr(inventory, "read", lambda epoch=0, now=False: rows)
    listing.current()
    over = threading.Event()
    faults = []

    def poll():
        last = 0
        while not over.wait(0.001):
            body = json.loads(listing.current().select("proxies", EVERYTHING).body)
            number = body["snapshot"]["number"]
            errors = body["regions"][0]["status"]["report"]["errors"]
            if number < last or (number and errors != [str(number)]):
                faults.append((last, number, errors))
            last = number

    readers = [threading.Thread(target=poll) for _ in range(8)]
    for thread in readers:
        thread.start()
    for number in range(1, 101):
        report = HealthReport((str(number),))
        status = make_status(rows.proxies[0], Status.UNHEALTHY, report=report)
        commit([status], take_token())
    wait_for(lambda: listing.current().parts.snapshot.number == 100)
    over.set()
    for thread in readers:
        thread.join(5)
    assert faults == []


def test_select__what_many_ask_for_is_made_once(paris, monkeypatch):
    known = listing.current()
    wanted = Selection(text="par")
    assert known.select("proxies", wanted) is known.select("proxies", Selection(text="par"))
    assert known.select("regions", wanted) is not known.select("proxies", wanted)
    for number in range(1_000):
        known.select("proxies", Selection(text=f"par{number}"))
    assert len(known._parts) <= 64
    monkeypatch.setattr(listing, "_KEPT", 1_000)
    for number in range(5):
        assert known.select("proxies", Selection(text="par", limit=number + 1)).body
    assert sum(len(part.body) for part in known._parts.values()) <= 1_000
