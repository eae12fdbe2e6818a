"""Measure the history: its reads with many transitions, and what it adds to a round.

    python -m benchmarks.history [OTHER] [--database sqlite postgresql] [--transitions 1000000] [--quick]

The reads: 10,000 proxies had a million transitions in 400 days, with a few gaps. The program measures the
views and functions that read them, on SQLite and on PostgreSQL, which it starts. It fails if a query reads
the whole table of transitions without an index, or if a read misses its target.

A round: OTHER is the directory of a checkout without the history. A process of each checkout probes the same
10,000 proxies, of which 2 % change their status with each round, in the order A B B A. Each has its own
Valkey and its own SQLite. The time of this checkout includes the task that writes the rows. OTHER may be this
checkout, which shows how exact the figures are.

``--quick`` only shows that the program works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks import history_reads, history_rounds

HERE = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", nargs="?", type=Path, help="measure a round, too, against this checkout")
    parser.add_argument("--database", nargs="*", default=["sqlite", "postgresql"], help="of the reads")
    parser.add_argument("--proxies", type=int, default=10_000)
    parser.add_argument("--transitions", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=2, help="rounds A B B A")
    parser.add_argument("--quick", action="store_true", help="few proxies and transitions")
    options = parser.parse_args()
    if options.quick:
        options.proxies, options.transitions, options.turns = 200, 5_000, 1
    missed = []
    for database in options.database:
        # Django can be set up only once in a process.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            arguments = (database, options.proxies, options.transitions)
            missed += pool.submit(history_reads.measure, *arguments).result()
    if options.other:
        missed += history_rounds.measure(HERE, options.other.resolve(), options.proxies, options.turns)
    for line in missed:
        print(f"target missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
