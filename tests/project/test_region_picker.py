"""The region picker in a real browser, and the project's other pages for every user."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from project.fleet import FLEET
from tests.support.browser import assert_accessible, both_schemes, expected_problem, open_page
from tests.support.demo import start_demo
from tests.support.proxies import wait_for

POLL = 1_000  # ms between two polls of the page, which has 5 s by itself
PATIENCE = 15_000
INTERVAL, TIMEOUT = 3, 1  # of the demo; a round of it takes a TIMEOUT
UNTIL_KNOWN = (INTERVAL + TIMEOUT) * 1_000 + PATIENCE

MEASURED = re.compile(r"^(< 1|\d+) ms$")
HEALTHY = [member for member in FLEET if member.status == "ok"]
REFUSED = [member for member in FLEET if member.status != "ok"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A quicker one than the others have: these tests wait for rounds and polls."""
    folder = tmp_path_factory.mktemp("checkout")
    demo = start_demo(folder, PROXYHEALTH_INTERVAL=INTERVAL, PROXYHEALTH_TIMEOUT=TIMEOUT)
    yield demo
    demo.close()


@pytest.fixture(scope="module")
def ordinary_user(demo):
    """Name and password of somebody without any permission."""
    demo.shell(
        "from django.contrib.auth.models import User; User.objects.create_user('ada', password='1815')"
    )
    return "ada", "1815"


@pytest.fixture
def ordinary_page(browser, demo, ordinary_user):
    with open_page(browser) as page:
        page.goto(f"{demo.base}/regions/")
        sign_in(page, *ordinary_user)
        yield page


def sign_in(page: Page, name: str, password: str) -> None:
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


# Before the page's own script looks at it.
POLL_QUICKLY = f"""new MutationObserver(() => {{
    const picker = document.getElementById("picker");
    if (picker) picker.dataset.poll = {POLL / 1000};
}}).observe(document, {{childList: true, subtree: true}})"""


def open_picker(page: Page, demo) -> None:
    page.context.add_init_script(POLL_QUICKLY)
    page.goto(f"{demo.base}/regions/")
    for name in ("Control plane", *(member.display_name for member in HEALTHY)):
        expect(row(page, name).locator(".latency")).to_have_text(MEASURED, timeout=UNTIL_KNOWN)


def radio(page: Page, name: str) -> Locator:
    return page.get_by_role("radio", name=name, exact=True)


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("listitem").filter(has=radio(page, name))


def rows(page: Page) -> list[str]:
    return page.locator(".region label").all_inner_texts()


def connection(page: Page) -> Locator:
    return page.locator("#connection")


def notice(page: Page) -> Locator:
    return page.locator("#notice")


def answer(page: Page, regions, path="regions", headers=None) -> None:
    """From now on the page is told of these regions; or of what a function makes of the real ones."""

    def handle(route: Route) -> None:
        response = route.fetch()
        found = regions(response.json()["regions"]) if callable(regions) else regions
        body = json.dumps({"regions": found})
        route.fulfill(response=response, body=body, headers={**response.headers, **(headers or {})})

    page.route(f"**/api/v2/{path}", handle)


def region(name: str, **values):
    """A region that is not there, so that nobody measures how far away it is."""
    return {
        "id": f"00000000-0000-4000-8000-{len(name):012}",
        "name": name,
        "display_name": name,
        "icon_url": "",
        "healthy": False,
        "path_app_url": "",
        "wildcard_hostname": "",
        **values,
    }


def without(*names: str):
    """The regions as they are, but these are not healthy."""
    return lambda found: [{**r, "healthy": r["healthy"] and r["name"] not in names} for r in found]


# What is shown


@both_schemes
def test_regions__are_shown_with_icon_status_and_latency_the_nearest_first(page, demo):
    open_picker(page, demo)
    names = rows(page)
    assert {member.display_name for member in FLEET} <= set(names)
    states = [radio(page, name).is_enabled() for name in names]
    assert states == sorted(states, reverse=True), "usable ones come first"
    usable = [member.display_name for member in sorted(HEALTHY, key=lambda member: member.latency)]
    assert [name for name in names if name in usable] == usable
    for member in HEALTHY:
        shown = row(page, member.display_name)
        expect(shown.locator(".proxyhealth-badge")).to_have_text("available")
        assert int(shown.locator(".latency").inner_text().split()[0]) >= member.latency
    for member in FLEET:
        icon = row(page, member.display_name).locator("img")
        expect(icon).to_be_visible()
        expect(icon).to_have_attribute("alt", "")
    expect(notice(page)).to_be_hidden()
    assert_accessible(page)


