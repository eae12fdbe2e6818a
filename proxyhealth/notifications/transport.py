"""The way of a message to the other side of its channel, whatever kind it is."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import uuid4

from proxyhealth import isolation
from proxyhealth.exceptions import DeliveryFailed
from proxyhealth.models import Channel
from proxyhealth.notifications.apprise_channel import send_apprise
from proxyhealth.notifications.mail import send_mail
from proxyhealth.notifications.messages import Event, Message, Receipt
from proxyhealth.notifications.webhook import send_webhook
from proxyhealth.targets import secret_parts, without_secrets
from proxyhealth.texts import clean, without_passwords

logger = logging.getLogger(__name__)

_SENDERS: dict[str, Callable[[Channel, Message], Receipt]] = {
    Channel.Kind.EMAIL: send_mail,
    Channel.Kind.WEBHOOK: send_webhook,
    Channel.Kind.APPRISE: send_apprise,
}


class Answer(NamedTuple):
    """The answer to a test message: its text for the person who sent it, and the seconds that it took.

    ``refused`` names the recipients that did not get it, if others did.
    """

    ok: bool
    text: str
    seconds: float
    refused: str = ""


def send(channel: Channel, message: Message) -> Receipt:
    """Send ``message`` to ``channel``, and return the answer of the other side in short.

    Raise ``DeliveryFailed``, and nothing else, within about ten seconds. Neither the receipt nor the error
    has a secret of the channel.
    """
    sender = _SENDERS.get(channel.kind)
    if sender is None:
        raise DeliveryFailed(f"the kind {clean(channel.kind, 20)!r} is unknown; another version has saved it")
    if isolation.is_isolated() and channel.kind != Channel.Kind.EMAIL:
        raise DeliveryFailed(f"a test sends no {channel.kind}; Django keeps its mails")
    try:
        return sender(channel, message)
    except DeliveryFailed:
        raise
    except Exception as error:
        text = without_secrets(without_passwords(error), secret_parts(channel.kind, channel.target))
        text = clean(f"{type(error).__name__}: {text}", 300)
        logger.error("message failed channel=%s message=%s error=%s", channel.pk, message.id, text)
        raise DeliveryFailed(f"an unexpected error: {text}") from None


def test_message(channel: Channel) -> Message:
    """Return a message that says only that the channel works."""
    return Message(id=uuid4(), event=Event.TEST, channel=channel.name, made_at=datetime.now(UTC))


def send_test(channel: Channel) -> Answer:
    """Send a test message, and return the answer. ``channel`` may be unsaved. Never raise."""
    begin = time.monotonic()
    try:
        receipt = send(channel, test_message(channel))
        answer = Answer(True, receipt.answer, 0, receipt.refused)
    except DeliveryFailed as error:
        answer = Answer(False, str(error), 0)
    return answer._replace(seconds=time.monotonic() - begin)
