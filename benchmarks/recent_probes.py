"""Measure the memory of the recent probes in Redis, and the CPU time to store and to read them.

    python -m benchmarks.recent_probes [--proxies 1000 10000] [--quick]

The program stores 24 hours of rounds at an INTERVAL of 60 s in Valkey, with a latency that varies. Then it
stores ten further rounds, and reads one proxy and 50, ten times each. The times are the CPU times of this
process and of Valkey, so other load on the machine does not change them much. A script is Valkey's part for
up to 1,000 proxies, during which it serves no other client.

The exit code is 1 if a proxy takes more than 12 KB, or a script more than 10 ms. ``--quick`` only shows that
the program works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from benchmarks.processes import deployment

INTERVAL = 60
ROUNDS = 24 * 3_600 // INTERVAL
TURNS = 10
MEMORY_LIMIT = 12_000  # bytes per proxy
SCRIPT_LIMIT = 0.01  # seconds


def fill(ids: list[UUID], end: datetime, rounds: int) -> None:
    """Store these rounds with the scripts that ``add_probes()`` runs. To make the statuses takes longer."""
    from proxyhealth.storage import probes

    fields = [(id.bytes, index % 50) for index, id in enumerate(ids)]
    for number in range(rounds):
        moment = end - timedelta(seconds=INTERVAL * (rounds - number))
        hour, second = divmod(int(moment.timestamp()), 3_600)
        samples = [probes._SAMPLE.pack(second, 32, 40 + (number + turn) % 50) for turn in range(50)]
        for begin in range(0, len(ids), probes._BATCH):
            batch = fields[begin : begin + probes._BATCH]
            probes.append(hour, b"".join([id + samples[place] for id, place in batch]))


def statuses_of(ids: list[UUID], checked_at: datetime) -> list[Any]:
    from proxyhealth.snapshot import Proxy, ProxyStatus
    from proxyhealth.statuses import Status

    paris = Proxy(ids[0], "paris", "", "", "https://paris.example.com", "", "", False, checked_at, checked_at)
    return [
        ProxyStatus(replace(paris, id=id), "", Status.OK, checked_at=checked_at, latency=0.05) for id in ids
    ]


def cpu_ms(client: Any, calls: list[Callable[[], Any]]) -> tuple[float, float]:
    """Return the CPU time of a call in milliseconds: of this process, and of Redis."""

    def cpu() -> tuple[float, float]:
        info = client.info("cpu")
        return time.process_time(), info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"]

    before = cpu()
    for call in calls:
        call()
    after = cpu()
    ours, theirs = (1e3 * (end - begin) / len(calls) for begin, end in zip(before, after, strict=True))
    return ours, theirs


def measure(count: int, rounds: int) -> list[str]:
    """Print the row for ``count`` proxies. Return the missed targets."""
    from proxyhealth.storage import probes
    from proxyhealth.storage.client import open_cache

    ids = [uuid4() for _ in range(count)]
    now = datetime.now(UTC)
    with open_cache() as cache:
        client = cache.client
    client.execute_command("FLUSHALL", "SYNC")  # otherwise Redis frees the memory later
    empty = client.info("memory")["used_memory"]
    fill(ids, now, rounds)
    memory = (client.info("memory")["used_memory"] - empty) / count
    further = [statuses_of(ids, now + timedelta(seconds=INTERVAL * turn)) for turn in range(TURNS)]
    write = cpu_ms(client, [lambda statuses=each: probes.add_probes(statuses) for each in further])
    script = write[1] / -(-count // probes._BATCH)
    reads = [cpu_ms(client, TURNS * [lambda n=n: probes.read_probes(ids[:n])]) for n in (1, 50)]
    found = len(probes.read_probes(ids[:1])[ids[0]])
    cells = [f"{ours:.1f} + {theirs:.1f}" for ours, theirs in (write, *reads)]
    print(
        f"| {count:,} | {found:,} | {memory * count / 1e6:,.1f} | {memory:,.0f} | {cells[0]} | {script:.1f} "
        f"| {cells[1]} | {cells[2]} |",
        flush=True,
    )
    missed = []
    if memory > MEMORY_LIMIT:
        missed.append(f"{count:,}: a proxy takes {memory:,.0f} bytes, target: {MEMORY_LIMIT:,}")
    if script > SCRIPT_LIMIT * 1e3:
        missed.append(f"{count:,}: a script takes {script:.1f} ms, target: {SCRIPT_LIMIT * 1e3:.0f} ms")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--proxies", type=int, nargs="+", default=[1_000, 10_000], help="numbers of proxies")
    parser.add_argument("--quick", action="store_true", help="few proxies and rounds")
    options = parser.parse_args()
    rounds = ROUNDS
    if options.quick:
        options.proxies, rounds = [100], 20
    missed = []
    with deployment():
        print(
            "| proxies | probes of one | MB | bytes per proxy | store a round, CPU ms | script, ms "
            "| read one, CPU ms | read 50, CPU ms |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for count in options.proxies:
            missed += measure(count, rounds)
    for line in missed:
        print(f"target missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
