"""The region picker in a real browser while things change: the choice, the order, notices, and polls."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.project.picker import (
    MEASURED,
    POLL,
    ROUND_TIMEOUT,
    TIMEOUT,
    connection,
    notice,
    open_picker,
    radio,
    replace_regions,
    row,
    row_names,
)
from tests.support.browser import assert_accessible, expected_problem
from tests.support.proxies import wait_for


@pytest.fixture(scope="module")
def demo(quick_demo):
    return quick_demo


def without_paris(regions):
    """Return the regions with an unhealthy Paris, for ``replace_regions()``."""
    return [{**region, "healthy": region["healthy"] and region["name"] != "paris"} for region in regions]


# The choice


def test_choice__by_keyboard_survives_reload(page, demo):
    open_picker(page, demo)
    while not page.evaluate("document.activeElement.matches('.regions input')"):
        page.keyboard.press("Tab")
    expect(radio(page, row_names(page)[0])).to_be_focused()
    page.keyboard.press("Space")
    while page.evaluate("document.activeElement.labels[0].textContent") != "São Paulo":
        page.keyboard.press("ArrowDown")
    expect(radio(page, "São Paulo")).to_be_checked()
    expect(connection(page)).to_have_text("You are now connected through São Paulo.")
    page.reload()
    expect(connection(page)).to_have_text("You are connected through São Paulo.")
    expect(radio(page, "São Paulo")).to_be_checked()
    expect(row(page, "São Paulo").locator(".tag")).to_have_text("connected")


def test_choice__follows_other_tab(page, demo):
    open_picker(page, demo)
    other = page.context.new_page()
    open_picker(other, demo)
    row(other, "São Paulo").click()
    expect(radio(page, "São Paulo")).to_be_checked()
    expect(connection(page)).to_have_text("You are now connected through São Paulo.")


def test_choice__invalid_stored_value_is_ignored(page, demo):
    page.add_init_script("localStorage.setItem('proxyhealth.region', 'nonsense')")
    open_picker(page, demo)
    expect(connection(page)).to_contain_text("the nearest region")


# Either may be the nearest, and after a reload the first region that responds is used.
FALLEN_BACK = re.compile(
    r"^Paris is not available\. You are now connected through (Control plane|São Paulo)\.$"
)


def test_choice__falls_back_on_failure_and_returns(page, demo):
    open_picker(page, demo)
    expect(connection(page)).to_have_role("status")  # a polite live region
    row(page, "Paris").click()
    expect(connection(page)).to_have_text("You are now connected through Paris.")
    page.mouse.move(0, 0)
    # Until a round has noticed the failure, the page still measures Paris.
    with expected_problem(page, "ERR_CONNECTION_REFUSED"):
        assert demo.make("stop-proxy", "paris").returncode == 0
        try:
            assert_fallback(page)
        finally:
            demo.make("start-proxy", "paris")
        returned = "Paris is available again. You are now connected through Paris."
        expect(connection(page)).to_have_text(returned, timeout=ROUND_TIMEOUT)
    expect(radio(page, "Paris")).to_be_checked()
    expect(row(page, "Paris").locator(".tag")).to_have_text("connected")
    expect(row(page, "Paris").locator(".latency")).to_have_text(MEASURED)


def assert_fallback(page: Page) -> None:
    """Wait until the page has left Paris, and check it before and after a reload."""
    expect(connection(page)).to_have_text(FALLEN_BACK, timeout=ROUND_TIMEOUT)
    fallback = FALLEN_BACK.match(connection(page).inner_text())[1]
    expect(radio(page, "Paris")).to_be_disabled()
    expect(row(page, "Paris").locator(".tag")).to_have_text("your choice")
    # One of the two responses of a poll may be older than the round; those of the next poll agree.
    expect(row(page, "Paris")).to_contain_text("Connection refused", timeout=ROUND_TIMEOUT)
    expect(row(page, fallback).locator(".tag")).to_have_text("connected")
    expect(radio(page, fallback)).to_be_focused()  # the focus moved from Paris, which is disabled now
    assert row_names(page).index(fallback) < row_names(page).index("Paris")
    assert_accessible(page)
    page.reload()
    expect(connection(page)).to_have_text(FALLEN_BACK)


def test_choice__removed_region_is_still_named(page, demo):
    open_picker(page, demo)
    row(page, "Paris").click()
    replace_regions(page, lambda regions: [region for region in regions if region["name"] != "paris"])
    expect(connection(page)).to_have_text(FALLEN_BACK, timeout=TIMEOUT)
    expect(radio(page, "Paris")).to_have_count(0)
    page.reload()
    expect(connection(page)).to_have_text(FALLEN_BACK)


# The order


def test_order__unchanged_under_the_pointer(page, demo):
    open_picker(page, demo)
    before = row_names(page)
    row(page, "São Paulo").hover()
    replace_regions(page, without_paris)
    expect(radio(page, "Paris")).to_be_disabled(timeout=TIMEOUT)
    assert row_names(page) == before
    page.mouse.move(0, 0)
    expect(page.locator(".region label").first).not_to_have_text("Paris")


def test_order__keeps_the_keyboard_focus(page, demo):
    open_picker(page, demo)
    radio(page, "São Paulo").focus()
    replace_regions(page, without_paris)
    expect(radio(page, "Paris")).to_be_disabled(timeout=TIMEOUT)
    names = row_names(page)
    assert names.index("Cape Town") < names.index("Paris"), "Paris is among the unavailable regions"
    expect(radio(page, "São Paulo")).to_be_focused()
    page.unroute_all()
    expect(radio(page, "Paris")).to_be_enabled(timeout=TIMEOUT)
    names = row_names(page)
    assert names.index("Paris") < names.index("Cape Town")
    expect(radio(page, "São Paulo")).to_be_focused()


# The notice about outdated data


def test_notice__offline_and_online_again(page, demo):
    open_picker(page, demo)
    with expected_problem(page, "ERR_INTERNET_DISCONNECTED"):
        page.context.set_offline(True)
        expect(notice(page)).to_have_text(
            re.compile(
                r"^The regions may be out of date: the server cannot be reached\. "
                r"Last update: \d\d:\d\d:\d\d\."
            ),
            timeout=TIMEOUT,
        )
        expect(page.locator("#picker")).to_have_attribute("data-outdated", "")
        expect(notice(page).get_by_role("link")).to_be_hidden()
        assert_accessible(page)
        page.context.set_offline(False)
        expect(notice(page)).to_be_hidden(timeout=TIMEOUT)
    expect(page.locator("#picker")).not_to_have_attribute("data-outdated", "")


def test_notice__signed_out_and_in_again(page, demo):
    open_picker(page, demo)
    cookies = page.context.cookies()
    with expected_problem(page, "status of 401"):
        page.context.clear_cookies()
        expect(notice(page)).to_contain_text("you are not signed in", timeout=TIMEOUT)
        expect(notice(page).get_by_role("link", name="Sign in")).to_be_visible()
        assert_accessible(page)
        page.context.add_cookies(cookies)
        expect(notice(page)).to_be_hidden(timeout=TIMEOUT)


def test_notice__stale_data(page, demo):
    open_picker(page, demo)
    replace_regions(page, list, stale=True)
    expect(notice(page)).to_contain_text(
        "the control plane has no current data about its regions", timeout=TIMEOUT
    )
    # Stale data stays in use, but the picker does not say that the region is connected.
    region = page.evaluate("document.getElementById('picker').monitor.region.display_name")
    expect(connection(page)).to_have_text(f"Your region is {region}. It may no longer be available.")
    expect(row(page, region).locator(".tag")).to_have_text("your region")
    page.unroute_all()
    expect(notice(page)).to_be_hidden(timeout=TIMEOUT)
    expect(connection(page)).to_contain_text(f"You are connected through {region}, the nearest region.")
    expect(row(page, region).locator(".tag")).to_have_text("connected")


@pytest.mark.parametrize("body", ["<h1>Sign in</h1>", "[]"], ids=["page", "list"])
def test_notice__unexpected_response(page, demo, body):
    page.route("**/api/v2/regions", lambda route: route.fulfill(body=body))
    page.goto(f"{demo.base}/regions/")
    expect(notice(page)).to_contain_text(
        "The regions cannot be loaded: the server sent an unexpected response."
    )
    expect(connection(page)).to_be_hidden()
    page.unroute_all()
    expect(radio(page, "Paris")).to_be_visible(timeout=TIMEOUT)
    expect(notice(page)).to_be_hidden()


# The polls


def test_polls__are_conditional(page, demo):
    open_picker(page, demo)
    log_before = demo.log.read_text()
    not_modified = '"GET /api/v2/regions HTTP/1.1" 304'

    def log_has_one() -> bool:
        return not_modified in demo.log.read_text()[len(log_before) :]

    wait_for(lambda: log_has_one() or page.wait_for_timeout(100), 15)


def test_polls__pause_while_tab_is_hidden(page, demo):
    # A headless browser never hides a tab, so the test changes the property and sends the event.
    def set_hidden(hidden: bool) -> None:
        page.evaluate(
            """hidden => {
                Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            hidden,
        )

    open_picker(page, demo)
    urls = []
    set_hidden(True)
    page.wait_for_timeout(POLL)  # requests that have begun may end
    page.on("request", lambda request: urls.append(request.url))
    page.wait_for_timeout(2 * POLL + 1_000)
    assert urls == []
    # No timer was set while the tab was hidden, so this request comes from the change of visibility.
    with page.expect_request("**/api/v2/regions", timeout=TIMEOUT):
        set_hidden(False)
    expect(page.locator("#picker")).not_to_have_attribute("data-outdated", "")
