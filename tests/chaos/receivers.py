"""Receivers of the signal of changed statuses: one that hangs, and one that notes what it hears.

``RECEIVERS`` names a folder. While it has the file ``hang``, the first receiver hangs: with the text
``stubborn``, whatever interrupts it. The second one appends a line to the file ``heard``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from django.apps import AppConfig


class Receivers(AppConfig):
    name = "tests.chaos.receivers"
    label = "chaos_receivers"

    def ready(self) -> None:
        from proxyhealth.signals import status_changed

        status_changed.connect(hang)
        status_changed.connect(note)


def hang(**kwargs: Any) -> None:
    file = Path(os.environ["RECEIVERS"]) / "hang"
    while file.exists():
        try:
            time.sleep(0.5)
        except Exception:
            if file.read_text() != "stubborn":
                raise


def note(transition: Any, **kwargs: Any) -> None:
    with (Path(os.environ["RECEIVERS"]) / "heard").open("a") as file:
        file.write(f"{transition.proxy_name} {transition.after}\n")
