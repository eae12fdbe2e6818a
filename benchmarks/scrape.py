"""What a scrape of /metrics costs, as Prometheus sees it.

    python -m benchmarks.scrape [--proxies 1000 10000] [--rounds 10] [--quick]

gunicorn as it is by default, one process of one thread; the snapshot in a Valkey, with a certificate for each
proxy. After each of the rounds, which another process commits, both views are scraped: ours, and that of
django-prometheus, which has our collector too and leaves the text to prometheus_client. The one that comes
first after a round has to read the snapshot; they take turns in that. Then each is scraped again.

The exit code is 1 if the first scrape after a round takes 150 ms in the median. ``--quick`` is short; its
numbers are worth nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.processes import add_proxies, deployment
from benchmarks.read import Case, Client, commit_elsewhere, gunicorn, request_of

OURS = Case("ours", "/metrics")
THEIRS = Case("prometheus_client", "/django-prometheus/metrics")

LIMIT = 0.15
EXPIRY = datetime(2030, 1, 1, tzinfo=UTC)


def scrape(base: str, case: Case) -> tuple[float, int]:
    """Seconds and bytes of one, over a connection of its own."""
    client = Client(base, request_of(case, ""))
    begin = time.perf_counter()
    answer = client.ask()
    assert answer.status == 200, f"{case.name}: {answer}"
    return time.perf_counter() - begin, answer.size


def measure(folder: Path, count: int, rounds: int) -> list[str]:
    firsts: dict[Case, list[float]] = {OURS: [], THEIRS: []}
    agains: dict[Case, list[float]] = {OURS: [], THEIRS: []}
    sizes: dict[Case, int] = {}
    with gunicorn(folder) as base:
        for case in (OURS, THEIRS):  # what a process does once in its life
            scrape(base, case)
        for number in range(2 * rounds):
            commit_elsewhere(number, EXPIRY)
            order = (OURS, THEIRS) if number % 2 else (THEIRS, OURS)
            firsts[order[0]].append(scrape(base, order[0])[0])
            scrape(base, order[1])
            for case in order:
                seconds, sizes[case] = scrape(base, case)
                agains[case].append(seconds)
    assert min(sizes.values()) > count * 300, f"series are missing: {sizes}"
    for case in (OURS, THEIRS):
        found = [firsts[case], agains[case]]
        cells = [f"{statistics.median(times) * 1e3:.0f} | {max(times) * 1e3:.0f}" for times in found]
        ratio = statistics.median(agains[THEIRS]) / statistics.median(agains[case])
        print(
            f"| {count:,} | {case.name} | {sizes[case] / 1e3:,.0f} | {cells[0]} | {cells[1]} | {ratio:.1f} |",
            flush=True,
        )
    first = statistics.median(firsts[OURS])
    if first >= LIMIT:
        return [f"{count:,}: the first scrape after a round takes {first * 1e3:.0f} ms"]
    return []


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--proxies", type=int, nargs="+", default=[1_000, 10_000], help="numbers of proxies")
    parser.add_argument("--rounds", type=int, default=10, help="before which each view is the first")
    parser.add_argument("--quick", action="store_true", help="few proxies and rounds")
    options = parser.parse_args()
    if options.quick:
        options.proxies, options.rounds = [100], 2
    missed = []
    with deployment() as folder:
        print("| proxies | view | KB | first after a round, ms | max | again, ms | max | times |")
        print("|---|---|---|---|---|---|---|---|")
        for count in options.proxies:
            add_proxies(f"https://proxy-{index}.example.com" for index in range(count))
            commit_elsewhere(0, EXPIRY)
            missed += measure(folder, count, options.rounds)
    for line in missed:
        print(f"target missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
