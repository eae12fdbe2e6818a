"""Validators of the fields of a proxy, and the URL parser that they share with the probe."""

import ipaddress
import re
import socket
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit
from zoneinfo import ZoneInfo

import idna
from django.core.exceptions import ValidationError
from django.utils.translation import gettext, gettext_noop
from django.utils.translation import gettext_lazy as _

from proxyhealth.texts import INVISIBLE, MAX_LABELS, SELECTORS, is_label, without_controls

RESERVED_NAMES = frozenset({"outages", "primary"})

# Characters. Parsing some longer URLs would take quadratic time.
MAX_URL_LENGTH = 2_000

_MAX_UNICODE_HOST = 100  # characters; each one takes ten microseconds

_DEFAULT_PORTS = {"http": 80, "https": 443}
_UNSEEN = rf"\s{INVISIBLE}"
_NOT_IN_URLS = re.compile(rf"[{_UNSEEN}{SELECTORS}\\]")
_PATH = re.compile(r"[!$%&()*+,./0-9:;=@A-Z_a-z~-]*")
_BRACKETED = re.compile(r"\[[^][]*\](:[^][]*)?$")
_HOST_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_ICON = re.compile(
    # Not "//host/path", which is a URL of another host.
    rf"""(https?://[^/?#@{_UNSEEN}\\"'<>]+(?![^/?#])|/(?!/))[^{_UNSEEN}\\"'<>]*"""
)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class Fault(ValueError):
    """A fault of something that a person entered. The message is English, as in logs and in JSON."""

    def __init__(self, text: str, **params: Any) -> None:
        super().__init__(text % params if params else text)
        self._text = text
        self._params = params

    def translated(self) -> str:
        """Return the message in the current language."""
        return gettext(self._text) % self._params if self._params else gettext(self._text)


def fault_text(error: ValueError) -> str:
    """Return the message of ``error`` for a form: in the current language if it is a :class:`Fault`."""
    return error.translated() if isinstance(error, Fault) else str(error)


class ProxyURL(NamedTuple):
    """The parts of a proxy's URL.

    ``host`` is ready for name resolution: lower case, punycode, IPv6 without brackets. ``netloc`` is
    ``host[:port]``, with the port only if the URL has one. ``path`` is empty or begins with a slash.
    """

    scheme: str
    host: str
    port: int
    netloc: str
    path: str

    @property
    def base(self) -> str:
        """The URL without one trailing slash, to append a path to."""
        return f"{self.scheme}://{self.netloc}{self.path.removesuffix('/')}"


def parse_proxy_url(url: str) -> ProxyURL:
    """Return the parts of ``url``. Raise ``ValueError`` with the fault if no request can be sent to it.

    It accepts paths, for redirects; :func:`validate_proxy_url` does not.
    """
    if len(url) > MAX_URL_LENGTH:
        raise Fault(gettext_noop("it is longer than %(count)s characters"), count=f"{MAX_URL_LENGTH:,}")
    if _NOT_IN_URLS.search(url):
        raise Fault(gettext_noop("it contains a space, a control character or a backslash"))
    parts = split_url(url)
    if parts.scheme not in _DEFAULT_PORTS:
        raise Fault(gettext_noop("it must begin with http:// or https://"))
    if "@" in parts.netloc:
        # No message repeats the URL: the part before the @ may be a password.
        raise Fault(gettext_noop("it must not contain a user name or a password"))
    if "?" in url or "#" in url:
        raise Fault(gettext_noop("it must not contain a query (?) or a fragment (#)"))
    if not parts.hostname:
        raise Fault(gettext_noop("it has no host"))
    if "[" in parts.netloc and not _BRACKETED.match(parts.netloc):
        raise Fault(gettext_noop("its host cannot be read"))  # urlsplit() takes "[::1]x" for "[::1]"
    host = _ascii_host(parts.hostname, bracketed="[" in parts.netloc)
    port = _port_of(parts)
    if not _PATH.fullmatch(parts.path):
        raise Fault(gettext_noop("its path contains a character that must be percent-encoded"))
    netloc = f"[{host}]" if ":" in host else host
    if port is not None:
        netloc = f"{netloc}:{port}"
    return ProxyURL(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme], netloc, parts.path)


def _port_of(parts: SplitResult) -> int | None:
    with suppress(ValueError):
        if parts.port or (parts.port is None and not parts.netloc.endswith(":")):
            return parts.port
    raise Fault(gettext_noop("its port must be a number from 1 to 65535"))


def split_url(url: str, base: str = "") -> SplitResult:
    """Split ``url``, relative to ``base``. Raise ``ValueError`` without repeating a password in it."""
    try:
        return urlsplit(urljoin(base, url))
    except ValueError:
        raise Fault(gettext_noop("its host cannot be read")) from None


