"""How long something took, less the time for which the machine itself stood still."""

from __future__ import annotations

import atexit
import mmap
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

TICK = 0.01
LATE = 0.05  # seconds by which everybody is woken too late on a busy machine

# Ends when its standard input does.
_WITNESS = f"""
import mmap, select, struct, sys, time
seen = mmap.mmap(int(sys.argv[1]), 16)
stood_still = 0.0
while True:
    at = time.monotonic()
    struct.pack_into("dd", seen, 0, stood_still, at)
    if select.select([0], [], [], {TICK})[0]:
        break
    late = time.monotonic() - at - {TICK}
    if late > {LATE}:
        stood_still += late
"""


@cache
def _witness() -> mmap.mmap:
    """What a process of its own has seen, which only sleeps.

    So nothing that the app does, with the lock of its interpreter or without, is taken for the machine's.
    """
    file = os.memfd_create("witness")
    os.ftruncate(file, 16)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WITNESS, str(file)], stdin=subprocess.PIPE, pass_fds=[file]
    )
    seen = mmap.mmap(file, 16)
    os.close(file)
    atexit.register(process.communicate)
    while not struct.unpack_from("dd", seen)[1]:
        assert process.poll() is None, "the witness has ended"
        time.sleep(0.005)
    return seen


def stood_still() -> float:
    """Seconds for which the machine has stood still so far."""
    seconds, at = struct.unpack_from("dd", _witness())
    late = time.monotonic() - at - TICK
    return float(seconds + late if late > LATE else seconds)


@contextmanager
def at_most(seconds: float, what: str = "") -> Iterator[None]:
    """The block may take less than so many seconds of a machine that runs."""
    before = stood_still()
    begin = time.monotonic()
    yield
    took = time.monotonic() - begin
    lost = stood_still() - before
    assert took - lost < seconds, f"{took:.2f} s, of which the machine stood still for {lost:.2f} s; {what}"
