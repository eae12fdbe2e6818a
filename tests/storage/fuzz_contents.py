"""Random contents of our keys in Redis: reads never fail, and the next round makes everything good again."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import redis
from django.contrib.auth.models import User
from django.core.cache import caches
from django.test import Client
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from proxyhealth import health
from proxyhealth.api import inventory, listing
from proxyhealth.exceptions import RoundFailed
from proxyhealth.models import WorkspaceProxy
from proxyhealth.notifications import culprit
from proxyhealth.overview import prober_parts
from proxyhealth.readiness.parts import Part
from proxyhealth.rounds import runner
from proxyhealth.rounds.recheck import run_check
from proxyhealth.rounds.shards import Plan
from proxyhealth.snapshot import Snapshot
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage import counters, presence, reader, rounds_log
from proxyhealth.storage.counters import count_task
from proxyhealth.storage.deployment import read_identity
from proxyhealth.storage.lease import RoundRequest, begin_round, end_round, take_token
from proxyhealth.storage.pending import add_pending
from proxyhealth.storage.plan import claim_shard, save_plan, store_part
from tests.settings import REDIS_PORT
from tests.storage.poisons import poisons
from tests.support.api import LIST, REGIONS
from tests.support.fuzzing import findings_of
from tests.support.machine import at_most
from tests.support.proxies import WorkspaceProxyServer


def refuse_constant(name: str) -> Any:
    raise AssertionError(f"{name} is not JSON")


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class Fuzzer:
    """A deployment of five proxies, and Redis with the contents of a busy one."""

    def __init__(self) -> None:
        self._client = redis.Redis(port=REDIS_PORT)
        self._records = _Records()

    def key(self, name: str) -> str:
        return str(caches["default"].make_key(f"proxyhealth:{name}"))

    @contextmanager
    def deployed(self) -> Iterator[None]:
        logger = logging.getLogger("proxyhealth")
        before = logger.propagate, logging.root.manager.disable
        logger.propagate, logging.root.manager.disable = False, 0
        logger.addHandler(self._records)
        try:
            with (
                self._client,
                WorkspaceProxyServer({"warnings": ["warm"]}) as good,
                WorkspaceProxyServer(7) as bad,
            ):
                self._fill(good.url, bad.url)
                yield
        finally:
            logger.removeHandler(self._records)
            logger.propagate, logging.root.manager.disable = before

    def _fill(self, good: str, bad: str) -> None:
        self._client.flushall()
        self.forget()
        urls = {"paris": "", "oslo": "ftp://x", "rome": good, "lima": bad, "bonn": "http://127.0.0.1:1"}
        rows = [WorkspaceProxy.objects.create(name=name, url=url) for name, url in urls.items()]
        self._user = Client()
        self._user.force_login(User.objects.create_superuser("fuzz"))
        health.force_update()
        self._expected = {id: (status.status, status.reason) for id, status in health.health_status().items()}
        assert sorted(status for status, _ in self._expected.values()) == sorted(
            [Status.UNREGISTERED, Status.UNHEALTHY, Status.OK, Status.UNHEALTHY, Status.UNREACHABLE]
        )
        self._ids = [row.pk for row in rows]
        begun = begin_round(RoundRequest(min_gap=0.001))
        begin_round(RoundRequest(rerun_if_busy=True))
        proxies = [status.proxy for status in health.health_status().values()]
        plan = Plan.create(begun.token, datetime.now(UTC), [proxies])
        save_plan(begun.token, plan.dump(), [json.dumps(message) for message in plan.messages()])
        claim_shard(begun.token, 0, "host/1", anew=True)
        found = [status.judgement() for status in health.health_status().values()]
        store_part(begun.token, 0, json.dumps({"shard": 0, "found": found}))
        end_round(begun.token)
        count_task("check_all", "success", 0.5)
        presence.note_worker("a", {"name": "celery@a", "tasks": [["x", 1.0]], "takes": ["celery"]})
        presence.note_beat("b", {"host": "b", "error": "x"})
        presence.note_tick(60)
        add_pending([str(uuid4())])
        self._good = {
            name: (self._client.dump(name), self._client.pttl(name))
            for name in self._client.keys(self.key("*"))  # not those of the broker
        }

    def forget(self) -> None:
        """Let this process remember nothing of the cache, as a new one."""
        counters.forget()
        reader.forget()
        inventory.forget()
        listing.forget()

    def check(self, changes: list[Any], has_copy: bool) -> None:
        """Reads of any contents succeed, and a round makes them good again."""
        self._client.flushall()
        for name, (value, life) in self._good.items():
            self._client.restore(name, max(0, life), value)
        self.forget()
        if has_copy:
            assert not health.snapshot().fault
        for change in changes:
            change.apply(self._client, self.key(change.key))
        with at_most(5):
            self.read()
            if any(change.key in ("lease", "commit") for change in changes):
                time.sleep(0.03)  # another process may hold these for a while
            self.run_rounds()

    def read(self) -> None:
        """Read in every way."""
        for snapshot in (health.snapshot(), reader.read_anew(), reader.read_activity().snapshot):
            check_snapshot(snapshot)
        signs, entries = presence.read(), rounds_log.read()
        culprit.describe(signs)
        for part in (
            prober_parts.workers(signs),
            prober_parts.beat(signs),
            prober_parts.queue(Part(True, facts={"value": 1}), signs),
            prober_parts.rounds(entries),
        ):
            assert part.text
        health.proxy_hosts(healthy_only=True)
        health.statuses_of(WorkspaceProxy.objects.all())
        admin = "/admin/proxyhealth/workspaceproxy/"
        for path in (LIST, REGIONS, f"{LIST}/rome", "/metrics", admin, f"{admin}health/"):
            response = self._user.get(path)
            assert response.status_code == 200, response.content
            if path.startswith("/api"):
                json.loads(response.content, parse_constant=refuse_constant)
            elif path == "/metrics":
                list(text_string_to_metric_families(response.content.decode()))

    def run_rounds(self) -> None:
        """Run a round that succeeds, one that has nothing to repair, and a check that is committed."""
        try:
            outcome = self.run_round()
        except RoundFailed as error:
            stats = self.key("round-stats")
            assert "it belongs to another deployment" in str(error), error
            assert self._client.hget(stats, "deployment") not in (None, read_identity().encode())
            self._client.hdel(stats, "deployment")
            outcome = self.run_round()
        assert outcome == "success"
        self.assert_good()
        self._records.messages.clear()
        assert self.run_round() == "success"
        assert not [text for text in self._records.messages if "repaired" in text or "replaced" in text]
        self.assert_good()
        before = reader.read_anew()
        run_check(self._ids[:1])
        after = reader.read_anew()
        assert after.number == before.number + 1, "the check was committed"
        assert after.statuses[self._ids[0]].checked_at > before.statuses[self._ids[0]].checked_at
        self.assert_good()

    def run_round(self) -> str:
        return runner.run_round(RoundRequest(min_gap=0.001))

    def assert_good(self) -> None:
        snapshot = reader.read_anew()
        check_snapshot(snapshot)
        assert not snapshot.stale, snapshot.stale_reason
        assert {id: (each.status, each.reason) for id, each in snapshot.statuses.items()} == self._expected
        assert take_token() < 2**53


TEXTS = ("name", "display_name", "icon", "url", "wildcard_hostname", "version")


def check_snapshot(snapshot: Snapshot) -> None:
    """Assert the types of all values, so that no reader fails later."""
    moments = [snapshot.checked_at, snapshot.stale_at, snapshot.committed_at, snapshot.error_at]
    for id, status in snapshot.statuses.items():
        assert isinstance(id, UUID)
        assert isinstance(status.status, Status)
        assert isinstance(status.reason, Reason)
        assert all(isinstance(text, str) for text in (*status.report.errors, *status.report.warnings)), status
        assert all(isinstance(getattr(status.proxy, name), str) for name in TEXTS), status
        assert isinstance(status.proxy.deleted, bool), status
        assert status.latency is None or math.isfinite(1000 * status.latency), status
        moments += [
            status.checked_at,
            status.tls_expires_at,
            status.proxy.created_at,
            status.proxy.updated_at,
        ]
    assert all(moment is None or moment.utcoffset() is not None for moment in moments), moments
    assert snapshot.duration is None or math.isfinite(1000 * snapshot.duration)
    assert isinstance(snapshot.stale_reason, str)
    assert snapshot.hosts is snapshot.hosts
    assert len(snapshot.by_name) <= len(snapshot.statuses)


def fuzz_contents(seed: int, count: int) -> Iterator[str]:
    """Yield the findings of ``count`` contents of Redis."""
    fuzzer = Fuzzer()
    with fuzzer.deployed():
        yield from findings_of(
            fuzzer.check, st.lists(poisons, min_size=1, max_size=3), st.booleans(), seed=seed, count=count
        )
