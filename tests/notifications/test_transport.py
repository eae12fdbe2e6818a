"""The common behaviour of all kinds of channels: their errors, and the limit of their time."""

import threading

import pytest

from proxyhealth.exceptions import DeliveryFailed
from proxyhealth.models import Channel
from proxyhealth.notifications import limits, transport
from proxyhealth.notifications.limits import within_limit
from tests.notifications.messages import apprise, mailing, make_message, webhook


@pytest.mark.parametrize(
    ("channel", "error"),
    [
        (
            Channel(kind="pager", target="hunter2"),
            "the kind 'pager' is unknown; another version has saved it",
        ),
        (webhook("ftp://hunter2"), "the URL of the webhook cannot be used: it must begin with http://"),
        (webhook("https://me:hunter2@:1/"), "the URL of the webhook cannot be used: it has no host"),
        (apprise("hunter2"), "the Apprise URL cannot be used: enter one URL"),
        (mailing(""), "enter at least one email address, one on each line; correct the target"),
    ],
)
def test_send__row_that_skipped_validation(channel, error):
    answer = transport.send_test(channel)
    assert not answer.ok
    assert answer.text.startswith(error)
    assert "hunter2" not in answer.text


def test_send__unexpected_error_is_a_failed_delivery(configure, caplog):
    configure(ADDRESS_DENY="secret-token")
    with pytest.raises(DeliveryFailed) as failed:
        transport.send(webhook("http://127.0.0.1/secret-token"), make_message())
    assert str(failed.value).startswith("an unexpected error: ImproperlyConfigured: PROXYHEALTH")
    assert "message failed channel=None" in caplog.text
    assert "secret-token" not in str(failed.value) + caplog.text


def test_within_limit__result_and_error():
    assert within_limit(None, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within_limit(None, lambda: 1 / 0)
    with pytest.raises(TimeoutError, match="of the call"):
        within_limit(None, lambda: (_ for _ in ()).throw(TimeoutError("of the call")))


def test_within_limit__channel_is_free_after_each_outcome(monkeypatch):
    """Also after a lack of threads."""
    with pytest.raises(ZeroDivisionError):
        within_limit(7, lambda: 1 / 0)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            within_limit(7, lambda: 7)
    assert within_limit(7, lambda: 7) == 7


def test_within_limit__other_channels_do_not_wait(monkeypatch):
    monkeypatch.setattr(limits, "TIMEOUT", 0.1)
    release = threading.Event()
    with pytest.raises(DeliveryFailed, match="no answer"):
        within_limit(7, release.wait)
    assert within_limit(8, lambda: 8) == 8
    release.set()


def refuse(thread):
    raise RuntimeError("can't start new thread")
