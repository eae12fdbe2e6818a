"""The layout of the health page in a real browser: wide, narrow, from right to left, and printed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import expect

from proxyhealth.models import WorkspaceProxy
from proxyhealth.testing import FakeStatus, fake_snapshot
from tests.support.browser import assert_accessible, open_page

pytestmark = pytest.mark.django_db(transaction=True)

PATH = "/admin/proxyhealth/workspaceproxy/health/"
HOSTILE = "<script>document.title = 'hacked'</script><b>bold</b> \u202e" + "W" * 500
LONG_URL = f"https://{'a' * 60}.{'b' * 60}.example.com:8443"

# The elements whose text is cut off or that are outside of the window.
CUT = """() => [...document.querySelectorAll("#proxyhealth-live *")].filter((each) => {
    const box = each.getBoundingClientRect();
    if (!box.width || each.closest("svg, .visually-hidden, summary, input, select")) return false;
    return box.right > innerWidth + 1 || box.left < -1 || each.scrollWidth > each.clientWidth + 1 &&
        getComputedStyle(each).display !== "inline";
}).map((each) => each.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module", autouse=True)
def queries_beside_playwright():
    """Playwright runs an event loop in this thread, which uses the database all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        yield


@pytest.fixture
def page(browser, live_server):
    """The page of a fleet with the worst texts, with a script as without."""
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    WorkspaceProxy.objects.create(
        name="hostile", display_name="M" * 128, url=LONG_URL, labels={"k" * 60: "v" * 60, "region": "eu"}
    )
    for i in range(60):
        WorkspaceProxy.objects.create(name=f"p{i:02}", url=f"https://p{i}.example.com")
    hostile = FakeStatus(
        "unhealthy",
        errors=[f"{i} {HOSTILE}" for i in range(50)],
        warnings=["مرحبا بالعالم 123"],
        since=datetime.now(UTC) - timedelta(days=400, minutes=1),
        tls_expires_at=datetime.now(UTC) + timedelta(days=3),
        latency=123.456,
    )
    others = {f"p{i:02}": FakeStatus("ok", latency=0.01) for i in range(60)}
    with fake_snapshot({"hostile": hostile, **others}), open_page(browser) as page:
        cookie = client.cookies["sessionid"].value
        page.context.add_cookies([{"name": "sessionid", "value": cookie, "url": live_server.url}])
        page.goto(f"{live_server.url}{PATH}?q=e&window=90d")
        yield page


def test_layout__nothing_is_cut_off_at_any_width(page):
    title = page.title()
    for width in (1280, 1200, 800, 390, 320):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert [width, *page.evaluate(CUT)] == [width]
    page.goto(f"{page.url}&label={'k' * 60}:{'v' * 60}&q={'W' * 200}".replace("q=e&", ""))
    expect(page.locator("#proxyhealth-empty")).to_be_visible()
    assert page.evaluate(CUT) == []
    page.go_back()
    page.locator("summary").first.click()
    assert page.evaluate(CUT) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.title() == title, "no script of a report has run"


def test_layout__phone_shows_cards_with_large_buttons(page):
    page.set_viewport_size({"width": 390, "height": 800})
    row = page.locator("tr[data-proxy=hostile]")
    expect(page.locator("#proxyhealth-fleet thead")).to_be_hidden()
    assert row.bounding_box()["width"] > 300
    button = row.get_by_role("button").bounding_box()
    assert button["height"] >= 32
    badge, choose = (row.locator(each).bounding_box() for each in (".proxyhealth-badge", "input"))
    assert badge["x"] + badge["width"] < choose["x"]


def test_layout__from_right_to_left(page):
    page.goto(page.url.replace("q=e", "q=hostile"))
    page.evaluate("document.documentElement.dir = 'rtl'")
    assert page.evaluate(CUT) == []
    status, checked = (
        page.locator(f"tbody tr:first-child .proxyhealth-{name}") for name in ("state", "checked")
    )
    assert status.bounding_box()["x"] > checked.bounding_box()["x"]
    assert_accessible(page)


def test_layout__print_has_all_rows_and_no_controls(page):
    page.emulate_media(media="print")
    for hidden in (
        ".proxyhealth-tools",
        ".proxyhealth-choose",
        ".proxyhealth-row-actions",
        ".proxyhealth-pages",
    ):
        expect(page.locator(hidden).first).to_be_hidden()
    expect(page.locator("tr[data-proxy]").last).to_be_visible()
    expect(page.locator("#proxyhealth-headline")).to_be_visible()


def test_layout__works_without_a_script(page):
    """The search, the filters and the pages are forms and links."""
    page.get_by_label("Search").fill("hostile")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("tr[data-proxy]")).to_have_count(1)
    assert "window=90d" in page.url, "the search keeps the rest"
    page.get_by_role("link", name="Show all proxies").click()
    expect(page.locator("tr[data-proxy]")).to_have_count(50)
    page.get_by_role("link", name="Next").click()
    expect(page.locator("tr[data-proxy]")).to_have_count(11)
