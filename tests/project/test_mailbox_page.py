"""The wizard of a channel and the mailbox of the demo, in a real browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.support.browser import assert_accessible, open_page


def sign_in(page, demo):
    cookies = [{"name": c.name, "value": c.value, "url": demo.base} for c in demo.session.cookies if c.value]
    page.context.add_cookies(cookies)


@pytest.fixture
def operator(browser, quick_demo):
    with open_page(browser) as page:
        sign_in(page, quick_demo)
        yield page


@pytest.fixture
def plain_operator(browser, quick_demo):
    """A page of the operator in a browser without JavaScript."""
    with open_page(browser, java_script_enabled=False) as page:
        sign_in(page, quick_demo)
        yield page


def mails(page, text):
    return page.locator(".mail").filter(has=page.locator("summary", has_text=re.compile(text, re.IGNORECASE)))


def test_wizard__from_nothing_to_a_test_mail(plain_operator, operator, quick_demo):
    page = plain_operator
    page.goto(quick_demo.base)
    page.get_by_role("link", name="Channels").click()
    page.get_by_role("link", name="Add channel").click()
    page.get_by_role("link", name="Email").click()
    page.get_by_label("Recipients").fill("night-shift@example.com")
    page.get_by_role("button", name="Save and send a test").click()
    expect(page.get_by_text(re.compile(r"The test was sent in \d+\.\d s\. The answer: 250 "))).to_be_visible()
    channel = page.url
    page.get_by_role("link", name="Home page").click()
    page.get_by_role("link", name="Mailbox").click()
    expect(mails(page, "night-shift@example.com")).to_have_count(1)
    for path in ("/admin/proxyhealth/channel/", "/admin/proxyhealth/channel/add/", "/mailbox/", ""):
        operator.goto(f"{quick_demo.base}{path}")
        assert_accessible(operator)
    for url in (channel, f"{quick_demo.base}/admin/proxyhealth/channel/add/?kind=webhook"):
        operator.goto(url)
        assert_accessible(operator)
    operator.goto(channel.replace("/change/", "/delete/"))
    operator.get_by_role("button", name="Yes, I’m sure").click()
    expect(operator.get_by_text("was deleted successfully")).to_be_visible()


def test_mailbox__failed_proxy_and_its_return(operator, quick_demo):
    """New mails appear by themselves. The focus, and what is open, stay."""
    page = operator
    page.goto(f"{quick_demo.base}/mailbox/")
    quick_demo.make("stop-proxy", "paris")
    try:
        down = mails(page, r"\[unreachable: connect\] proxy paris")
        expect(down).to_have_count(1, timeout=30_000)
        down.locator("summary").focus()
        expect(down.frame_locator("iframe").get_by_text("Paris").first).to_be_visible()
        expect(down.locator("pre")).to_contain_text("Paris")
        expect(down.locator("summary")).to_be_focused()
    finally:
        quick_demo.make("start-proxy", "paris")
    expect(mails(page, r"\[ok after .*\] proxy paris")).to_have_count(1, timeout=30_000)
    expect(down.locator("summary")).to_be_focused()
    assert_accessible(page)
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"{quick_demo.base}/admin/proxyhealth/channel/1/change/")
    expect(page.locator(".proxyhealth-deliveries tbody tr")).to_have_count(2)
    assert_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_mailbox__frame_of_a_mail_has_no_rights(operator, quick_demo):
    """A mail may contain anything. Its frame has no script and no origin."""
    html = "<script>parent.document.title = document.title = 'x'</script><p>Hello</p>"
    (quick_demo.folder / "var" / "mailbox" / f"{10**18}.eml").write_text(
        f"Subject: hostile\nContent-Type: text/html; charset=utf-8\n\n{html}\n"
    )
    page = operator
    page.goto(f"{quick_demo.base}/mailbox/")
    hostile = mails(page, "hostile")
    hostile.locator("summary").click()
    expect(hostile.frame_locator("iframe").get_by_text("Hello")).to_be_visible()
    assert page.title() == "Mailbox | proxyhealth"
    answer = quick_demo.session.get(f"{quick_demo.base}/mailbox/{10**18}/", timeout=5)
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
    page.problems.clear()  # the browser reports the script that it has blocked
