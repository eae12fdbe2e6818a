"""The project, with the views of benchmarks.read beside its own, and without its log of requests."""

from project.settings import *  # noqa: F403

ROOT_URLCONF = "benchmarks.read_urls"
DEBUG = False
LOGGING_CONFIG = None