def _ascii_host(host: str, *, bracketed: bool) -> str:
    if bracketed:
        try:
            if "%" not in host:  # a zone ID has a meaning only on one machine
                # Not str(): its form of a mapped IPv4 address depends on the Python version.
                return socket.inet_ntop(socket.AF_INET6, ipaddress.IPv6Address(host).packed)
        except ValueError:
            pass
        raise Fault(gettext_noop("%(host)s is not an IPv6 address"), host=short(host))
    if not host.isascii():
        if len(host) > _MAX_UNICODE_HOST:
            raise Fault(
                gettext_noop("%(host)s is not an internationalised name: it is too long"), host=short(host)
            )
        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError) as error:
            text = gettext_noop("%(host)s is not an internationalised name: %(error)s")
            raise Fault(text, host=short(host), error=str(error)) from None
    host = host.lower()
    labels = host.removesuffix(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        # The resolver would accept "0177.0.0.1" and "2130706433" as addresses.
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise Fault(gettext_noop("%(host)s is not an IPv4 address"), host=short(host)) from None
    if len(host) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise Fault(gettext_noop("%(host)s is not a host name"), host=short(host))
    return host


def short(text: str) -> str:
    """Return ``text`` quoted for a message, cut after 64 characters."""
    quoted = repr(text if len(text) <= 64 else text[:63] + "…")
    return without_controls(quoted)  # repr() keeps some invisible letters


def validate_proxy_url(value: str) -> None:
    """Validate ``WorkspaceProxy.url``: a URL that can be requested, without a path."""
    try:
        url = parse_proxy_url(value)
        if url.path not in ("", "/"):
            raise Fault(gettext_noop("it must not contain a path"))
    except ValueError as error:
        raise ValidationError(
            _("This URL cannot be used: %(why)s."), code="invalid_url", params={"why": fault_text(error)}
        ) from None


def validate_icon(value: str) -> None:
    """Validate ``WorkspaceProxy.icon``: pages contain it, so it must not be a ``javascript:`` URL."""
    if not _ICON.fullmatch(value):
        raise ValidationError(
            _("An icon is a path that begins with / or a URL that begins with http:// or https://."),
            code="invalid_icon",
        )


def validate_wildcard_hostname(value: str) -> None:
    """Validate ``WorkspaceProxy.wildcard_hostname``: a host name with one ``*`` in its first label."""
    label, _dot, rest = value.lower().partition(".")
    try:
        if label.count("*") != 1 or not rest:
            raise Fault(gettext_noop("its first part must contain one *, and there must be others"))
        if parse_proxy_url(f"http://{label.replace('*', 'x')}.{rest}").path:
            raise Fault(gettext_noop("it must not contain a path"))
    except ValueError as error:
        raise ValidationError(
            _("This wildcard host name cannot be used: %(why)s."),
            code="invalid_wildcard_hostname",
            params={"why": fault_text(error)},
        ) from None


def validate_labels(value: object) -> None:
    """Validate ``WorkspaceProxy.labels``: a dictionary of short plain texts."""
    if not isinstance(value, dict):
        raise ValidationError(
            _('Labels must be a dictionary such as {"region": "eu"}.'), code="invalid_labels"
        )
    if len(value) > MAX_LABELS:
        raise ValidationError(
            _("A proxy may have at most %(count)s labels."),
            code="too_many_labels",
            params={"count": MAX_LABELS},
        )
    for key, item in value.items():
        if not (is_label(key) and is_label(item)):
            raise ValidationError(
                _(
                    "The label %(label)s cannot be used. A key and a value have 1 to 63 letters, digits, and "
                    "the characters . _ - /, and begin with a letter or a digit."
                ),
                code="invalid_label",
                params={"label": short(f"{key}: {item}")},
            )


def validate_weekdays(value: object) -> None:
    """Validate ``Silence.weekdays``: a list of numbers from 0 (Monday) to 6, each once."""
    days = value if isinstance(value, list) else [None]
    # "type", because True is an integer, too.
    if any(type(day) is not int or not 0 <= day <= 6 for day in days) or len(set(days)) < len(days):
        raise ValidationError(
            _("Weekdays must be a list of different numbers from 0 (Monday) to 6 (Sunday)."),
            code="invalid_weekdays",
        )


def validate_time_zone(value: str) -> None:
    """Validate ``Silence.time_zone``: a name of the IANA database."""
    try:
        ZoneInfo(value)
    except (LookupError, ValueError, OSError):  # OSError for a directory, such as "Europe"
        raise ValidationError(
            _("There is no time zone %(zone)s. Use a name such as Europe/Paris or UTC."),
            code="invalid_time_zone",
            params={"zone": short(value)},
        ) from None


def validate_text(value: str) -> None:
    """Validate a text that pages show: all its characters are visible."""
    shown = without_controls(value)
    if shown == value:
        return
    place = next((i for i, (a, b) in enumerate(zip(value, shown, strict=False)) if a != b), len(shown))
    raise ValidationError(
        _(
            "The text contains an invisible character (U+%(code)s) at position %(place)s. Delete it, "
            "or type the text again."
        ),
        code="invisible_character",
        params={"code": f"{ord(value[place]):04X}", "place": place + 1},
    )


def validate_proxy_name(value: str) -> None:
    """Validate ``WorkspaceProxy.name``: ``primary`` is the control plane itself."""
    if value.casefold() in RESERVED_NAMES:
        raise ValidationError(
            _("The name “%(name)s” is reserved for the control plane itself."),
            code="reserved_name",
            params={"name": value},
        )
