"""The environment variables of the project. A dangerous or wrong value stops the start with a message."""

from __future__ import annotations

import re
from pathlib import Path

import django
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.test import override_settings

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "project.md").read_text()
KEY = "0123456789abcdefghijklmnopqrstuvwxyz-0123456789-abcdefgh"
LOCAL = {"DEBUG": "1", "SECRET_KEY": KEY}
PRODUCTION = {"SECRET_KEY": KEY, "ALLOWED_HOSTS": "proxies.example.com"}


def test_production__needs_only_a_key_and_the_hosts(load):
    settings = load(PRODUCTION)
    assert not settings.DEBUG
    assert settings.ALLOWED_HOSTS == ["proxies.example.com"]
    assert settings.SESSION_COOKIE_SECURE
    assert settings.CSRF_COOKIE_SECURE
    assert settings.SECURE_SSL_REDIRECT
    assert settings.SECURE_HSTS_SECONDS == 3600
    assert not hasattr(settings, "SECURE_PROXY_SSL_HEADER")


def documented_environment():
    """Return the variables of the example in docs/project.md."""
    block = re.search(r"^```ini\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)[1]
    lines = [line for line in block.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_check_deploy__is_clean_with_the_documented_environment(load, tmp_path, db):
    authority = tmp_path / "ca.pem"
    authority.touch()
    settings = load({**documented_environment(), "SECRET_KEY": KEY}, REDIS_CA_FILE=authority)
    values = {name: getattr(settings, name) for name in dir(settings) if name.isupper()}
    del values["DATABASES"]  # Django cannot override it
    with override_settings(**values):
        call_command("check", deploy=True, fail_level="WARNING")


@pytest.mark.parametrize(
    ("base", "values", "message"),
    [
        (PRODUCTION, {"SECRET_KEY": ""}, "SECRET_KEY is not set. Generate one: "),
        (PRODUCTION, {"SECRET_KEY": "short"}, "SECRET_KEY can be guessed: it needs 50 random characters"),
        (PRODUCTION, {"SECRET_KEY": "ab" * 30}, "SECRET_KEY can be guessed"),
        (PRODUCTION, {"SECRET_KEY": f"django-insecure-{KEY}"}, "SECRET_KEY can be guessed"),
        (PRODUCTION, {"ALLOWED_HOSTS": ""}, "ALLOWED_HOSTS is not set. Set it to the host names of the site"),
        (PRODUCTION, {"ALLOWED_HOSTS": "a.example.com, *"}, "ALLOWED_HOSTS must not contain *"),
        (PRODUCTION, {"DEBUG": "1"}, "DEBUG shows the code .* remove proxies.example.com from ALLOWED_HOSTS"),
        (PRODUCTION, {"DEBUG": "fasle"}, "DEBUG must be true or false, not 'fasle'"),
        (PRODUCTION, {"HTTPS": "enabled"}, "HTTPS must be true or false, not 'enabled'"),
        (PRODUCTION, {"SECURE_HSTS_SECONDS": "1h"}, "SECURE_HSTS_SECONDS must be a whole number, not '1h'"),
        (PRODUCTION, {"CONN_MAX_AGE": "1.5"}, "CONN_MAX_AGE must be a whole number, not '1.5'"),
        (PRODUCTION, {"LOG_FORMAT": "xml"}, "LOG_FORMAT must be one of text, json, not 'xml'"),
        (
            PRODUCTION,
            {"LOG_LEVEL": "info"},
            "LOG_LEVEL must be one of INFO, DEBUG, WARNING, ERROR, not 'info'",
        ),
        (PRODUCTION, {"PROXYHEALTH_TIMEOUT": "5s"}, "PROXYHEALTH_TIMEOUT must be a number, not '5s'"),
        (
            PRODUCTION,
            {"REDIS_CA_FILE": "/nowhere/ca.pem"},
            "REDIS_CA_FILE: there is no file '/nowhere/ca.pem'",
        ),
        (
            PRODUCTION,
            {"REDIS_CA_FILE": __file__},
            "REDIS_CA_FILE has no effect: REDIS_URL must begin with redi",
        ),
        (
            PRODUCTION,
            {"REDIS_URL": "valkey.example.com:6379"},
            "REDIS_URL must begin with a scheme like redis:/",
        ),
        (PRODUCTION, {"DATABASE_URL": "db.sqlite3"}, "DATABASE_URL must begin with a scheme like"),
        (PRODUCTION, {"DATABASE_URL": "postgres://u:p/w@h/d"}, "DATABASE_URL cannot be read. Percent-encode"),
        (
            PRODUCTION,
            {"EMAIL_URL": "mail.example.com"},
            "EMAIL_URL must begin with a scheme like smtp:// or ",
        ),
        (PRODUCTION, {"EMAIL_URL": "smtp://u:p/w@h"}, "EMAIL_URL cannot be read. Percent-encode"),
        (PRODUCTION, {"EMAIL_URL": "smtp://h?timeout=1"}, "EMAIL_URL must not contain a ?"),
        (PRODUCTION, {"SECRET_KEY_FILE": "/nowhere/key"}, "SECRET_KEY_FILE: /nowhere/key cannot be read"),
    ],
)
def test_start__is_refused(load, base, values, message):
    with pytest.raises(ImproperlyConfigured, match=message) as caught:
        load(base, **values)
    assert "p/w" not in str(caught.value)


def test_debug__is_for_this_machine_alone(load):
    settings = load({"DEBUG": "true"})
    assert settings.DEBUG
    assert settings.ALLOWED_HOSTS == ["localhost", "127.0.0.1", "[::1]"]
    assert not settings.SECURE_SSL_REDIRECT
    assert not settings.SESSION_COOKIE_SECURE
    assert settings.SECURE_HSTS_SECONDS == 0


REDIS = "rediss://:pass%20word@valkey.example.com:6380/1"
POSTGRES = "postgres://u:pass%20word@db.example.com:5432/proxies?sslmode=verify-full"


def mail_of(settings):
    """Return what the settings say about the mail server, whatever this version of Django calls it."""
    if django.VERSION >= (6, 1):
        options = settings.MAILERS["default"]["OPTIONS"]
        return list(options.values())
    names = ("HOST", "PORT", "HOST_USER", "HOST_PASSWORD", "USE_TLS", "USE_SSL", "TIMEOUT")
    return [getattr(settings, f"EMAIL_{name}") for name in names]


VALUES = {
    "PROXYHEALTH_RUNBOOK_URL": (
        "https://wiki.example.com/runbook",
        lambda s: s.PROXYHEALTH["RUNBOOK_URL"],
        "https://wiki.example.com/runbook",
    ),
    "SECRET_KEY_FALLBACKS": ("old, older", lambda s: s.SECRET_KEY_FALLBACKS, ["old", "older"]),
    "CSRF_TRUSTED_ORIGINS": (
        "https://a, https://b",
        lambda s: s.CSRF_TRUSTED_ORIGINS,
        ["https://a", "https://b"],
    ),
    "HTTPS": ("false", lambda s: (s.SECURE_SSL_REDIRECT, s.SESSION_COOKIE_SECURE), (False, False)),
    "SECURE_SSL_REDIRECT": ("0", lambda s: (s.SECURE_SSL_REDIRECT, s.CSRF_COOKIE_SECURE), (False, True)),
    "SECURE_HSTS_SECONDS": ("31536000", lambda s: s.SECURE_HSTS_SECONDS, 31536000),
    "SECURE_HSTS_INCLUDE_SUBDOMAINS": ("on", lambda s: s.SECURE_HSTS_INCLUDE_SUBDOMAINS, True),
    "SECURE_HSTS_PRELOAD": ("yes", lambda s: s.SECURE_HSTS_PRELOAD, True),
    "SECURE_PROXY_SSL_HEADER": (
        "X-Forwarded-Proto",
        lambda s: getattr(s, "SECURE_PROXY_SSL_HEADER", None),
        ("HTTP_X_FORWARDED_PROTO", "https"),
    ),
    "DATABASE_URL": (
        POSTGRES,
        lambda s: [
            s.DATABASES["default"][name] for name in ("ENGINE", "HOST", "PASSWORD", "CONN_HEALTH_CHECKS")
        ],
        ["django_prometheus.db.backends.postgresql", "db.example.com", "pass word", True],
    ),
    "CONN_MAX_AGE": ("0", lambda s: s.DATABASES["default"]["CONN_MAX_AGE"], 0),
    "REDIS_URL": (
        REDIS,
        lambda s: [s.CACHES["default"]["LOCATION"], s.CELERY_BROKER_URL, s.CELERY_RESULT_BACKEND],
        [REDIS] * 3,
    ),
    "STATIC_ROOT": ("/srv/static", lambda s: s.STATIC_ROOT, Path("/srv/static")),
    "LOG_FORMAT": ("json", lambda s: s.LOGGING["handlers"]["console"]["formatter"], "json"),
    "LOG_LEVEL": ("WARNING", lambda s: s.LOGGING["root"]["level"], "WARNING"),
    "PROXYHEALTH_INTERVAL": ("2.5", lambda s: s.PROXYHEALTH["INTERVAL"], 2.5),
    "PROXYHEALTH_TIMEOUT": ("3", lambda s: s.PROXYHEALTH["TIMEOUT"], 3),
    "PROXYHEALTH_FAILURE_THRESHOLD": ("3", lambda s: s.PROXYHEALTH["FAILURE_THRESHOLD"], 3),
    "PROXYHEALTH_RECOVERY_THRESHOLD": ("2", lambda s: s.PROXYHEALTH["RECOVERY_THRESHOLD"], 2),
    "PROXYHEALTH_RECHECK_AFTER": ("2.5", lambda s: s.PROXYHEALTH["RECHECK_AFTER"], 2.5),
    "PROXYHEALTH_HISTORY_DAYS": ("90", lambda s: s.PROXYHEALTH["HISTORY_DAYS"], 90),
    "PROXYHEALTH_GROUP_INTERVAL": ("10", lambda s: s.PROXYHEALTH["GROUP_INTERVAL"], 10),
    "PROXYHEALTH_HEARTBEAT_URLS": (
        "https://hc.example.com/a,https://hc.example.com/b",
        lambda s: s.PROXYHEALTH["HEARTBEAT_URLS"],
        ["https://hc.example.com/a", "https://hc.example.com/b"],
    ),
    "PROXYHEALTH_BASE_URL": (
        "https://control.example.com",
        lambda s: s.PROXYHEALTH["BASE_URL"],
        "https://control.example.com",
    ),
    "PROXYHEALTH_CONCURRENCY": ("8", lambda s: s.PROXYHEALTH["CONCURRENCY"], 8),
    "PROXYHEALTH_SHARD_SIZE": ("50", lambda s: s.PROXYHEALTH["SHARD_SIZE"], 50),
    "PROXYHEALTH_CANARY_URLS": (
        "http://a, http://b",
        lambda s: s.PROXYHEALTH["CANARY_URLS"],
        ["http://a", "http://b"],
    ),
    "PROXYHEALTH_CA_BUNDLE": (__file__, lambda s: s.PROXYHEALTH["CA_BUNDLE"], __file__),
    "PROXYHEALTH_ADDRESS_ALLOW": ("10.0.0.0/8", lambda s: s.PROXYHEALTH.get("ADDRESS_ALLOW"), ["10.0.0.0/8"]),
    "PROXYHEALTH_ADDRESS_DENY": ("10.0.0.0/8", lambda s: s.PROXYHEALTH.get("ADDRESS_DENY"), ["10.0.0.0/8"]),
    "PROXYHEALTH_PUBLIC_REGIONS": ("true", lambda s: s.PROXYHEALTH["PUBLIC_REGIONS"], True),
    "PROXYHEALTH_STATUS_PAGE": ("true", lambda s: s.PROXYHEALTH["STATUS_PAGE"], True),
    "PROXYHEALTH_STATUS_PAGE_INDEX": ("1", lambda s: s.PROXYHEALTH["STATUS_PAGE_INDEX"], True),
    "PROXYHEALTH_PRIMARY_URL": (
        "https://a",
        lambda s: s.PROXYHEALTH.get("PRIMARY", {}).get("url"),
        "https://a",
    ),
    "EMAIL_URL": (
        "smtp+tls://me:pass%20word@mail.example.com",
        lambda s: mail_of(s),
        ["mail.example.com", 587, "me", "pass word", True, False, 10],
    ),
    "DEFAULT_FROM_EMAIL": (
        "ops@example.com",
        lambda s: [s.DEFAULT_FROM_EMAIL, s.SERVER_EMAIL],
        ["ops@example.com"] * 2,
    ),
    "PROXYHEALTH_METRICS_TOKEN": ("token", lambda s: s.PROXYHEALTH["METRICS_TOKEN"], "token"),
}


@pytest.mark.parametrize("name", VALUES)
def test_variable__sets(load, name):
    value, read, expected = VALUES[name]
    assert read(load(PRODUCTION, **{name: value})) == expected
    assert read(load(PRODUCTION, **{name: ""})) == read(load(PRODUCTION)) != expected, "empty means unset"


def test_variables__are_all_documented(load):
    table = DOCS.partition("## Environment variables")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", table, re.MULTILINE))
    ours = {*VALUES, "SECRET_KEY", "DEBUG", "ALLOWED_HOSTS", "REDIS_CA_FILE"}
    source = (ROOT / "project" / "settings.py").read_text()
    read = set(re.findall(r'env\.\w+\(\s*"([A-Z_]+)"', source))
    assert ours - {"PROXYHEALTH_ADDRESS_ALLOW", "PROXYHEALTH_ADDRESS_DENY"} == read
    assert documented >= ours


def test_variable__from_a_file(load, tmp_path):
    secret = tmp_path / "key"
    secret.write_text(f"{KEY}\n")
    assert load(PRODUCTION, SECRET_KEY="", SECRET_KEY_FILE=secret).SECRET_KEY == KEY


def test_mail__other_schemes(load):
    assert mail_of(load(PRODUCTION, EMAIL_URL="smtp+ssl://h:4650"))[:2] == ["h", 4650]
    settings = load(PRODUCTION, EMAIL_URL="consolemail://")
    values = str(getattr(settings, "MAILERS", "") or settings.EMAIL_BACKEND)
    assert "django.core.mail.backends.console.EmailBackend" in values


def test_password__may_begin_with_a_dollar(load):
    key = f"${KEY}"
    assert key == load(PRODUCTION, SECRET_KEY=key).SECRET_KEY


def test_redis__with_tls(load, tmp_path):
    authority = tmp_path / "ca.pem"
    authority.touch()
    settings = load(PRODUCTION, REDIS_URL=REDIS, REDIS_CA_FILE=authority)
    tls = {"ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_ca_certs": str(authority)}
    assert settings.CACHES["default"]["OPTIONS"].items() >= tls.items()
    assert tls == settings.CELERY_BROKER_USE_SSL == settings.CELERY_REDIS_BACKEND_USE_SSL
    assert "ssl_ca_certs" not in load(PRODUCTION, REDIS_URL=REDIS).CELERY_BROKER_USE_SSL
    assert not hasattr(load(PRODUCTION), "CELERY_BROKER_USE_SSL")


def test_postgresql__has_time_limits_that_the_url_can_change(load):
    options = load(PRODUCTION, DATABASE_URL=POSTGRES).DATABASES["default"]["OPTIONS"]
    limits = {"connect_timeout": 5, "tcp_user_timeout": 10_000, "keepalives_idle": 30}
    assert options == {"sslmode": "verify-full", **limits}
    changed = load(PRODUCTION, DATABASE_URL=f"{POSTGRES}&connect_timeout=2").DATABASES["default"]["OPTIONS"]
    assert changed == {**options, "connect_timeout": 2}
