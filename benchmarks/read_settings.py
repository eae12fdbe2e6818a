"""The settings of the project, with the views of benchmarks.read_urls and without logs."""

from project.settings import *  # noqa: F403

ROOT_URLCONF = "benchmarks.read_urls"
DEBUG = False
LOGGING_CONFIG = None
