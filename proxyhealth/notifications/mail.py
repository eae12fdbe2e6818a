"""Emails, by the email backend of the host."""

import logging
import smtplib
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from django.conf import settings
from django.core import mail
from django.core.checks import CheckMessage, Warning

from proxyhealth.exceptions import DeliveryFailed
from proxyhealth.models import Channel
from proxyhealth.notifications import forms
from proxyhealth.notifications.limits import within_limit
from proxyhealth.notifications.messages import Message, Receipt
from proxyhealth.targets import parse_recipients, without_secrets
from proxyhealth.texts import clean, without_passwords

logger = logging.getLogger(__name__)

# Seconds for one step of SMTP, so that the error can name it before the whole attempt is over.
_STEP_TIMEOUT = 8.0
_QUIT_TIMEOUT = 0.5  # the mail is accepted or refused by then
_MAX_SUBJECT = 200
_MAX_ANSWER = 500
_SHOWN_REFUSALS = 3

# Errors of a mail server, with {server} and {answer}. The first match counts.
_ERRORS: tuple[tuple[type[Exception], str], ...] = (
    (smtplib.SMTPRecipientsRefused, "{server} refused all recipients: {answer}"),
    (
        smtplib.SMTPSenderRefused,
        "{server} refused the sender: {answer}; set DEFAULT_FROM_EMAIL to one that it accepts",
    ),
    (
        smtplib.SMTPAuthenticationError,
        "{server} refused the login: {answer}; correct EMAIL_HOST_USER and EMAIL_HOST_PASSWORD",
    ),
    (smtplib.SMTPResponseException, "{server} refused the mail: {answer}"),
    (TimeoutError, "no answer from {server} within {timeout:g} s"),
    (smtplib.SMTPServerDisconnected, "{server} closed the connection"),
    (smtplib.SMTPNotSupportedError, "{server} lacks what the email settings need: {answer}"),
    (ssl.SSLError, "TLS with {server} failed: {answer}"),
    (socket.gaierror, "{server} was not found: {answer}; correct EMAIL_HOST"),
    (OSError, "no connection to {server}: {answer}; correct EMAIL_HOST and EMAIL_PORT, or start it"),
)


# Backends of Django for development and tests, whose mails reach nobody.
_LOCAL_BACKENDS = tuple(
    f"django.core.mail.backends.{name}.EmailBackend" for name in ("console", "dummy", "filebased", "locmem")
)


def check_email(**kwargs: Any) -> list[CheckMessage]:
    """Warn of a backend whose mails reach nobody, but only in ``manage.py check --deploy``."""
    mailers = getattr(settings, "MAILERS", None)  # since Django 6.1
    backend = settings.EMAIL_BACKEND if mailers is None else mailers.get("default", {}).get("BACKEND")
    if backend not in _LOCAL_BACKENDS:
        return []
    return [
        Warning(
            f"Mails of channels reach nobody: {backend} is for development.",
            hint="Use django.core.mail.backends.smtp.EmailBackend, or silence this if no channel needs it.",
            id="proxyhealth.W008",
        )
    ]


def send_mail(channel: Channel, message: Message) -> Receipt:
    """Send ``message`` to all recipients in one mail, and return the answer of the server.

    Raise ``DeliveryFailed`` if no recipient was accepted. If only some were, the receipt names the others: to
    send it again would repeat it to those that have it.
    """
    try:
        recipients = parse_recipients(channel.target)
    except ValueError as error:
        raise DeliveryFailed(f"{error}; correct the target of the channel") from None
    email = _email(message, recipients)
    return within_limit(channel.pk, lambda: _deliver(email))


def _email(message: Message, recipients: list[str]) -> mail.EmailMultiAlternatives:
    # Django refuses a subject with a line break. No text of a proxy may prevent a message.
    subject = clean(forms.subject(message), _MAX_SUBJECT)
    headers = forms.headers(message)
    email = mail.EmailMultiAlternatives(subject, forms.plain(message), to=recipients, headers=headers)
    email.attach_alternative(forms.html(message), "text/html")
    return email


def _deliver(email: mail.EmailMultiAlternatives) -> Receipt:
    backend: Any = None
    try:
        backend = _backend()
        try:
            backend.open()
            with _recording(getattr(backend, "connection", None)) as record:
                sent = backend.send_messages([email])
        finally:
            _close(backend)
    except Exception as error:
        raise DeliveryFailed(_without_password(_describe(error, backend), backend)) from None
    if sent == 0:
        raise DeliveryFailed(f"{_name_of(backend)} has not sent the mail; it may be set to fail silently")
    answer = _without_password(record.answer or f"accepted by {_name_of(backend)}", backend)
    if not record.refusals:
        return Receipt(answer)
    refusals = _without_password(record.refusals, backend)
    logger.warning(
        "mail not accepted for all message=%s error=%s", email.extra_headers["Message-ID"], refusals
    )
    return Receipt(answer, refusals)


