"""The open health page in a real browser: what stays, what is marked and said, and when contact is lost."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import expect

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import progress
from proxyhealth.rounds.recheck import run_pending_check
from tests.support.browser import expected_problem, open_page
from tests.support.forwarder import Forwarder
from tests.support.ports import free_port

pytestmark = pytest.mark.django_db(transaction=True)

PATH = "/admin/proxyhealth/workspaceproxy/health/"
REFRESH = 5_000  # ms


# Records what is said, and whether the page still works on an answer. The clock of Playwright leaves messages
# alone.
WATCH = """() => {
    window.said = [];
    new MutationObserver((all) => all.forEach((one) => one.addedNodes.forEach((node) =>
        window.said.push(node.textContent.trim().replace(/[\\u2068\\u2069]/g, "")))))
        .observe(document.getElementById("proxyhealth-announcement"), { childList: true });
    const later = () => new Promise((resolve) => {
        const channel = new MessageChannel();
        channel.port1.onmessage = () => { channel.port1.close(); resolve(); };
        channel.port2.postMessage(0);
    });
    const send = window.fetch;
    window.fetch = async (...options) => {
        window.busy = true;
        try {
            const response = await send(...options);
            const read = response.body ? response.clone().text() : Promise.resolve();
            read.then(later).then(later).then(() => { window.busy = false; });
            return response;
        } catch (error) {
            window.busy = false;
            throw error;
        }
    };
}"""


@pytest.fixture(scope="module", autouse=True)
def queries_beside_playwright():
    """Playwright runs an event loop in this thread, which uses the database all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        yield


@pytest.fixture(autouse=True)
def fresh_reads(configure):
    configure(READ_INTERVAL=0)


@pytest.fixture
def fleet(serve):
    """Three proxies that are ok, by name. Set ``report`` of one to change its status."""
    servers = {name: serve() for name in ("cairo", "oslo", "paris")}
    for name, server in servers.items():
        WorkspaceProxy.objects.create(name=name, url=server.url)
    health.force_update()
    return servers


class Site:
    """A web server that can die: connections to it are cut."""

    def __init__(self, target):
        self.target, self.port = target, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        self._forwarder = Forwarder(self.target, self.port)

    def stop(self):
        self._forwarder.__exit__(None, None, None)


@pytest.fixture
def site(live_server):
    site = Site(live_server.thread.port)
    yield site
    site.stop()


@pytest.fixture
def page(browser, fleet, site):
    """The health page, whose clock stands still."""
    client = Client()
    client.force_login(User.objects.create_superuser("ada"))
    with open_page(browser) as page:
        cookies = [{"name": n, "value": c.value, "url": site.url} for n, c in client.cookies.items()]
        page.context.add_cookies(cookies)
        page.clock.install()
        page.goto(site.url + PATH)
        page.clock.pause_at(datetime.now(UTC) + timedelta(seconds=2))
        page.evaluate(WATCH)
        yield page


def refresh(page):
    """Let the page refresh itself, and wait until it has done so."""
    with page.expect_response("**/health/"):
        page.clock.run_for(REFRESH)
    page.wait_for_function("!window.busy")


def names(page):
    return page.locator("tr[data-proxy]").evaluate_all("(rows) => rows.map((row) => row.dataset.proxy)")


def said(page):
    return page.evaluate("window.said")


def fail(server, text="kaputt"):
    server.report = {"errors": [text]}
    health.force_update()


def test_alive__keeps_focus_and_selection_across_a_re_sort(page, fleet):
    row = page.locator('tr[data-proxy="paris"]')
    button = row.get_by_role("button", name="Check paris now")
    button.focus()
    page.evaluate(
        """() => {
            window.row = document.querySelector('tr[data-proxy="paris"]');
            document.getSelection().selectAllChildren(window.row.querySelector("th a"));
        }"""
    )
    assert names(page) == ["cairo", "oslo", "paris"]
    fail(fleet["paris"])
    refresh(page)
    expect(row).to_have_attribute("data-status", "unhealthy")
    assert names(page) == ["paris", "cairo", "oslo"]
    expect(button).to_be_focused()
    assert page.evaluate("document.getSelection().toString()") == "paris"
    assert page.evaluate("window.row.isConnected")


def test_alive__keeps_what_was_opened_chosen_and_typed(page, fleet):
    fail(fleet["oslo"], "x" * 400)
    refresh(page)
    page.locator('tr[data-proxy="oslo"] summary').click()
    page.get_by_label("Choose oslo").check()
    page.get_by_label("Search").fill("par")
    page.get_by_label("Order").select_option(label="Name")
    fail(fleet["cairo"])
    refresh(page)
    assert names(page) == ["cairo", "oslo", "paris"]
    expect(page.locator('tr[data-proxy="oslo"] details')).to_have_attribute("open", "")
    expect(page.get_by_label("Choose oslo")).to_be_checked()
    expect(page.get_by_label("Choose cairo")).not_to_be_checked()
    expect(page.get_by_label("Search")).to_have_value("par")
    expect(page.get_by_label("Order")).to_have_value("name")
    page.get_by_label("Choose all proxies of this page").check()
    expect(page.get_by_label("Choose cairo")).to_be_checked()
    refresh(page)
    expect(page.get_by_label("Choose all proxies of this page")).to_be_checked()


