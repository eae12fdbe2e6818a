"""The documentation site, as ``make docs`` builds it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from proxyhealth import health
from proxyhealth.conf import NAMES
from tests.contrib.expressions import ALERTS
from tests.support.browser import open_browser, open_page
from tests.support.demo import ROOT

SITE = ROOT / "var" / "docs" / "html"


class Page(HTMLParser):
    """The targets of links, the links, and the assets of an HTML file."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.assets = set(), set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids.add(attributes.get("id"))
        if tag == "a" and "href" in attributes:
            self.links.add(attributes["href"])
        elif tag != "a":
            self.assets |= {attributes[name] for name in ("href", "src") if name in attributes}


@pytest.fixture(scope="module")
def site():
    """Build the site. Return its pages by path."""
    installed = f"{sys.prefix}/.installed-dev"
    make = ["make", f"VENV={sys.prefix}", f"--old-file={installed}", "docs"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return {path.relative_to(SITE).as_posix(): Page(path) for path in SITE.rglob("*.html")}


def test_site__has_every_document(site):
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]
    assert len(documents) > 10
    assert {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in documents} <= site.keys()
    navigation = site["docs/index.html"].links
    for path in documents:
        address = os.path.relpath(path.with_suffix(".html"), ROOT / "docs")
        assert address == "index.html" or address in navigation, address


def test_site__links_lead_to_pages_and_sections(site):
    for path, page in site.items():
        for link in page.links | page.assets:
            url = urlsplit(urljoin(path, link))
            if url.scheme:
                continue
            target = unquote(url.path)
            assert (SITE / target).is_file(), (path, link)
            assert not url.fragment or unquote(url.fragment) in site[target].ids, (path, link)


def test_site__loads_nothing_from_other_hosts(site):
    for path, page in site.items():
        assert not [asset for asset in page.assets if urlsplit(asset).netloc], path
    for style in SITE.rglob("*.css"):
        assert "url(http" not in style.read_text(), style


def test_site__every_alert_has_a_section(site):
    assert {name.lower() for name in ALERTS} <= site["docs/runbook.html"].ids


def test_site__every_setting_is_listed(site):
    pages = "".join((SITE / path).read_text() for path in site)
    cell = '<td><p><code class="docutils literal notranslate"><span class="pre">{}</span></code></p></td>'
    assert [name for name in NAMES if cell.format(name) not in pages] == []


def test_site__every_public_function_is_described(site):
    ids = site["docs/reference.html"].ids
    assert {f"proxyhealth.health.{name}" for name in health.__all__} <= ids
    assert {"proxyhealth.snapshot.Snapshot.stale", "proxyhealth.statuses.Reason.TIMEOUT"} <= ids


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_site__search_and_phone(site, scheme):
    with (
        open_browser() as browser,
        open_page(browser, color_scheme=scheme, viewport={"width": 390, "height": 844}) as page,
    ):
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto((SITE / "index.html").as_uri())
        page.wait_for_url("**/docs/index.html")
        for path in site.keys() - {"index.html"}:
            page.goto((SITE / path).as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == 390, path
        page.goto(f"{(SITE / 'search.html').as_uri()}?q=canary")
        page.locator("#search-results a", has_text="Runbook").wait_for()
        assert {urlsplit(url).scheme for url in requests} == {"file"}
        page.problems.clear()  # from files, the browser refuses the excerpts of the results


BROKEN = """# Start

[none](missing.md) [no section](#nothing) [plain](http://example.com) [word](https://example)

## Use

- [Other](other.md)
"""


def test_site__broken_documents_fail_the_build(tmp_path):
    (tmp_path / "docs" / "redirect").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "conf.py", tmp_path / "docs")
    (tmp_path / "docs" / "index.md").write_text(BROKEN)
    (tmp_path / "docs" / "other.md").write_text("# Other\n")
    (tmp_path / "docs" / "forgotten.md").write_text("# Forgotten\n")
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", tmp_path / "docs", tmp_path]
    done = subprocess.run(
        [*sphinx, tmp_path / "html"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    for message in (
        "missing.md",
        "'nothing'",
        "not an https:// address: http://example.com",
        "not an https:// address: https://example",
        "forgotten.md: WARNING: document isn't included in any toctree",
    ):
        assert message in done.stderr, (message, done.stderr)
    assert Path(tmp_path / "html" / "docs" / "other.html").is_file()
