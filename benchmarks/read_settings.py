"""The settings of the project, with the views of benchmarks.read_urls and without logs."""

from project.settings import *  # noqa: F403

# As in production. A new connection per request would cost more than the rest of the request.
DATABASES["default"]["CONN_MAX_AGE"] = 60  # noqa: F405

ROOT_URLCONF = "benchmarks.read_urls"
DEBUG = False
LOGGING_CONFIG = None