def test_alive__says_a_change_once_and_marks_it(page, fleet):
    fail(fleet["paris"])
    for _ in range(3):
        refresh(page)
    assert said(page) == ["paris is unhealthy"]
    row = page.locator('tr[data-proxy="paris"]')
    expect(row).to_have_attribute("data-changed", "10")  # of 20 seconds, after two more refreshes
    expect(page.locator("tr[data-changed]")).to_have_count(1)
    page.clock.run_for(12_000)
    expect(page.locator("tr[data-changed]")).to_have_count(0)
    expect(page.locator("#proxyhealth-announcement")).to_be_empty()


def test_alive__says_many_changes_in_one_sentence(page, fleet):
    fleet["oslo"].report = {"errors": ["x"]}
    fail(fleet["paris"])
    refresh(page)
    expect(page.locator("tr[data-changed]")).to_have_count(2)
    assert said(page) == ["Proxies that changed: 2. oslo is unhealthy, paris is unhealthy"]


def test_alive__never_goes_back_in_time(page, fleet):
    """Of two web processes, one is behind."""
    old = page.request.get(page.url).body()
    fail(fleet["paris"])
    refresh(page)
    row = page.locator('tr[data-proxy="paris"]')
    expect(row).to_have_attribute("data-status", "unhealthy")
    page.route("**/health/", lambda route: route.fulfill(body=old, content_type="text/html"))
    for _ in range(3):
        refresh(page)
    expect(page.locator("#proxyhealth-age")).to_have_text(re.compile(r"Refreshed 1\d s ago\."))
    expect(row).to_have_attribute("data-status", "unhealthy")
    refresh(page)  # all of its processes are behind: that is what the server has
    expect(row).to_have_attribute("data-status", "ok")


def test_alive__goes_on_after_redis_was_emptied(page, fleet, redis_client):
    fail(fleet["oslo"])
    refresh(page)
    redis_client.flushall()
    fail(fleet["paris"])
    refresh(page)
    expect(page.locator('tr[data-proxy="paris"]')).to_have_attribute("data-status", "unhealthy")
    expect(page.locator("#proxyhealth-live")).to_have_attribute("data-snapshot", "1")


def test_alive__redis_down_and_back(page, fleet, stopped, valkey):
    stopped()
    refresh(page)
    stale = page.locator("#proxyhealth-live .proxyhealth-stale")
    expect(stale).to_contain_text("The cache cannot be read")
    expect(page.locator("tr[data-proxy]")).to_have_count(3)
    valkey.start()
    health.force_update()
    refresh(page)
    expect(stale).to_have_count(0)


def test_alive__web_server_down_and_back(page, site):
    title = page.title()
    site.stop()
    offline = page.locator("#proxyhealth-offline")
    with expected_problem(page, "ERR_CONNECTION_REFUSED"):
        page.clock.run_for(REFRESH)
        page.clock.run_for(1_000)  # a restart takes a moment
        expect(offline).to_contain_text("Contact lost: The server does not answer.")
        page.clock.run_for(REFRESH)
        expect(offline).to_contain_text("The statuses may be out of date.")
        assert page.title().startswith("Contact lost, last refreshed 1")
    site.start()
    refresh(page)
    expect(offline).to_be_hidden()
    assert page.title() == title
    assert [text.split(":")[0] for text in said(page)] == ["Contact lost", "The contact is back."]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"status": 403, "body": "no"}, "You may no longer see this page."),
        ({"status": 302, "headers": {"Location": "/admin/login/"}}, "You are no longer signed in."),
        (
            {"status": 200, "body": "<p>Hi", "content_type": "text/html"},
            "The server answers with another page",
        ),
    ],
    ids=["forbidden", "signed out", "other page"],
)
def test_alive__says_why_contact_is_lost(page, answer, text):
    page.route("**/health/", lambda route: route.fulfill(**answer))
    with expected_problem(page, "Failed to load resource"):
        page.clock.run_for(REFRESH)
        expect(page.locator("#proxyhealth-offline")).to_contain_text(f"Contact lost: {text}")
    expect(page.locator("tr[data-proxy]")).to_have_count(3)


def test_alive__unchanged_page_costs_nothing(page):
    tags = []

    def respond(route):
        tags.append(route.request.headers.get("if-none-match"))
        if len(tags) == 1:
            response = route.fetch()
            route.fulfill(response=response, headers={**response.headers, "ETag": '"one"'})
        else:
            route.fulfill(status=304)

    page.route("**/health/", respond)
    for _ in range(2):
        refresh(page)
    expect(page.locator("#proxyhealth-age")).to_have_text("Refreshed 0 s ago.")
    assert tags == [None, '"one"']


def test_alive__hidden_tab_refreshes_less(page):
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.evaluate(
        """() => {
            window.away = true;
            Object.defineProperty(document, "hidden", { get: () => window.away });
            document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    page.clock.run_for(59_000)
    assert requests == []
    with page.expect_response("**/health/"):
        page.evaluate("() => { window.away = false; document.dispatchEvent(new Event('visibilitychange')); }")


def test_alive__leaves_nothing_behind(page, fleet):
    """Over many refreshes, neither elements nor timers add up."""
    page.evaluate(
        """() => {
            window.timers = new Set();
            const [start, clear] = [window.setTimeout, window.clearTimeout];
            window.setTimeout = (call, ...rest) => {
                const id = start(() => { window.timers.delete(id); call(); }, ...rest);
                window.timers.add(id);
                return id;
            };
            window.clearTimeout = (id) => { window.timers.delete(id); clear(id); };
        }"""
    )
    refresh(page)
    before = page.evaluate("document.querySelectorAll('*').length")
    for _ in range(10):
        refresh(page)
    assert page.evaluate("document.querySelectorAll('*').length") == before
    assert page.evaluate("window.timers.size") <= 2


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
