"""Messages to the services that Apprise speaks: Slack, Teams, Discord, Telegram, PagerDuty, and others.

Apprise is an extra: ``proxyhealth[apprise]``.
"""

import ipaddress
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from django.core.exceptions import ValidationError
from django.utils.translation import gettext

from proxyhealth.conf import conf
from proxyhealth.exceptions import DeliveryFailed
from proxyhealth.models import Channel
from proxyhealth.notifications import forms
from proxyhealth.notifications.limits import within_limit
from proxyhealth.notifications.messages import Event, Message, Receipt
from proxyhealth.probing.policy import AddressPolicy, IPAddress
from proxyhealth.statuses import Status
from proxyhealth.targets import apprise_scheme, secret_parts, without_secrets
from proxyhealth.texts import clean, without_passwords

NOT_INSTALLED = (
    "Apprise is not installed; run pip install 'proxyhealth[apprise]' for the workers and the web servers"
)

_MAX_ANSWER = 500
# Seconds for all pauses that a service demands between the parts of a long message.
_PAUSES = 4.0
_MAX_PARTS = 5
_PART_RESERVE = 100  # characters of a part that Apprise uses for its number and the title

# Words by which Slack, Discord and others wake up everybody. A report of a proxy must not do that.
_MENTION = re.compile(r"@(?=everyone|here|channel|all\b)|<(?=[!@#])", re.IGNORECASE)
_ZERO_WIDTH = "\N{ZERO WIDTH SPACE}"

# What these loggers say while a message is sent: URLs with their secrets among other things.
_LOGGERS = ("apprise", "urllib3.connectionpool", "requests_oauthlib.oauth1_auth")
_captured: ContextVar[list[str] | None] = ContextVar("proxyhealth_captured", default=None)


def send_apprise(channel: Channel, message: Message) -> Receipt:
    """Send ``message``, and return that the service has accepted it. Raise ``DeliveryFailed``."""
    try:
        apprise_scheme(channel.target)
    except ValueError as error:
        raise DeliveryFailed(f"the Apprise URL cannot be used: {error}") from None
    return within_limit(channel.pk, lambda: _deliver(channel.target, message))


def validate_service(target: str) -> None:
    """Validate that Apprise can read ``target``, without sending anything. Raise ``ValidationError``."""
    with suppress(ValueError):  # validate_target() reports it
        apprise_scheme(target)
        try:
            with _capturing() as lines:
                _service(_library(), target, lines)
        except DeliveryFailed as error:
            raise ValidationError(
                gettext("This target cannot be used: %(why)s."), code="invalid_target", params={"why": error}
            ) from None


def _deliver(target: str, message: Message) -> Receipt:
    apprise = _library()
    with _capturing() as lines:
        service = _service(apprise, target, lines)
        sender = apprise.Apprise(asset=service.asset)
        sender.add(service)
        ok = sender.notify(
            title=_without_mentions(forms.subject(message)),
            body=_without_mentions(_shortened(forms.short(message), service)),
            notify_type=_type_of(message),
            body_format=apprise.NotifyFormat.TEXT,
        )
    name = str(service.service_name)
    if not ok:
        raise DeliveryFailed(_why(lines, target, f"{name} has not accepted the message"))
    return Receipt(f"accepted by {name}")


def _library() -> ModuleType:
    try:
        import apprise
    except ImportError:
        raise DeliveryFailed(NOT_INSTALLED) from None
    return apprise  # type: ignore[no-any-return,unused-ignore]  # it is untyped if it is not installed


def _service(apprise: Any, target: str, lines: list[str]) -> Any:
    """Return the service of a URL, which cannot set retries and redirects. Raise ``DeliveryFailed``."""
    asset = apprise.AppriseAsset(storage_mode="memory", secure_logging=True, async_mode=False)
    asset.http_redirects = asset.pgp_autogen = asset.pem_autogen = False
    asset._service_timeout = 0.0  # ours ends the attempt; with its own, threads of a shared pool would hang
    service = apprise.Apprise.instantiate(target, asset=asset)
    if service is None:
        raise DeliveryFailed(_why(lines, target, "Apprise cannot read this URL"))
    _require_permitted(service.host)
    service.redirects = service.optional = False
    service.retry = 0
    service.overflow_mode = apprise.OverflowMode.SPLIT
    return service


def _require_permitted(host: object) -> None:
    """Refuse a denied address. A name is not looked up: for many services, it is a secret and no name."""
    with suppress(ValueError, OSError):
        address = _address(str(host).strip("[]"))
        if not AddressPolicy(conf.ADDRESS_DENY).permits(address):
            raise DeliveryFailed(f"ADDRESS_DENY refuses the address {address}")


def _address(host: str) -> IPAddress:
    """Return the address that is written as ``host``. Raise ``ValueError`` or ``OSError`` for a name."""
    if ":" in host:
        return ipaddress.ip_address(host)
    return ipaddress.IPv4Address(socket.inet_aton(host))  # also 2852039166, as the resolver reads it


def _shortened(body: str, service: Any) -> str:
    """Return ``body`` cut to what the service accepts in time. It demands a pause after each part."""
    pause = service.request_rate_per_sec
    parts = min(1 + int(_PAUSES / pause), _MAX_PARTS) if pause > 0 else _MAX_PARTS
    limit = parts * max(service.body_maxlen - _PART_RESERVE, service.body_maxlen // 2)
    if len(body) <= limit:
        return body
    head = body[: limit - 1]
    return (head.rpartition("\n")[0] or head) + "\n…"


def _without_mentions(text: str) -> str:
    return _MENTION.sub(lambda match: match[0] + _ZERO_WIDTH, text)


def _type_of(message: Message) -> str:
    """Return the type by which services choose a colour and an icon."""
    if message.event == Event.TEST:
        return "info"
    is_good = all(change.after == Status.OK for change in message.changes)
    return "success" if is_good and all(alarm.ended_at for alarm in message.alarms) else "failure"


def _why(lines: list[str], target: str, summary: str) -> str:
    said = "; ".join(dict.fromkeys(lines))
    said = without_secrets(without_passwords(said), secret_parts("apprise", target))
    return clean(f"{summary}: {said}" if said else summary, _MAX_ANSWER)


@contextmanager
def _capturing() -> Iterator[list[str]]:
    """Collect the warnings of Apprise in this thread, and keep all that it says out of the host's logs."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_keep)  # once: a filter that is there already is not added
    lines: list[str] = []
    token = _captured.set(lines)
    try:
        yield lines
    finally:
        _captured.reset(token)


def _keep(record: logging.LogRecord) -> bool:
    lines = _captured.get()
    if lines is None:
        return True
    if record.name == _LOGGERS[0] and record.levelno >= logging.WARNING:
        lines.append(record.getMessage())
    return False
