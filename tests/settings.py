"""The project's settings, with a Redis server for the tests alone."""

import os

from tests.support.ports import free_port
from tests.support.site import PLAIN_SITE

REDIS_PORT = free_port()
# TEST_DATABASE=postgresql: the port of the server that the fixtures start. Otherwise None.
POSTGRESQL_PORT = {"sqlite": None, "postgresql": free_port()}[os.environ.get("TEST_DATABASE", "sqlite")]

# Tests must not depend on the environment of the developer.
for _name in list(os.environ):
    if _name.lower().endswith("_proxy") or _name.startswith("PROXYHEALTH_") or _name == "DATABASE_URL":
        del os.environ[_name]
os.environ |= PLAIN_SITE
os.environ["REDIS_URL"] = f"redis://127.0.0.1:{REDIS_PORT}/0"
if POSTGRESQL_PORT:
    os.environ["DATABASE_URL"] = f"postgres://postgres@127.0.0.1:{POSTGRESQL_PORT}/fleet"

from project.settings import *  # noqa: E402, F403
from project.settings import CACHES, DATABASES, PROXYHEALTH  # noqa: E402

if POSTGRESQL_PORT:
    del os.environ["DATABASE_URL"]  # other processes would need other settings, too
else:
    # SQLite uses memory anyway. Said explicitly, pytest-django does not give each worker a file of its own.
    DATABASES["default"]["TEST"] = {"NAME": ":memory:"}

# A busy machine must not fail a test that is not about time. Tests about time set less.
PROXYHEALTH = {**PROXYHEALTH, "TIMEOUT": 10.0, "READ_INTERVAL": 0}
CACHES = {
    "default": {**CACHES["default"], "OPTIONS": {"socket_timeout": 10, "socket_connect_timeout": 10}},
}

WHITENOISE_AUTOREFRESH = True  # else each client of a test would look for all static files

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
