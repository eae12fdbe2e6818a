"""The form of a silence, from a proxy to its end, in a real browser."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.support.browser import assert_accessible
from tests.support.proxies import wait_for

PROXIES = "/admin/proxyhealth/workspaceproxy/"


def silenced(demo) -> list[str]:
    response = demo.session.get(f"{demo.base}/api/v2/workspaceproxies?label=region:as", timeout=5)
    return [region["name"] for region in response.json()["regions"] if region["status"]["silenced"]]


def test_silence__from_a_proxy_until_it_is_ended(page, demo):
    page.goto(f"{demo.base}{PROXIES}health/?label=region:as")
    page.get_by_role("link", name="Tokyo", exact=True).click()
    page.get_by_role("link", name="Silence", exact=True).click()
    expect(page.get_by_label("Proxies:")).to_have_value("tokyo")
    page.get_by_label("Proxies:").fill("region:as")
    page.get_by_label("Reason:").fill("New kernel")
    assert_accessible(page)
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("It silences 2 of 8 proxies: mumbai, tokyo.")).to_be_visible()
    expect(page.get_by_text("in force")).to_be_visible()
    wait_for(lambda: silenced(demo) == ["mumbai", "tokyo"])
    page.get_by_role("checkbox", name="Select this object for an action - New kernel").check()
    page.get_by_label("Action:").select_option("End now")
    page.locator("button[name=index]").click()  # its text depends on the version of Django
    expect(page.get_by_text("1 silence ended.")).to_be_visible()
    wait_for(lambda: silenced(demo) == [])
