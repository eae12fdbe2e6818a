"""Pure tests start no process, connect to no server, and load no browser."""

import os
import subprocess
import sys

from tests.support.demo import ROOT

# These files stand for all pure tests: values, parsing, and splitting a round into shards.
PURE = ["test_report.py", "test_validators.py", "test_utils.py", "rounds/test_shards.py", "api/test_query.py"]

RUN = """
import sys
import pytest

def forbid(event, arguments):
    if event in ("subprocess.Popen", "socket.connect"):
        raise AssertionError(f"{event} in a pure test: {arguments}")

sys.addaudithook(forbid)
code = pytest.main(sys.argv[1:])
assert "playwright" not in sys.modules
sys.exit(code)
"""


def test_pure_tests__need_no_server():
    command = [sys.executable, "-c", RUN, "--quiet", *(f"tests/{path}" for path in PURE)]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COVERAGE_"))}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
