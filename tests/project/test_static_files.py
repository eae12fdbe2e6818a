"""Static files from the web server itself, before and after ``collectstatic``."""

from __future__ import annotations

import os
import re
import runpy

import pytest
from django.core.management import call_command
from django.test import Client

from tests.support.demo import ROOT

pytestmark = pytest.mark.django_db


@pytest.fixture
def production(settings, tmp_path):
    settings.STATIC_ROOT = tmp_path / "static"
    settings.WHITENOISE_AUTOREFRESH = False
    settings.WHITENOISE_USE_FINDERS = True
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "project.static_files.StaticFilesStorage"},
    }


def style_sheet(client):
    return re.search(r'href="(/static/project/base[^"]*)"', client.get("/login/").content.decode())[1]


def test_static_files__before_collectstatic(production):
    client = Client()
    assert style_sheet(client) == "/static/project/base.css"
    response = client.get("/static/project/base.css")
    assert response.status_code == 200
    assert "immutable" not in response["Cache-Control"]
    assert response.getvalue()


def test_static_files__after_collectstatic(production):
    call_command("collectstatic", interactive=False, verbosity=0, ignore_patterns=["admin"])
    client = Client()
    url = style_sheet(client)
    assert re.fullmatch(r"/static/project/base\.[0-9a-f]{12}\.css", url)
    response = client.get(url, headers={"Accept-Encoding": "gzip"})
    assert response["Cache-Control"] == "max-age=315360000, public, immutable"
    assert response["Content-Encoding"] == "gzip"
    assert response.getvalue()
    response = client.get("/static/project/flags/primary.svg")  # the icon of PROXYHEALTH["PRIMARY"]
    assert response.status_code == 200
    assert response.getvalue()


def test_asgi__keeps_no_connection_to_the_database(monkeypatch):
    """Each request has a thread of its own, so nothing would use the connection again."""
    monkeypatch.setenv("CONN_MAX_AGE", "")
    monkeypatch.delenv("CONN_MAX_AGE")
    monkeypatch.setattr("django.core.asgi.get_asgi_application", lambda: None)
    runpy.run_path(ROOT / "project" / "asgi.py")
    assert os.environ["CONN_MAX_AGE"] == "0"
