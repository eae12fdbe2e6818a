"""Rows that skipped validation, as those of ``bulk_create()``, fixtures and ``queryset.update()`` do."""

from __future__ import annotations

import json
import re

import pytest
from django.test import Client
from hypothesis import assume, given
from hypothesis import strategies as st

from proxyhealth import health
from proxyhealth.api.representation import _PLAIN_ROW
from proxyhealth.models import WorkspaceProxy
from proxyhealth.probing.probe import probe
from proxyhealth.statuses import Reason, Status
from tests.support.api import LIST, REGIONS
from tests.support.csp import extended_policy

pytestmark = pytest.mark.django_db

BAD_URLS = [
    "ftp://x y",
    "javascript:alert(document.domain)",
    "//paris.example.com",
    "https://user:secret@paris.example.com",
    "https://paris.example.com?token=secret",
    " https://paris.example.com",
    "https://paris.example.com:0",
    "https://[::1",
    "https://2130706433",
    'https://paris.example.com/"><script>',
    "https://paris.example.com/\u202e",
    "https://par\u200bis.example.com",
]
BAD_NAMES = ["primary", "PRIMARY", "a/b", "../x", "a\\b", "a\nb", "a\x01", "a\x85", ""]
BAD_NAMES += [
    " primary ",
    "ｐｒｉｍａｒｙ",
    "primary\u200b",
    "\u202eabc",
    ".",
    "..",
    "openapi.json",
    "\u3164",
    "a\ufe0f",
    # PostgreSQL refuses these.
    *(pytest.param(name, marks=pytest.mark.sqlite) for name in ("a" * 65, "a\x00")),
]


def insert(**values):
    """Return the row that ``bulk_create()`` saves without validation."""
    return WorkspaceProxy.objects.bulk_create([WorkspaceProxy(**{"name": "paris", **values})])[0]


def region_of(client):
    (region,) = client.get(REGIONS).json()["regions"]
    return region


def assert_invalid(viewer):
    region = region_of(viewer)
    assert (region["healthy"], region["path_app_url"]) == (False, "")
    (proxy,) = viewer.get(LIST).json()["regions"]
    assert proxy["path_app_url"] == ""
    status = proxy["status"]
    assert (status["status"], status["reason"]) == ("unhealthy", "invalid_url")
    assert status["report"]["errors"][0].startswith("failed to parse proxy url: ")
    return status


@pytest.mark.parametrize("url", BAD_URLS)
def test_url__is_invalid_before_and_after_a_round(viewer, url):
    row = insert(url=url)
    before = assert_invalid(viewer)
    assert before["checked_at"] is None
    assert health.status_of(row).report == probe(row.as_proxy()).report
    health.force_update()
    after = assert_invalid(viewer)
    assert after == {**before, "checked_at": after["checked_at"], "since": after["since"]}
    assert after["checked_at"]
    assert health.proxy_hosts() == health.proxy_hosts(healthy_only=True) == []
    assert extended_policy("connect-src 'self'") == "connect-src 'self'"
    assert f'proxyhealth_health_check_results{{proxy_id="{row.pk}"}} -1.0' in metrics()


def metrics():
    return Client().get("/metrics").content.decode()


def test_url__updated_to_an_invalid_one(viewer, paris):
    health.force_update()
    WorkspaceProxy.objects.update(url="ftp://x y")
    paris.refresh_from_db()
    assert health.status_of(paris).reason is Reason.INVALID_URL
    health.force_update()
    assert_invalid(viewer)
    assert health.proxy_hosts() == []


def test_url__cannot_be_searched_for_its_secret(viewer):
    insert(url="https://user:secret@paris.example.com")
    assert viewer.get(f"{REGIONS}?q=secret").json()["regions"] == []
    assert len(viewer.get(f"{REGIONS}?q=paris").json()["regions"]) == 1


@pytest.mark.parametrize(
    ("field", "key", "values"),
    [
        ("icon", "icon_url", ["javascript:alert(1)", "data:text/html,x", '/a"onload=', "/a b", "ftp://x/y"]),
        ("icon", "icon_url", ["x", "//evil.example/x", "///x", "http:///x", "https://", "https://u:p@x/y"]),
        ("icon", "icon_url", ["/a\x01b", "/a\u202eb", "https://x\u200b/y", "/\t/x", "/\\x"]),
        ("wildcard_hostname", "wildcard_hostname", ["*", "evil.example", "*.x/..", "*.x; script-src *"]),
        ("wildcard_hostname", "wildcard_hostname", ["*.a b", "*.a.example\n", "http://*.a.example", "*.a:0"]),
        (
            "wildcard_hostname",
            "wildcard_hostname",
            ["*.u@a.example", "*.a\u200b.example", "*.-a.com", "*.*.a"],
        ),
    ],
)
def test_link__is_not_served(viewer, field, key, values):
    rows = [WorkspaceProxy(name=f"p{i}", **{field: value}) for i, value in enumerate(values)]
    WorkspaceProxy.objects.bulk_create(rows)
    assert {region[key] for region in viewer.get(REGIONS).json()["regions"]} == {""}


