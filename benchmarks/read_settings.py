"""The project, with the views of benchmarks.read_urls beside its own, and without its log of requests."""

from project.settings import *  # noqa: F403

# As in production: to open a connection for each request costs more than all else that is done for it.
DATABASES["default"]["CONN_MAX_AGE"] = 60  # noqa: F405

ROOT_URLCONF = "benchmarks.read_urls"
DEBUG = False
LOGGING_CONFIG = None
