"""Helpers for the browser tests of the region picker."""

from __future__ import annotations

import json
import re

from playwright.sync_api import Locator, Page, Route, expect

from project.fleet import FLEET

POLL = 1_000  # ms between two polls of the page in tests; the default is 5 s
TIMEOUT = 15_000  # ms
INTERVAL, PROBE_TIMEOUT = 3, 1  # s, the settings of the demo
ROUND_TIMEOUT = (INTERVAL + PROBE_TIMEOUT) * 1_000 + TIMEOUT  # ms until a round has noticed a change

MEASURED = re.compile(r"^(< 1|\d+) ms$")
AVAILABLE = [member for member in FLEET if member.status == "ok"]
UNAVAILABLE = [member for member in FLEET if member.status != "ok"]

# Changes the interval before the script of the page reads it.
SHORTEN_POLLS = f"""new MutationObserver(() => {{
    const picker = document.getElementById("picker");
    if (picker) picker.setAttribute("poll", {POLL / 1000});
}}).observe(document, {{childList: true, subtree: true}})"""


def sign_in(page: Page, name: str, password: str) -> None:
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


def open_picker(page: Page, demo) -> None:
    """Open the region picker, and wait until the latencies of all available regions are shown."""
    page.context.add_init_script(SHORTEN_POLLS)
    page.goto(f"{demo.base}/regions/")
    for name in ("Control plane", *(member.display_name for member in AVAILABLE)):
        expect(row(page, name).locator(".latency")).to_have_text(MEASURED, timeout=ROUND_TIMEOUT)


def radio(page: Page, name: str) -> Locator:
    return page.get_by_role("radio", name=name, exact=True)


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("listitem").filter(has=radio(page, name))


def row_names(page: Page) -> list[str]:
    return page.locator(".region label").all_inner_texts()


def connection(page: Page) -> Locator:
    return page.locator(".connection")


def notice(page: Page) -> Locator:
    return page.locator(".notice")


def replace_regions(page: Page, regions, **fields) -> None:
    """Replace the regions that the page receives. ``regions`` is a list, or a function of the real list."""

    def handle(route: Route) -> None:
        response = route.fetch()
        items = regions(response.json()["regions"]) if callable(regions) else regions
        route.fulfill(response=response, body=json.dumps({**response.json(), "regions": items, **fields}))

    page.route("**/api/v2/regions", handle)


def make_region(name: str, **values):
    """Return a region that the fleet does not have. It is not healthy, so the page does not measure it."""
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
