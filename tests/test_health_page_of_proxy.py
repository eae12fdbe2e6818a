"""The page of one proxy in a real browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import assert_accessible
from tests.support.proxies import WorkspaceProxyServer, wait_for

HEALTH = "/admin/proxyhealth/workspaceproxy/health/"


def open_proxy(page: Page, demo, name: str) -> None:
    page.goto(f"{demo.base}{HEALTH}")
    page.get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()


def _with_strict_policy(route) -> None:
    response = route.fetch()
    policy = "default-src 'self'; img-src 'self' data:"  # the icon of the project
    route.fulfill(response=response, headers={**response.headers, "content-security-policy": policy})


def test_proxy_page__from_the_health_page_to_its_form(page, demo):
    page.route("**/detail/", _with_strict_policy)  # a violation would be an error in the console
    open_proxy(page, demo, "Tokyo")
    expect(page.locator("#proxyhealth-live .proxyhealth-badge").first).to_have_text("unhealthy")
    expect(page.get_by_text("The proxy responded with a status code other than 200.")).to_be_visible()
    expect(page.get_by_text("ended here")).to_be_visible()
    expect(page.get_by_role("img", name="Latency of the last 24 hours")).to_be_visible()
    assert_accessible(page)
    page.get_by_role("link", name="Edit").click()
    expect(page.get_by_label("Display name:")).to_have_value("Tokyo")


def test_proxy_page__an_outage_begins_under_the_open_page(page, demo):
    with WorkspaceProxyServer() as server:
        demo.post("/admin/proxyhealth/workspaceproxy/add/", name="quito", url=server.url)
        path = f"{demo.base}/api/v2/workspaceproxies/quito"
        region = wait_for(lambda: (found := demo.session.get(path, timeout=5).json())["healthy"] and found)
        page.goto(f"{demo.base}/admin/proxyhealth/workspaceproxy/{region['id']}/detail/")
        badge = page.locator("#proxyhealth-live .proxyhealth-badge").first
        expect(badge).to_have_text("ok")
        page.get_by_text("The request as it was sent").click()
        server.report = {"errors": ["the disk is full"]}
        button = page.get_by_role("button", name="Check now")
        button.focus()
        page.keyboard.press("Enter")
        expect(badge).to_have_text("unhealthy")
        expect(page.locator("#proxyhealth-announcement")).to_contain_text("quito")
        expect(page.get_by_text("the disk is full").first).to_be_visible()
        expect(page.get_by_role("link", name="Acknowledge…")).to_be_visible()
        expect(page.get_by_text("GET /healthz-report HTTP/1.1")).to_be_visible()  # still open
        expect(button).to_be_focused()
        expect(page).to_have_title(re.compile("quito: unhealthy"))
    demo.post(f"/admin/proxyhealth/workspaceproxy/{region['id']}/delete/", post="yes")


def test_proxy_page__copies_the_command_whole(page, demo):
    open_proxy(page, demo, "Paris")
    command = page.locator("#proxy-curl")
    command.click()
    assert page.evaluate("getSelection().toString()") == command.text_content()


@pytest.mark.parametrize("name", ["Tokyo", "Oslo"])
def test_proxy_page__fits_a_phone(page, demo, name):
    page.set_viewport_size({"width": 390, "height": 800})
    open_proxy(page, demo, name)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert_accessible(page)
