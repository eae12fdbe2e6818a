"""Many processes that see the same fault at once, on PostgreSQL, which runs their transactions at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connections
from django.utils import timezone

from proxyhealth.models import Alarm, Channel, Delivery
from proxyhealth.notifications import alarms

pytestmark = [pytest.mark.postgresql, pytest.mark.django_db(transaction=True)]

PROCESSES = 8


def test_alarm__of_many_processes_is_told_once():
    for name in ("ops", "dev"):
        Channel.objects.create(name=name, kind="webhook", target="", listens_since=timezone.now())
    together = threading.Barrier(PROCESSES, timeout=20)

    def run(kind):
        try:
            together.wait()
            begun = alarms.begin(kind, "", 60)
            together.wait()
            alarms.end()
        finally:
            connections.close_all()
        return begun

    with ThreadPoolExecutor(PROCESSES) as pool:
        assert sum(pool.map(run, PROCESSES * ["no_rounds"])) == 1
    alarm = Alarm.objects.get()
    assert alarm.ended_at
    told = Delivery.objects.filter(alarm=alarm).order_by("channel__name", "number")
    assert list(told.values_list("channel__name", "number")) == [
        ("dev", 0), ("dev", 1), ("ops", 0), ("ops", 1)
    ]  # fmt: skip