def test_text__has_no_control_characters(viewer):
    insert(display_name="Paris\x01\u202e é\n", version="v2\u2066\x1b[31m")
    (proxy,) = viewer.get(LIST).json()["regions"]
    assert (proxy["display_name"], proxy["version"]) == ("Paris é", "v2[31m")


@given(st.from_regex(_PLAIN_ROW, fullmatch=True))
def test_plain_row__is_what_the_form_accepts(text):
    """A shortcut past the validators must not accept more than they do."""
    assume(not any(pair in text for pair in ("..", ".-", "-.")))
    name, url, icon, wildcard_hostname = text.split("\n")
    row = WorkspaceProxy(name=name, url=url, icon=icon, wildcard_hostname=wildcard_hostname)
    row.clean_fields(exclude=["display_name", "version"])


@pytest.mark.parametrize("name", BAD_NAMES)
def test_name__is_replaced_by_the_id(viewer, serve, name):
    row = insert(name=name, url=serve().url)
    health.force_update()
    region = region_of(viewer)
    assert (region["name"], region["display_name"]) == (str(row.pk), str(row.pk))
    assert region["healthy"] is True
    assert viewer.get(f"{LIST}/{row.pk}").json()["name"] == str(row.pk)
    if name == "primary":
        assert viewer.get(f"{LIST}/primary").status_code == 404


def test_names__of_pages_are_in_order(viewer):
    WorkspaceProxy.objects.bulk_create(
        WorkspaceProxy(name=name) for name in ("b", "c d", "a", "Primary", "é", "z", "f" * 64)
    )
    seen, query = [], "?limit=1"
    while query:
        page = viewer.get(REGIONS + query).json()
        seen += [region["name"] for region in page["regions"]]
        query = page["next_cursor"] and f"?limit=1&cursor={page['next_cursor']}"
    assert len(set(seen)) == len(seen) == 7
    assert seen == [region["name"] for region in viewer.get(REGIONS).json()["regions"]]


def test_cursor__needs_no_escape(viewer):
    """A URL parser drops a bare tab, which would move "b" and its id behind "b0"."""
    insert(name="b", id="f" * 32)
    insert(name="b0")
    page = viewer.get(f"{REGIONS}?limit=1").json()
    assert re.fullmatch("[A-Za-z0-9_-]+", page["next_cursor"])
    page = viewer.get(f"{REGIONS}?limit=1&cursor={page['next_cursor']}").json()
    assert [region["name"] for region in page["regions"]] == ["b0"]


def test_valid_row__is_served_as_it_is(viewer, paris):
    region = region_of(viewer)
    assert (region["name"], region["path_app_url"]) == ("paris", paris.url)
    assert (region["icon_url"], region["wildcard_hostname"]) == ("/emojis/fr.png", "*.paris.example.com")


def test_admin__shows_the_row_as_it_is(admin_client):
    row = insert(name="a/<b>", url="ftp://x y", icon="javascript:alert(1)")
    path = "/admin/proxyhealth/workspaceproxy/"
    for page in (path, f"{path}health/", f"{path}{row.pk}/change/"):
        text = admin_client.get(page).content.decode()
        assert "ftp://x y" in text
        assert "a/&lt;b&gt;" in text
        assert 'href="ftp:' not in text
        assert 'href="javascript:alert' not in text
    assert "it contains a space" in admin_client.get(f"{path}health/").content.decode()
    assert health.status_of(row).status is Status.UNHEALTHY


def test_metrics__labels_have_no_invisible_characters():
    insert(name="par\u202eis\u200b\u3164\x1b[31m\u2028", url="ftp://x y")
    health.force_update()
    assert 'name="paris[31m",host=""' in metrics()


def test_metrics__label_of_any_name():
    insert(name='a"b\n\\', url="ftp://x y")
    health.force_update()
    assert f'name={json.dumps(chr(97) + chr(34) + "b" + chr(10) + chr(92))},host=""' in metrics()
