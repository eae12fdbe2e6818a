"""Measure what the history adds to a round, for :mod:`benchmarks.history`."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import add_proxies, children_of, cpu_of, deployment, memory_of
from benchmarks.servers import fleet

LIMIT = 1.1  # times the other checkout
DELAY = 0.1


class Cost(NamedTuple):
    """The cost of a round with its rows: seconds, MB, and rows."""

    wall: float
    cpu: float  # with that of Valkey
    drain: float  # the part of ``wall`` that wrote the rows
    memory: float
    rows: int


class Side:
    """A process of a checkout that runs rounds, with its own Valkey and database."""

    def __init__(self, checkout: Path, urls: list[str]) -> None:
        # This file, with the packages of the checkout.
        command = [sys.executable, "-P", __file__]
        self._process = subprocess.Popen(
            command,
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout), "LOG_LEVEL": "ERROR"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        self._send(urls)
        self.costs: list[Cost] = []

    def _send(self, message: object) -> None:
        self._input.write(f"{json.dumps(message)}\n")
        self._input.flush()

    def run(self) -> None:
        self._send("round")
        self.costs.append(Cost(*json.loads(self._output.readline())))

    def close(self) -> None:
        self._input.close()
        self._process.wait(30)


def serve() -> None:
    """Read the URLs of the proxies, run a round for each line that follows, and write its cost as JSON."""
    with deployment():
        from proxyhealth.tasks import run_round

        try:
            from proxyhealth.history.records import record_history
            from proxyhealth.models import Transition
        except ImportError:  # a checkout without the history
            record_history = None
        add_proxies(json.loads(sys.stdin.readline()))
        pids = [os.getpid(), *children_of(os.getpid())]
        rows = 0
        for _ in sys.stdin:
            wall, cpu = time.monotonic(), sum(map(cpu_of, pids))
            assert run_round() == "success"
            drain = time.monotonic()
            if record_history:
                record_history()
            end = time.monotonic()
            cpu = sum(map(cpu_of, pids)) - cpu
            before, rows = rows, Transition.objects.count() if record_history else 0
            cost = Cost(end - wall, cpu, end - drain, memory_of(os.getpid()), rows - before)
            print(json.dumps(cost), flush=True)


@contextmanager
def running(checkout: Path, urls: list[str]) -> Iterator[Side]:
    side = Side(checkout, urls)
    try:
        yield side
    finally:
        side.close()


def measure(this: Path, other: Path, proxies: int, turns: int) -> list[str]:
    """Print the rows. Return the missed targets."""
    with fleet(DELAY) as targets:
        urls = [targets.url(index) for index in range(proxies)]
        with running(this, urls) as ours, running(other, urls) as theirs:
            for side in (ours, theirs):
                side.run()
            for _ in range(turns):
                for pair in ((ours, theirs), (theirs, ours)):
                    targets.failing.value = not targets.failing.value
                    for side in pair:
                        side.run()
    print("| checkout | rounds | rows of each | wall s | of these, the rows | CPU s | peak MB |")
    print("|---|---|---|---|---|---|---|")
    missed = []
    for name, side in (("this", ours), ("other", theirs)):
        for rounds, costs in (("first", side.costs[:1]), (f"{2 * turns} more", side.costs[1:])):
            wall, cpu, drain, memory, rows = map(statistics.median, zip(*costs, strict=True))
            print(f"| {name} | {rounds} | {rows:.0f} | {wall:.2f} | {drain:.2f} | {cpu:.2f} | {memory:.0f} |")
    for name in ("wall", "cpu"):
        pairs = zip(ours.costs[1:], theirs.costs[1:], strict=True)
        ratio = statistics.median(getattr(a, name) / getattr(b, name) for a, b in pairs)
        print(f"\n{name}, this / other: {ratio:.3f}")
        if ratio >= LIMIT:
            missed.append(f"a round: {name} {ratio:.3f} times the other checkout, target: below {LIMIT}")
    return missed


if __name__ == "__main__":
    serve()
