from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from tests.notifications.story import Receiver, make_channel, make_proxy


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def channel(db, receiver):
    return make_channel(receiver)


@pytest.fixture
def proxy(db):
    return make_proxy()


@pytest.fixture
def later(monkeypatch):
    """``later(seconds)`` moves the clock, once more with each call."""
    now, moved = timezone.now, [0.0]

    def move(seconds):
        moved[0] += seconds
        monkeypatch.setattr(timezone, "now", lambda: now() + timedelta(seconds=moved[0]))

    return move
