"""The names of the Celery tasks, for all code that sends, schedules or counts them."""

from __future__ import annotations

import enum

PREFIX = "proxyhealth.tasks."


class TaskName(enum.StrEnum):
    """A task by the name that messages carry. ``short`` is its name in metrics."""

    CHECK_ALL = f"{PREFIX}check_all"
    CHECK_SHARD = f"{PREFIX}check_shard"
    CHECK_PROXIES = f"{PREFIX}check_proxies"
    FIRST_ROUND = f"{PREFIX}first_round"
    FINISH_ROUND = f"{PREFIX}finish_round"
    FINISH_BROKEN_ROUND = f"{PREFIX}finish_broken_round"

    @property
    def short(self) -> str:
        return self.value.removeprefix(PREFIX)
