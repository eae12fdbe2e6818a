"""Programs that come from Debian, not from pip."""

import os
import shutil

import pytest


def find_program(name: str, package: str) -> str:
    """Return the program's path. If it is not installed, skip the test, or fail it in CI."""
    path = shutil.which(name)
    if path is None:
        message = f"{name} is not installed (Debian: apt-get install {package})"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path
