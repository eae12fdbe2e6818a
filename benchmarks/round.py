"""Measure rounds of 2,000 and 10,000 proxies, compared with a loop that probes 5 proxies at a time.

    python -m benchmarks.round [--targets 2000 10000] [--rounds 4] [--quick]

Each proxy has its own address in 127.0.0.0/8 and responds after 100 ms. From the second round on, 5 % of
them, evenly distributed, accept the connection and send nothing: in the second round they are newly silent.
The rows are in SQLite, the snapshot is in Valkey. After each round, the program compares all statuses with
the expected ones.

- one process: ``proxyhealth.tasks.run_round()`` in a process that does nothing else.
- worker: ``celery -A project worker --concurrency 2``. The program requests
  ``proxyhealth.tasks.check_all`` through the broker, and waits until the snapshot of the new round can be
  read. It uses the default SHARD_SIZE of 1,000, and then half the proxies. A worker runs its first round when
  it starts; the time of that one is the duration in the snapshot.
- 5 at a time: five threads with http.client and a TIMEOUT for each operation. They probe a tenth of the
  proxies. The result is ten times their time, as if all five threads were busy to the end. Nearly all of
  the time is waiting, so a faster client or language would change little.

Memory is the peak (VmHWM) in MB of 10^6 bytes, including Django, of each process that probes. CPU is the
time of the same processes. ``--quick`` (300 proxies, three rounds, a TIMEOUT of 1 s) only shows that the
program works; its numbers mean nothing.
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
WALL_LIMITS = {2_000: 1.1, 10_000: 1.2}  # times TIMEOUT, from the third round on
NEW_LIMIT = 2.0  # times TIMEOUT, for the second round, with newly silent proxies
MEMORY_LIMIT = 100.0  # MB, for each process, with 2,000 proxies
SPEED_LIMIT = 20.0  # times as fast as 5 at a time, with 2,000 proxies


class Cost(NamedTuple):
    """The cost of one round: seconds, and MB by process."""

    wall: float
    cpu: float
    memory: list[float]


# Runs a round and returns its cost.
Runner = Callable[[], Cost]


def serve_rounds() -> None:
    """Run a round for each line on stdin, and write its cost to stdout as JSON."""
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
    """Run a process for rounds. Yield a runner, and the cost before the first round."""
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
    """Run a worker. Yield a runner, and the cost before the first round."""
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
            requested_at, begin = datetime.now(UTC), time.monotonic()
            if rounds > 1:
                tasks.check_all.delay()

            def is_done() -> bool:
                checked_at = reader.read_anew().checked_at
                return checked_at is not None and (rounds == 1 or checked_at >= requested_at)

            wait_for(is_done, seconds=180)
            wall = time.monotonic() - begin if rounds > 1 else reader.read().duration or 0.0
            assert sum(reader.read().outcomes.values()) == rounds, "expected one round per request"
            time.sleep(0.5)  # the worker releases the lease and its memory
            return Cost(wall, cpu() - used, [memory_of(pid) for pid in pids])

        yield run, before


def time_five_at_a_time(targets: Fleet, count: int, timeout: float) -> float:
    """Return the seconds for ``count`` proxies, if all five threads are busy to the end.

    The caller multiplies the result. A real end, with idle threads, would be multiplied, too.
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
        results = list(pool.map(probe, range(count)))
    assert [healthy for healthy, _ in results] == [not is_silent(index) for index in range(count)]
    return sum(seconds for _, seconds in results) / AT_A_TIME


def count_wrong_statuses(ids: Sequence[UUID], last: datetime | None, silent: bool) -> tuple[int, datetime]:
    """Return the number of wrong statuses, and the time at which the round began."""
    from proxyhealth.statuses import Reason, Status
    from proxyhealth.storage import reader

    snapshot = reader.read_anew()
    assert snapshot.checked_at
    assert snapshot.checked_at != last, "no new round"
    assert list(snapshot.statuses) == list(ids), f"{len(snapshot.statuses)} statuses"
    wrong = 0
    for index, status in enumerate(snapshot.statuses.values()):
        dead = silent and is_silent(index)
        expected = (Status.UNREACHABLE, Reason.TIMEOUT) if dead else (Status.OK, Reason.NONE)
        wrong += (status.status, status.reason, status.checked_at) != (*expected, snapshot.checked_at)
    return wrong, snapshot.checked_at


