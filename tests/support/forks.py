"""Python code in new processes, and in children that are forked while a thread of the parent holds a lock.

Servers fork like this, and threads do not survive a fork: what the thread held would never be released.
"""

import os
import subprocess
import sys
from textwrap import indent

_SET_UP = """
import os, signal, sys, threading, time
import django; django.setup()
"""

_FORK = """
held = threading.Event()
def hold():
{hold}
    held.set()
    time.sleep(60)
threading.Thread(target=hold, daemon=True).start()
assert held.wait(20)
pid = os.fork()
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
signal.alarm(20)  # ends a child that waits forever
{child}
"""


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a new process that is set up like the project. Return the process with its output."""
    # Measuring their coverage would nearly double the time of these short programs.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    # Newer Pythons warn about forks of processes that have threads.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SET_UP + code],
        env={**inherited, "DJANGO_SETTINGS_MODULE": "project.settings", **env},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def run_in_fork(prepare: str, *, hold: str, child: str, **env: str) -> None:
    """Run ``child`` in a forked process.

    First the parent runs ``prepare``, and one of its threads runs ``hold``. This thread is still alive when
    the parent forks.
    """
    run_python(prepare + _FORK.format(hold=indent(hold.strip(), "    "), child=child), **env)
