"""Python code in processes of its own, configured as the project is."""

import os
import subprocess
import sys

PRELUDE = """
import os, signal, sys, threading, time
import django; django.setup()
from proxyhealth.rounds import broker, dispatch
from proxyhealth.rounds.dispatch import request_check
"""

FORK = """
held = threading.Event()
def hold():
    with {lock}:
        held.set()
        time.sleep(60)
threading.Thread(target=hold, daemon=True).start()
held.wait()
pid = os.fork()
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
signal.alarm(20)
"""


def run_python(code, **env):
    """Run ``code`` in a new process, and return the finished process with its output."""
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "project.settings", **env}
    # These tests fork processes that have threads, which newer Pythons warn about.
    command = [sys.executable, "-W", "ignore", "-c", PRELUDE + code]
    done = subprocess.run(command, timeout=90, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def run_in_fork(code, lock):
    """Run ``code`` in a child that was forked while a thread of its parent held ``lock``."""
    return run_python(FORK.format(lock=lock) + code)
