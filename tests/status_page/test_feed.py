"""The outages as an Atom feed."""

from datetime import timedelta
from xml.etree import ElementTree as ET

import pytest
from django.db import connection

from proxyhealth.testing import fake_snapshot
from tests.status_page.test_status import create_outage, get
from tests.support.values import refuse_queries

ATOM = {"a": "http://www.w3.org/2005/Atom"}


def entries():
    response = get("/status/feed.atom")
    assert response.headers["Content-Type"] == "application/atom+xml; charset=utf-8"
    feed = ET.fromstring(response.content)
    return [
        {name: entry.findtext(f"a:{name}", namespaces=ATOM) for name in ("id", "title", "updated", "summary")}
        for entry in feed.findall("a:entry", ATOM)
    ]


def test_feed__entry_of_an_outage_keeps_its_id_when_it_ends(shown, paris):
    outage = create_outage(paris, timedelta(minutes=10))
    with fake_snapshot(paris="unreachable"):
        (during,) = entries()
    outage.ended_at = outage.began_at + timedelta(minutes=9)
    outage.save()
    with fake_snapshot(paris="ok"):
        (after,) = entries()
    assert during["id"] == after["id"]
    assert during["id"].startswith("urn:uuid:")
    assert (during["title"], after["title"]) == ("Paris <b> is down", "Paris <b> was down for 9 min")
    assert during["updated"] < after["updated"]


def test_feed__omits_an_outage_until_its_id_is_known(shown, paris):
    with fake_snapshot(paris="unreachable"):
        assert entries() == []


def test_feed__links_lead_to_the_site(shown, paris, configure):
    with fake_snapshot(paris="ok"):
        assert b'href="http://testserver/status/"' in get("/status/feed.atom").content
        configure(STATUS_PAGE=True, BASE_URL="https://status.example.com/")
        content = get("/status/feed.atom").content
    assert b'href="https://status.example.com/status/feed.atom" rel="self"' in content
    assert b"testserver" not in content


def test_feed__of_a_strange_host_is_refused(shown, settings):
    settings.ALLOWED_HOSTS = ["testserver"]
    with fake_snapshot():
        assert get("/status/feed.atom", host="evil.example").status_code == 400


def test_feed__database_down_is_503(shown, paris):
    with fake_snapshot(paris="ok"), connection.execute_wrapper(refuse_queries):
        response = get("/status/feed.atom")
    assert response.status_code == 503
    assert "no-store" in response.headers["Cache-Control"]


@pytest.mark.parametrize("name", ["\u202eevil\x00", "]]>&<x/>"])
def test_feed__any_name_is_valid_xml(shown, paris, name):
    paris.display_name = name
    paris.save()
    create_outage(paris, timedelta(minutes=1))
    with fake_snapshot(paris="unreachable"):
        (entry,) = entries()
    assert "\u202e" not in entry["title"]
