"""The schedule of the rounds and of the pruning of the history, for Celery beat."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self, TypedDict

from celery.schedules import BaseSchedule, crontab, schedstate, schedule
from django.core.exceptions import ImproperlyConfigured

from proxyhealth.conf import DEFAULT_INTERVAL, app_settings, interval_of
from proxyhealth.task_names import TaskName


class BeatEntry(TypedDict):
    task: str
    schedule: BaseSchedule
    kwargs: dict[str, Any]


class ClockSafeSchedule(schedule):
    """A schedule with a fixed interval that continues when the system clock is set back.

    Celery's own schedule pauses until the clock reaches the last run again. Beat also keeps a heap of due
    times, which it rebuilds only when a schedule differs from its copy. So once after each such step,
    ``__eq__`` returns False.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self._offset = _clock_offset()

    def is_due(self, last_run_at: datetime) -> schedstate:
        if self.maybe_make_aware(last_run_at) > self.maybe_make_aware(self.now()):
            return schedstate(True, self.seconds)
        return super().is_due(last_run_at)

    def __eq__(self, other: object) -> bool:
        previous_offset, self._offset = self._offset, _clock_offset()
        return super().__eq__(other) and self._offset > previous_offset - 1

    __hash__ = None  # type: ignore[assignment]  # like its parent's

    def __reduce__(self) -> tuple[type[Self], tuple[float]]:
        return type(self), (self.seconds,)


def _clock_offset() -> float:
    """Return the seconds of the system clock, which can be set, minus those of the monotonic clock."""
    return time.time() - time.monotonic()


def beat_schedule(options: Mapping[str, Any] | None = None) -> dict[str, BeatEntry]:
    """Return the entries for Celery beat: one for the rounds, and a daily one that prunes the history.

    A settings module must pass its ``PROXYHEALTH`` dictionary, because Django's settings are not ready yet:
    ``CELERY_BEAT_SCHEDULE = beat_schedule(PROXYHEALTH)``. The workers skip a tick less than half an interval
    after the last one, for example from a second beat or a backlog.
    """
    try:
        interval = interval_of(app_settings() if options is None else options)
    except ImproperlyConfigured:
        interval = DEFAULT_INTERVAL  # the system check reports it; a settings module must load
    return {
        "proxyhealth-round": {
            "task": TaskName.CHECK_ALL.value,  # beat pickles it into its file
            "schedule": ClockSafeSchedule(interval),
            "kwargs": {"gap": interval / 2},
        },
        "proxyhealth-prune": {
            "task": TaskName.PRUNE_HISTORY.value,
            # Not every 24 hours: a beat that is restarted without its file would count from the start again.
            "schedule": crontab(hour=3, minute=30),
            "kwargs": {},
        },
    }
