"""The JSON API, tested with requests that Schemathesis generates from its description."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
    options = ["--checks", "all", "--max-examples", "15", "--seed", "1", "--no-color"]
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
    assert "Tested: 6" in done.stdout
    # A warning would mean that all requests of an operation were refused.
    assert "Warnings" not in done.stdout, done.stdout
