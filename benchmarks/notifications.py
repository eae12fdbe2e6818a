"""Measure how punctual rounds are while a channel hangs.

    python -m benchmarks.notifications [--turns 2] [--rounds 5] [--proxies 1000] [--quick]

The program runs beat, and ``celery -A project worker --concurrency 2``. After each round, 2 % of the proxies
change their status, so that there is something to tell. It measures in the order A B B A: with a webhook
that answers at once, and with that one and another that accepts each request and never answers.

A round is late by the time from the start of the one before it, less the interval. The age of a change is
the time from its probe to the arrival of its message at the webhook that answers.

The exit code is 1 if rounds with the hanging channel are later, or changes told later, than the limits allow.
``--quick`` only shows that the program works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from benchmarks.processes import add_proxies, deployment, wait_for, worker
from benchmarks.servers import Fleet, fleet
from tests.support.recipients import Webhook

INTERVAL = 2.0
REST = 1.0  # s, the setting GROUP_INTERVAL
LATE_LIMIT = 0.1  # s, of the medians
AGE_LIMIT = 1.0


@dataclass
class Figures:
    """Seconds: by how much rounds were late, and the ages of changes when they were told."""

    late: list[float] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)

    def add(self, other: Figures) -> None:
        self.late += other.late
        self.ages += other.ages


@contextmanager
def beat(folder: Path) -> Iterator[None]:
    with (folder / "beat.log").open("ab") as log:
        command = [sys.executable, "-m", "celery", "-A", "project", "beat"]
        process = subprocess.Popen([*command, "--schedule", str(folder / "schedule")], stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def add_channels(*webhooks: Webhook) -> None:
    """Replace all channels and what they were told: a proxy that changes too often is told differently."""
    from django.utils.timezone import now

    from proxyhealth.models import Channel, Outage, Transition

    for model in (Channel, Outage, Transition):
        model.objects.all().delete()
    for webhook in webhooks:
        Channel.objects.create(
            name=webhook.name, kind="webhook", target=webhook.url, secret="s" * 32, listens_since=now()
        )


def measure(folder: Path, proxies: Fleet, rounds: int, hangs: bool) -> Figures:
    """Run so many rounds with new processes."""
    from proxyhealth.storage import reader

    starts: list[float] = []

    def has_round() -> bool:
        checked_at = reader.read_anew().checked_at
        if checked_at is None or checked_at.timestamp() in starts[-1:]:
            return False
        starts.append(checked_at.timestamp())
        return True

    with ExitStack() as stack:
        good = stack.enter_context(Webhook("good"))
        hanging = [stack.enter_context(Webhook("hanging", "hang"))] if hangs else []
        add_channels(good, *hanging)
        stack.enter_context(worker(folder, 2))
        stack.enter_context(beat(folder))
        for _ in range(rounds):
            wait_for(has_round)
            proxies.failing.value = not proxies.failing.value
        for _ in range(2):
            wait_for(has_round)
        wait_for(lambda: good.messages)
        time.sleep(2 * REST)  # the last message
    assert bool(hanging) == any(each.messages for each in hanging), "the hanging channel was told nothing"
    offset = time.time() - time.monotonic()
    return Figures(
        # The first round may be that of the side before, and the second one that of the start.
        [later - earlier - INTERVAL for earlier, later in pairwise(starts[2:])],
        [
            message.at + offset - datetime.fromisoformat(change["at"]).timestamp()
            for message in good.messages
            for change in message.changes
        ],
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=2, help="turns A B, B A")
    parser.add_argument("--rounds", type=int, default=5, help="of each side in a turn, at most 5")
    parser.add_argument("--proxies", type=int, default=1_000)
    parser.add_argument("--quick", action="store_true", help="one turn of 3 rounds with 100 proxies")
    options = parser.parse_args()
    if options.quick:
        options.turns, options.rounds, options.proxies = 1, 3, 100
    environment = {
        "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
        "PROXYHEALTH_INTERVAL": str(INTERVAL),
        "PROXYHEALTH_SETTINGS": json.dumps({"GROUP_INTERVAL": REST}),
    }
    sides = {False: Figures(), True: Figures()}
    with fleet() as proxies, deployment(**environment) as folder:
        add_proxies(proxies.url(index) for index in range(options.proxies))
        for turn in range(options.turns):
            for hangs in (False, True) if turn % 2 == 0 else (True, False):
                sides[hangs].add(measure(folder, proxies, min(options.rounds, 5), hangs))
    return 1 if show(sides) else 0


def show(sides: dict[bool, Figures]) -> list[str]:
    """Print a row for each side. Return the missed targets."""
    print("| channels | rounds | late, median s | max | changes | age, median s | max |")
    print("|---|---|---|---|---|---|---|")
    for hangs, figures in sides.items():
        title = "one that answers, and one that hangs" if hangs else "one that answers"
        late = f"{statistics.median(figures.late):.3f} | {max(figures.late):.3f}"
        ages = f"{statistics.median(figures.ages):.2f} | {max(figures.ages):.2f}"
        print(f"| {title} | {len(figures.late)} | {late} | {len(figures.ages)} | {ages} |")
    missed = []
    for name, limit in {"late": LATE_LIMIT, "ages": AGE_LIMIT}.items():
        without, with_it = (statistics.median(getattr(sides[hangs], name)) for hangs in (False, True))
        if with_it > without + limit:
            missed.append(f"{name}: {with_it:.3f} s with the hanging channel, {without:.3f} s without")
    for line in missed:
        print(f"target missed: {line}")
    return missed


if __name__ == "__main__":
    raise SystemExit(main())
