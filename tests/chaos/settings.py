"""The project's settings, with a certificate authority or a broker of the test."""

import os

from project.settings import *  # noqa: F403
from project.settings import PROXYHEALTH, REDIS_URL

PROXYHEALTH = {**PROXYHEALTH, "CA_BUNDLE": os.environ.get("CA_BUNDLE", "")}
CELERY_BROKER_URL = CELERY_RESULT_BACKEND = os.environ.get("BROKER_URL", REDIS_URL)