def test_regions__without_a_choice_the_nearest_is_used(page, demo):
    open_picker(page, demo)

    def nearest_is_used() -> bool:
        nearest = rows(page)[0]  # it may change while they are measured
        sentence = f"You are connected through {nearest}, the nearest region. Choose one to stay with it."
        tag = row(page, nearest).locator(".tag")
        return connection(page).text_content() == sentence and tag.text_content() == "connected"

    wait_for(nearest_is_used, 10)
    assert page.locator("input:checked").count() == 0


def test_regions__the_control_plane_is_one_of_them(page, demo):
    open_picker(page, demo)
    row(page, "Control plane").click()
    expect(connection(page)).to_have_text("You are now connected through Control plane.")


def test_refused__an_operator_sees_why(page, demo):
    open_picker(page, demo)
    for member in REFUSED:
        shown = row(page, member.display_name)
        expect(radio(page, member.display_name)).to_be_disabled()
        expect(shown.locator(".proxyhealth-badge")).to_have_text(member.status)
        expect(shown.locator(".reason")).to_contain_text(member.reason or "It has no URL yet.")
        expect(shown.locator(".latency")).to_be_empty()
    expect(row(page, "Tokyo")).to_contain_text("status_code")
    expect(row(page, "Tokyo")).to_contain_text("unexpected status code 500")
    expect(radio(page, "Tokyo")).to_have_accessible_description(re.compile("unexpected status code 500"))
    row(page, "Tokyo").click()
    assert page.evaluate("localStorage.length") == 0
    assert_accessible(page)


def test_refused__a_user_without_permissions_sees_no_detail(ordinary_page, demo):
    page = ordinary_page
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    open_picker(page, demo)
    for member in REFUSED:
        shown = row(page, member.display_name)
        expect(radio(page, member.display_name)).to_be_disabled()
        expect(shown.locator(".proxyhealth-badge")).to_have_text("not available")
        expect(shown.locator(".reason")).to_have_text("It can be chosen as soon as it is available again.")
    assert not any(page.locator(".reason code").all_inner_texts())
    text = page.locator("#regions").inner_html()
    for word in ("unexpected", "refused", *(member.status for member in REFUSED)):
        assert word not in text.replace("proxyhealth-unregistered", "")  # which is what makes it grey
    assert not [url for url in asked if "workspaceproxies" in url]
    assert_accessible(page)


def test_refused__who_loses_the_permission_keeps_the_page_without_details(page, demo):
    open_picker(page, demo)
    with expected_problem(page, "status of 403"):
        page.route("**/api/v2/workspaceproxies", lambda route: route.fulfill(status=403, json={}))
        expect(row(page, "Tokyo").locator(".proxyhealth-badge")).to_have_text(
            "not available", timeout=PATIENCE
        )
        expect(notice(page)).to_be_hidden()


def test_names_and_icons__are_not_trusted(page, demo):
    evil = '<img src=x onerror="document.title=1">'
    found = [
        region(evil, icon_url="javascript:document.title=1"),
        region("broken", icon_url="/static/none.svg"),
        region("x" * 300, icon_url="data:image/svg+xml,<svg/>"),
    ]
    answer(page, found)
    page.set_viewport_size({"width": 390, "height": 800})
    with expected_problem(page, "status of 404"):
        with page.expect_console_message(lambda message: "status of 404" in message.text):
            page.goto(f"{demo.base}/regions/")
        expect(row(page, "broken")).to_be_visible()
    expect(page.get_by_text(evil)).to_be_visible()
    assert page.title() == "Regions | proxyhealth"
    for name in (evil, "broken", "x" * 300):
        expect(row(page, name).locator("img")).to_be_hidden()
        assert row(page, name).locator(".icon").bounding_box()["width"] == 36
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_regions__none_at_all_is_said(page, demo):
    answer(page, [])
    page.goto(f"{demo.base}/regions/")
    expect(connection(page)).to_have_text("There are no regions. You are not connected.")
    expect(page.get_by_role("group")).to_be_hidden()
    assert_accessible(page)


def test_regions__none_healthy_is_said(page, demo):
    open_picker(page, demo)
    answer(page, lambda found: [{**region, "healthy": False} for region in found])
    expect(connection(page)).to_have_text("No region is available. You are not connected.", timeout=PATIENCE)
    assert page.locator("#regions input:enabled").count() == 0
    assert_accessible(page)


# The choice


