"""Python on Windows has no forks, and lacks other functions and modules."""

import os
import subprocess
import sys

PROGRAM = """
import os, select, signal, socket, sys, time
import asyncio, celery.bin.worker  # libraries choose what they use by sys.platform
for module in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[module] = None
for module, names in {
    os: ("fork", "register_at_fork", "getuid", "killpg", "sched_getaffinity", "setsid", "uname"),
    select: ("epoll", "poll"),
    signal: ("SIGALRM", "SIGHUP", "SIGKILL"),
    socket: ("AF_UNIX",),
    time: ("tzset",),
}.items():
    for name in names:
        delattr(module, name)
import django; django.setup()
import importlib, pkgutil, proxyhealth
for module in pkgutil.walk_packages(proxyhealth.__path__, "proxyhealth."):
    if ".migrations" not in module.name:
        importlib.import_module(module.name)
from proxyhealth.utils import PerProcess
assert PerProcess(list).value == []
"""


def test_import__without_what_windows_lacks():
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    env["DJANGO_SETTINGS_MODULE"] = "project.settings"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
