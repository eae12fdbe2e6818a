"""Scrapes while everything changes: each is consistent in itself and with those before it."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.chaos.deployment import GUNICORN, Deployment
from tests.support.proxies import wait_for

SECONDS = 7
SCRAPES = 150  # at least
PAUSE = 0.03  # seconds between two scrapes of a reader
READERS = 2  # for each process
INTERVAL = 1

NUMBERS = {"unknown": -3, "unreachable": -2, "unhealthy": -1, "unregistered": 0, "ok": 1}

# One process runs rounds; another one creates, changes and deletes rows.
_ROUNDS = """
import time
from proxyhealth import health
end, done = time.monotonic() + {seconds}, 0
while time.monotonic() < end:
    health.force_update()
    done += 1
    time.sleep(0.01)
print(done)
"""
_CHANGES = """
import json, time
from proxyhealth.models import WorkspaceProxy
urls, begin, deleted = {urls}, time.monotonic(), []
number = saves = 0
while time.monotonic() < begin + {seconds}:
    new = WorkspaceProxy.objects.create(name=f"new-{{number}}", url=urls[number % len(urls)])
    for proxy in WorkspaceProxy.objects.active().filter(name__startswith="stays-")[:2]:
        proxy.url = urls[(urls.index(proxy.url) + 1) % len(urls)]
        proxy.save()
        saves += 1
    time.sleep(0.2)
    old = WorkspaceProxy.objects.active().filter(name__startswith="new-").order_by("created_at").first()
    if number > 2:
        old.deleted = True
        old.save()
        deleted.append(str(old.pk))
    number += 1
print(json.dumps({{"saves": saves, "deleted": deleted}}))
"""


@dataclass(frozen=True)
class Scrape:
    """An answer, with the times of its request and of its end (monotonic)."""

    base: str
    begin: float
    end: float
    code: int
    text: str

    @cached_property
    def _families(self) -> list[Any]:
        return [
            family
            for family in text_string_to_metric_families(self.text)
            if family.name.startswith("proxyhealth_")
        ]

    @cached_property
    def series(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        series: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for family in self._families:
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                assert key not in series, f"{key} appears twice in {self}"
                series[key] = sample.value
        return series

    @cached_property
    def counters(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Return all series that only grow: those of counters and histograms."""
        names = {
            sample.name
            for family in self._families
            if family.type in ("counter", "histogram")
            for sample in family.samples
        }
        return {key: value for key, value in self.series.items() if key[0] in names}

    def by(self, name: str, label: str) -> dict[str, float]:
        return {dict(labels)[label]: value for (key, labels), value in self.series.items() if key == name}

    def value(self, name: str, **labels: str) -> float:
        return self.series[name, tuple(sorted(labels.items()))]

    @cached_property
    def proxies(self) -> frozenset[str]:
        return frozenset(self.by("proxyhealth_proxy_info", "proxy_id"))

    def __str__(self) -> str:
        ours = "\n".join(line for line in self.text.splitlines() if line.startswith("proxyhealth_"))
        return f"{self.base}/metrics at {self.begin:.3f} to {self.end:.3f}: {self.code}\n{ours or self.text}"


def scrape_of(base: str, session: requests.Session) -> Scrape:
    begin = time.monotonic()
    answer = session.get(f"{base}/metrics", timeout=10)
    return Scrape(base, begin, time.monotonic(), answer.status_code, answer.text)


