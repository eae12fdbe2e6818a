"""Settings of the demo project. Environment variables configure it, see docs/project.md."""

import os
from pathlib import Path
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

from proxyhealth.schedules import beat_schedule

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.FileAwareEnv()

# Treat an empty variable as unset.
for _name in ("DATABASE_URL", "REDIS_URL", "SECRET_KEY"):
    if not os.environ.get(_name):
        os.environ.pop(_name, None)

SECRET_KEY = env.str("SECRET_KEY", default="")
DEBUG = env.bool("DEBUG", default=False)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])

# `make run` starts an embedded server and sets this variable.
REDIS_URL = env.str("REDIS_URL", default="redis://127.0.0.1:6379/0")

for _name in ("DATABASE_URL", "REDIS_URL"):
    try:
        _ = urlsplit(env.str(_name, default="")).port
    except ValueError:  # its text has a part of the password
        raise ImproperlyConfigured(
            f"{_name} cannot be read. Percent-encode special characters in its user and password."
        ) from None

INSTALLED_APPS = [
    "django_prometheus",
    "proxyhealth",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]

ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

if env.str("DATABASE_URL", default="sqlite:").partition(":")[0] not in env.DB_SCHEMES:
    raise ImproperlyConfigured("DATABASE_URL must begin with a scheme like sqlite:// or postgres://")

# The database backends of django-prometheus count queries.
DATABASES = {"default": env.db_url("DATABASE_URL", default=f"sqlite:///{BASE_DIR / 'db.sqlite3'}")}
_database = DATABASES["default"]
_database["ENGINE"] = _database["ENGINE"].replace("django.db.backends.", "django_prometheus.db.backends.")
if _database["ENGINE"].endswith(".sqlite3"):
    # The web server, the worker and beat write at the same time. WAL: readers do not block writers.
    # IMMEDIATE: a transaction takes the write lock when it begins, where SQLite waits for it.
    _database.setdefault("OPTIONS", {}).update(
        transaction_mode="IMMEDIATE",
        timeout=10,
        init_command="PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    )
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CACHES = {
    "default": {
        "BACKEND": "django_prometheus.cache.backends.redis.NativeRedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "project",
        "OPTIONS": {"socket_timeout": 1, "socket_connect_timeout": 0.5},
    }
}
# Sessions stay in the database, Django's default: if Redis is down, operators can still sign in and read
# the health page.

STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "project" / "static"]
STATIC_ROOT = BASE_DIR / "var" / "static"

PROXYHEALTH = {
    "INTERVAL": env.float("PROXYHEALTH_INTERVAL", default=60),
    "TIMEOUT": env.float("PROXYHEALTH_TIMEOUT", default=5),
    "CONCURRENCY": env.int("PROXYHEALTH_CONCURRENCY", default=512),
    "SHARD_SIZE": env.int("PROXYHEALTH_SHARD_SIZE", default=1000),
    "CANARY_URLS": env.list("PROXYHEALTH_CANARY_URLS", default=[]),
    "METRICS_TOKEN": env.str("PROXYHEALTH_METRICS_TOKEN", default=""),
    "RUNBOOK_URL": env.str("PROXYHEALTH_RUNBOOK_URL", default=""),
}
if _primary := env.str("PROXYHEALTH_PRIMARY_URL", default=""):
    PROXYHEALTH["PRIMARY"] = {
        "url": _primary,
        "display_name": "Control plane",
        "icon": f"/{STATIC_URL}project/flags/primary.svg",
    }

CELERY_BROKER_URL = REDIS_URL
# Retry the broker forever.
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
# The shards of a large round return their results through the result backend.
CELERY_RESULT_BACKEND = REDIS_URL
CELERY_BEAT_SCHEDULE = beat_schedule(PROXYHEALTH)
# A busy worker must not reserve tasks that another worker could run.
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_DISABLE_PREFETCH = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False

AUTHENTICATION_BACKENDS = ["project.security.RefuseDemoPassword", "django.contrib.auth.backends.ModelBackend"]
DEFAULT_EXCEPTION_REPORTER_FILTER = "project.security.ReportFilter"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]

# The sign-in page of the project, for all users; the admin's page accepts staff only.
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "home"

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {
            "format": "%(asctime)s %(levelname)s %(name)s %(message)s",
            "datefmt": "%Y-%m-%dT%H:%M:%S%z",
        }
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "INFO"},
    "loggers": {"django": {"handlers": ["console"], "level": "INFO", "propagate": False}},
}