def test_choice__by_keyboard_is_kept_across_a_reload(page, demo):
    open_picker(page, demo)
    while not page.evaluate("document.activeElement.matches('#regions input')"):
        page.keyboard.press("Tab")
    expect(radio(page, rows(page)[0])).to_be_focused()
    page.keyboard.press("Space")
    while page.evaluate("document.activeElement.labels[0].textContent") != "São Paulo":
        page.keyboard.press("ArrowDown")
    expect(radio(page, "São Paulo")).to_be_checked()
    expect(connection(page)).to_have_text("You are now connected through São Paulo.")
    page.reload()
    expect(connection(page)).to_have_text("You are connected through São Paulo.")
    expect(radio(page, "São Paulo")).to_be_checked()
    expect(row(page, "São Paulo").locator(".tag")).to_have_text("connected")


def test_choice__in_another_tab_is_followed(page, demo):
    open_picker(page, demo)
    other = page.context.new_page()
    open_picker(other, demo)
    row(other, "São Paulo").click()
    expect(radio(page, "São Paulo")).to_be_checked()
    expect(connection(page)).to_have_text("You are now connected through São Paulo.")


def test_choice__what_is_stored_is_not_trusted(page, demo):
    page.add_init_script("localStorage.setItem('proxyhealth.region', 'nonsense')")
    open_picker(page, demo)
    expect(connection(page)).to_contain_text("the nearest region")


# Which of these is the nearest is measured anew, and after a reload the first that answers is taken.
FALLEN_BACK = re.compile(
    r"^Paris is not available\. You are now connected through (Control plane|São Paulo)\.$"
)


def test_choice__that_died_is_left_and_returned_to(page, demo):
    open_picker(page, demo)
    expect(connection(page)).to_have_role("status")  # a live region, and a polite one
    row(page, "Paris").click()
    expect(connection(page)).to_have_text("You are now connected through Paris.")
    page.mouse.move(0, 0)
    # Until it is known to be down it is still measured now and then.
    with expected_problem(page, "ERR_CONNECTION_REFUSED"):
        assert demo.make("stop-proxy", "paris").returncode == 0
        try:
            expect(connection(page)).to_have_text(FALLEN_BACK, timeout=UNTIL_KNOWN)
            taken = FALLEN_BACK.match(connection(page).inner_text())[1]
            expect(radio(page, "Paris")).to_be_disabled()
            expect(row(page, "Paris").locator(".tag")).to_have_text("your choice")
            # The two answers of one poll may be from before and after the round; the next ones agree.
            expect(row(page, "Paris")).to_contain_text("Connection refused", timeout=UNTIL_KNOWN)
            expect(row(page, taken).locator(".tag")).to_have_text("connected")
            expect(radio(page, taken)).to_be_focused()  # it was on Paris, which has none to offer now
            assert rows(page).index(taken) < rows(page).index("Paris")
            assert_accessible(page)
            page.reload()
            expect(connection(page)).to_have_text(FALLEN_BACK)
        finally:
            demo.make("start-proxy", "paris")
        returned = "Paris is available again. You are now connected through Paris."
        expect(connection(page)).to_have_text(returned, timeout=UNTIL_KNOWN)
    expect(radio(page, "Paris")).to_be_checked()
    expect(row(page, "Paris").locator(".tag")).to_have_text("connected")
    expect(row(page, "Paris").locator(".latency")).to_have_text(MEASURED)


def test_choice__that_was_removed_is_still_named(page, demo):
    open_picker(page, demo)
    row(page, "Paris").click()
    answer(page, lambda found: [region for region in found if region["name"] != "paris"])
    expect(connection(page)).to_have_text(FALLEN_BACK, timeout=PATIENCE)
    expect(radio(page, "Paris")).to_have_count(0)
    page.reload()
    expect(connection(page)).to_have_text(FALLEN_BACK)


# The order


def test_order__stays_under_the_pointer(page, demo):
    open_picker(page, demo)
    before = rows(page)
    row(page, "São Paulo").hover()
    answer(page, without("paris"))
    expect(radio(page, "Paris")).to_be_disabled(timeout=PATIENCE)
    assert rows(page) == before
    page.mouse.move(0, 0)
    expect(page.locator(".region label").first).not_to_have_text("Paris")


def test_order__keeps_the_keyboard_focus(page, demo):
    open_picker(page, demo)
    radio(page, "São Paulo").focus()
    answer(page, without("paris"))
    expect(radio(page, "Paris")).to_be_disabled(timeout=PATIENCE)
    assert rows(page).index("Cape Town") < rows(page).index("Paris"), "among those that are not available"
    expect(radio(page, "São Paulo")).to_be_focused()
    page.unroute_all()
    expect(radio(page, "Paris")).to_be_enabled(timeout=PATIENCE)
    assert rows(page).index("Paris") < rows(page).index("Cape Town")
    expect(radio(page, "São Paulo")).to_be_focused()


