"""The refreshes of an open page: what stays, what is marked and said, and when contact is lost."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import expect

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from tests.alive.helpers import REFRESH, WATCH, fail, names, refresh, said
from tests.support.browser import expected_problem

pytestmark = pytest.mark.django_db(transaction=True)


def test_open_page__keeps_focus_and_selection_across_a_re_sort(page, fleet):
    row = page.locator('tr[data-proxy="paris"]')
    button = row.get_by_role("button", name="Check paris now")
    button.focus()
    page.evaluate(
        """() => {
            window.row = document.querySelector('tr[data-proxy="paris"]');
            document.getSelection().selectAllChildren(window.row.querySelector("th a"));
        }"""
    )
    assert names(page) == ["cairo", "oslo", "paris"]
    fail(fleet["paris"])
    refresh(page)
    expect(row).to_have_attribute("data-status", "unhealthy")
    assert names(page) == ["paris", "cairo", "oslo"]
    expect(button).to_be_focused()
    assert page.evaluate("document.getSelection().toString()") == "paris"
    assert page.evaluate("window.row.isConnected")


def test_open_page__keeps_what_was_opened_chosen_and_typed(page, fleet):
    fail(fleet["oslo"], "x" * 400)
    refresh(page)
    page.locator('tr[data-proxy="oslo"] summary').click()
    page.get_by_label("Choose oslo").check()
    page.get_by_label("Search").fill("par")
    page.get_by_label("Order").select_option(label="Name")
    fail(fleet["cairo"])
    refresh(page)
    assert names(page) == ["cairo", "oslo", "paris"]
    expect(page.locator('tr[data-proxy="oslo"] details')).to_have_attribute("open", "")
    expect(page.get_by_label("Choose oslo")).to_be_checked()
    expect(page.get_by_label("Choose cairo")).not_to_be_checked()
    expect(page.get_by_label("Search")).to_have_value("par")
    expect(page.get_by_label("Order")).to_have_value("name")
    page.get_by_label("Choose all proxies of this page").check()
    expect(page.get_by_label("Choose cairo")).to_be_checked()
    refresh(page)
    expect(page.get_by_label("Choose all proxies of this page")).to_be_checked()


def test_open_page__says_a_change_once_and_marks_it(page, fleet):
    fail(fleet["paris"])
    for _ in range(3):
        refresh(page)
    assert said(page) == ["paris is unhealthy"]
    row = page.locator('tr[data-proxy="paris"]')
    expect(row).to_have_attribute("data-changed", "10")  # of 20 seconds, after two more refreshes
    expect(page.locator("tr[data-changed]")).to_have_count(1)
    page.clock.run_for(12_000)
    expect(page.locator("tr[data-changed]")).to_have_count(0)
    expect(page.locator("#proxyhealth-announcement")).to_be_empty()


def test_open_page__says_what_left_a_filtered_list(page, fleet):
    fail(fleet["cairo"])
    fail(fleet["oslo"])
    page.goto(f"{page.url}?status=unhealthy")
    page.evaluate(WATCH)
    page.get_by_role("button", name="Check cairo now").focus()
    fleet["cairo"].report = {}
    fail(fleet["paris"])
    refresh(page)
    expect(page.locator('tr[data-proxy="paris"]')).to_be_visible()
    assert said(page) == ["Proxies that changed: 2. paris is unhealthy, cairo is no longer in this list"]
    expect(page.get_by_role("link", name="oslo", exact=True)).to_be_focused()


def test_open_page__keeps_the_row_that_is_read_in_its_place(page, fleet):
    WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=f"p{number:02}") for number in range(30))
    health.force_update()
    refresh(page)
    row = page.locator('tr[data-proxy="p20"]')
    row.evaluate("(row) => row.scrollIntoView({ block: 'start' })")
    top = row.bounding_box()["y"]
    fail(fleet["paris"])
    fail(fleet["cairo"])
    refresh(page)
    assert names(page)[:2] == ["cairo", "paris"]
    assert abs(row.bounding_box()["y"] - top) < 2


def test_open_page__ages_come_from_the_clock_of_the_server(page):
    with page.expect_response("**/health/"):
        page.clock.pause_at(datetime.now(UTC) + timedelta(minutes=30))
    expect(page.locator("#proxyhealth-facts time")).to_contain_text(" s ago)")


def test_open_page__says_many_changes_in_one_sentence(page, fleet):
    fleet["oslo"].report = {"errors": ["x"]}
    fail(fleet["paris"])
    refresh(page)
    expect(page.locator("tr[data-changed]")).to_have_count(2)
    assert said(page) == ["Proxies that changed: 2. oslo is unhealthy, paris is unhealthy"]


def test_open_page__never_goes_back_in_time(page, fleet):
    """Of two web processes, one is behind."""
    old = page.request.get(page.url).body()
    fail(fleet["paris"])
    refresh(page)
    row = page.locator('tr[data-proxy="paris"]')
    expect(row).to_have_attribute("data-status", "unhealthy")
    page.route("**/health/", lambda route: route.fulfill(body=old, content_type="text/html"))
    for _ in range(3):
        refresh(page)
    expect(page.locator("#proxyhealth-age")).to_have_text(re.compile(r"Refreshed 1\d s ago\."))
    expect(row).to_have_attribute("data-status", "unhealthy")
    refresh(page)  # all of its processes are behind: that is what the server has
    expect(row).to_have_attribute("data-status", "ok")


def test_open_page__goes_on_after_redis_was_emptied(page, fleet, redis_client):
    fail(fleet["oslo"])
    refresh(page)
    redis_client.flushall()
    fail(fleet["paris"])
    refresh(page)
    expect(page.locator('tr[data-proxy="paris"]')).to_have_attribute("data-status", "unhealthy")
    expect(page.locator("#proxyhealth-live")).to_have_attribute("data-snapshot", "1")


def test_open_page__redis_down_and_back(page, fleet, stopped, valkey):
    stopped()
    refresh(page)
    stale = page.locator("#proxyhealth-live .proxyhealth-stale")
    expect(stale).to_contain_text("The cache cannot be read")
    expect(page.locator("tr[data-proxy]")).to_have_count(3)
    valkey.start()
    health.force_update()
    refresh(page)
    expect(stale).to_have_count(0)


def test_open_page__web_server_down_and_back(page, site):
    title = page.title()
    site.stop()
    offline = page.locator("#proxyhealth-offline")
    with expected_problem(page, "ERR_CONNECTION_REFUSED"):
        page.clock.run_for(REFRESH)
        page.clock.run_for(1_000)  # a restart takes a moment
        expect(offline).to_contain_text("Contact lost: The server does not answer.")
        page.clock.run_for(REFRESH)
        expect(offline).to_contain_text("The statuses may be out of date.")
        assert page.title().startswith("Contact lost, last refreshed 1")
    site.start()
    refresh(page)
    expect(offline).to_be_hidden()
    assert page.title() == title
    assert [text.split(":")[0] for text in said(page)] == ["Contact lost", "The contact is back."]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"status": 403, "body": "no"}, "You may no longer see this page."),
        ({"status": 302, "headers": {"Location": "/admin/login/"}}, "You are no longer signed in."),
        (
            {"status": 200, "body": "<p>Hi", "content_type": "text/html"},
            "The server answers with another page",
        ),
    ],
    ids=["forbidden", "signed out", "other page"],
)
def test_open_page__says_why_contact_is_lost(page, answer, text):
    page.route("**/health/", lambda route: route.fulfill(**answer))
    with expected_problem(page, "Failed to load resource"):
        page.clock.run_for(REFRESH)
        expect(page.locator("#proxyhealth-offline")).to_contain_text(f"Contact lost: {text}")
    expect(page.locator("tr[data-proxy]")).to_have_count(3)


def test_open_page__unchanged_page_costs_nothing(page):
    tags = []

    def respond(route):
        tags.append(route.request.headers.get("if-none-match"))
        if len(tags) == 1:
            response = route.fetch()
            route.fulfill(response=response, headers={**response.headers, "ETag": '"one"'})
        else:
            route.fulfill(status=304)

    page.route("**/health/", respond)
    for _ in range(2):
        refresh(page)
    expect(page.locator("#proxyhealth-age")).to_have_text("Refreshed 0 s ago.")
    assert tags == [None, '"one"']


def test_open_page__hidden_tab_refreshes_less(page):
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.evaluate(
        """() => {
            window.away = true;
            Object.defineProperty(document, "hidden", { get: () => window.away });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    page.clock.run_for(59_000)
    assert requests == []
    with page.expect_response("**/health/"):
        page.evaluate("() => { window.away = false; document.dispatchEvent(new Event('visibilitychange')); }")


def test_open_page__leaves_nothing_behind(page, fleet):
    """Over many refreshes, neither elements nor timers add up."""
    page.evaluate(
        """() => {
            window.timers = new Set();
            const [start, clear] = [window.setTimeout, window.clearTimeout];
            window.setTimeout = (call, ...rest) => {
                const id = start(() => { window.timers.delete(id); call(); }, ...rest);
                window.timers.add(id);
                return id;
            };
            window.clearTimeout = (id) => { window.timers.delete(id); clear(id); };
        }"""
    )
    refresh(page)
    before = page.evaluate("document.querySelectorAll('*').length")
    for _ in range(10):
        refresh(page)
    assert page.evaluate("document.querySelectorAll('*').length") == before
    assert page.evaluate("window.timers.size") <= 2
