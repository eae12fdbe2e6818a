"""Count the false changes of status when the network loses probes at random.

    python -m benchmarks.thresholds [--proxies 1000] [--days 30] [--loss 0.01] [--seed 1]

All proxies are well, and no time passes in reality. A round probes each proxy every 60 s. If a result
contradicts the status, the proxy is probed again after 5 s, until the status is confirmed or changes. The
package's own code confirms statuses. The exit code is 1 if a count is more than four standard deviations away
from what the arithmetic says.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Iterator
from typing import NamedTuple

from proxyhealth.statuses import Status
from proxyhealth.storage.confirmation import Instant, Row, Thresholds, confirm

SECOND = 1_000_000
INTERVAL = 60 * SECOND
RECHECK_AFTER = 5 * SECOND
TIMEOUT = 5 * SECOND  # a lost probe takes as long

_RESULTS = {
    is_lost: {"name": "paris", "ticket": 0, "status": status.value}
    for is_lost, status in ((False, Status.OK), (True, Status.UNREACHABLE))
}


class Change(NamedTuple):
    """A change of the confirmed status, in microseconds since the begin."""

    at: int  # the first result of the new status
    confirmed_at: int
    after: str


def changes(rounds: int, thresholds: Thresholds, loss: float, chance: random.Random) -> Iterator[Change]:
    """Yield the changes of one proxy. Rounds in which nothing is lost and nothing waits are skipped."""
    row: Row = {**_RESULTS[False], "since": ""}
    number = 0
    while number < rounds:
        is_lost = chance.random() < loss
        if row["status"] == Status.OK:
            # The number of rounds until the next lost probe has a geometric distribution.
            number += int(math.log(1 - chance.random()) / math.log(1 - loss))
            is_lost = True
            if number >= rounds:
                return
        now = number * INTERVAL + is_lost * TIMEOUT
        while True:
            found = _RESULTS[is_lost]
            needed = thresholds.between(row["status"], found["status"])
            row, begin = confirm(row, found, Instant(now, now), needed)
            if begin:
                yield Change(begin.at, now, row["status"])
            if "raw" not in row:
                break
            is_lost = chance.random() < loss
            now += RECHECK_AFTER + is_lost * TIMEOUT
        # Rounds that began in the meantime were among these probes.
        number = max(number, (now - is_lost * TIMEOUT) // INTERVAL) + 1


def expected(rounds: int, thresholds: Thresholds, loss: float) -> float:
    """Return the number of false failures of one proxy.

    A round that finds it ``ok`` makes it fail if this probe and the next ones are lost: ``loss ** failure``.
    Then it needs ``1 / (1 - loss) ** recovery`` rounds on average until it is ``ok`` again.
    """
    return rounds / (loss**-thresholds.failure + (1 - loss) ** -thresholds.recovery)


def count_failures(
    proxies: int, rounds: int, thresholds: Thresholds, loss: float, seed: int
) -> tuple[int, int]:
    """Return the false failures of all proxies, and the seconds during which one was not ``ok``."""
    chance = random.Random(seed)
    count = microseconds = 0
    for _ in range(proxies):
        end = rounds * INTERVAL
        for change in changes(rounds, thresholds, loss, chance):
            is_failure = change.after != Status.OK
            count += is_failure
            microseconds += (end - change.at) * (1 if is_failure else -1)
    return count, microseconds // SECOND


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--proxies", type=int, default=1000)
    parser.add_argument("--days", type=float, default=30)
    parser.add_argument("--loss", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rounds = int(options.days * 86_400 * SECOND) // INTERVAL
    print(
        f"{options.proxies:,} proxies, {rounds:,} rounds in {options.days:g} days, {options.loss:.1%} lost\n"
    )
    print("| FAILURE_THRESHOLD | RECOVERY_THRESHOLD | false failures | expected | seconds not ok |")
    print("|---|---|---|---|---|")
    failed = False
    for pair in ((1, 1), (2, 1), (3, 1), (3, 3)):
        thresholds = Thresholds(*pair)
        count, seconds = count_failures(options.proxies, rounds, thresholds, options.loss, options.seed)
        mean = options.proxies * expected(rounds, thresholds, options.loss)
        print(f"| {pair[0]} | {pair[1]} | {count:,} | {mean:,.1f} | {seconds:,} |", flush=True)
        failed |= abs(count - mean) > 4 * math.sqrt(mean)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
