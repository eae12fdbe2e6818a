"""The page of the prober in a real browser."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.support.browser import assert_accessible, both_schemes

PAGE = "/admin/proxyhealth/workspaceproxy/prober/"


@both_schemes
def test_prober_page__names_every_part(page, demo):
    page.goto(f"{demo.base}{PAGE}")
    for part in ("redis", "database", "workers", "beat", "queue", "rounds", "snapshot"):
        expect(page.locator(f"#part-{part}")).to_have_attribute("data-state", "ok")
    expect(page.get_by_text("It is not us, unless the network of the workers has failed.")).to_be_visible()
    expect(page.locator(".proxyhealth-durations rect").first).to_be_attached()
    assert_accessible(page)


def test_prober_page__fits_a_phone(page, demo):
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"{demo.base}{PAGE}")
    expect(page.locator("#part-beat")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
