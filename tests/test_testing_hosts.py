"""The tests of another project, also those in docs/testing.md, in a process that refuses every connection."""

import os
import re
import shutil
import subprocess
import sys

from tests.support.demo import ROOT

SUITE = ROOT / "tests" / "support" / "host_tests"
DOCS = ROOT / "docs" / "testing.md"

# Runs the tests with Django's runner, then with pytest, because imports take most of the time. Threads hide
# the errors of connections, so standard error has them, too.
RUN = """
import os, sys

def forbid(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = arguments[1][0] if event == "socket.connect" else arguments[0]
        if host not in ("127.0.0.1", "localhost"):  # LiveServerTestCase
            os.write(2, f"FORBIDDEN {event} {arguments}".encode())
            raise OSError(f"{event} in a test: {arguments}")

sys.addaudithook(forbid)

import pytest
from django.core.management import execute_from_command_line

execute_from_command_line(["manage.py", "test"])
sys.exit(pytest.main(["--quiet", "-p", "no:cacheprovider", "-p", "no:schemathesis", "-W", "error"]))
"""


def test_host_suite__passes_without_redis_broker_and_network(tmp_path):
    suite = shutil.copytree(SUITE, tmp_path / "suite")  # not below our own conftest.py
    for name, code in re.findall(r"```python\n# (?:host/)?(\w+\.py)\n(.*?)```", DOCS.read_text(), re.DOTALL):
        (suite / name).write_text(code)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COVERAGE_"))}
    env |= {"DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": f"{suite}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=suite,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "Ran 14 tests" in output
    assert "17 passed" in output
    assert "FORBIDDEN" not in output
    assert not (suite / "live.sqlite3").exists()
