"""The project's settings, with receivers of the signal, and with shorter time limits for them."""

from project.settings import *  # noqa: F403
from project.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.chaos.receivers.Receivers"]
CELERY_TASK_ANNOTATIONS = {"proxyhealth.tasks.send_signals": {"soft_time_limit": 2, "time_limit": 5}}
