"""Measure the time from a save to the new status.

    python -m benchmarks.saves [--saves 200] [--quick]

The program runs ``celery -A project worker --concurrency 2`` with 1,000 proxies, of which 5 % never
respond. The rows are in SQLite, the snapshot is in Valkey. Each save changes the URL of one proxy: from a
server that reports errors to a server that does not, or back. Both respond at once.

The process that saves polls ``proxyhealth.health.health_status()`` every millisecond, with the default
READ_INTERVAL. It saves at random times between two of its polls of the cache. Another process polls
``proxyhealth.storage.reader.read_anew()``, and reports the time at which the status is in the cache.

``--saves`` is the number of saves without rounds, and again during continuous rounds. The exit code is 1
if a target is missed. ``--quick`` (20 saves, 100 proxies) only shows that the program works; its numbers
mean nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple
from uuid import UUID

from benchmarks.processes import add_proxies, deployment, wait_for, worker
from benchmarks.servers import fleet

DELAY = 0.1
ERRORS = b'{"errors": ["out of order"], "warnings": []}'
MEDIAN_LIMIT = 0.5
P99_LIMIT = 1.0


class Times(NamedTuple):
    """Seconds from a save to the new status, in the cache and in the process that saved."""

    cache: float
    process: float


def watch(pipe: Connection, subject: UUID) -> None:
    """Poll the cache, and request rounds if enabled. Run in a child process until the pipe sends None.

    Messages: a status to wait for; the reply is the time at which the cache had it. Or a bool that enables or
    disables rounds; the reply is the total duration of all rounds so far, in seconds.
    """
    import django

    django.setup()
    from proxyhealth import tasks
    from proxyhealth.storage import reader

    expected = None
    rounds = False
    requested = 0
    while True:
        snapshot = reader.read_anew()
        if expected and subject in snapshot.statuses and snapshot.statuses[subject].status == expected:
            pipe.send(time.monotonic())
            expected = None
        # The outcomes count every requested round, including skipped ones.
        if rounds and sum(snapshot.outcomes.values()) >= requested:
            requested = sum(snapshot.outcomes.values()) + 1
            tasks.check_all.delay()
        if pipe.poll(0.002):
            match pipe.recv():
                case None:
                    return
                case bool(rounds):
                    requested = 0
                    pipe.send(snapshot.rounds.sum)
                case expected:
                    pass


def save_and_wait(subject: UUID, url: str, expected: str, pipe: Connection) -> Times:
    """Save a new URL, and wait until both processes have the expected status."""
    from proxyhealth.health import health_status
    from proxyhealth.models import WorkspaceProxy

    save_at = time.monotonic() + random.uniform(0, 0.5)
    while time.monotonic() < save_at:
        health_status()
        time.sleep(0.001)
    row = WorkspaceProxy.objects.get(pk=subject)
    row.url = url
    pipe.send(expected)
    begin = time.monotonic()
    row.save()
    wait_for(lambda: health_status()[subject].status == expected, pause=0.001)
    end = time.monotonic()
    return Times(pipe.recv() - begin, end - begin)


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def measure(saves: int, count: int) -> list[str]:
    """Print the rows. Return the missed targets."""
    from proxyhealth.storage import reader

    missed = []
    with (
        fleet(DELAY, silent=True) as others,
        fleet() as healthy,
        fleet(body=ERRORS) as unhealthy,
        deployment() as folder,
    ):
        sides = [(unhealthy.url(0), "unhealthy"), (healthy.url(0), "ok")]
        urls = [healthy.url(0), *(others.url(index) for index in range(1, count))]
        subject = add_proxies(urls)[0]
        ours, theirs = multiprocessing.Pipe()
        watcher = multiprocessing.get_context("spawn").Process(target=watch, args=(theirs, subject))
        with worker(folder, 2):
            watcher.start()
            wait_for(lambda: reader.read_anew().checked_at)
            try:
                print("| rounds | read from | median s | 95 % | 99 % | max |\n|---|---|---|---|---|---|")
                for rounds in (False, True):
                    ours.send(rounds)
                    round_seconds, begin = ours.recv(), time.monotonic()
                    times = [save_and_wait(subject, *sides[i % 2], ours) for i in range(saves)]
                    ours.send(False)
                    round_seconds, wall = ours.recv() - round_seconds, time.monotonic() - begin
                    share = f"{round_seconds / wall * 100:.0f} % of the time" if rounds else "none"
                    missed += report(share, times)
            finally:
                ours.send(None)
                watcher.join()
    return missed


def report(rounds: str, times: Sequence[Times]) -> list[str]:
    """Print a row for the cache and one for the process. Return the missed targets."""
    for name, column in zip(Times._fields, zip(*times, strict=True), strict=True):
        median, p95, p99 = statistics.median(column), percentile(column, 95), percentile(column, 99)
        row = f"{median:.3f} | {p95:.3f} | {p99:.3f} | {max(column):.3f}"
        print(f"| {rounds} | {name} | {row} |", flush=True)
    # The last row is that of the process, which has the targets.
    missed = []
    if median >= MEDIAN_LIMIT:
        missed.append(f"rounds {rounds}: median {median:.3f} s, target: below {MEDIAN_LIMIT} s")
    if p99 >= P99_LIMIT:
        missed.append(f"rounds {rounds}: 99th percentile {p99:.3f} s, target: below {P99_LIMIT} s")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--saves", type=int, default=200, help="saves without rounds, and during rounds")
    parser.add_argument("--quick", action="store_true", help="few saves, few proxies")
    options = parser.parse_args()
    saves, count = (20, 100) if options.quick else (options.saves, 1_000)
    missed = measure(saves, count)
    for line in missed:
        print(f"target missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
