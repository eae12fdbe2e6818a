"""Python on Windows has no forks."""

import os
import subprocess
import sys

PROGRAM = """
import os
del os.fork, os.register_at_fork
import django; django.setup()
import importlib, pkgutil, proxyhealth
for module in pkgutil.walk_packages(proxyhealth.__path__, "proxyhealth."):
    if ".migrations" not in module.name:
        importlib.import_module(module.name)
from proxyhealth.utils import PerProcess
assert PerProcess(list).value == []
"""


def test_import__without_forks():
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    env["DJANGO_SETTINGS_MODULE"] = "project.settings"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
