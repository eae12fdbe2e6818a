"""The tests of a small project, and the examples in docs/testing.md, in a process that has no network."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.demo import ROOT

_SUITE = Path(__file__).parent / "host_tests"
_DOCS = ROOT / "docs" / "testing.md"

# Threads hide the errors of connections, so standard error has them, too.
_WITHOUT_NETWORK = """
import os, sys

def forbid(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = arguments[1][0] if event == "socket.connect" else arguments[0]
        if host not in ("127.0.0.1", "localhost"):  # LiveServerTestCase
            os.write(2, f"FORBIDDEN {event} {arguments}".encode())
            raise OSError(f"{event} in a test: {arguments}")

sys.addaudithook(forbid)
"""

DJANGO = """
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "test", *sys.argv[1:]])
"""

PYTEST = """
import pytest
plain = ["--quiet", "-p", "no:cacheprovider", "-p", "no:schemathesis", "-W", "error", "--durations=0"]
sys.exit(pytest.main([*plain, *sys.argv[1:]]))
"""


def make_suite(folder: Path) -> Path:
    """Copy the suite, so that it is not below our own conftest.py. Return its directory."""
    suite = shutil.copytree(_SUITE, folder / "suite")
    for name, code in re.findall(r"```python\n# (?:host/)?(\w+\.py)\n(.*?)```", _DOCS.read_text(), re.DOTALL):
        (suite / name).write_text(code)
    return suite


def run_suite(suite: Path, code: str, *arguments: str) -> str:
    """Run ``DJANGO``, ``PYTEST``, or both. Return the output of tests that pass."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COVERAGE_"))}
    env |= {"DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": f"{suite}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_NETWORK + code, *arguments],
        cwd=suite,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "FORBIDDEN" not in output, output
    return output
