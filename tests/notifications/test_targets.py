"""The targets of channels: which are valid, and what people are shown of them."""

from datetime import UTC, datetime

import pytest
from django.core.exceptions import ValidationError

from proxyhealth.models import Channel
from proxyhealth.targets import (
    SECRET_PREFIX,
    masked_target,
    new_secret,
    parse_recipients,
    parse_webhook,
    secret_parts,
    validate_target,
    without_secrets,
)

SLACK = "https://hooks.slack.com/services/T00/B00/x9hushhush"


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("email", "ops@example.com"),
        ("email", " ops@example.com,\r\nbob@example.com\n"),
        ("email", "ops@bücher.example"),
        ("webhook", "https://example.com"),
        ("webhook", "http://user:p%40ss@[::1]:8080/hook?token=1&b=2"),
        ("webhook", SLACK),
        ("webhook", "https://example.com?token=1"),
        ("apprise", "slack://TokenA/TokenB/TokenC/#channel"),
        ("apprise", "mailto://user:pass@example.com?to=ops@example.com"),
    ],
)
def test_target__valid(kind, target):
    validate_target(kind, target)


@pytest.mark.parametrize(
    ("kind", "target", "why"),
    [
        ("email", " \n", "enter at least one email address"),
        ("email", "ops@example.com, bob", "'bob' is not an email address"),
        ("email", '"\x01"@example.com', "is not an email address"),
        ("email", "ops@example.com\rBcc: eve@example.com", "is not an email address"),
        ("email", "\n".join(f"{i}@example.com" for i in range(51)), "at most 50 addresses"),
        ("webhook", "hooks.example.com/x", "it must begin with http:// or https://"),
        ("webhook", "file:///etc/passwd", "it must begin with http:// or https://"),
        ("webhook", "https:///hook", "it has no host"),
        ("webhook", "https://example.com:99999/", "its port must be a number"),
        ("webhook", "https://example.com/a b", "must not contain a space"),
        ("webhook", "https://example.com/\r\nHost: evil", "must not contain a space"),
        ("webhook", "https://a\r\nb/", "it contains a space"),
        ("webhook", "https://example.com/#token", "a fragment"),
        ("webhook", "https://" + "a/" * 2_000, "it is longer than"),
        ("apprise", "slack", "enter one URL such as slack://"),
        ("apprise", "slack://a/b/c json://evil", "enter one URL"),
        ("apprise", "slack://a/b/c,json://evil", "enter one URL"),
        ("apprise", "syslog://", "enter one URL"),
        ("apprise", "SYSLOG://localhost", "acts on the machine of the worker"),
        ("apprise", "dbus://x", "acts on the machine of the worker"),
        ("apprise", "windows://x", "acts on the machine of the worker"),
        ("apprise", "jsons://169.254.169.254/x", "create a channel of the kind webhook"),
        ("apprise", "slack://a/b/c?template=/etc/passwd", "the parameter template names a file"),
        ("apprise", "fcm://a/b?%6beyfile=/etc/passwd", "the parameter keyfile names a file"),
        ("apprise", "mailto://a:b@c.example?x=1&PGPPRV=/etc/passwd", "the parameter pgpprv names a file"),
        ("apprise", "slack://${SECRET_KEY}/b/c", "a variable"),
    ],
)
def test_target__invalid(kind, target, why):
    with pytest.raises(ValidationError, match="This target cannot be used: ") as refused:
        validate_target(kind, target)
    assert why in refused.value.messages[0]


def test_target__error_shows_no_password():
    for target in ("https://me:hunter2@[x]/", "https://me:hunter2@/", "ftp://me:hunter2@a/hunter2?hunter2"):
        with pytest.raises(ValidationError) as refused:
            validate_target("webhook", target)
        assert "hunter2" not in str(refused.value)


def test_recipients__are_unique_and_in_order():
    assert parse_recipients("b@example.com;a@example.com\nb@example.com") == [
        "b@example.com",
        "a@example.com",
    ]


def test_webhook__parts():
    webhook = parse_webhook("https://me:p%40ss@Example.com:8443/a%2Fb/é?x=%20&y=[1]")
    assert (webhook.url.host, webhook.url.port, webhook.user) == ("example.com", 8443, "me:p@ss")
    assert webhook.path == "/a%2Fb/%C3%A9?x=%20&y=[1]"
    assert parse_webhook("http://a?b").path == "/?b"


@pytest.mark.parametrize(
    ("kind", "target", "shown"),
    [
        ("email", "ops@example.com\nbob@example.com", "o…@example.com, b…@example.com"),
        ("email", "a@b, c@d; e@f\ng@h,i@j", "a…@b, c…@d, e…@f and 2 more"),
        ("webhook", SLACK, "https://hooks.slack.com/…"),
        ("webhook", "https://example.com/", "https://example.com"),
        ("webhook", "https://me:hunter2@example.com:8443/?token=x", "https://…@example.com:8443/…"),
        ("webhook", "not a URL", "…"),
        ("apprise", "slack://TokenA/TokenB/TokenC", "slack://…"),
        ("apprise", "not a URL", "…"),
        ("of another version", "x://secret", "x://…"),
    ],
)
def test_masked_target__hides_what_may_be_secret(kind, target, shown):
    assert masked_target(kind, target) == shown


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("webhook", "https://me:hunter2@example.com/hunter2/a?key=hunter2&b=hun%74er2"),
        ("webhook", "https://example.com?hunter2"),
        ("apprise", "slack://hunter2/TokenB/TokenC"),
        ("apprise", "tgram://1234:hunter2@x/?a=hun%74er2"),
    ],
)
def test_secret_parts__are_removed(kind, target):
    shown = without_secrets(f"no answer from {target} (hunter2)", secret_parts(kind, target))
    assert "hunter2" not in shown
    assert "hun%74er2" not in shown
    assert "no answer from" in shown


def test_new_secret__is_random_and_recognizable():
    first, second = new_secret(), new_secret()
    assert first != second
    assert first.startswith(SECRET_PREFIX)
    assert len(first.removeprefix(SECRET_PREFIX)) == 43, "256 bits"
    assert len(f"{first} {second}") <= Channel._meta.get_field("secret").max_length, "while one is replaced"


@pytest.mark.django_db
def test_channel__webhook_gets_a_secret():
    def saved(**values):
        channel = Channel(
            name=f"Channel {Channel.objects.count()}", listens_since=datetime.now(UTC), **values
        )
        channel.full_clean()
        channel.save()
        return channel

    made = saved(kind="webhook", target=SLACK)
    assert made.secret.startswith(SECRET_PREFIX)
    secret = made.secret
    made.save()
    assert made.secret == secret
    assert saved(kind="webhook", target=SLACK, secret="own own own own").secret == "own own own own"
    assert saved(kind="email", target="ops@example.com").secret == ""
    with pytest.raises(ValidationError, match="is not an email address"):
        saved(kind="email", target="ops")
