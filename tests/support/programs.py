"""Programs that Debian has and pip has not."""

import os
import shutil

import pytest


def find_program(name: str, package: str) -> str:
    """Its path. A test that wants one that is not there is skipped, and in CI it fails."""
    path = shutil.which(name)
    if path is None:
        message = f"{name} is not installed (Debian: apt-get install {package})"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path