# What may be out of date


def test_notice__cut_off_and_recovered(page, demo):
    open_picker(page, demo)
    with expected_problem(page, "ERR_INTERNET_DISCONNECTED"):
        page.context.set_offline(True)
        expect(notice(page)).to_have_text(
            re.compile(
                r"^What is shown may be out of date since \d\d:\d\d:\d\d: the server cannot be reached\."
            ),
            timeout=PATIENCE,
        )
        expect(page.locator("#picker")).to_have_attribute("data-outdated", "")
        expect(notice(page).get_by_role("link")).to_be_hidden()
        assert_accessible(page)
        page.context.set_offline(False)
        expect(notice(page)).to_be_hidden(timeout=PATIENCE)
    expect(page.locator("#picker")).not_to_have_attribute("data-outdated", "")


def test_notice__signed_out_and_in_again(page, demo):
    open_picker(page, demo)
    cookies = page.context.cookies()
    with expected_problem(page, "status of 401"):
        page.context.clear_cookies()
        expect(notice(page)).to_contain_text("you are not signed in any more", timeout=PATIENCE)
        expect(notice(page).get_by_role("link", name="Sign in")).to_be_visible()
        assert_accessible(page)
        page.context.add_cookies(cookies)
        expect(notice(page)).to_be_hidden(timeout=PATIENCE)


def test_notice__a_stale_answer(page, demo):
    open_picker(page, demo)
    answer(page, list, headers={"Proxyhealth-Stale": "true"})
    expect(notice(page)).to_contain_text(
        "the control plane itself has no news of its regions", timeout=PATIENCE
    )
    expect(connection(page)).to_contain_text("You are connected through")  # what is stale is still used
    page.unroute_all()
    expect(notice(page)).to_be_hidden(timeout=PATIENCE)


@pytest.mark.parametrize(
    ("body", "why"),
    [("<h1>Sign in</h1>", "answered with something else"), ("[]", "answered with something else")],
    ids=["page", "list"],
)
def test_notice__an_answer_that_is_none(page, demo, body, why):
    page.route("**/api/v2/regions", lambda route: route.fulfill(body=body))
    page.goto(f"{demo.base}/regions/")
    expect(notice(page)).to_contain_text(f"The regions cannot be loaded: the server {why}.")
    page.unroute_all()
    expect(radio(page, "Paris")).to_be_visible(timeout=PATIENCE)
    expect(notice(page)).to_be_hidden()


def test_polls__are_conditional(page, demo):
    open_picker(page, demo)
    asked = demo.log.read_text()
    unchanged = '"GET /api/v2/regions HTTP/1.1" 304'
    wait_for(lambda: unchanged in demo.log.read_text()[len(asked) :] or page.wait_for_timeout(100), 15)


def test_polls__rest_while_the_tab_is_hidden(page, demo):
    # A headless browser hides no tab, so the page is told that it is hidden.
    def tell(hidden: bool) -> None:
        page.evaluate(
            """hidden => {
                Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            hidden,
        )

    open_picker(page, demo)
    asked = []
    tell(True)
    page.wait_for_timeout(POLL)  # what is under way may end
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2 * POLL + 1_000)
    assert asked == []
    # It set no timer while it was hidden, so what comes now comes because it is seen again.
    with page.expect_request("**/api/v2/regions", timeout=PATIENCE):
        tell(False)
    expect(page.locator("#picker")).not_to_have_attribute("data-outdated", "")


# Every screen, and none


@pytest.mark.parametrize("width", [390, 320])
def test_picker__fits_a_phone_and_large_text(page, demo, width):
    page.set_viewport_size({"width": width, "height": 800})
    open_picker(page, demo)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 2 * width, "height": 800})
    page.evaluate("document.documentElement.style.fontSize = '200%'")
    assert page.evaluate("document.documentElement.scrollWidth") <= 2 * width


def test_picker__without_javascript_says_what_to_do(browser, demo, ordinary_user):
    with open_page(browser, java_script_enabled=False) as page:
        page.goto(f"{demo.base}/regions/")
        sign_in(page, *ordinary_user)
        # Playwright takes nothing in it for visible, whatever the browser shows.
        text = page.locator("noscript").inner_html()
        assert "JavaScript, which is off in your browser" in text
        assert 'href="/api/v2/regions"' in text
        assert page.locator("noscript").bounding_box()["height"] > 0
        expect(page.get_by_text("Loading")).to_be_hidden()


# Around it


def test_home_page__leads_to_the_picker_by_way_of_the_sign_in_page(browser, demo, ordinary_user):
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
