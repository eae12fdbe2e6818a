"""The OpenAPI description, compared with the views."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from django.test import Client
from openapi_spec_validator import validate

from proxyhealth.api.query import MAX_LIMIT, MAX_TEXT
from proxyhealth.api.views import DESCRIPTION
from proxyhealth.statuses import Reason, Status
from proxyhealth.urls import urlpatterns
from tests.support.api import LIST

PATH = f"{LIST}/openapi.json"

# Schemathesis supports cookies for authentication, but not the cookie of the CSRF token.
HOOKS = """
import os
import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    case.cookies["csrftoken"] = os.environ["CSRF_TOKEN"]
"""


@pytest.fixture
def description():
    return json.loads(DESCRIPTION.read_bytes())


def test_description__is_public(description):
    response = Client().get(PATH)
    assert response.json() == description
    assert response["Content-Type"] == "application/json"
    assert Client().get(PATH, headers={"If-None-Match": response["ETag"]}).status_code == 304
    assert Client().head(PATH).status_code == 200
    assert Client().post(PATH).status_code == 405


@pytest.mark.urls("tests.support.urls_with_prefix")
def test_description__has_the_url_prefix_of_the_project(description):
    response = Client().get(f"/elsewhere{PATH}")
    assert response.json() == {**description, "servers": [{"url": "/elsewhere"}]}


def test_description__is_valid_openapi_3_1(description):
    assert description["openapi"].startswith("3.1.")
    validate(description)


def test_description__has_every_view(description):
    described = {path.replace("{id_or_name}", "<str:id_or_name>") for path in description["paths"]}
    assert described == {f"/{pattern.pattern}" for pattern in urlpatterns}


def test_description__has_the_enums_and_limits_of_the_code(description):
    components = description["components"]
    assert components["schemas"]["Status"]["enum"] == list(Status)
    assert components["schemas"]["Reason"]["enum"] == list(Reason)
    assert components["parameters"]["Limit"]["schema"]["maximum"] == MAX_LIMIT
    assert components["parameters"]["Text"]["schema"]["maxLength"] == MAX_TEXT


def test_schemathesis__finds_no_errors(demo, tmp_path):
    """Send valid and invalid requests, generated from the description, to the running demo."""
    cookies = demo.session.cookies
    (tmp_path / "hooks.py").write_text(HOOKS)
    config = tmp_path / "schemathesis.toml"
    config.write_text(
        "[auth.openapi]\n"
        f'session = {{ api_key = "{cookies["sessionid"]}" }}\n'
        f'csrf = {{ api_key = "{cookies["csrftoken"]}" }}\n'
    )
    command = [Path(sys.executable).parent / "schemathesis", "--config-file", config, "run"]
    options = ["--checks", "all", "--max-examples", "30", "--seed", "1", "--no-color"]
    done = subprocess.run(
        [*command, f"{demo.base}{PATH}", *options],
        cwd=tmp_path,
        env={
            "CSRF_TOKEN": cookies["csrftoken"],
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(tmp_path),
            "SCHEMATHESIS_HOOKS": "hooks",
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tested: 4" in done.stdout
    # A warning would mean that all requests of an operation were refused.
    assert "Warnings" not in done.stdout, done.stdout
