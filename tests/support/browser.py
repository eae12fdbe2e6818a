"""Pages in a real Chromium, and checks of their accessibility by axe-core."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.programs import find_program

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"

# A busy machine must not fail a test that is not about time.
expect.set_options(timeout=15_000)

both_schemes = pytest.mark.parametrize("page", ["light", "dark"], indirect=True)


@contextmanager
def open_browser() -> Iterator[Browser]:
    # The shell needs half the CPU time of the whole browser.
    path = which("chromium-headless-shell") or find_program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Browser, **options: Any) -> Iterator[Page]:
    """Open a page for a new visitor. An error in its console fails the test at the end."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
    try:
        yield page
    finally:
        page.unroute_all(behavior="wait")  # a handler that still runs would fail the next test
        context.close()
    assert page.problems == [], page.problems


@contextmanager
def expected_problem(page: Page, text: str) -> Iterator[None]:
    """Accept console errors that contain ``text`` inside the block."""
    before = list(page.problems)
    yield
    page.problems[:] = before + [problem for problem in page.problems[len(before) :] if text not in problem]


# Wait for the colours of the new scheme: during the transition they belong to neither.
FINDINGS = """async () => {
    await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
    const transitions = document.getAnimations().filter((animation) => animation instanceof CSSTransition);
    await Promise.all(transitions.map((transition) => transition.finished));
    return (await axe.run()).violations.map((v) => [v.id, v.help, v.nodes.map((node) => node.html)]);
}"""


@cache
def _axe() -> str:
    return AXE.read_text()


def assert_accessible(page: Page) -> None:
    """Assert that axe-core finds no problem in the page, in both colour schemes."""
    page.evaluate(_axe())
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(FINDINGS) == [], scheme
