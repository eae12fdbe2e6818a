"""Check now on an open page: the progress beside the button."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from proxyhealth import health
from proxyhealth.rounds import progress
from proxyhealth.rounds.recheck import run_pending_check
from tests.alive.helpers import REFRESH, fail, names, refresh, said
from tests.support.browser import assert_accessible, expected_problem

pytestmark = pytest.mark.django_db(transaction=True)


def progress_of(page, name):
    return page.locator(f'tr[data-proxy="{name}"] .proxyhealth-progress')


def test_check_now__says_what_changed_and_goes_away(page, fleet):
    fleet["paris"].report = {"errors": ["kaputt"]}
    page.get_by_role("button", name="Check paris now").click()
    place = progress_of(page, "paris")
    expect(place).to_have_text("A check of 1 proxy is requested.")
    run_pending_check()
    page.clock.run_for(1_000)
    expect(place).to_contain_text("1 proxy has changed: \u2068paris\u2069 is unhealthy (was ok).")
    expect(page.locator('tr[data-proxy="paris"]')).to_have_attribute("data-status", "unhealthy")
    assert names(page)[0] == "paris"
    expect(page.get_by_role("button", name="Check paris now")).to_be_focused()
    assert said(page) == [
        "A check of 1 proxy is requested.",
        "Checked. 1 proxy has changed: paris is unhealthy (was ok).",
    ], "the refresh does not say it again"
    page.clock.run_for(15_000)
    expect(place).to_have_count(0)


def test_check_now__without_a_worker(page, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0)
    page.get_by_role("button", name="Check all now").click()
    place = page.locator(".proxyhealth-progress")
    expect(place).to_have_text("A check of all proxies is requested.")
    page.clock.run_for(1_000)
    expect(place).to_contain_text("No worker has taken the check for")
    expect(place).to_contain_text("is the Celery worker running?")
    expect(place.get_by_role("link", name="What is wrong with the prober?")).to_be_visible()
    health.force_update()  # a worker starts
    page.clock.run_for(5_000)
    expect(place).to_have_text("Checked. Nothing has changed.")
    expect(place.get_by_role("link")).to_have_count(0)


def test_check_now__chosen_proxies(page, sent):
    button = page.get_by_role("button", name="Check the chosen now")
    button.click()
    expect(page.locator(".proxyhealth-progress")).to_have_text("Choose at least one proxy.")
    page.get_by_label("Choose oslo").check()
    page.get_by_label("Choose paris").check()
    button.click()
    expect(page.locator(".proxyhealth-progress")).to_have_text("A check of 2 proxies is requested.")
    assert [len(ids) for ids in sent] == [2]


def test_check_now__server_down(page, site):
    site.stop()
    with expected_problem(page, "ERR_CONNECTION_REFUSED"):
        page.get_by_role("button", name="Check oslo now").click()
        expect(progress_of(page, "oslo")).to_have_text("The server does not answer.")


def test_check_now__is_accessible_with_messages_and_marks(page, fleet, site, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0)
    fail(fleet["paris"])
    refresh(page)
    page.get_by_role("button", name="Check all now").click()
    expect(page.locator(".proxyhealth-progress")).to_have_text("A check of all proxies is requested.")
    page.clock.run_for(1_000)
    expect(page.get_by_role("link", name="What is wrong with the prober?")).to_be_visible()
    page.route("**/health/", lambda route: route.fulfill(status=302, headers={"Location": "/"}))
    page.clock.run_for(REFRESH)
    expect(page.locator("#proxyhealth-offline")).to_be_visible()
    page.clock.resume()
    assert_accessible(page)