def measure(targets: Fleet, folder: Path, count: int, rounds: int) -> list[str]:
    """Print the rows for ``count`` proxies. Return the missed targets."""
    from proxyhealth.conf import conf

    tenth = count // 10
    targets.silent.value = True
    baseline = time_five_at_a_time(targets, tenth, conf.TIMEOUT) * count / tenth
    name = f"| {count:,} | {AT_A_TIME} at a time, {tenth:,} of them"
    print(f"{name} | {baseline:.1f} | | {baseline / conf.TIMEOUT:.2f} | 1.0 | | |", flush=True)

    missed = []
    setups = {"one process": one_process(folder)}
    for size in dict.fromkeys((1000, count // 2)):
        setups[f"worker, SHARD_SIZE {size:,}"] = worker_processes(folder, size)
    for setup, processes in setups.items():
        ids = add_proxies(targets.url(index) for index in range(count))
        with processes as (run, before):
            costs, wrong = run_rounds(targets, ids, run, rounds)
        walls = ", ".join(f"{cost.wall:.2f}" for cost in costs)
        new, slowest = costs[1].wall, max(cost.wall for cost in costs[2:])
        cpu = ", ".join(f"{cost.cpu / count * 1e3:.2f}" for cost in costs)
        memory = " + ".join(
            f"{peak:.0f} ({start:.0f})" for start, peak in zip(before.memory, costs[-1].memory, strict=True)
        )
        ratios = f"{new / conf.TIMEOUT:.2f} | {slowest / conf.TIMEOUT:.2f} | {baseline / slowest:.1f}"
        print(f"| {count:,} | {setup} | {walls} | {ratios} | {cpu} | {memory} |", flush=True)
        if wrong:
            missed.append(f"{count:,}, {setup}: {wrong} wrong statuses")
        problems = check_targets(count, setup, new, slowest, costs[-1].memory, baseline)
        missed += [f"{count:,}, {setup}: {problem}" for problem in problems]
    return missed


def run_rounds(targets: Fleet, ids: Sequence[UUID], run: Runner, rounds: int) -> tuple[list[Cost], int]:
    """Return the cost of each round, and the number of wrong statuses. Print the load of the server."""
    last = None
    wrong = 0
    costs = []
    cpu_before = cpu_of(targets.pid)
    targets.take_lag()
    for number in range(rounds):
        targets.silent.value = number > 0
        costs.append(run())
        wrong_now, last = count_wrong_statuses(ids, last, silent=number > 0)
        wrong += wrong_now
    cpu = (cpu_of(targets.pid) - cpu_before) / len(ids) / rounds
    lag = targets.take_lag()
    print(f"server: {cpu * 1e3:.2f} ms of CPU a probe, at most {lag:.2f} s late", file=sys.stderr)
    return costs, wrong


def check_targets(
    count: int, setup: str, new: float, slowest: float, memory: Sequence[float], baseline: float
) -> Iterator[str]:
    """Yield the missed targets.

    ``new`` is the round with newly silent proxies, ``slowest`` the slowest one after it, in seconds.
    """
    from proxyhealth.conf import conf

    if count in WALL_LIMITS and (count == 2_000 or setup != "one process"):
        limit = WALL_LIMITS[count] * conf.TIMEOUT
        if slowest > limit:
            yield f"{slowest:.2f} s, target: at most {limit:.2f} s"
        if new > NEW_LIMIT * conf.TIMEOUT:
            yield f"{new:.2f} s with newly silent proxies, target: at most {NEW_LIMIT * conf.TIMEOUT:.2f} s"
    if count == 2_000 and max(memory) >= MEMORY_LIMIT:
        yield f"{max(memory):.0f} MB, target: below {MEMORY_LIMIT:.0f} MB"
    if count == 2_000 and baseline / slowest < SPEED_LIMIT:
        yield f"{baseline / slowest:.1f} times as fast as {AT_A_TIME} at a time, target: {SPEED_LIMIT:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", type=int, nargs="+", default=[2_000, 10_000], help="numbers of proxies")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each; 3 or more")
    parser.add_argument("--quick", action="store_true", help="few proxies and a short TIMEOUT")
    parser.add_argument("--serve-rounds", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_rounds:
        serve_rounds()
        return 0
    if options.quick:
        options.targets, options.rounds = [300], 3
        os.environ["PROXYHEALTH_TIMEOUT"] = "1"
    missed = []
    with fleet(DELAY) as targets, deployment() as folder:
        print(
            "| proxies | method | wall s, by round | 2nd, TIMEOUT = 1 | 3rd on, TIMEOUT = 1 | times faster "
            "| CPU ms a probe, by round | peak MB (at start) |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for count in options.targets:
            missed += measure(targets, folder, count, options.rounds)
    for line in missed:
        print(f"target missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
