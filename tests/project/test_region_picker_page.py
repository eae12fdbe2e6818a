"""The contents of the region picker, and the pages on the way to it, in a real browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from project.fleet import FLEET
from tests.project.picker import (
    AVAILABLE,
    TIMEOUT,
    UNAVAILABLE,
    connection,
    make_region,
    notice,
    open_picker,
    radio,
    replace_regions,
    row,
    row_names,
    sign_in,
)
from tests.support.browser import assert_accessible, both_schemes, expected_problem, open_page
from tests.support.proxies import wait_for


@pytest.fixture(scope="module")
def demo(quick_demo):
    return quick_demo


@both_schemes
def test_regions__nearest_first_with_icon_status_and_latency(page, demo):
    open_picker(page, demo)
    nearest_first = [member.display_name for member in sorted(AVAILABLE, key=lambda member: member.latency)]

    def nearest_is_first() -> bool:
        names = row_names(page)  # on a busy machine, the order is right only after some measurements
        return [name for name in names if name in nearest_first] == nearest_first

    wait_for(nearest_is_first, 40, "the nearest region is first")
    names = row_names(page)
    assert {member.display_name for member in FLEET} <= set(names)
    states = [radio(page, name).is_enabled() for name in names]
    assert states == sorted(states, reverse=True), "available regions come first"
    for member in AVAILABLE:
        region_row = row(page, member.display_name)
        expect(region_row.locator(".proxyhealth-badge")).to_have_text("available")
        assert int(region_row.locator(".latency").inner_text().split()[0]) >= member.latency
    for member in FLEET:
        icon = row(page, member.display_name).locator("img")
        expect(icon).to_be_visible()
        expect(icon).to_have_attribute("alt", "")
    expect(notice(page)).to_be_hidden()
    assert_accessible(page)


def test_regions__include_the_control_plane(page, demo):
    open_picker(page, demo)
    row(page, "Control plane").click()
    expect(connection(page)).to_have_text("You are now connected through Control plane.")


def test_connection__nearest_region_by_default(page, demo):
    open_picker(page, demo)

    def nearest_is_used() -> bool:
        nearest = row_names(page)[0]  # may change during the measurements
        sentence = (
            f"You are connected through {nearest}, the nearest region. "
            "To always use the same region, choose one."
        )
        tag = row(page, nearest).locator(".tag")
        return connection(page).text_content() == sentence and tag.text_content() == "connected"

    wait_for(nearest_is_used, 10)
    assert page.locator("input:checked").count() == 0


def test_connection__no_regions(page, demo):
    replace_regions(page, [])
    page.goto(f"{demo.base}/regions/")
    expect(connection(page)).to_have_text("There are no regions. You are not connected.")
    expect(page.get_by_role("group")).to_be_hidden()
    assert_accessible(page)


def test_connection__no_healthy_region(page, demo):
    open_picker(page, demo)
    replace_regions(page, lambda regions: [{**region, "healthy": False} for region in regions])
    expect(connection(page)).to_have_text("No region is available. You are not connected.", timeout=TIMEOUT)
    assert page.locator(".regions input:enabled").count() == 0
    assert_accessible(page)


def test_unavailable_region__shows_reason_to_operator(page, demo):
    open_picker(page, demo)
    for member in UNAVAILABLE:
        region_row = row(page, member.display_name)
        expect(radio(page, member.display_name)).to_be_disabled()
        expect(region_row.locator(".proxyhealth-badge")).to_have_text(member.status)
        expect(region_row.locator(".reason")).to_contain_text(member.reason or "This region has no URL yet.")
        expect(region_row.locator(".latency")).to_be_empty()
    expect(row(page, "Tokyo")).to_contain_text("status_code")
    expect(row(page, "Tokyo")).to_contain_text("unexpected status code 500")
    expect(radio(page, "Tokyo")).to_have_accessible_description(re.compile("unexpected status code 500"))
    row(page, "Tokyo").click()
    assert page.evaluate("localStorage.length") == 0
    assert_accessible(page)


def test_unavailable_region__hides_reason_from_other_users(ordinary_page, demo):
    page = ordinary_page
    urls = []
    page.on("request", lambda request: urls.append(request.url))
    open_picker(page, demo)
    for member in UNAVAILABLE:
        region_row = row(page, member.display_name)
        expect(radio(page, member.display_name)).to_be_disabled()
        expect(region_row.locator(".proxyhealth-badge")).to_have_text("not available")
        expect(region_row.locator(".reason")).to_have_text(
            "You can choose this region when it is available again."
        )
    assert not any(page.locator(".reason code").all_inner_texts())
    text = page.locator(".regions").inner_html()
    for word in ("unexpected", "refused", *(member.status for member in UNAVAILABLE)):
        assert word not in text.replace("proxyhealth-unregistered", "")  # the class of the grey badge
    assert not [url for url in urls if "workspaceproxies" in url]
    assert_accessible(page)


def test_unavailable_region__permission_lost_while_open(page, demo):
    open_picker(page, demo)
    with expected_problem(page, "status of 403"):
        page.route("**/api/v2/workspaceproxies", lambda route: route.fulfill(status=403, json={}))
        expect(row(page, "Tokyo").locator(".proxyhealth-badge")).to_have_text(
            "not available", timeout=TIMEOUT
        )
        expect(notice(page)).to_be_hidden()


def test_names_and_icons__hostile_values_are_harmless(page, demo):
    script = '<img src=x onerror="document.title=1">'
    regions = [
        make_region(script, icon_url="javascript:document.title=1"),
        make_region("broken", icon_url="/static/none.svg"),
        make_region("x" * 300, icon_url="data:image/svg+xml,<svg/>"),
    ]
    replace_regions(page, regions)
    page.set_viewport_size({"width": 390, "height": 800})
    with expected_problem(page, "status of 404"):
        with page.expect_console_message(lambda message: "status of 404" in message.text):
            page.goto(f"{demo.base}/regions/")
        expect(row(page, "broken")).to_be_visible()
    expect(page.get_by_text(script)).to_be_visible()
    assert page.title() == "Regions | proxyhealth"
    for name in (script, "broken", "x" * 300):
        expect(row(page, name).locator("img")).to_be_hidden()
        assert row(page, name).locator(".icon").bounding_box()["width"] == 36
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("width", [390, 320])
def test_picker__fits_phones_and_large_text(page, demo, width):
    page.set_viewport_size({"width": width, "height": 800})
    open_picker(page, demo)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 2 * width, "height": 800})
    page.evaluate("document.documentElement.style.fontSize = '200%'")
    assert page.evaluate("document.documentElement.scrollWidth") <= 2 * width


def test_picker__without_javascript(browser, demo, ordinary_user):
    with open_page(browser, java_script_enabled=False) as page:
        page.goto(f"{demo.base}/regions/")
        sign_in(page, *ordinary_user)
        # Playwright treats the contents of noscript as invisible.
        text = page.locator("noscript").inner_html()
        assert "requires JavaScript, which is turned off in your browser" in text
        assert 'href="/api/v2/regions"' in text
        assert page.locator("noscript").bounding_box()["height"] > 0
        expect(page.get_by_text("Loading")).to_be_hidden()


def test_home_page__links_to_picker_through_sign_in(browser, demo, ordinary_user):
    with open_page(browser) as page:
        page.goto(demo.base)
        assert_accessible(page)
        page.get_by_role("link", name="Region picker").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        assert_accessible(page)
        sign_in(page, ordinary_user[0], "wrong")
        expect(page.get_by_role("alert")).to_contain_text("correct username and password")
        assert_accessible(page)
        sign_in(page, *ordinary_user)
        expect(page.get_by_role("heading", name="Regions")).to_be_visible()
        page.get_by_role("link", name="proxyhealth").click()
        expect(page.get_by_text("Signed in as ada")).to_be_visible()
        assert_accessible(page)
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("link", name="signed in")).to_be_visible()
        page.goto(f"{demo.base}/regions/")
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
