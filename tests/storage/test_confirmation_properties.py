"""The confirmed statuses and the known clock of any sequence of results, compared with a plain definition."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise

from django.test import override_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyhealth.statuses import Status
from proxyhealth.storage.confirmation import moment
from proxyhealth.storage.document import dump, load
from proxyhealth.storage.merge import Results, Round, merged
from proxyhealth.utils import rfc3339
from tests.support.values import make_proxy, make_status

SECOND = 1_000_000
STALE_AFTER = 180 * SECOND
START = 1_795_000_000 * SECOND
BAD = (Status.UNHEALTHY, Status.UNREACHABLE)
PROXY = make_proxy()


@dataclass(frozen=True)
class Step:
    pause: int
    result: Status
    is_round: bool
    goes_offline: bool  # before it


steps = st.builds(
    Step,
    pause=st.sampled_from([1, SECOND, 60 * SECOND, STALE_AFTER, STALE_AFTER + 1, 1000 * SECOND]),
    result=st.sampled_from([Status.OK, Status.OK, *BAD, *BAD, Status.UNREGISTERED]),
    is_round=st.booleans(),
    goes_offline=st.sampled_from([False, False, False, True]),
)


def results_in_a_row(results, failure, recovery):
    """Yield the status after each result, and the index of the result with which it began."""
    status, since = results[0], 0
    yield status, since
    for index in range(1, len(results)):
        result = results[index]
        crossing = {status == Status.OK, result == Status.OK} == {True, False}
        needed = 1
        if crossing and Status.UNREGISTERED not in (status, result):
            needed = failure if status == Status.OK else recovery
        row = 0  # the last results that contradict the status, all on the other side
        while (
            index - row > since
            and results[index - row] != Status.UNREGISTERED
            and (results[index - row] == Status.OK) == (result == Status.OK)
            and row < needed
        ):
            row += 1
        if result != status and (needed == 1 or row >= needed):
            status, since = result, index - max(row, 1) + 1 if needed > 1 else index
        yield status, since


def known_time(tokens, full, offline, until):
    """Return the microseconds before ``until`` in which a full round was fresh, counted one by one."""
    rounds = [token for token, is_full in zip(tokens, full, strict=True) if is_full and token <= until]
    known = 0
    for begin, end in zip(rounds, [*rounds[1:], until], strict=True):
        outages = [moment for moment in offline if begin <= moment < end]
        known += max(0, min(end, begin + STALE_AFTER, *outages) - begin)
    return known


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(steps, min_size=1, max_size=25),
    failure=st.integers(1, 4),
    recovery=st.integers(1, 4),
)
def test_merge__agrees_with_the_definition(steps, failure, recovery):
    thresholds = {"FAILURE_THRESHOLD": failure, "RECOVERY_THRESHOLD": recovery, "STALE_AFTER": 180}
    with override_settings(PROXYHEALTH=thresholds):
        agree(steps, failure, recovery)


def agree(steps, failure, recovery):
    expected = list(results_in_a_row([step.result for step in steps], failure, recovery))
    value, token, offline_since = None, START, None
    tokens, full, offline, entries = [], [], [], []
    for index, step in enumerate(steps):
        if step.goes_offline and offline_since is None and any(full):
            offline_since = token + step.pause // 2
            offline.append(offline_since)
        token += step.pause
        tokens.append(token)
        is_full = step.is_round or index == 0
        full.append(is_full)
        results = Results(
            [make_status(PROXY, step.result)], token, (), Round(moment(token), 0.1) if is_full else None
        )
        document, added, _ = merged(value, results, last_token=token, offline_since=offline_since)
        if is_full:
            offline_since = None
        value = dump(document)
        entries += map(json.loads, added)
        (row,) = load(value, token).judgements.values()
        status, since = expected[index]
        assert row["status"] == status
        assert row["since"] == rfc3339(moment(tokens[since]))
        assert (row.get("raw") or row)["status"] == step.result
        if is_full:
            assert document.head["watched"] == (token, known_time(tokens, full, offline, token))
    check_entries(entries, expected, tokens, full, offline)


def check_entries(entries, expected, tokens, full, offline):
    changes = [entry for entry in entries if entry["kind"] == "change"]
    found = [(entry["before"], entry["after"], entry["at"]) for entry in changes]
    wanted, before = [], "unknown"
    for status, since in expected:
        if status != before:
            wanted.append((before, status, tokens[since]))
            before = status
    assert found == wanted
    for entry in changes:
        assert entry["watched"] == known_time(tokens, full, offline, entry["at"])
    rounds = [token for token, is_full in zip(tokens, full, strict=True) if is_full]
    missed = {
        end: end - begin - (known_time(tokens, full, offline, end) - known_time(tokens, full, offline, begin))
        for begin, end in pairwise(rounds)
    }
    gaps = {entry["end"]: entry["end"] - entry["start"] for entry in entries if entry["kind"] == "gap"}
    assert gaps == {end: length for end, length in missed.items() if length}
