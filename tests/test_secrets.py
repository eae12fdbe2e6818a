"""Passwords in settings, which no message may repeat."""

import logging
import traceback

import pytest
from django.conf import settings as django_settings

from proxyhealth import checks, health
from proxyhealth.exceptions import RoundFailed
from proxyhealth.storage import counters, reader
from proxyhealth.texts import without_passwords
from tests.support.api import LIST, signed_in


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://127.0.0.1:6379/0", None),
        ("redis://user:hunter2@cache:6379/0", "redis://***@cache:6379/0"),
        ("rediss://:hunter2@cache", "rediss://***@cache"),
        ("redis://hunter2@cache", "redis://***@cache"),
        ("redis://:hun/t@e:r?2#@cache/0", "redis://***@cache/0"),
        ("redis://:hun'ter\"2@cache/0", "redis://***@cache/0"),
        ("redis+socket://:hunter2@/run/redis.sock", "redis+socket://***@/run/redis.sock"),
        ("sentinel://:hunter2@a;sentinel://:hunter2@b", "sentinel://***@a;sentinel://***@b"),
        ("['redis://:hunter2@a/0', 'redis://:hunter2@b/0']", "['redis://***@a/0', 'redis://***@b/0']"),
        ("redis://cache/0?password=hunter2&db=1", "redis://cache/0?password=***&db=1"),
        ("Redis<Pool(host=a,password=hunter2,db=0)>", "Redis<Pool(host=a,password=***,db=0)>"),
        ("{'PASSWORD': 'hunter 2', 'db': 0}", "{'PASSWORD': ***, 'db': 0}"),
        (
            "Port could not be cast to integer value as 'hun'",
            "Port could not be cast to integer value as ***. Percent-encode its special characters",
        ),
        (
            "Database is int between 0 and limit - 1, not ter2@cache/0",
            "Database is int between 0 and limit - 1, not ***. Percent-encode its special characters",
        ),
        ("Error 111 connecting to 127.0.0.1:6379. Connection refused.", None),
        ("invalid username-password pair or user is disabled.", None),
        ("see https://example.com/a and mail@example.com", None),
    ],
)
def test_without_passwords__text(text, shown):
    assert without_passwords(text) == (text if shown is None else shown)


def test_without_passwords__hostile_text_takes_linear_time():
    for text in ("://" * 100_000, "password=" * 50_000, "://a" + "@b" * 100_000, "password" + " " * 100_000):
        assert without_passwords(text)


@pytest.mark.django_db
def test_password__is_in_no_message(settings, caplog, valkey):
    """A password with a slash makes Python repeat its beginning, and a wrong one is refused."""
    staff = signed_in("view_workspaceproxy")
    for location in (
        "redis://:hun/ter2@127.0.0.1:1/0",
        f"redis://me:hunter2@127.0.0.1:{valkey.port}/0",
    ):
        settings.CACHES = {"default": {**django_settings.CACHES["default"], "LOCATION": location}}
        reader.forget()
        counters.forget()
        texts = [health.snapshot().stale_reason, staff.get(LIST).content.decode()]
        with caplog.at_level(logging.INFO), pytest.raises(RoundFailed) as failed:
            health.force_update()
        texts += [
            *traceback.format_exception(failed.value),
            *(message.msg for message in checks.check_settings()),
            caplog.text,
        ]
        assert "The cache cannot be read" in texts[0]
        assert not [text for text in texts if "hun" in text]


def test_password__is_not_in_checks(configure):
    for options in (
        {"CANARY_URLS": ["https://me:hunter2@a.example"]},
        {"PRIMARY": {"url": "https://me:hunter2@a"}},
    ):
        configure(**options)
        messages = checks.check_settings()
        assert messages
        assert "hunter2" not in str(messages)
