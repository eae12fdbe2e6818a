"""The settings of the app: ``PROXYHEALTH = {...}``, read at access."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypedDict

from celery.schedules import schedstate, schedule
from django.core.exceptions import ImproperlyConfigured

from proxyhealth.conf import DEFAULT_INTERVAL, app_settings, interval_of


class BeatEntry(TypedDict):
    task: str
    schedule: schedule
    kwargs: dict[str, Any]


class ClockSafeSchedule(schedule):
    """A schedule of an interval that goes on when the clock is set back.

    Celery's own waits until the clock has caught up with the last run. And its beat has a heap of what is due
    when, which it makes anew when a schedule is not equal to what it was: after such a step this one is not.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self._offset = _clock_offset()

    def is_due(self, last_run_at: datetime) -> schedstate:
        if self.maybe_make_aware(last_run_at) > self.maybe_make_aware(self.now()):
            return schedstate(True, self.seconds)
        return super().is_due(last_run_at)

    def __eq__(self, other: object) -> bool:
        before, self._offset = self._offset, _clock_offset()
        return super().__eq__(other) and self._offset > before - 1

    __hash__ = None  # type: ignore[assignment]  # like its parent's

    def __reduce__(self) -> tuple[type[ClockSafeSchedule], tuple[float]]:
        return type(self), (self.seconds,)


def _clock_offset() -> float:
    """How far the clock, which can be set, is before the one that cannot."""
    return time.time() - time.monotonic()


def beat_schedule(options: Mapping[str, Any] | None = None) -> dict[str, BeatEntry]:
    """The entry for Celery beat that runs the rounds.

    In the settings module give it the ``PROXYHEALTH`` dictionary, because there Django's
    settings cannot be read yet: ``CELERY_BEAT_SCHEDULE = beat_schedule(PROXYHEALTH)``.
    Of ticks that come close together, as from two schedulers or from a backlog, all but the first are
    skipped by who gets them.
    """
    try:
        interval = interval_of(app_settings() if options is None else options)
    except ImproperlyConfigured:
        interval = DEFAULT_INTERVAL  # the system check reports it; a settings module must load
    return {
        "proxyhealth-round": {
            "task": "proxyhealth.tasks.check_all",
            "schedule": ClockSafeSchedule(interval),
            "kwargs": {"gap": interval / 2},
        }
    }


# Converters. What they raise completes the sentence "PROXYHEALTH['X'] ...".
