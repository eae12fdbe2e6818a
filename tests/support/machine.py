"""Limits on how long a block may take, without the time for which the machine itself stood still.

A virtual machine sometimes stops for a second, and a busy one runs no process for a while. A test with a
time limit must not fail then. So a second process, the witness, does nothing but sleep for 10 ms again and
again. When it wakes up much too late, the machine stood still, and it adds the delay to a total in shared
memory. ``at_most`` subtracts what was added to the total while its block ran.

The witness shares no interpreter with the tests. So a block that keeps this interpreter busy, and lets no
other thread run, does not count as a machine that stands still.
"""

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

TICK = 0.01  # seconds that the witness sleeps
LATE = 0.05  # seconds of delay that are normal on a busy machine

# It ends when its standard input is closed. At "seen" it writes its total, and when it wrote it.
_WITNESS = f"""
import mmap, select, struct, sys, time
seen = mmap.mmap(int(sys.argv[1]), 16)
stood_still = 0.0
while True:
    at = time.monotonic()
    seen[:] = struct.pack("dd", stood_still, at)  # pack_into() would show zeros first
    if select.select([0], [], [], {TICK})[0]:
        break
    late = time.monotonic() - at - {TICK}
    if late > {LATE}:
        stood_still += late
"""


@cache
def _witness() -> mmap.mmap:
    """Start the witness once. Return the shared memory: its total, and the time of its last entry."""
    file = os.memfd_create("witness")
    os.ftruncate(file, 16)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WITNESS, str(file)], stdin=subprocess.PIPE, pass_fds=[file]
    )
    seen = mmap.mmap(file, 16)
    os.close(file)
    atexit.register(process.communicate)
    while not struct.unpack_from("dd", seen)[1]:
        assert process.poll() is None, "the witness process ended"
        time.sleep(0.005)
    return seen


def stood_still() -> float:
    """Return the seconds for which the machine stood still since the first call."""
    seen = _witness()
    while (record := seen[:]) != seen[:]:
        pass  # the witness is writing it
    seconds, at = struct.unpack("dd", record)
    late = time.monotonic() - at - TICK  # the witness may be late right now
    return float(seconds + late if late > LATE else seconds)


@contextmanager
def at_most(seconds: float, what: str = "") -> Iterator[None]:
    """Fail if the block takes ``seconds`` or longer, without the time for which the machine stood still."""
    before = stood_still()
    begin = time.monotonic()
    yield
    took = time.monotonic() - begin
    paused = stood_still() - before
    assert took - paused < seconds, f"{took:.2f} s (the machine stood still for {paused:.2f} s of it); {what}"
