"""A child that is forked while a thread of its parent holds a lock must be able to probe."""

from __future__ import annotations

import pytest

from tests.support.forks import run_in_fork

IMPORTS = """
import socket
from proxyhealth.probing import addresses, deadline, pool, tls
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
    "TLS context": ("tls._build_lock.value.acquire()", "assert tls.tls_context('')"),
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


@pytest.mark.parametrize(("hold", "child"), HELD_AND_USED.values(), ids=HELD_AND_USED)
def test_fork__while_a_thread_holds_a_lock(hold: str, child: str) -> None:
    run_in_fork(IMPORTS, hold=hold, child=child)
