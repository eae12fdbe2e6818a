"""The witness itself: what it takes for the machine's, and what not."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.machine import at_most

STOPPED = """
import os, signal, time
from tests.support.machine import at_most, _witness
_witness()
print("ready", flush=True)
with at_most(0.5):
    time.sleep(float(os.environ["SLEEP"]))
"""


def test_at_most__of_what_takes_too_long_itself():
    with pytest.raises(AssertionError, match="stood still for"), at_most(0.1):
        time.sleep(0.2)


def test_at_most__an_interpreter_that_is_busy_is_not_the_machine():
    with pytest.raises(AssertionError), at_most(0.1):
        sum(range(30_000_000))  # one call, in which no other thread has a turn


@pytest.mark.parametrize(("sleep", "code"), [(0.2, 0), (2.0, 1)])
def test_at_most__a_machine_that_stands_still_is_not_counted(sleep, code):
    """As it looks when all processes of a session are stopped for a while."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "SLEEP": str(sleep)},
        start_new_session=True,
    )
    with process:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGCONT)
        assert process.wait(10) == code
