"""The public status page of the demo in a real browser."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.support.browser import assert_accessible, open_page

POLICY = "default-src 'self'"


def add_policy(page):
    """Let the page have a strict Content-Security-Policy. An error in its console fails the test."""

    def respond(route):
        response = route.fetch()
        route.fulfill(response=response, headers={**response.headers, "content-security-policy": POLICY})

    page.route("**/status/", respond)


def test_status_page__needs_no_script_user_or_weak_policy(browser, demo):
    with open_page(browser, java_script_enabled=False) as page:
        add_policy(page)
        page.goto(f"{demo.base}/status/")
        expect(page.get_by_role("heading", level=1)).to_contain_text("down")
        expect(page.locator(".region", has_text="Paris").locator(".state")).to_have_text("Up")
        assert page.locator(".proxyhealth-strip").count() == page.locator(".region").count()
        assert page.context.cookies() == []


def test_status_page__is_accessible_in_both_schemes(browser, demo):
    with open_page(browser) as page:
        page.goto(f"{demo.base}/status/")
        assert_accessible(page)


def test_status_page__fits_a_phone_from_right_to_left(browser, demo):
    with open_page(browser, viewport={"width": 390, "height": 800}) as page:
        page.goto(f"{demo.base}/status/")
        page.evaluate("document.documentElement.dir = 'rtl'")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.emulate_media(media="print")
        expect(page.get_by_role("heading", level=1)).to_be_visible()


def test_status_page__badges_are_pictures(browser, demo):
    with open_page(browser) as page:
        for path in ("badge.svg", "badge/paris.svg"):
            page.goto(f"{demo.base}/status/{path}")
            expect(page.locator("text").first).to_be_visible()
