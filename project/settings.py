"""Settings of the project. Environment variables configure it, see docs/project.md."""

from pathlib import Path
from typing import Any

from environ import Env

from project.environment import LOCAL_HOSTS, Environment, redis_tls, require_safe
from project.logs import logging_config
from project.mail import SCHEMES, mail_settings
from proxyhealth.schedules import beat_schedule

BASE_DIR = Path(__file__).resolve().parent.parent

env = Environment()

DEBUG = env.boolean("DEBUG")
SECRET_KEY = env.text("SECRET_KEY")
SECRET_KEY_FALLBACKS = env.items("SECRET_KEY_FALLBACKS")
ALLOWED_HOSTS = env.items("ALLOWED_HOSTS", LOCAL_HOSTS if DEBUG else [])
require_safe(SECRET_KEY, DEBUG, ALLOWED_HOSTS)
CSRF_TRUSTED_ORIGINS = env.items("CSRF_TRUSTED_ORIGINS")

# HTTPS, for everything that is not on the developer's own machine.
HTTPS = env.boolean("HTTPS", not DEBUG)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SECURE_SSL_REDIRECT = env.boolean("SECURE_SSL_REDIRECT", HTTPS)
# A browser that has seen the header refuses plain HTTP for so long: begin with an hour.
SECURE_HSTS_SECONDS = env.number("SECURE_HSTS_SECONDS", 3600 if HTTPS else 0)
SECURE_HSTS_INCLUDE_SUBDOMAINS = env.boolean("SECURE_HSTS_INCLUDE_SUBDOMAINS")
SECURE_HSTS_PRELOAD = env.boolean("SECURE_HSTS_PRELOAD")
# The last two concern the whole domain, so the check must not ask every site for them.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]
if _header := env.text("SECURE_PROXY_SSL_HEADER"):
    SECURE_PROXY_SSL_HEADER = (f"HTTP_{_header.upper().replace('-', '_')}", "https")

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
    "proxyhealth.readiness.middleware.ReadinessMiddleware",
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "project.static_files.StaticFilesMiddleware",
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
                "project.views.demo",
            ],
        },
    },
]

_url = env.url("DATABASE_URL", Env.DB_SCHEMES, f"sqlite:///{BASE_DIR / 'db.sqlite3'}")
# The database backends of django-prometheus count queries.
_database: dict[str, Any] = Env.db_url_config(_url)
_database["ENGINE"] = _database["ENGINE"].replace("django.db.backends.", "django_prometheus.db.backends.")
# Threads keep their connection. project/asgi.py sets 0, because there each request has a thread of its own.
_database["CONN_MAX_AGE"] = env.number("CONN_MAX_AGE", 60)
_database["CONN_HEALTH_CHECKS"] = True
_options = _database.setdefault("OPTIONS", {})
if _database["ENGINE"].endswith(".sqlite3"):
    # The web server, the worker and beat write at the same time. WAL: readers do not block writers.
    # IMMEDIATE: a transaction takes the write lock when it begins, where SQLite waits for it.
    _options.update(
        transaction_mode="IMMEDIATE",
        timeout=10,
        init_command="PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    )
elif _database["ENGINE"].endswith(".postgresql"):
    # A server that hangs must not block a round, or all threads of a web server. In seconds and milliseconds.
    for _name, _value in {"connect_timeout": 5, "tcp_user_timeout": 10_000, "keepalives_idle": 30}.items():
        _options.setdefault(_name, _value)
DATABASES = {"default": _database}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# `make run` starts an embedded server and sets this variable.
REDIS_URL = env.url("REDIS_URL", ("redis", "rediss"), "redis://127.0.0.1:6379/0")
# The certificate must be valid for the host in the URL, for all three clients.
_tls = redis_tls(REDIS_URL, env.file("REDIS_CA_FILE"))

CACHES = {
    "default": {
        "BACKEND": "django_prometheus.cache.backends.redis.NativeRedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": "project",
        "OPTIONS": {"socket_timeout": 0.9, "socket_connect_timeout": 0.5, **_tls},
    }
}
# Sessions stay in the database, Django's default: if Redis is down, operators can still sign in and read
# the health page.

STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "project" / "static"]
STATIC_ROOT = Path(env.text("STATIC_ROOT", str(BASE_DIR / "var" / "static")))
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "project.static_files.StaticFilesStorage"},
}
# Before `manage.py collectstatic`, the files are served from where they are, without hashes.
WHITENOISE_USE_FINDERS = DEBUG or not (STATIC_ROOT / "staticfiles.json").exists()

# MAILERS, or EMAIL_BACKEND, EMAIL_HOST and so on: the names depend on the version of Django.
globals().update(mail_settings(env.url("EMAIL_URL", SCHEMES, "smtp://localhost:25")))
DEFAULT_FROM_EMAIL = SERVER_EMAIL = env.text("DEFAULT_FROM_EMAIL", "proxyhealth@localhost")

PROXYHEALTH: dict[str, Any] = {
    "INTERVAL": env.number("PROXYHEALTH_INTERVAL", 60.0),
    "TIMEOUT": env.number("PROXYHEALTH_TIMEOUT", 5.0),
    "FAILURE_THRESHOLD": env.number("PROXYHEALTH_FAILURE_THRESHOLD", 1),
    "RECOVERY_THRESHOLD": env.number("PROXYHEALTH_RECOVERY_THRESHOLD", 1),
    "RECHECK_AFTER": env.number("PROXYHEALTH_RECHECK_AFTER", 5.0),
    "HISTORY_DAYS": env.number("PROXYHEALTH_HISTORY_DAYS", 400),
    "GROUP_INTERVAL": env.number("PROXYHEALTH_GROUP_INTERVAL", 30.0),
    "HEARTBEAT_URLS": env.items("PROXYHEALTH_HEARTBEAT_URLS"),
    "BASE_URL": env.text("PROXYHEALTH_BASE_URL"),
    "CONCURRENCY": env.number("PROXYHEALTH_CONCURRENCY", 512),
    "SHARD_SIZE": env.number("PROXYHEALTH_SHARD_SIZE", 1000),
    "CANARY_URLS": env.items("PROXYHEALTH_CANARY_URLS"),
    "CA_BUNDLE": env.file("PROXYHEALTH_CA_BUNDLE"),
    "PUBLIC_REGIONS": env.boolean("PROXYHEALTH_PUBLIC_REGIONS"),
    "STATUS_PAGE": env.boolean("PROXYHEALTH_STATUS_PAGE"),
    "STATUS_PAGE_INDEX": env.boolean("PROXYHEALTH_STATUS_PAGE_INDEX"),
    "METRICS_TOKEN": env.text("PROXYHEALTH_METRICS_TOKEN"),
    "RUNBOOK_URL": env.text("PROXYHEALTH_RUNBOOK_URL"),
}
for _name in ("ADDRESS_ALLOW", "ADDRESS_DENY"):
    if _networks := env.items(f"PROXYHEALTH_{_name}"):
        PROXYHEALTH[_name] = _networks
if _primary := env.text("PROXYHEALTH_PRIMARY_URL"):
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
if _tls:
    CELERY_BROKER_USE_SSL = CELERY_REDIS_BACKEND_USE_SSL = _tls
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

# One line per message, or one JSON object, with the fields of the messages of proxyhealth.
_formatter = env.choice("LOG_FORMAT", "text", "json")
_level = env.choice("LOG_LEVEL", "INFO", "DEBUG", "WARNING", "ERROR")
LOGGING = logging_config(_formatter, _level)
