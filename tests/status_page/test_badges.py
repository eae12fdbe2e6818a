"""Badges of the regions."""

from xml.etree import ElementTree as ET

import pytest

from proxyhealth.testing import fake_snapshot
from tests.status_page.test_status import get

SVG = "{http://www.w3.org/2000/svg}"


def texts(path):
    response = get(path)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "image/svg+xml; charset=utf-8"
    assert response.headers["Content-Security-Policy"] == "default-src 'none'"
    root = ET.fromstring(response.content)
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert root.findtext(f"{SVG}title") == ": ".join(words)
    return words


@pytest.mark.parametrize(("status", "word"), [("ok", "up"), ("unhealthy", "down"), ("unreachable", "down")])
def test_badge__of_a_region(shown, paris, status, word):
    with fake_snapshot(paris=status):
        assert texts("/status/badge/paris.svg") == ["Paris <b>", word]
        assert texts("/status/badge/PARIS.svg") == ["Paris <b>", word]


@pytest.mark.parametrize(
    ("statuses", "word"),
    [({"a": "ok", "b": "ok"}, "all up"), ({"a": "ok", "b": "unhealthy"}, "some down")],
)
def test_badge__of_all_regions(shown, statuses, word):
    with fake_snapshot(statuses):
        assert texts("/status/badge.svg") == ["status", word]


def test_badge__of_a_stale_snapshot_says_so_in_grey(shown, paris):
    with fake_snapshot(paris="ok", stale=True):
        assert texts("/status/badge/paris.svg") == ["Paris <b>", "up, not current"]
        assert texts("/status/badge.svg") == ["status", "not current"]
        assert b"#1a7a3c" not in get("/status/badge/paris.svg").content


@pytest.mark.parametrize("name", ["oslo", "later", "..%2Fparis", "paris.svg", "%00"])
def test_badge__of_an_unknown_name_is_404(shown, paris, name):
    with fake_snapshot(paris="ok", later="unregistered"):
        assert get(f"/status/badge/{name}.svg").status_code == 404


@pytest.mark.parametrize("name", ["x" * 128, "東京", '"><script>alert(1)</script>'])
def test_badge__any_name_fits_and_is_text(shown, paris, name):
    paris.display_name = name
    paris.save()
    with fake_snapshot(paris="ok"):
        label, _ = texts("/status/badge/paris.svg")
        content = get("/status/badge/paris.svg").content
    assert label in (name, f"{name[:39]}…")
    assert b"<script" not in content
