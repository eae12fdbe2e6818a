"""Pictures of the pages of a new demo: ``python -m tests.support.screenshots [FOLDER]``.

Each page is shown light and dark, wide and narrow. The default folder is ``var/screenshots``. An error in the
console of a page ends the program.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.browser import open_browser, open_page
from tests.support.demo import ROOT, Demo, start_demo

PROXIES = "/admin/proxyhealth/workspaceproxy/"
WIDTHS = {"wide": 1280, "narrow": 390}


def pages_of(demo: Demo) -> dict[str, str]:
    """Return the address of each page by the name of its pictures."""
    ids = {region["name"]: region["id"] for region in demo.listing()["regions"]}
    ((outage,),) = demo.rows("SELECT max(id) FROM proxyhealth_outage WHERE ended_at IS NULL")
    return {
        "health": f"{PROXIES}health/",
        "health-90-days": f"{PROXIES}health/?window=90d",
        "proxy": f"{PROXIES}{ids['cape-town']}/detail/",
        "prober": f"{PROXIES}prober/",
        "list": PROXIES,
        "form": f"{PROXIES}{ids['cape-town']}/change/",
        "index": "/admin/",
        "outages": "/admin/proxyhealth/outage/",
        "outage": f"/admin/proxyhealth/outage/{outage}/change/",
        "silence": "/admin/proxyhealth/silence/add/",
        "channels": "/admin/proxyhealth/channel/",
        "transitions": "/admin/proxyhealth/transition/",
        "status-page": "/status/",
        "regions": "/regions/",
    }


def take(demo: Demo, folder: Path) -> int:
    """Take the pictures, and return their number."""
    folder.mkdir(parents=True, exist_ok=True)
    cookies = [{"name": each.name, "value": each.value, "url": demo.base} for each in demo.session.cookies]
    pages = pages_of(demo)
    with open_browser() as browser:
        for scheme, (size, width) in product(("light", "dark"), WIDTHS.items()):
            options = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}}
            with open_page(browser, **options) as page:
                page.context.add_cookies(cookies)
                for name, path in pages.items():
                    page.goto(demo.base + path, wait_until="networkidle")
                    page.screenshot(path=folder / f"{name}-{scheme}-{size}.png", full_page=True)
    return len(pages) * 2 * len(WIDTHS)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "var" / "screenshots"
    with TemporaryDirectory() as checkout:
        demo = start_demo(Path(checkout))
        try:
            count = take(demo, folder)
        finally:
            demo.close()
    print(f"{count} pictures in {folder}")


if __name__ == "__main__":
    main()
