"""A child that is forked while a thread of its parent holds a lock must be able to probe."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The thread ends with its process, so it never releases what it holds.
PROGRAM = """
import os, signal, socket, sys, threading, time, warnings

from django.conf import settings

settings.configure(PROXYHEALTH={{}})
from proxyhealth.probing import addresses, deadline, pool, transport

def hold():
    {hold}
    held.set()
    time.sleep(60)

def use():
    {use}

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12+ warns of a fork with threads
held = threading.Event()
threading.Thread(target=hold, daemon=True).start()
held.wait(10)
pid = os.fork()
if pid == 0:
    use()
    os._exit(0)
end = time.monotonic() + 10
while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < end:
    time.sleep(0.01)
if not ended[0]:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    sys.exit("the child hangs")
sys.exit(os.waitstatus_to_exitcode(ended[1]))
"""

WATCH = """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        deadline.watchdog.value.watch(ours, deadline.Deadline(0.1))
        assert ours.recv(1) == b""
"""
HELD_AND_USED = {
    "watchdog": (
        "deadline.watchdog.value._changed.acquire()",
        WATCH,
    ),
    "watchdog thread": (
        "with socket.socket() as sock: deadline.watchdog.value.watch(sock, deadline.Deadline(60))",
        WATCH,
    ),
    "TLS context": ("transport._build_lock.value.acquire()", "assert transport.tls_context('')"),
    "look-ups": (
        "[addresses._free_look_ups.value.acquire() for _ in range(addresses.MAX_LOOK_UPS)]",
        "assert addresses.look_up('localhost', 80, deadline.Deadline(5))",
    ),
    "switch interval": (
        "block = pool.fewer_thread_switches(); block.__enter__(); pool._switch_interval.value.lock.acquire()",
        """
    usual = sys.getswitchinterval()
    assert usual < 0.05, "the child has the usual interval again"
    with pool.fewer_thread_switches():
        assert sys.getswitchinterval() > usual
    assert sys.getswitchinterval() == usual
""",
    ),
}


@pytest.mark.parametrize(("hold", "use"), HELD_AND_USED.values(), ids=HELD_AND_USED)
def test_fork__while_a_thread_holds_a_lock(hold: str, use: str) -> None:
    program = PROGRAM.format(hold=hold, use=use.strip())
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
