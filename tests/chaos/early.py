"""A watchdog that waits for fewer seconds after the start of its process: ``WATCHDOG_START``."""

from __future__ import annotations

import os
from functools import partial

from django.apps import AppConfig


class EarlyWatchdog(AppConfig):
    name = "tests.chaos.early"
    label = "chaos_early"

    def ready(self) -> None:
        from proxyhealth.notifications import watchdog

        watchdog.View = partial(watchdog.View, float(os.environ["WATCHDOG_START"]))  # type: ignore[misc]
