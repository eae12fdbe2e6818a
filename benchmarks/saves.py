"""Time from a save to the new status, as the process that saved can read it.

    python -m benchmarks.saves [--saves 200] [--quick]

1,000 proxies, 5 % of which never answer, rows in SQLite, the snapshot in a Valkey, and a
``celery -A project worker --concurrency 2``. One proxy moves to and fro between a server that reports
errors and one that does not, both of which answer at once. The process that saves it polls
``proxyhealth.health.health_status()`` every millisecond, all the time, with the default READ_INTERVAL; it
saves at random moments between two of its looks into the cache. Another process polls
``proxyhealth.storage.reader.read_anew()``, and sees when the status was in the cache.

``--saves`` of these without a round, and as many while one round follows the other. ``--quick`` is 20 saves
and 100 proxies; its numbers are worth nothing.
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
    """The process that looks into the cache, and keeps rounds going if it is told to.

    What comes is a status to wait for, answered with when it was there; or whether there are to be
    rounds, answered with the seconds of all rounds so far.
    """
    import django

    django.setup()
    from proxyhealth import tasks
    from proxyhealth.storage import reader

    wanted = None
    rounds = False
    asked = 0
    while True:
        snapshot = reader.read_anew()
        if wanted and subject in snapshot.statuses and snapshot.statuses[subject].status == wanted:
            pipe.send(time.monotonic())
            wanted = None
        # Each round that was asked for is counted, be it that it is skipped.
        if rounds and sum(snapshot.outcomes.values()) >= asked:
            asked = sum(snapshot.outcomes.values()) + 1
            tasks.check_all.delay()
        if pipe.poll(0.002):
            match pipe.recv():
                case None:
                    return
                case bool(rounds):
                    asked = 0
                    pipe.send(snapshot.rounds.sum)
                case wanted:
                    pass


def save_and_wait(subject: UUID, url: str, expected: str, pipe: Connection) -> Times:
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
    """Print the rows; returns the targets that are missed."""
    from proxyhealth.storage import reader

    missed = []
    with (
        fleet(DELAY, silent=True) as others,
        fleet() as well,
        fleet(body=ERRORS) as ill,
        deployment() as folder,
    ):
        sides = [(ill.url(0), "unhealthy"), (well.url(0), "ok")]
        subject = add_proxies([well.url(0), *(others.url(index) for index in range(1, count))])[0]
        ours, theirs = multiprocessing.Pipe()
        watcher = multiprocessing.get_context("spawn").Process(target=watch, args=(theirs, subject))
        with worker(folder, 2):
            watcher.start()
            wait_for(lambda: reader.read_anew().checked_at)
            try:
                print("| rounds | seen | median s | 95 % | 99 % | max |\n|---|---|---|---|---|---|")
                for rounds in (False, True):
                    ours.send(rounds)
                    spent, begin = ours.recv(), time.monotonic()
                    times = [save_and_wait(subject, *sides[i % 2], ours) for i in range(saves)]
                    ours.send(False)
                    spent, wall = ours.recv() - spent, time.monotonic() - begin
                    when = f"{spent / wall * 100:.0f} % of the time" if rounds else "none"
                    for what, column in zip(Times._fields, zip(*times, strict=True), strict=True):
                        median, p99 = statistics.median(column), percentile(column, 99)
                        print(
                            f"| {when} | {what} | {median:.3f} | {percentile(column, 95):.3f} "
                            f"| {p99:.3f} | {max(column):.3f} |",
                            flush=True,
                        )
                        if what == "process" and median >= MEDIAN_LIMIT:
                            missed.append(
                                f"rounds {when}: a median of {median:.3f} s, not under {MEDIAN_LIMIT}"
                            )
                        if what == "process" and p99 >= P99_LIMIT:
                            missed.append(f"rounds {when}: 99 % within {p99:.3f} s, not under {P99_LIMIT}")
            finally:
                ours.send(None)
                watcher.join()
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--saves", type=int, default=200, help="saves of each kind")
    parser.add_argument("--quick", action="store_true", help="few saves, few proxies")
    options = parser.parse_args()
    saves, count = (20, 100) if options.quick else (options.saves, 1_000)
    missed = measure(saves, count)
    for line in missed:
        print(f"target missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
