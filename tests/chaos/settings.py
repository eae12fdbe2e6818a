"""The project's settings, with a certificate authority, a broker, or faults of the test."""

import json
import os

from project.settings import *  # noqa: F403
from project.settings import DATABASES, INSTALLED_APPS, PROXYHEALTH, REDIS_URL

PROXYHEALTH = {
    **PROXYHEALTH,
    "CA_BUNDLE": os.environ.get("CA_BUNDLE", ""),
    **json.loads(os.environ.get("PROXYHEALTH_SETTINGS", "{}")),
}
CELERY_BROKER_URL = CELERY_RESULT_BACKEND = os.environ.get("BROKER_URL", REDIS_URL)

if "WATCHDOG_START" in os.environ:
    INSTALLED_APPS = [*INSTALLED_APPS, "tests.chaos.early.EarlyWatchdog"]

if "STEP_FOLDER" in os.environ:
    INSTALLED_APPS = [*INSTALLED_APPS, "tests.chaos.steps.Steps"]
    if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
        DATABASES["default"]["OPTIONS"]["timeout"] = 0.5  # so that a lock of a second makes tasks fail
