"""Processes that a test starts, signals and kills by their ids."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.support.demo import ROOT
from tests.support.proxies import wait_for

START_TIMEOUT = 30  # seconds for a process to start on a busy machine
# A child of Celery's pool waits for 30 s if the main process stops before it has read all results.
STOP_TIMEOUT = 60


class ProcessGroup:
    """A command and the processes that it starts, in a session of their own. The log stays after a kill.

    The command runs in ``folder``, whose code it finds first.
    """

    def __init__(self, name: str, command: str, env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.command = command
        self.env = env
        self.log = log
        self.folder = ROOT
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begin = 0

    @property
    def pid(self) -> int:
        assert self._process, f"{self.name} is not running"
        return self._process.pid

    def start(self) -> None:
        assert self._process is None, f"{self.name} is already running"
        self._log_begin = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", self.command],
                cwd=self.folder,
                env=dict(self.env),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def log_text(self, *, since_start: bool = False) -> str:
        if not self.log.exists():
            return ""
        data = self.log.read_bytes()
        return data[self._log_begin if since_start else 0 :].decode(errors="replace")

    def wait_for_log(self, text: str, seconds: float = START_TIMEOUT) -> None:
        wait_for(lambda: text in self.log_text(since_start=True), seconds, f"{self.name} logs {text!r}")

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def pids(self) -> list[int]:
        """Return the ids of the main process and of all that it started; none if it is not running."""
        return [] if self._process is None else _living_in_session(self._process.pid)

    def children(self) -> list[int]:
        return [pid for pid in self.pids() if pid != self.pid]

    def signal(self, number: int) -> None:
        """Send a signal to the main process."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL to all processes at once, and wait until they are gone."""
        if self._process is None:
            return
        pid = self._process.pid
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        self._process.wait(10)
        for left in _living_in_session(pid):  # a child may have made a process group of its own
            os.kill(left, signal.SIGKILL)
        wait_for(lambda: not _living_in_session(pid), 10, f"{self.name} is gone")
        self._process = None

    def stop(self) -> None:
        """Send SIGTERM, as a supervisor does, and wait until the main process has ended by itself."""
        self.signal(signal.SIGTERM)
        assert self._process
        self._process.wait(STOP_TIMEOUT)
        self.kill()  # what it has left

    def restart(self) -> None:
        self.kill()
        self.start()

    @property
    def exited(self) -> bool:
        """Return whether the main process ended although no test killed it."""
        return self._process is not None and self._process.poll() is not None


def _living_in_session(leader: int) -> list[int]:
    """Return the ids of all living processes in the session of the process ``leader``."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            pids.append(int(process.name))
    return sorted(pids)
