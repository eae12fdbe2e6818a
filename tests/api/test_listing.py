"""The lists of proxies and regions as JSON: their contents, and what they say during failures."""

import json
from uuid import uuid4

import pytest
from django.db import OperationalError, connection
from django.test import Client

from proxyhealth import health
from proxyhealth.api import inventory, listing
from proxyhealth.api.query import EVERYTHING
from proxyhealth.models import WorkspaceProxy
from proxyhealth.snapshot import ProxyStatus, Snapshot
from proxyhealth.statuses import Status
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from tests.support.api import LIST, REGIONS
from tests.support.machine import at_most
from tests.support.values import NOW, a_round

pytestmark = pytest.mark.django_db


def regions(client, path=LIST):
    response = client.get(path)
    assert response.status_code == 200
    return {region["name"]: region for region in response.json()["regions"]}


def test_listing__follows_the_snapshot(viewer, serve):
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


def test_listing__a_proxy_with_a_new_url_is_unknown(viewer, serve):
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


def test_listing__a_renamed_proxy_keeps_its_status(viewer, paris):
    paris.name = "lutetia"
    paris.save()
    assert regions(viewer)["lutetia"]["status"]["reason"] == "report_errors"
    assert viewer.get(f"{LIST}/paris").status_code == 404
    assert viewer.get(f"{LIST}/Lutetia").status_code == 200


def test_listing__a_new_proxy_is_found_at_once(viewer, configure):
    configure(READ_INTERVAL=60)
    assert viewer.get(f"{LIST}/paris").status_code == 404
    WorkspaceProxy.objects.create(name="paris")
    assert viewer.get(f"{LIST}/paris").json()["status"]["status"] == "unknown"


def test_listing__a_new_proxy_can_be_checked_at_once(operator, configure, sent):
    configure(READ_INTERVAL=60)
    operator.get(LIST)
    paris = WorkspaceProxy.objects.create(name="paris")
    assert operator.post(f"{LIST}/paris/check").status_code == 202
    health.request_check([]).result(30)
    assert sent == [{str(paris.pk)}]


def test_primary__is_a_region_but_not_a_proxy(viewer, operator, paris, configure, sent):
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


def test_primary__is_filtered_and_paged_as_others(viewer, paris, configure):
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


def test_primary__follows_the_setting(viewer, paris, configure):
    assert "primary" not in regions(viewer, REGIONS)
    configure(PRIMARY={"url": "https://example.com"})
    assert "primary" in regions(viewer, REGIONS)
    configure(PRIMARY=None)
    assert "primary" not in regions(viewer, REGIONS)


def test_no_snapshot__all_are_unknown_and_stale(viewer):
    WorkspaceProxy.objects.create(name="paris", url="http://127.0.0.1:1")
    response = viewer.get(LIST)
    body = response.json()
    assert body["regions"][0]["status"]["status"] == "unknown"
    assert body["snapshot"]["number"] == 0
    assert body["snapshot"]["stale"] is True
    assert response["Proxyhealth-Stale"] == "true"
    assert regions(viewer, REGIONS)["paris"]["healthy"] is False


def test_redis_down__last_statuses_with_the_fault(viewer, paris, stopped):
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


def test_redis_down__accepts_a_check(operator, paris, stopped):
    stopped()
    with at_most(3):
        assert operator.post(f"{LIST}/paris/check").status_code == 202


def test_database_down__still_lists_public_regions(paris, configure):
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
    assert during.json()["regions"] == before.json()["regions"]
    assert during.json()["stale_reason"] == "The regions cannot be updated at the moment."
    assert during["Proxyhealth-Stale"] == "true"
    assert without_copy.status_code == 503
    assert Client().get(REGIONS)["Proxyhealth-Stale"] == "false"


def test_ten_thousand__complete_and_in_order(viewer, django_assert_num_queries):
    WorkspaceProxy.objects.bulk_create(
        WorkspaceProxy(name=f"proxy-{i:05}", url=f"http://127.0.0.1:{i + 1}") for i in range(10_000)
    )
    proxies = inventory.read(now=True).proxies
    commit(
        [ProxyStatus(p, "host", Status.OK, checked_at=NOW) for p in proxies],
        take_token(),
        full_round=a_round(),
    )
    with django_assert_num_queries(8):
        body = viewer.get(LIST).json()
    assert [region["name"] for region in body["regions"]] == [f"proxy-{i:05}" for i in range(10_000)]
    assert all(region["healthy"] for region in body["regions"])
    assert list(regions(viewer, f"{LIST}?q=proxy-0999")) == [f"proxy-0999{i}" for i in range(10)]
    cursor, listed = "", []
    while cursor is not None:
        page = viewer.get(f"{LIST}?limit=1000{cursor and f'&cursor={cursor}'}").json()
        listed += page["regions"]
        cursor = page["next_cursor"]
    assert listed == body["regions"]


def test_bytes__of_any_text(viewer, serve):
    text = "\"\\ \u2028 </script> é 🌍 '"
    server = serve(report={"errors": [text], "warnings": [text]})
    WorkspaceProxy.objects.create(name="x", display_name=text, version=text[:20], url=server.url)
    health.force_update()
    region = regions(viewer)["x"]
    assert region["display_name"] == text.replace("\u2028", " ")
    assert region["version"] == text[:20].replace("\u2028", " ")
    assert len(region["status"]["report"]["errors"]) == 1
    assert region["status"]["report"]["errors"][0].startswith('"\\ ')


def test_bytes__of_a_lone_surrogate(viewer):
    WorkspaceProxy.objects.create(name="paris")
    rows = inventory.read().proxies
    broken = ProxyStatus(rows[0], "", Status.UNREGISTERED, checked_at=NOW, reason="\ud800")
    parts = listing.Parts.read()._replace(
        snapshot=Snapshot(statuses={rows[0].id: broken}), stale_reason="\udfff"
    )
    body = listing.Listing(parts).select("proxies", EVERYTHING).body
    assert json.loads(body)["regions"][0]["status"]["reason"] == "?"
