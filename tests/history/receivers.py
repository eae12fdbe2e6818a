"""Rows whose signals are due, and receivers of these signals."""

from __future__ import annotations

from itertools import pairwise
from uuid import uuid4

from celery.exceptions import SoftTimeLimitExceeded
from django.utils import timezone

from proxyhealth.models import Transition, WorkspaceProxy
from proxyhealth.signals import status_changed
from tests.support.values import NOW

_tokens = iter(range(1_000, 10**9))


def insert(*changes, proxy=None, **values):
    """Insert a chain of rows, whose signals are due."""
    id = proxy.pk if proxy else uuid4()
    values = {
        "proxy": proxy,
        "proxy_uuid": id,
        "proxy_name": "paris",
        "at": NOW,
        "watched": 0,
        "signal_due_at": timezone.now(),
        **values,
    }
    return Transition.objects.bulk_create(
        Transition(before=before, after=after, token=next(_tokens), **values)
        for before, after in pairwise(changes)
    )


class Receiver:
    """A receiver that records what it hears, and then does as it is told."""

    def __init__(self):
        self.calls = []
        self.act = lambda row: None

    def __call__(self, signal, sender, proxy_status, before, transition, **kwargs):
        assert (signal, sender) == (status_changed, WorkspaceProxy)
        self.calls.append((proxy_status, before, transition))
        self.act(transition)

    @property
    def heard(self):
        return [row.pk for _, _, row in self.calls]


NAME = "tests.history.receivers.Receiver"


class Other(Receiver):
    pass


def fail(row):
    raise ValueError("the mail server is down")


def states():
    return list(Transition.objects.order_by("pk").values_list("signal_attempts", "signal_due_at"))


def left():
    return list(
        Transition.objects.filter(signal_due_at__isnull=False).order_by("pk").values_list("pk", flat=True)
    )


def exceed_limit(row):
    raise SoftTimeLimitExceeded
