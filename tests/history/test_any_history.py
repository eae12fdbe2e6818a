"""The history of any rounds, checks, losses and outages: complete, in a chain, with exact times."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import pairwise
from uuid import UUID

import pytest
from django.core.cache import caches
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from proxyhealth.exceptions import HistoryUnavailable, StoreError
from proxyhealth.history.recall import DatabaseMemory
from proxyhealth.history.records import record_history
from proxyhealth.models import Gap, Transition, Watch
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.confirmation import moment
from proxyhealth.storage.merge import Round
from tests.support.values import make_proxy, make_status

SECOND = 1_000_000
START = 1_795_000_000 * SECOND
KEYS = ("snapshot", "outbox", "token", "round-stats")
BAD = (Status.UNHEALTHY, Status.UNREACHABLE)
IDS = [UUID(int=number) for number in range(1, 4)]

OPERATIONS = [
    *("round",) * 3,
    *("check",) * 3,
    *("drain",) * 2,
    "late check",
    "round without the history",
    "check without the history",
    "flush",
    "lose the outbox",
    "offline",
    "save",
    "fall back",
    "remove",
    "add",
]


class Down(DatabaseMemory):
    """The memory while the database is down."""

    def watched(self):
        raise HistoryUnavailable("down")

    def rows(self, ids):
        raise HistoryUnavailable("down")


class World:
    """A fleet whose time is the token of the next commit."""

    def __init__(self, client):
        self.client = client
        self.token = START
        self.proxies = {id: make_proxy(f"p{id.int}", id) for id in IDS}
        self.present = set(IDS)
        self.saved: dict[str, bytes | None] = {}
        self.first_round = None

    def key(self, name):
        return caches["default"].make_key(f"proxyhealth:{name}")

    def advance(self, seconds):
        self.token += max(1, int(seconds * SECOND))

    def commit(self, found, memory=None, *, is_round=True):
        statuses = [
            make_status(self.proxies[id], result, reason=Reason.CONNECT if result in BAD else Reason.NONE)
            for id, result in found.items()
            if id in self.present
        ]
        options = {"full_round": Round(moment(self.token), 0.1)} if is_round else {}
        with suppress(StoreError):  # a later round came first
            commit(statuses, self.token, memory=memory or DatabaseMemory(), **options)

    def drain(self):
        record_history()
        if self.first_round is None and (watch := Watch.objects.first()):
            self.first_round = watch.token, watch.watched

    def run(self, operation, found, some):
        checked = {id: found[id] for id in some}
        match operation:
            case "round":
                self.commit(found)
            case "check":
                self.commit(checked, is_round=False)
            case "round without the history":
                self.commit(found, Down())
            case "check without the history":
                self.commit(checked, Down(), is_round=False)
            case "late check":  # which took its token before others
                now, self.token = self.token, max(START + 1, self.token - 45 * SECOND - 7)
                self.commit(checked, is_round=False)
                self.token = now
            case "drain":
                self.drain()
            case _:
                self.harm(operation, some)

    def harm(self, operation, some):
        match operation:
            case "flush":
                self.client.flushall()
            case "lose the outbox":
                self.client.delete(self.key("outbox"))
            case "offline":
                self.client.hsetnx(self.key("round-stats"), "offline_since", self.token)
            case "save":
                self.saved = {name: self.client.dump(self.key(name)) for name in KEYS}
            case "fall back":  # to a replica that missed the last commits
                for name, value in self.saved.items():
                    self.client.delete(self.key(name))
                    if value:
                        self.client.restore(self.key(name), 0, value)
            case "remove":
                self.present -= set(some)
            case "add":
                self.present = set(IDS)


def assert_chains(confirmed):
    """Assert that the rows of each proxy fit together, and end with its status."""
    chains: dict[UUID, list[Transition]] = {}
    for row in Transition.objects.order_by("pk"):
        chain = chains.setdefault(row.proxy_uuid, [])
        assert row.before == (chain[-1].after if chain else "unknown")
        assert row.before != row.after
        assert moment(START) <= row.at <= moment(row.token)
        if chain:
            assert row.token > chain[-1].token
            assert row.watched >= chain[-1].watched
        chain.append(row)
    ends = {id: chain[-1].after for id, chain in chains.items()}
    assert {id: after for id, after in ends.items() if after != "removed"} == confirmed


def assert_time_is_known_or_in_a_gap(world):
    watch, gaps = Watch.objects.get(), list(Gap.objects.order_by("token"))
    assert watch.token == world.token
    token, watched = world.first_round
    missed = sum(gap.microseconds for gap in gaps if gap.token > token)
    assert watch.token - token == watch.watched - watched + missed
    assert all(gap.start < gap.end for gap in gaps)
    assert all(gap.end <= later.start for gap, later in pairwise(gaps))
    assert all(row.watched <= watch.watched for row in Transition.objects.all())


results = st.sampled_from([Status.OK, Status.OK, *BAD, Status.UNREGISTERED])
result_of_each = st.fixed_dictionaries(dict.fromkeys(IDS, results))
pauses = st.sampled_from([0.000001, 1.0, 10.0, 60.0, 179.9, 200.0, 1000.0])
operations = st.lists(
    st.tuples(
        st.sampled_from(OPERATIONS), pauses, result_of_each, st.lists(st.sampled_from(IDS), max_size=3)
    ),
    min_size=8,
    max_size=16,
)


@pytest.mark.django_db
@settings(
    max_examples=int(os.environ.get("EXAMPLES", "30")),
    derandomize="EXAMPLES" not in os.environ,
    deadline=None,
    phases=[Phase.generate],  # to shrink a history takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(operations=operations, last=result_of_each, thresholds=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_history__of_any_rounds_checks_and_losses(redis_client, configure, operations, last, thresholds):
    configure(FAILURE_THRESHOLD=thresholds[0], RECOVERY_THRESHOLD=thresholds[1])
    redis_client.flushall()
    for model in (Transition, Gap, Watch):
        model.objects.all().delete()
    world = World(redis_client)
    for operation, pause, found, some in operations:
        world.advance(pause)
        world.run(operation, found, some)
    world.drain()
    world.advance(30)
    world.commit(last)
    world.drain()
    confirmed = {id: status.status.value for id, status in reader.read_anew().statuses.items()}
    assert set(confirmed) == world.present
    assert_chains(confirmed)
    assert_time_is_known_or_in_a_gap(world)
