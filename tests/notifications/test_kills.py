"""A process that is killed at any statement loses nothing, and repeats have the same id and contents."""

from __future__ import annotations

from contextlib import suppress

import pytest
from django.db import OperationalError, connection

from proxyhealth.exceptions import HistoryUnavailable
from proxyhealth.models import Channel, Delivery
from proxyhealth.notifications import sending
from proxyhealth.notifications.sending import send_due
from tests.notifications.story import change, make_channel, make_proxy

# A lost reply would break the transaction of a test.
pytestmark = pytest.mark.django_db(transaction=True)

WRITES = 10  # of a run that drops one delivery and sends another one


class Killed(BaseException):
    """The end of a process."""


def fault(number, before, after):
    """Return a wrapper of queries that raises an error ``before`` or ``after`` one of those that write."""
    count = 0

    def wrap(execute, sql, params, many, context):
        nonlocal count
        if not sql.startswith(("INSERT", "UPDATE")):
            return execute(sql, params, many, context)
        count += 1
        if count == number and before:
            raise before
        result = execute(sql, params, many, context)
        if count == number and after:
            raise after
        return result

    return wrap


@pytest.mark.parametrize(
    ("before", "after"),
    [(Killed(), None), (None, OperationalError("the reply was lost"))],
    ids=["killed", "reply lost"],
)
def test_fault__at_any_write(receiver, later, monkeypatch, before, after):
    monkeypatch.setattr(sending.time, "sleep", lambda seconds: None)
    make_channel(receiver, remind_every=60)
    proxy, other = make_proxy(), make_proxy("oslo")
    for number in range(1, WRITES + 1):
        change(proxy, "unhealthy")
        change(other, "unhealthy", "ok", every=0.001)
        with (
            suppress(Killed, HistoryUnavailable, OperationalError),
            connection.execute_wrapper(fault(number, before, after)),
        ):
            send_due()
        change(proxy, "ok")
        for _ in range(2):
            later(1_000)
            send_due()
    told = {}
    for body in receiver.bodies:
        assert told.setdefault(body["id"], body["changes"]) == body["changes"]
    rows = [(each["transition"], each["reminder"]) for changes in told.values() for each in changes]
    assert len(rows) == len(set(rows)), "no change has two ids"
    changes = {transition for transition, _ in rows}
    assert changes == set(Delivery.objects.values_list("transition", flat=True))
    assert set(Delivery.objects.values_list("state", flat=True)) <= {"sent", "dropped"}
    order = [transition for transition, number in rows if not number]
    assert order == sorted(order)
    (channel,) = Channel.objects.all()
    assert (channel.claim, channel.sent_count) == (None, len(rows))
