"""The processes of ``make run``. Each can be stopped and started while the others run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import cycle
from typing import BinaryIO

STOP_TIMEOUT = 8  # s, longer than the probes of a round

# Ends the processes of the last line that it reads when this process is gone, even if it was killed.
GUARD = """
trap '' HUP INT TERM
while read -r line; do groups=$line; done
[ "$groups" ] || exit 0
kill -s TERM $groups
for signal in 0 0 0 0 KILL; do
  sleep 1
  alive=
  for group in $groups; do kill -s $signal -- "-$group" && alive=1; done
  [ "$alive" ] || exit 0
done
"""


class Terminal:
    """The standard output, for lines from several threads."""

    def __init__(self, names: Iterable[str]) -> None:
        self.closed = False
        self._lock = threading.Lock()
        self._width = max(map(len, names))
        in_colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._colours = dict(zip(names, cycle(range(32, 37)), strict=False)) if in_colour else {}

    def relay(self, name: str, stream: BinaryIO) -> None:
        """Print the lines of a process until it closes its output."""
        with stream:
            for line in stream:
                self.print_line(name, line.rstrip().decode(errors="replace"))

    def print_line(self, name: str, text: str, timeout: float = -1) -> None:
        prefix = f"{time.strftime('%H:%M:%S')} {name:{self._width}} |"
        if name in self._colours:
            prefix = f"\033[{self._colours[name]}m{prefix}\033[0m"
        self.print(f"{prefix} {text}", timeout)

    def print(self, text: str, timeout: float = -1) -> None:
        """Print without an error if nothing reads the output anymore, as after ``make run | head``.

        After ``timeout``, print nothing: another thread waits for a terminal that is paused.
        """
        if not self._lock.acquire(timeout=timeout):
            return
        try:
            print(text, flush=True)
        except OSError:
            self.closed = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        finally:
            self._lock.release()


class Process:
    """A command in a process group of its own, so that Ctrl-C does not reach it."""

    def __init__(self, name: str, command: str, terminal: Terminal) -> None:
        self.name = name
        self.wanted = False
        self._command = command
        self._terminal = terminal
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def group(self) -> int | None:
        return self._popen.pid if self._popen else None

    def start(self) -> None:
        self.wanted = True
        self._popen = subprocess.Popen(
            ["/bin/sh", "-c", self._command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        arguments = (self.name, self._popen.stdout)
        threading.Thread(target=self._terminal.relay, args=arguments, daemon=True).start()

    def exit_code(self) -> int | None:
        """Return the exit code if the process has ended, although nothing stopped it."""
        popen = self._popen
        code = popen.poll() if popen else None
        # Read last: another thread may have stopped the process in the meantime.
        return code if self.wanted and self._popen is popen else None

    def terminate(self) -> None:
        """Ask the process to end. A worker lets its children finish."""
        self.wanted = False
        if self._popen:
            self._popen.terminate()

    def kill(self) -> None:
        """Kill the process and its children."""
        self.wanted = False
        if self._popen:
            with suppress(OSError):  # the group has ended
                os.killpg(self._popen.pid, signal.SIGKILL)

    def wait(self, end: float) -> None:
        """Wait until the process has ended, or kill it at ``end``."""
        if self._popen:
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(max(0, end - time.monotonic()))
            self.kill()  # also the remaining children of a process that has ended
            self._popen.wait()
            self._popen = None


class Processes:
    """All processes. They end together: by a signal, or because one of them ends by itself.

    The guard inherits the file ``lock``, which stays locked until the last process has ended.
    """

    def __init__(self, commands: dict[str, str], terminal: Terminal, lock: int) -> None:
        self._processes = {name: Process(name, command, terminal) for name, command in commands.items()}
        self._terminal = terminal
        self._lock = threading.Lock()  # held while a process starts or stops
        self._ending = threading.Event()
        self._parent = os.getppid()
        pipe, self._pipe = os.pipe()
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD],
            stdin=pipe,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[lock],
        )
        os.close(pipe)

    @property
    def names(self) -> list[str]:
        return list(self._processes)

    def start(self, name: str) -> bool:
        """Start a process. Return False if it is running."""
        with self._lock:
            process = self._processes[name]
            if process.wanted or self._ending.is_set():
                return False
            process.start()
            self._tell_guard()
        self._terminal.print_line(name, f"started (pid {process.group})", timeout=2)
        return True

    def stop(self, name: str) -> bool:
        """Stop a process, and wait until it has ended. Return False if it is not running."""
        with self._lock:
            process = self._processes[name]
            if not process.wanted:
                return False
            process.terminate()
            process.wait(time.monotonic() + STOP_TIMEOUT)
            self._tell_guard()
        self._terminal.print_line(name, "stopped", timeout=2)
        return True

    def run(self) -> str:
        """Run until a signal arrives. Return the reason if another event ends the processes, or ""."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._on_signal)
        try:
            for name in self._processes:
                self.start(name)
            return self._wait()
        finally:
            self._stop_all()

    def _on_signal(self, *_: object) -> None:
        """Stop the processes, or kill them if they are stopping already."""
        if self._ending.is_set():
            for process in self._processes.values():
                process.kill()
        self._ending.set()

    def _wait(self) -> str:
        while not self._ending.wait(0.1):
            for process in self._processes.values():
                code = process.exit_code()
                if code is not None:
                    return f"{process.name} exited unexpectedly (exit code {code}). See its output above."
            # The output ends with the terminal, and make can be killed alone.
            if self._terminal.closed or ("MAKELEVEL" in os.environ and os.getppid() != self._parent):
                break
        return ""

    def _stop_all(self) -> None:
        """Stop all processes, Redis last: the others use it. A further signal kills them."""
        self._ending.set()
        with self._lock:
            others = [process for process in self._processes.values() if process.name != "redis"]
            end = time.monotonic() + STOP_TIMEOUT
            for group in (others, [*self._processes.values()]):
                for process in group:
                    process.terminate()
                for process in group:
                    process.wait(end)
            self._tell_guard()
            os.close(self._pipe)
            self._guard.wait()

    def _tell_guard(self) -> None:
        groups = [str(process.group) for process in self._processes.values() if process.group]
        with suppress(BrokenPipeError):
            os.write(self._pipe, f"{' '.join(groups)}\n".encode())
