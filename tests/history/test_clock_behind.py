"""A new Redis server, whose clock is behind the one that was lost."""

import pytest

from proxyhealth.exceptions import TokenTooLow
from proxyhealth.history.recall import DatabaseMemory
from proxyhealth.history.records import record_history
from proxyhealth.models import Transition, Watch, WorkspaceProxy
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage import fallback
from proxyhealth.storage.commit import commit
from proxyhealth.storage.confirmation import moment
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.merge import Round
from tests.support.values import make_status

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("redis_client")]

MINUTE = 60_000_000


def a_round(token, status):
    commit([status], token, full_round=Round(moment(token), 0.1), memory=DatabaseMemory())
    record_history()


def test_clock_behind__last_status_is_the_newest(redis_client):
    proxy = WorkspaceProxy.objects.create(name="paris", url="https://paris.example.com").as_proxy()
    start = take_token()
    a_round(start, make_status(proxy))
    a_round(start + 10 * MINUTE, make_status(proxy, Status.UNREACHABLE, reason=Reason.CONNECT))
    redis_client.flushall()
    with pytest.raises(TokenTooLow):
        a_round(start + 5 * MINUTE, make_status(proxy))
    later = take_token()
    assert later > start + 10 * MINUTE
    a_round(later, make_status(proxy))
    assert list(Transition.objects.order_by("pk").values_list("after", flat=True)) == [
        "ok",
        "unreachable",
        "ok",
    ]
    assert Transition.objects.last_of_each().get().after == "ok"
    assert Transition.objects.first().after == "ok", "the newest first, as in the admin and in the JSON"
    rows, _ = WorkspaceProxy.objects.active().with_last_transition()
    (status,) = fallback._snapshot_of(rows).statuses.values()
    assert status.status == "ok"
    assert Watch.objects.get().token >= start
