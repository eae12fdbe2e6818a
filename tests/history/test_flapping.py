"""A proxy that fails every other probe for an hour, in virtual time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from itertools import count, cycle

import pytest

from proxyhealth import health
from proxyhealth.history.recall import DatabaseMemory
from proxyhealth.history.records import record_history
from proxyhealth.models import Transition, WorkspaceProxy
from proxyhealth.statuses import Status
from proxyhealth.storage.commit import commit, read_waiting
from proxyhealth.storage.confirmation import moment
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.merge import Round
from proxyhealth.storage.probes import add_probes
from tests.support.values import make_status

pytestmark = pytest.mark.django_db

SECOND = 1_000_000


@pytest.mark.parametrize(
    ("failure", "recovery", "probes", "statuses"),
    [
        (1, 1, 60, ["ok", "unreachable"] * 30),  # each probe is confirmed at once
        (2, 1, 119, ["ok"]),  # each re-check succeeds
        (1, 2, 118, ["ok", "unreachable"]),  # each re-check fails
    ],
)
def test_flapping__changes_as_the_thresholds_say(configure, failure, recovery, probes, statuses):
    configure(FAILURE_THRESHOLD=failure, RECOVERY_THRESHOLD=recovery)
    row = WorkspaceProxy.objects.create(name="paris", url="https://paris.example.com")
    results = cycle([Status.OK, Status.UNREACHABLE])
    begin = take_token() - 3600 * SECOND
    probed = 0
    for number in range(60):
        for check in count():
            token = begin + number * 60 * SECOND + check * 5 * SECOND
            full_round = None if check else Round(moment(token), 0.1)
            status = replace(make_status(row.as_proxy(), next(results)), checked_at=moment(token))
            commit([status], token, memory=DatabaseMemory(), full_round=full_round)
            add_probes([status])
            probed += 1
            if not read_waiting():
                break
    record_history()
    assert probed == probes
    assert list(Transition.objects.order_by("token").values_list("after", flat=True)) == statuses
    recent = health.recent_probes(row)
    assert Counter(probe.status for probe in recent) == {"ok": (probes + 1) // 2, "unreachable": probes // 2}
    assert recent[-1].at - recent[0].at >= timedelta(minutes=59)
