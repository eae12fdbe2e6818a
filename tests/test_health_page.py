"""The health page in a real browser."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from project.fleet import FLEET
from tests.support.browser import assert_accessible, both_schemes
from tests.support.proxies import WorkspaceProxyServer

REFRESH = 5_000  # ms between two refreshes
TIMEOUT = 3 * REFRESH


def open_health_page(page: Page, demo) -> None:
    page.goto(f"{demo.base}/admin/proxyhealth/workspaceproxy/health/")


def badge(page: Page, name: str):
    return page.locator(f'tr[data-proxy="{name}"] .proxyhealth-badge')


@both_schemes
def test_health_page__shows_every_demo_proxy(page, demo):
    open_health_page(page, demo)
    for member in FLEET:
        expect(badge(page, member.name)).to_have_text(member.status, timeout=TIMEOUT)
    expect(page.get_by_text("unexpected status code 500")).to_be_visible()
    expect(page.locator("#proxyhealth-live .proxyhealth-stale")).to_have_count(0)
    expect(page.locator("#proxyhealth-offline")).to_be_hidden()


def test_health_page__linked_from_home_page_and_list(page, demo):
    page.goto(demo.base)
    page.get_by_role("link", name="Health page").click()
    expect(page.locator("h1#proxyhealth-headline")).to_be_visible()
    page.get_by_role("link", name="Workspace proxies").first.click()
    page.get_by_role("link", name="Health page").click()
    expect(page.locator("h1#proxyhealth-headline")).to_be_visible()


def test_health_page__refreshes_and_keeps_the_focus(page, demo):
    open_health_page(page, demo)
    page.locator("#proxyhealth-count-all").focus()
    add = "/admin/proxyhealth/workspaceproxy/add/"
    with WorkspaceProxyServer() as server:
        demo.post(add, name="quito", url=server.url)
        expect(badge(page, "quito")).to_have_text("ok", timeout=TIMEOUT)
    expect(page.locator("#proxyhealth-count-all")).to_be_focused()
    id = demo.session.get(f"{demo.base}/api/v2/workspaceproxies/quito", timeout=5).json()["id"]
    demo.post(f"/admin/proxyhealth/workspaceproxy/{id}/delete/", post="yes")
    expect(badge(page, "quito")).to_have_count(0, timeout=TIMEOUT)


def test_health_page__filter_by_status(page, demo):
    open_health_page(page, demo)
    page.get_by_role("navigation", name="By status").get_by_role("link", name="unhealthy").click()
    expect(page.locator("tr[data-proxy]")).to_have_count(3)


def test_health_page__check_all_now(page, demo):
    open_health_page(page, demo)
    page.get_by_role("button", name="Check all now").click()
    expect(page.locator(".proxyhealth-progress")).to_contain_text("Checked. ")


def test_list__check_now(page, demo):
    page.goto(f"{demo.base}/admin/proxyhealth/workspaceproxy/")
    page.get_by_role("row", name="paris").get_by_role("checkbox").check()
    page.get_by_label("Action:").select_option("check_now")
    page.get_by_role("button", name=re.compile("^(Go|Run)$")).click()  # "Run" since Django 6
    expect(page.get_by_text("A check of 1 proxy is requested.")).to_be_visible()


def test_health_page__fits_a_phone(page, demo):
    page.set_viewport_size({"width": 390, "height": 800})
    open_health_page(page, demo)
    expect(page.get_by_role("button", name="Check all now")).to_be_visible()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, "the page itself must not scroll sideways"


def test_health_page__is_accessible(page, demo):
    open_health_page(page, demo)
    for member in FLEET:
        expect(badge(page, member.name)).to_have_text(member.status, timeout=TIMEOUT)
    assert_accessible(page)
