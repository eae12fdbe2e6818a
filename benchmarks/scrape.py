"""Measure the time of a scrape of /metrics, as Prometheus sees it.

    python -m benchmarks.scrape [--proxies 1000 10000] [--rounds 10] [--quick]

The server is gunicorn with default settings: one process with one thread. The snapshot is in Valkey, with
one certificate per proxy. Another process commits the rounds. After each round, the program scrapes two
views: ours, and the view of django-prometheus, which uses the same collector but lets prometheus_client
render the text. The first scrape after a round must read the new snapshot; the views take turns in being
first. Then both views are scraped again.

The exit code is 1 if the median of our first scrape after a round is 150 ms or more. ``--quick`` only
shows that the program works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.processes import add_proxies, deployment
from benchmarks.read import Case, Client, commit_in_child, format_request, gunicorn

OURS = Case("ours", "/metrics")
THEIRS = Case("prometheus_client", "/django-prometheus/metrics")

LIMIT = 0.15
EXPIRY = datetime(2030, 1, 1, tzinfo=UTC)


def scrape(base: str, case: Case) -> tuple[float, int]:
    """Scrape once over a new connection. Return the seconds and the size in bytes."""
    client = Client(base, format_request(case, ""))
    begin = time.perf_counter()
    response = client.send_request()
    assert response.status == 200, f"{case.name}: {response}"
    return time.perf_counter() - begin, response.size


def measure(folder: Path, count: int, rounds: int) -> list[str]:
    """Print the rows for ``count`` proxies. Return the missed targets."""
    firsts: dict[Case, list[float]] = {OURS: [], THEIRS: []}
    repeats: dict[Case, list[float]] = {OURS: [], THEIRS: []}
    sizes: dict[Case, int] = {}
    with gunicorn(folder) as base:
        for case in (OURS, THEIRS):  # warm up
            scrape(base, case)
        for number in range(2 * rounds):
            commit_in_child(number, EXPIRY)
            order = (OURS, THEIRS) if number % 2 else (THEIRS, OURS)
            firsts[order[0]].append(scrape(base, order[0])[0])
            scrape(base, order[1])
            for case in order:
                seconds, sizes[case] = scrape(base, case)
                repeats[case].append(seconds)
    assert min(sizes.values()) > count * 300, f"series are missing: {sizes}"
    for case in (OURS, THEIRS):
        columns = [firsts[case], repeats[case]]
        cells = [f"{statistics.median(times) * 1e3:.0f} | {max(times) * 1e3:.0f}" for times in columns]
        ratio = statistics.median(repeats[THEIRS]) / statistics.median(repeats[case])
        print(
            f"| {count:,} | {case.name} | {sizes[case] / 1e3:,.0f} | {cells[0]} | {cells[1]} | {ratio:.1f} |",
            flush=True,
        )
    first = statistics.median(firsts[OURS])
    if first >= LIMIT:
        return [f"{count:,}: the first scrape takes {first * 1e3:.0f} ms, target: below {LIMIT * 1e3:.0f} ms"]
    return []


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--proxies", type=int, nargs="+", default=[1_000, 10_000], help="numbers of proxies")
    parser.add_argument("--rounds", type=int, default=10, help="rounds with each view first")
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
            commit_in_child(0, EXPIRY)
            missed += measure(folder, count, options.rounds)
    for line in missed:
        print(f"target missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
