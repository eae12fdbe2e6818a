from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from proxyhealth.models import WorkspaceProxy
from proxyhealth.signals import status_changed
from tests.history.receivers import Other, Receiver


def connected(receiver):
    status_changed.connect(receiver, sender=WorkspaceProxy)
    yield receiver
    status_changed.disconnect(receiver, sender=WorkspaceProxy)


@pytest.fixture
def receiver():
    yield from connected(Receiver())


@pytest.fixture
def other():
    yield from connected(Other())


@pytest.fixture
def later(monkeypatch):
    """``later(seconds)`` moves the clock."""
    now = timezone.now

    def move(seconds):
        monkeypatch.setattr(timezone, "now", lambda: now() + timedelta(seconds=seconds))

    return move
