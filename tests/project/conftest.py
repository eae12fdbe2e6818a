from __future__ import annotations

import importlib.util
import os

import pytest

from tests.project.picker import INTERVAL, PROBE_TIMEOUT, sign_in
from tests.support.browser import open_page
from tests.support.demo import ROOT, start_demo
from tests.support.programs import find_program


@pytest.fixture(scope="session")
def installed():
    """Skip the test unless Prometheus and promtool are installed; Debian's package has both."""
    for name in ("promtool", "prometheus"):
        find_program(name, "prometheus")


@pytest.fixture(scope="module")
def quick_demo(tmp_path_factory):
    """A demo with short intervals, for tests that wait for rounds and polls."""
    folder = tmp_path_factory.mktemp("checkout")
    demo = start_demo(folder, PROXYHEALTH_INTERVAL=INTERVAL, PROXYHEALTH_TIMEOUT=PROBE_TIMEOUT)
    yield demo
    demo.close()


@pytest.fixture(scope="module")
def ordinary_user(quick_demo):
    """The name and the password of a user without permissions."""
    quick_demo.shell(
        "from django.contrib.auth.models import User; User.objects.create_user('ada', password='1815')"
    )
    return "ada", "1815"


@pytest.fixture
def ordinary_page(browser, quick_demo, ordinary_user):
    """A page of a user without permissions."""
    with open_page(browser) as page:
        page.goto(f"{quick_demo.base}/regions/")
        sign_in(page, *ordinary_user)
        yield page


@pytest.fixture
def load(monkeypatch):
    """``load(base, NAME="value")`` returns the settings for this environment alone."""

    def with_environment(base, **values):
        for name in list(os.environ):
            monkeypatch.delenv(name)
        for name, value in {**base, **values}.items():
            monkeypatch.setenv(name, str(value))
        spec = importlib.util.spec_from_file_location("settings_of_a_test", ROOT / "project" / "settings.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return with_environment