class Reader(threading.Thread):
    """A thread that scrapes the processes in turn, until ``end()``."""

    def __init__(self, bases: list[str]) -> None:
        super().__init__(daemon=True)
        self._bases = bases
        self._over = threading.Event()
        self.scrapes: list[Scrape] = []
        self.error: Exception | None = None

    def run(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not self._over.wait(PAUSE):
                base = self._bases[len(self.scrapes) % len(self._bases)]
                try:
                    self.scrapes.append(scrape_of(base, session))
                except requests.RequestException as error:
                    self.error = error
                    return

    def end(self) -> None:
        self._over.set()
        self.join(15)


class Changes(threading.Thread):
    """A thread that runs ``code`` in a process; ``output`` is the JSON that the code prints at its end."""

    def __init__(self, deployment: Deployment, code: str) -> None:
        super().__init__(daemon=True)
        self._deployment = deployment
        self._code = code
        self.output: Any = None

    def run(self) -> None:
        self.output = json.loads(self._deployment.python(self._code))


def check_consistent(scrape: Scrape) -> None:
    """Check that everything in the scrape is from one snapshot."""
    assert scrape.code == 200, scrape
    assert scrape.value("proxyhealth_snapshot_up") == 1, scrape
    results = scrape.by("proxyhealth_health_check_results", "proxy_id")
    numbers = Counter(results.values())
    counted = scrape.by("proxyhealth_proxies", "status")
    assert counted == {status: numbers[number] for status, number in NUMBERS.items()}, (
        f"{counted} by status, but {numbers} by proxy in {scrape}"
    )
    assert results.keys() == scrape.proxies, f"other proxies have a status than a name in {scrape}"
    failures = scrape.by("proxyhealth_probe_failure", "proxy_id")
    assert failures.keys() == {proxy for proxy, number in results.items() if number in (-1, -2)}, (
        f"other proxies have a reason than fail in {scrape}"
    )
    latencies = scrape.by("proxyhealth_probe_duration_seconds", "proxy_id")
    assert latencies.keys() <= scrape.proxies, f"a duration belongs to an unknown proxy in {scrape}"
    histogram = "proxyhealth_health_check_duration_seconds"
    counts = {
        scrape.value(f"{histogram}_count"),
        scrape.value(f"{histogram}_bucket", le="+Inf"),
        rounds_of(scrape),
    }
    assert len(counts) == 1, f"{counts} rounds in {scrape}"
    by_bound = scrape.by(f"{histogram}_bucket", "le")
    buckets = [by_bound[bound] for bound in sorted(by_bound, key=float)]
    assert buckets == sorted(buckets), f"the buckets {buckets} do not grow in {scrape}"


def rounds_of(scrape: Scrape) -> float:
    """Return the number of rounds that changed the snapshot."""
    return sum(scrape.value("proxyhealth_rounds_total", outcome=name) for name in ("success", "incomplete"))


def check_rounds(scrapes: list[Scrape]) -> int:
    """Check that scrapes with the same number of rounds name the same last round. Return how many numbers."""
    last_rounds: dict[float, tuple[float, float]] = {}
    for scrape in scrapes:
        last = (
            scrape.value("proxyhealth_last_round_timestamp_seconds"),
            scrape.value("proxyhealth_last_round_duration_seconds"),
        )
        rounds = rounds_of(scrape)
        assert last_rounds.setdefault(rounds, last) == last, (
            f"after {rounds:.0f} rounds, the last was {last_rounds[rounds]} in another scrape: {scrape}"
        )
    return len(last_rounds)


def check_order(scrapes: list[Scrape]) -> None:
    """Check that no later scrape of any process has a smaller counter, or a proxy that was gone."""
    ended = sorted(scrapes, key=lambda scrape: scrape.end)
    least: dict[Any, float] = {}
    seen: set[str] = set()
    gone: set[str] = set()
    # A scrape is later than another if it began after the other's end. A proxy is gone when a scrape lacks it
    # that is later than one with it.
    seen_before: dict[int, frozenset[str]] = {}
    place = 0
    for scrape in sorted(scrapes, key=lambda scrape: scrape.begin):
        while place < len(ended) and ended[place].end < scrape.begin:
            before = ended[place]
            for key, value in before.counters.items():
                least[key] = max(value, least.get(key, value))
            gone |= seen_before[id(before)] - before.proxies
            seen |= before.proxies
            place += 1
        seen_before[id(scrape)] = frozenset(seen)
        smaller = {
            key: (value, scrape.counters.get(key))
            for key, value in least.items()
            if scrape.counters.get(key, -1) < value
        }
        assert not smaller, f"counters fell: {smaller} in {scrape}"
        assert not gone & scrape.proxies, f"proxies came back: {gone & scrape.proxies} in {scrape}"


@pytest.mark.alone
@pytest.mark.fault("scrapes while everything changes")
def test_scrapes__consistent_and_counters_only_grow(deploy, verdict):
    deployment = deploy(interval=INTERVAL, webs=2, env={"DEBUG": 0})
    for web in deployment.webs:
        web.command = GUNICORN
    urls = [deployment.add(f"stays-{number}").url for number in range(8)]
    sick = deployment.add("sick", errors=("something is wrong",))
    deployment.add("none", url="")
    dead = deployment.add("dead")
    dead.stop()
    deployment.start()

    readers = [Reader(bases) for bases in (deployment.bases, deployment.bases[::-1]) for _ in range(READERS)]
    rounds = Changes(deployment, _ROUNDS.format(seconds=SECONDS))
    changes = Changes(deployment, _CHANGES.format(seconds=SECONDS, urls=[*urls, sick.url, dead.url]))
    for thread in [*readers, rounds, changes]:
        thread.start()
    for thread in (rounds, changes):
        thread.join(SECONDS + 60)
    deleted = set(changes.output["deleted"])
    wait_for(
        lambda: deleted.isdisjoint(scrape_of(deployment.base, deployment.client).proxies),
        10,
        "the metrics leave out the last deleted proxy",
    )
    for reader in readers:
        reader.end()
    assert not deployment.exited()
    assert [reader.error for reader in readers if reader.error] == []

    # Counters survive a restart of all processes but Redis.
    for process in [*deployment.webs, deployment.worker, deployment.beat]:
        process.restart()
    deployment.wait_until_up()
    last = [scrape_of(base, deployment.client) for base in deployment.bases]
    scrapes = [*(scrape for reader in readers for scrape in reader.scrapes), *last]
    for scrape in scrapes:
        check_consistent(scrape)
    numbers = check_rounds(scrapes)
    check_order(scrapes)
    # Enough happened for these checks to mean something.
    assert len(scrapes) >= SCRAPES
    assert {scrape.base for scrape in scrapes} == set(deployment.bases)
    assert numbers > SECONDS, "too few rounds"
    shown = frozenset().union(*(scrape.proxies for scrape in scrapes))
    assert len(deleted & shown) > SECONDS, "too few proxies came and went"
    assert not frozenset().union(*(scrape.proxies for scrape in last)) & deleted
    verdict(
        f"{len(scrapes)} scrapes, {numbers} rounds, {changes.output['saves']} saves, {len(deleted)} deletes: "
        "all consistent, no counter fell, not even after a restart, no proxy came back"
    )
