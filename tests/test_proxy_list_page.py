"""The list of proxies, the form of one, and the panel of the index, in a real browser."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.support.browser import assert_accessible, expected_problem
from tests.support.proxies import WorkspaceProxyServer

LIST = "/admin/proxyhealth/workspaceproxy/"
REFRESH = 10_000  # ms between two refreshes
LOST = re.compile("The statuses below have not been refreshed since .*, because")


def row(page: Page, name: str):
    return page.locator("#result_list tbody tr", has=page.locator(f'[data-name="{name}"]'))


def test_list__refresh_keeps_the_selection_and_the_focus(page, demo):
    with WorkspaceProxyServer() as server:
        demo.post(f"{LIST}add/", name="quito", url=server.url)
        page.clock.install()
        page.goto(f"{demo.base}{LIST}?q=quito")
        id = demo.session.get(f"{demo.base}/api/v2/workspaceproxies/quito", timeout=5).json()["id"]
        page.clock.run_for(REFRESH)
        badge = row(page, "quito").locator(".proxyhealth-badge")
        expect(badge).to_have_text("ok")
        checkbox = row(page, "quito").get_by_role("checkbox")
        checkbox.check()
        server.report = {"errors": ["kaputt"]}
    demo.post(f"{LIST}health/check/", proxy=id, all="1")
    for _ in range(20):
        page.clock.run_for(REFRESH)
        if badge.text_content() == "unreachable":
            break
    expect(badge).to_have_text("unreachable")
    expect(checkbox).to_be_checked()
    expect(checkbox).to_be_focused()
    expect(page.locator("#proxyhealth-refresh [aria-live]")).to_have_text("quito is now unreachable.")
    expect(page.get_by_text("The list of proxies has changed.")).to_be_hidden()
    demo.post(f"{LIST}{id}/delete/", post="yes")
    page.clock.run_for(REFRESH)
    expect(page.get_by_text("The list of proxies has changed.")).to_be_visible()
    expect(checkbox).to_be_checked()


def test_list__lost_and_found(page, demo):
    page.clock.install()
    page.goto(f"{demo.base}{LIST}")
    with expected_problem(page, "ERR_INTERNET_DISCONNECTED"):
        page.context.set_offline(True)
        page.clock.run_for(REFRESH)
        expect(page.get_by_text(LOST)).to_be_visible()
        page.context.set_offline(False)
        page.clock.run_for(REFRESH)
        expect(page.get_by_text(LOST)).to_be_hidden()
    page.context.clear_cookies()
    page.clock.run_for(REFRESH)
    expect(page.get_by_text(LOST)).to_be_visible()


def test_list__fits_a_screen_and_a_phone(page, demo):
    page.goto(f"{demo.base}{LIST}")
    # Django's own links there differ from the text around them by their colour alone.
    page.add_style_tag(content=".breadcrumbs a { text-decoration: underline }")
    assert_accessible(page)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        if width == 1280:
            assert page.evaluate("document.querySelector('.results').scrollWidth <= innerWidth")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width


def test_form__and_index_are_accessible(page, demo):
    page.goto(f"{demo.base}/admin/")
    assert_accessible(page)
    page.locator(".proxyhealth-panel a").click()
    expect(page).to_have_url(f"{demo.base}{LIST}health/")
    id = demo.session.get(f"{demo.base}/api/v2/workspaceproxies/tokyo", timeout=5).json()["id"]
    page.goto(f"{demo.base}{LIST}{id}/change/")
    expect(page.locator(".proxyhealth-now .proxyhealth-badge")).to_be_visible()
    assert_accessible(page)
