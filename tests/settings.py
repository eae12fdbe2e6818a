"""The project's settings, against a server of the tests' own."""

import os

from tests.support.ports import free_port

REDIS_PORT = free_port()

# A test that depends on the environment of whoever runs it is no test.
for _name in list(os.environ):
    if _name.lower().endswith("_proxy") or _name.startswith("PROXYHEALTH_") or _name == "DATABASE_URL":
        del os.environ[_name]
os.environ["SECRET_KEY"] = "a key for tests"
os.environ["REDIS_URL"] = f"redis://127.0.0.1:{REDIS_PORT}/0"

from project.settings import *  # noqa: E402, F403
from project.settings import CACHES, DATABASES, PROXYHEALTH  # noqa: E402

# As it is anyway; pytest-django, which names a database for each worker, does not see that this is SQLite.
DATABASES["default"]["TEST"] = {"NAME": ":memory:"}

# What is not about time must not fail on a busy machine; tests of time set less.
PROXYHEALTH = {**PROXYHEALTH, "TIMEOUT": 10.0, "READ_INTERVAL": 0}
CACHES = {
    "default": {**CACHES["default"], "OPTIONS": {"socket_timeout": 10, "socket_connect_timeout": 10}},
}

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
