"""A round of 2,000 and of 10,000 proxies, 5 % of which never answer, beside a loop of 5 at a time.

    python -m benchmarks.round [--targets 2000 10000] [--rounds 3] [--quick]

Each proxy is a host of its own in 127.0.0.0/8. 95 % answer after 100 ms; the others, spread evenly
among them, accept a connection and say nothing. The rows are in SQLite, the snapshot in a Valkey, and
after every round its statuses are compared with what they must be.

- one process: ``proxyhealth.tasks.run_round()``, called in a process that does nothing else.
- worker: ``celery -A project worker --concurrency 2``, asked for ``proxyhealth.tasks.check_all`` through
  the broker, from then until the snapshot of the new round can be read; with a SHARD_SIZE of 1,000 and of
  half the proxies. Its first round is the one it begins with, so of that only the duration it says itself
  is known.
- 5 at a time: five threads with http.client, each of its operations bounded by TIMEOUT, on a tenth of the
  proxies; ten times its time counts, as if all five were busy to the end. Nearly all of it is waiting, so
  the cheapest client is the fairest to it: what a loop in another language would save is CPU, and there is
  little of that.

Memory is the most that a process ever had (VmHWM), in MB of 10^6 bytes, Django and all; of the worker, of
each of its two processes. CPU is that of the same processes. ``--quick`` is 300 proxies and two rounds with
a TIMEOUT of a second, to see that this program works; its numbers are worth nothing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from benchmarks.processes import add_proxies, cpu_of, deployment, memory_of, wait_for, worker
from benchmarks.servers import Fleet, fleet, is_silent

AT_A_TIME = 5
DELAY = 0.1
WALL_LIMITS = {2_000: 1.1, 10_000: 1.5}  # times TIMEOUT, from the second round on
MEMORY_LIMIT = 100.0  # MB, at 2,000, of any process that probes
SPEED_LIMIT = 20.0  # times faster than 5 at a time, at 2,000


class Cost(NamedTuple):
    """Of one round: seconds, and MB by process."""

    wall: float
    cpu: float
    memory: list[float]


# Runs a round and says what it cost.
Runner = Callable[[], Cost]


def serve_rounds() -> None:
    """The process of "one process": a line in is a round, a line out what it cost."""
    import django

    django.setup()
    from proxyhealth.tasks import run_round

    print(json.dumps([0.0, 0.0, [memory_of(os.getpid())]]), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.monotonic(), time.process_time()
        assert run_round() == "success"
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        print(json.dumps([wall, cpu, [memory_of(os.getpid())]]), flush=True)


@contextmanager
def one_process(folder: Path) -> Iterator[tuple[Runner, Cost]]:
    """Yields what runs a round, and the cost before the first."""
    with (folder / "round.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.round", "--serve-rounds"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdin
    assert process.stdout

    def run() -> Cost:
        process.stdin.write("round\n")
        process.stdin.flush()
        return Cost(*json.loads(process.stdout.readline()))

    try:
        yield run, Cost(*json.loads(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.wait()


@contextmanager
def worker_processes(folder: Path, shard_size: int) -> Iterator[tuple[Runner, Cost]]:
    from proxyhealth import tasks
    from proxyhealth.storage import reader

    with worker(folder, 2, PROXYHEALTH_SHARD_SIZE=shard_size) as pids:
        before = Cost(0.0, 0.0, [memory_of(pid) for pid in pids])
        rounds = 0

        def cpu() -> float:
            return sum(map(cpu_of, pids))

        def run() -> Cost:
            nonlocal rounds
            rounds += 1
            used = cpu() if rounds > 1 else 0.0
            asked_at, begin = datetime.now(UTC), time.monotonic()
            if rounds > 1:
                tasks.check_all.delay()

            def is_done() -> bool:
                checked_at = reader.read_anew().checked_at
                return checked_at is not None and (rounds == 1 or checked_at >= asked_at)

            wait_for(is_done, seconds=180)
            wall = time.monotonic() - begin if rounds > 1 else reader.read().duration or 0.0
            assert sum(reader.read().outcomes.values()) == rounds, "not one round at a time"
            time.sleep(0.5)  # until it has let go of all that it holds
            return Cost(wall, cpu() - used, [memory_of(pid) for pid in pids])

        yield run, before


def time_five_at_a_time(targets: Fleet, count: int, timeout: float) -> float:
    """Seconds for ``count`` proxies with the plainest loop, if all five are busy to its end.

    With a tenth of the proxies, a tail in which fewer are at work would be multiplied with all the rest.
    """

    def probe(index: int) -> tuple[bool, float]:
        begin = time.monotonic()
        host, port = targets.address(index)
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        try:
            connection.request("GET", "/healthz-report")
            response = connection.getresponse()
            json.loads(response.read())
            healthy = response.status == 200
        except TimeoutError:
            healthy = False
        finally:
            connection.close()
        return healthy, time.monotonic() - begin

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        found = list(pool.map(probe, range(count)))
    assert [healthy for healthy, _ in found] == [not is_silent(index) for index in range(count)]
    return sum(seconds for _, seconds in found) / AT_A_TIME


def wrong_statuses(ids: Sequence[UUID], last: datetime | None) -> tuple[int, datetime]:
    """A benchmark of wrong results is worthless: how many there are, and when the round began."""
    from proxyhealth.statuses import Reason, Status
    from proxyhealth.storage import reader

    snapshot = reader.read_anew()
    assert snapshot.checked_at
    assert snapshot.checked_at != last, "no new round"
    assert list(snapshot.statuses) == list(ids), f"{len(snapshot.statuses)} statuses"
    wrong = 0
    for index, status in enumerate(snapshot.statuses.values()):
        expected = (Status.UNREACHABLE, Reason.TIMEOUT) if is_silent(index) else (Status.OK, Reason.NONE)
        wrong += (status.status, status.reason, status.checked_at) != (*expected, snapshot.checked_at)
    return wrong, snapshot.checked_at


def measure(targets: Fleet, folder: Path, count: int, rounds: int) -> list[str]:
    """Print the rows of ``count`` proxies; returns the targets that are missed."""
    from proxyhealth.conf import conf

    tenth = count // 10
    slow = time_five_at_a_time(targets, tenth, conf.TIMEOUT) * count / tenth
    name = f"| {count:,} | {AT_A_TIME} at a time, {tenth:,} of them"
    print(f"{name} | {slow:.1f} | {slow / conf.TIMEOUT:.2f} | 1.0 | | |", flush=True)

    missed = []
    ways = {"one process": one_process(folder)}
    for size in dict.fromkeys((1000, count // 2)):
        ways[f"worker, SHARD_SIZE {size:,}"] = worker_processes(folder, size)
    for way, processes in ways.items():
        ids = add_proxies(targets.url(index) for index in range(count))
        last = None
        wrong = 0
        costs = []
        served = cpu_of(targets.pid)
        targets.take_lag()
        with processes as (run, before):
            for _ in range(rounds):
                costs.append(run())
                more, last = wrong_statuses(ids, last)
                wrong += more
        served = (cpu_of(targets.pid) - served) / count / rounds
        walls = ", ".join(f"{cost.wall:.2f}" for cost in costs)
        later = max(cost.wall for cost in costs[1:])
        cpu = ", ".join(f"{cost.cpu / count * 1e3:.2f}" for cost in costs)
        memory = " + ".join(
            f"{peak:.0f} ({start:.0f})" for start, peak in zip(before.memory, costs[-1].memory, strict=True)
        )
        ratios = f"{later / conf.TIMEOUT:.2f} | {slow / later:.1f}"
        print(f"| {count:,} | {way} | {walls} | {ratios} | {cpu} | {memory} |", flush=True)
        lag = targets.take_lag()
        print(f"server: {served * 1e3:.2f} ms of CPU a probe, at most {lag:.2f} s late", file=sys.stderr)
        if wrong:
            missed.append(f"{count:,}, {way}: {wrong} wrong statuses")

        in_one = way == "one process"
        limit = WALL_LIMITS.get(count, 0) * conf.TIMEOUT
        if limit and later > limit and (count == 2_000 or not in_one):
            missed.append(f"{count:,}, {way}: {later:.2f} s, not {limit:.2f}")
        if count == 2_000 and max(costs[-1].memory) >= MEMORY_LIMIT:
            missed.append(f"{count:,}, {way}: {max(costs[-1].memory):.0f} MB, not under {MEMORY_LIMIT:.0f}")
        if count == 2_000 and slow / later < SPEED_LIMIT:
            missed.append(f"{count:,}, {way}: {slow / later:.1f} times {AT_A_TIME} at a time, not 20")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", type=int, nargs="+", default=[2_000, 10_000], help="numbers of proxies")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each; 2 or more")
    parser.add_argument("--quick", action="store_true", help="few proxies and a short TIMEOUT")
    parser.add_argument("--serve-rounds", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_rounds:
        serve_rounds()
        return 0
    if options.quick:
        options.targets, options.rounds = [300], 2
        os.environ["PROXYHEALTH_TIMEOUT"] = "1"
    missed = []
    with fleet(DELAY, silent=True) as targets, deployment() as folder:
        print(
            "| proxies | how | wall s, by round | 2nd on, TIMEOUT = 1 | times faster "
            "| CPU ms a probe, by round | peak MB (at start) |"
        )
        print("|---|---|---|---|---|---|---|")
        for count in options.targets:
            missed += measure(targets, folder, count, options.rounds)
    for line in missed:
        print(f"target missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
