"""The examples of docs/frontend.md as they stand there, in a real browser: on the same and another origin."""

from __future__ import annotations

import os
import re
import shutil
import sys
import types
from pathlib import Path

import pytest
from django.contrib.auth.models import Permission, User
from django.core import signing
from django.test import Client
from playwright.sync_api import expect

import project.urls
from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from tests.support.browser import assert_accessible, expected_problem, open_page
from tests.support.origins import serve_django, serve_pages
from tests.support.proxies import wait_for

ROOT = Path(__file__).parent.parent
DOC = (ROOT / "docs" / "frontend.md").read_text()
STATIC = ROOT / "proxyhealth" / "static" / "proxyhealth"

# Blocks of the document that name their file in the first line.
FILES = re.compile(r"^```\w+\n(?:// |<!-- |# )([\w/]+\.\w+)(?: -->)?\n(.*?)^```", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="module", autouse=True)
def _use_database_beside_playwright():
    """While Playwright runs, Django takes the thread for one of asyncio's."""
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    yield
    del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@pytest.fixture
def pages(tmp_path):
    """The directory with the frontend's files of the document."""
    for name, text in FILES.findall(DOC):
        if "/" not in name:
            (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def frontend(pages):
    """The origin of the frontend."""
    with serve_pages(pages) as origin:
        yield origin


requests: list[tuple[str, str, int]] = []  # method, path, and status of each request


def record(get_response):
    def middleware(request):
        response = get_response(request)
        requests.append((request.method, request.path, response.status_code))
        return response

    return middleware


@pytest.fixture
def api(settings, paris, pages, frontend, monkeypatch):
    """Start Django with the recipe of the document, for the origin of the frontend."""
    requests.clear()
    names = ["INSTALLED_APPS", "MIDDLEWARE"]
    recipe = {name: list(getattr(settings, name)) for name in names}
    urls = types.ModuleType("host_urls")
    urls.urlpatterns = list(project.urls.urlpatterns)
    urls.path = project.urls.path
    monkeypatch.setitem(sys.modules, "host_urls", urls)
    for name, text in FILES.findall(DOC):
        text = text.replace("https://app.example.com", frontend)
        if name.startswith("host/"):
            exec(text, recipe if name == "host/settings.py" else vars(urls))
    for name, value in recipe.items():
        if name.isupper():
            setattr(settings, name, value)
    settings.MIDDLEWARE = ["tests.test_frontend.record", *settings.MIDDLEWARE]
    settings.ROOT_URLCONF = "host_urls"
    settings.STATICFILES_DIRS = [pages]
    with serve_django() as origin:
        yield origin


@pytest.fixture
def visitor(browser, api):
    """A page that is closed before the server ends."""
    with open_page(browser) as page:
        page.clock.install()
        yield page


def sign_in(page, origin):
    """Give the browser the session of a user with all permissions of the app."""
    user = User.objects.create_user("ada")
    user.user_permissions.set(Permission.objects.filter(content_type__app_label="proxyhealth"))
    client = Client()
    client.force_login(user)
    page.context.add_cookies(
        [{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": origin, "sameSite": "Lax"}]
    )
    return user


def call_client(pages, options):
    """Make the page call the client of the document with these options."""
    script = pages / "page.js"
    script.write_text(script.read_text().replace("  );\n});", f"  );\n}}, {options});"))
    assert options in script.read_text()


def test_client__same_origin(visitor, api, redis_client):
    sign_in(visitor, api)
    visitor.goto(f"{api}/static/regions.html")
    expect(visitor.get_by_role("listitem")).to_have_text("Paris: not available")
    expect(visitor.get_by_role("status")).to_be_empty()
    redis_client.flushall()
    visitor.clock.fast_forward(5_000)
    notice = "This may be out of date. The regions cannot be updated at the moment."
    expect(visitor.get_by_role("status")).to_have_text(notice)
    health.force_update()
    visitor.clock.fast_forward(5_000)
    expect(visitor.get_by_role("status")).to_be_empty()
    with expected_problem(visitor, "status of 401"):
        visitor.context.clear_cookies()
        visitor.clock.fast_forward(5_000)
        expect(visitor.get_by_role("status")).to_contain_text("Not signed in.")
    expect(visitor.get_by_role("listitem")).to_have_text("Paris: not available")


def test_client__another_origin_with_session(visitor, pages, frontend, api):
    call_client(pages, f'{{ url: "{api}/api/v2/regions", credentials: "include" }}')
    sign_in(visitor, api)
    visitor.goto(f"{frontend}/regions.html")
    expect(visitor.get_by_role("listitem")).to_have_text("Paris: not available")
    visitor.clock.fast_forward(5_000)
    wait_for(lambda: ("GET", "/api/v2/regions", 304) in requests or visitor.wait_for_timeout(50), 10)
    assert {method for method, *_ in requests} == {"GET"}, "no preflight"
    WorkspaceProxy.objects.update(display_name="Lutetia")
    health.force_update()
    visitor.clock.fast_forward(5_000)
    expect(visitor.get_by_role("listitem")).to_have_text("Lutetia: not available")


def test_client__another_site_with_token(visitor, pages, frontend, api, configure):
    configure(AUTHENTICATE="tests.test_frontend.authenticate")
    token = signing.dumps(User.objects.create_user("robot").pk, salt="host.api")
    options = f'{{ url: "{api}/api/v2/regions", headers: {{ Authorization: "Bearer {token}" }} }}'
    call_client(pages, options.replace("127.0.0.1", "localhost"))
    visitor.goto(f"{frontend}/regions.html")
    expect(visitor.get_by_role("listitem")).to_have_text("Paris: not available")
    assert requests[0] == ("OPTIONS", "/api/v2/regions", 200)


def authenticate(request):
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return User.objects.get(pk=signing.loads(token, salt="host.api")) if scheme == "Bearer" else None


def test_client__origin_without_permission(visitor, pages, frontend, api, settings):
    settings.CORS_ALLOWED_ORIGINS = ["https://app.example.com"]
    call_client(pages, f'{{ url: "{api}/api/v2/regions", credentials: "include" }}')
    sign_in(visitor, api)
    with expected_problem(visitor, "blocked by CORS policy"), expected_problem(visitor, "ERR_FAILED"):
        visitor.goto(f"{frontend}/regions.html")
        expect(visitor.get_by_role("status")).to_have_text("This may be out of date. Failed to fetch")


POST = """async (url) => (await fetch(url, { method: "POST", credentials: "include" })).json()"""
CHECK = "async ([api, name]) => (await import('/check.js')).check(api, name)"


def test_check__another_origin_with_csrf_token(visitor, frontend, api, sent):
    sign_in(visitor, api)
    visitor.goto(f"{frontend}/check.js")
    assert visitor.evaluate(CHECK, [api, "paris"])["message"] == "Check requested."
    assert ("OPTIONS", "/api/v2/workspaceproxies/paris/check", 200) in requests
    with expected_problem(visitor, "status of 403"):
        refused = visitor.evaluate(POST, f"{api}/api/v2/workspaceproxies/paris/check")
    assert refused["message"] == "CSRF verification failed."


READ = """async (url) => {
    const response = await fetch(url, { credentials: "include", headers: { "If-None-Match": '"x"' } });
    return [response.headers.get("ETag"), response.headers.get("Proxyhealth-Stale")];
}"""


def test_headers__readable_on_another_origin(visitor, frontend, api):
    sign_in(visitor, api)
    visitor.goto(f"{frontend}/check.js")
    etag, stale = visitor.evaluate(READ, f"{api}/api/v2/workspaceproxies")
    assert (etag[0], stale) == ('"', "false")
    with expected_problem(visitor, "status of 404"):
        assert visitor.evaluate(READ, f"{api}/api/v2/workspaceproxies/nobody") == [None, "false"]


def test_caches__responses_vary_by_origin(frontend, api):
    client = Client(headers={"Origin": frontend})
    response = client.get("/api/v2/regions")
    assert response["Access-Control-Allow-Origin"] == frontend
    assert "origin" in response["Vary"].lower().split(", ")
    other = Client(headers={"Origin": "https://evil.example"}).get("/api/v2/regions")
    assert "Access-Control-Allow-Origin" not in other
    assert "origin" in other["Vary"].lower().split(", ")


PICKER = """<!doctype html>
<html lang="ar" dir="rtl">
<meta charset="utf-8">
<title>Regions</title>
<link rel="stylesheet" href="health.css">
<link rel="stylesheet" href="region_picker.css">
<script type="module" src="region_picker.js"></script>
<main><h1>Regions</h1>
%s</main>
</html>
"""


@pytest.fixture
def picker_page(visitor, pages, frontend, api, serve):
    """The picker on another origin, with a strict policy, from right to left, and with two regions."""
    WorkspaceProxy.objects.create(name="rome", display_name="روما", url=serve().url)
    health.force_update()
    (line,) = re.findall(r"^(<proxyhealth-region-picker src=\"https://api.+)$", DOC, re.MULTILINE)
    for path in [STATIC / "health.css", *STATIC.glob("region_*")]:
        shutil.copy(path, pages)
    (pages / "index.html").write_text(PICKER % line.replace("https://api.example.com", api))
    cors = {"Access-Control-Allow-Origin": "*"}
    # For the whole context, because the picker measures until the page is closed.
    visitor.context.route("**/latency-check?*", lambda route: route.fulfill(body="ok", headers=cors))
    visitor.context.route("**/emojis/*", lambda route: route.fulfill(path=STATIC / "health.js"))
    sign_in(visitor, api)
    visitor.goto(frontend)
    expect(visitor.locator(".connection")).to_have_text(
        "You are connected through روما, the nearest region. To always use the same region, choose one."
    )
    return visitor


def test_picker__another_origin_with_strict_policy(picker_page, api, redis_client):
    expect(picker_page.locator(".connection bdi")).to_have_text("روما")
    expect(picker_page.get_by_role("radio", name="Paris")).to_be_disabled()
    expect(picker_page.locator(".tag").first).to_have_text("connected")
    expect(picker_page.locator(".tag").last).to_be_hidden()
    assert picker_page.locator("img").last.get_attribute("src") == f"{api}/emojis/fr.png"
    assert picker_page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert_accessible(picker_page)
    redis_client.flushall()
    picker_page.clock.fast_forward(5_000)
    expect(picker_page.locator(".notice")).to_contain_text("the control plane has no current data")
    assert picker_page.evaluate("document.querySelector('proxyhealth-region-picker').monitor.stale")


def test_picker__right_to_left(picker_page):
    radio = picker_page.get_by_role("radio", name="روما")
    latency = picker_page.locator(".latency").first
    assert radio.bounding_box()["x"] > latency.bounding_box()["x"], "the row begins at the right"


EVENTS = """async () => {
    const { RegionPicker } = await import("/region_picker.js");
    const changes = [];
    const names = ({ previous, region }) => [previous?.name, region?.name];
    addEventListener("region-change", ({ detail }) => changes.push(names(detail)));
    const picker = document.querySelector("proxyhealth-region-picker");
    picker.monitor.choose(picker.monitor.regions[0].id);
    globalThis.changes = changes;
    globalThis.changed = new Promise((resolve) => picker.addEventListener("region-change", resolve));
    return picker instanceof RegionPicker && picker.monitor.chosen.name === "روما";
}"""


def test_picker__event_when_the_chosen_region_fails(picker_page, paris):
    assert picker_page.evaluate(EVENTS)
    WorkspaceProxy.objects.filter(name="rome").update(url="http://127.0.0.1:1")
    health.force_update()
    picker_page.clock.fast_forward(5_000)
    picker_page.evaluate("changed")
    assert picker_page.evaluate("changes") == [["rome", None]]
    expect(picker_page.locator(".connection")).to_have_text("No region is available. You are not connected.")


def test_picker__removed_element_stops(picker_page):
    picker_page.evaluate(
        "globalThis.picker = document.querySelector('proxyhealth-region-picker'); picker.remove()"
    )
    requests.clear()
    picker_page.clock.fast_forward(60_000)
    picker_page.wait_for_timeout(100)
    assert requests == []
    picker_page.evaluate("document.querySelector('main').append(picker)")
    picker_page.clock.run_for(10)
    wait_for(lambda: requests or picker_page.wait_for_timeout(50), 10)
    expect(picker_page.get_by_role("radio")).to_have_count(2)
