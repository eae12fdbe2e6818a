"""Webhooks: signed JSON, sent with POST over the bounded connections of probes."""

import hashlib
import hmac
import json
import time
from base64 import b64encode
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any, cast

from proxyhealth import __version__
from proxyhealth.conf import conf
from proxyhealth.exceptions import AddressBlocked, DeliveryFailed
from proxyhealth.models import Channel
from proxyhealth.notifications import forms
from proxyhealth.notifications.limits import TIMEOUT
from proxyhealth.notifications.messages import Message, Receipt
from proxyhealth.probing import tls
from proxyhealth.probing.bodies import read_beginning
from proxyhealth.probing.deadline import Deadline
from proxyhealth.probing.excerpts import excerpt
from proxyhealth.probing.policy import AddressPolicy
from proxyhealth.probing.probe import describe
from proxyhealth.probing.response import Response
from proxyhealth.probing.transport import Connection
from proxyhealth.targets import Webhook, parse_webhook, secret_parts, without_secrets
from proxyhealth.texts import clean
from proxyhealth.validators import split_url

_MAX_RETRY_AFTER = 3600.0
_MAX_ANSWER = 500

_GONE = 410
_WAIT = (429, 503)


def send_webhook(channel: Channel, message: Message) -> Receipt:
    """Send ``message``, and return the answer. Raise ``DeliveryFailed``."""
    try:
        webhook = parse_webhook(channel.target)
    except ValueError as error:
        raise DeliveryFailed(f"the URL of the webhook cannot be used: {error}") from None
    if not channel.secret.strip():
        raise DeliveryFailed("the channel has no secret to sign with; save it in the admin to make one")
    body = json.dumps(forms.payload(message), separators=(",", ":")).encode()
    headers = {
        "Content-Type": "application/json",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "User-Agent": f"proxyhealth/{__version__}",
        "Idempotency-Key": str(message.id),
        "Proxyhealth-Signature": signature(channel.secret, body, int(time.time())),
    }
    hidden = secret_parts(channel.kind, channel.target) | set(channel.secret.split())
    if webhook.user:
        credentials = b64encode(webhook.user.encode()).decode()
        headers["Authorization"] = f"Basic {credentials}"
        hidden.add(credentials)
    try:
        return Receipt(_hidden(_post(webhook, headers, body), hidden))
    except DeliveryFailed as error:
        text = _hidden(str(error), hidden)
        raise DeliveryFailed(text, error.retry_after, is_final=error.is_final) from None


def signature(secret: str, body: bytes, moment: int) -> str:
    """Return the header ``Proxyhealth-Signature``. While a secret is replaced, it has one for each."""
    content = b"%d." % moment + body
    signatures = [hmac.new(key.encode(), content, hashlib.sha256).hexdigest() for key in secret.split()]
    return ",".join([f"t={moment}", *(f"v1={each}" for each in signatures)])


def _hidden(text: str, secrets: set[str]) -> str:
    return clean(without_secrets(text, secrets), _MAX_ANSWER)


def _post(webhook: Webhook, headers: dict[str, str], body: bytes) -> str:
    deadline = Deadline(TIMEOUT)
    url = webhook.url
    connection = Connection(
        url.host,
        url.port,
        deadline=deadline,
        policy=AddressPolicy(conf.ADDRESS_DENY),
        context=tls.tls_context(conf.CA_BUNDLE) if url.scheme == "https" else None,
    )
    with closing(connection):
        try:
            response = connection.post(webhook.path, headers, body)
        except AddressBlocked:
            raise DeliveryFailed(f"ADDRESS_DENY refuses the address of {url.host}") from None
        except Exception as error:
            raise DeliveryFailed(describe(error, deadline)) from error
        with closing(response):
            return _judge(response)


def _judge(response: Response) -> str:
    """Return the answer if it is a success, else raise ``DeliveryFailed``."""
    beginning = read_beginning(cast(Any, SimpleNamespace(raw=response, headers=response.headers)))
    words = excerpt(beginning, response.headers.get("content-type", ""))
    says = f": “{words}”" if words else ""
    status = clean(f"HTTP {response.status} {response.reason}".strip(), 100)
    if 200 <= response.status < 300:
        return status + says
    if 300 <= response.status < 400:
        raise DeliveryFailed(f"{status}{_location(response)}; redirects are not followed, correct the URL")
    if response.status == _GONE:
        raise DeliveryFailed(f"{status}{says}; the receiver wants no more messages", is_final=True)
    retry_after = _retry_after(response.headers) if response.status in _WAIT else None
    raise DeliveryFailed(status + says, retry_after)


def _location(response: Response) -> str:
    """Return the host that a redirect leads to. The rest of its URL may be a secret."""
    try:
        host = split_url(response.headers.get("location", "")).hostname
    except ValueError:
        host = ""
    return f" to {clean(host, 100)}" if host else ""


def _retry_after(headers: dict[str, str]) -> float | None:
    """Return the seconds of ``Retry-After``, at most an hour, or None."""
    value = headers.get("retry-after", "")[:100]
    if value.isascii() and value.isdecimal():
        return min(float(value), _MAX_RETRY_AFTER)
    try:
        until = _http_date(value)
    except ValueError:
        return None
    try:
        now = _http_date(headers.get("date", "")[:100])  # of the same clock
    except ValueError:
        now = datetime.now(UTC)
    return min(max((until - now).total_seconds(), 0.0), _MAX_RETRY_AFTER)


def _http_date(text: str) -> datetime:
    moment = parsedate_to_datetime(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
