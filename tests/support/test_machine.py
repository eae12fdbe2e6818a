"""The delays that ``at_most`` counts, and those that it attributes to the machine."""

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


def test_at_most__block_that_takes_too_long():
    with pytest.raises(AssertionError, match="the machine stood still for"), at_most(0.1):
        time.sleep(0.2)


def test_at_most__busy_interpreter_counts():
    with pytest.raises(AssertionError), at_most(0.1):
        sum(range(30_000_000))  # one call, during which no other thread runs


@pytest.mark.parametrize(("sleep", "code"), [(0.2, 0), (3.0, 1)])
def test_at_most__stopped_machine_does_not_count(sleep, code):
    """Stop and continue all processes of a session: to them it looks like a machine that stood still."""
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