def _backend() -> Any:
    """Return the email backend of the host, with a time limit if it can have one."""
    mailers = getattr(mail, "mailers", None)  # since Django 6.1
    backend: Any = mail.get_connection() if mailers is None else mailers.default
    timeout = getattr(backend, "timeout", 0)
    if timeout is None or (isinstance(timeout, int | float) and timeout > _STEP_TIMEOUT):
        backend.timeout = _STEP_TIMEOUT
    return backend


def _close(backend: Any) -> None:
    """Close the connection. What happens to it now does not change what the server has accepted."""
    for name in ("connection", "_partial_connection"):  # the latter after a failed STARTTLS or login
        smtp = getattr(backend, name, None)
        if isinstance(smtp, smtplib.SMTP) and smtp.sock:
            smtp.sock.settimeout(_QUIT_TIMEOUT)
    with suppress(OSError):  # also all errors of smtplib
        backend.close()


class _Record:
    """The answer to one mail over SMTP, and the recipients that were refused, or empty texts."""

    answer = ""
    refusals = ""


@contextmanager
def _recording(smtp: Any) -> Iterator[_Record]:
    """Record the answers to a mail. Django's backend discards them, also that of a refused recipient."""
    record = _Record()
    if not isinstance(smtp, smtplib.SMTP):
        yield record
        return
    sendmail, data = smtp.sendmail, smtp.data

    def record_sendmail(*args: Any, **options: Any) -> Any:
        refused = sendmail(*args, **options)
        record.refusals = _refusals(refused)
        return refused

    def record_data(*args: Any) -> Any:
        code, text = data(*args)
        record.answer = _answer(code, text)
        return code, text

    replaced = {"sendmail": record_sendmail, "data": record_data}
    vars(smtp).update(replaced)
    try:
        yield record
    finally:
        for name in replaced:  # a backend may keep its connection for other mails
            vars(smtp).pop(name, None)


def _answer(code: int, text: bytes | str, length: int = 200) -> str:
    if code < 0:
        return "its answer is not SMTP"
    words = text.decode(errors="replace") if isinstance(text, bytes) else text
    kind = {4: " (temporary)", 5: " (permanent)"}.get(code // 100, "")
    return f"{code}{kind} {clean(words, length)}"


def _refusals(refused: Mapping[str, tuple[int, bytes]]) -> str:
    items = list(refused.items())[:_SHOWN_REFUSALS]
    shown = [f"{address}: {_answer(code, text, 80)}" for address, (code, text) in items]
    if more := len(refused) - len(shown):
        shown.append(f"and {more} more")
    return ", ".join(shown)


def _describe(error: Exception, backend: Any) -> str:
    """Describe an error for operators: the server, its words, and the setting to correct."""
    answer = getattr(error, "strerror", None) or str(error)
    match error:
        case smtplib.SMTPRecipientsRefused(recipients=refused):
            answer = _refusals(refused)
        case smtplib.SMTPResponseException(smtp_code=code, smtp_error=text):
            answer = _answer(code, text)
        case smtplib.SMTPServerDisconnected(__context__=TimeoutError() as cause):
            error = cause
        case ssl.SSLCertVerificationError(verify_message=text):
            answer = text
    for kind, description in _ERRORS:
        if isinstance(error, kind):
            server = f"the mail server {_server_of(backend)}"
            timeout = getattr(backend, "timeout", None) or _STEP_TIMEOUT
            return description.format(server=server, answer=answer, timeout=timeout)
    return f"{_name_of(backend)} failed: {type(error).__name__}: {error}"


def _server_of(backend: Any) -> str:
    host, port = getattr(backend, "host", ""), getattr(backend, "port", "")
    return f"{host}:{port}" if host else f"of {_name_of(backend)}"


def _name_of(backend: Any) -> str:
    return "EMAIL_BACKEND" if backend is None else f"{type(backend).__module__}.{type(backend).__qualname__}"


def _without_password(text: str, backend: Any) -> str:
    password = str(getattr(backend, "password", None) or "")
    return clean(without_secrets(without_passwords(text), {password} if password else ()), _MAX_ANSWER)
