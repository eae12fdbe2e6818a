"""The targets of channels: which are valid, which parts of them are secret, and what people are shown."""

import re
import secrets
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import quote, unquote

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.utils.translation import gettext, gettext_noop
from django.utils.translation import gettext_lazy as _

from proxyhealth.texts import is_suspicious
from proxyhealth.validators import MAX_URL_LENGTH, Fault, ProxyURL, fault_text, parse_proxy_url, short

MAX_RECIPIENTS = 50

# Scanners for leaked secrets can find the prefix. Behind it are 256 random bits.
SECRET_PREFIX = "proxyhealth_whsec_"  # noqa: S105  not a secret

# Schemes of Apprise that act on the machine of the worker, and not on that of a service.
_LOCAL_SCHEMES = frozenset(
    ("blink1", "dbus", "file", "gio", "glib", "gnome", "kde", "macosx", "memory", "qt", "syslog", "windows")
)
# Schemes of Apprise for requests to any URL. A webhook channel limits and signs them.
_REQUEST_SCHEMES = frozenset(("form", "forms", "json", "jsons", "xml", "xmls"))
# Parameters of Apprise with the path of a file, which would be read or written.
_FILE_PARAMETERS = frozenset(("keyfile", "pgpkey", "pgpprv", "pgppub", "subfile", "template"))

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}(?=://.)")
_DELIMITERS = re.compile(r"[/?&=#@:,;+\s]+")
_SHOWN_ADDRESSES = 3  # masked
_SHORTEST_SECRET = 4  # characters; shorter parts are words such as "v2"


class Webhook(NamedTuple):
    """The parts of the URL of a webhook. ``path`` includes the query, ``user`` is ``name:password``."""

    url: ProxyURL
    path: str
    user: str


def new_secret() -> str:
    """Return a new secret for the signatures of a webhook."""
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def parse_recipients(target: str) -> list[str]:
    """Return the addresses of an email channel, which stand on lines or between commas.

    Raise ``ValueError`` with the fault.
    """
    addresses = list(dict.fromkeys(filter(None, map(str.strip, re.split(r"[,;\n]", target)))))
    if not addresses:
        raise Fault(gettext_noop("enter at least one email address, one on each line"))
    if len(addresses) > MAX_RECIPIENTS:
        raise Fault(
            gettext_noop("a channel has at most %(count)s addresses; use a mailing list"),
            count=MAX_RECIPIENTS,
        )
    for address in addresses:
        try:
            validate_email(address)
            if is_suspicious(address):
                raise ValidationError("a control character in quotation marks")
        except ValidationError:
            text = gettext_noop("%(address)s is not an email address such as ops@example.com")
            raise Fault(text, address=short(address)) from None
    return addresses


def parse_webhook(target: str) -> Webhook:
    """Return the parts of the URL of a webhook. Raise ``ValueError`` with the fault, without a secret."""
    if len(target) > MAX_URL_LENGTH:
        raise Fault(gettext_noop("it is longer than %(count)s characters"), count=f"{MAX_URL_LENGTH:,}")
    scheme, separator, rest = target.partition("://")
    authority, slash, path = re.fullmatch(r"([^/?#]*)([/?]?)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    user, _, host = authority.rpartition("@")
    url = parse_proxy_url(f"{scheme}{separator}{host}")
    if "#" in path or is_suspicious(path + user) or re.search(r"\s", path + user):
        raise Fault(gettext_noop("it must not contain a space, an invisible character or a fragment (#)"))
    path = path if slash != "?" else f"?{path}"
    return Webhook(url, quote(f"/{path}", safe="!$%&'()*+,/:;=?@[]~"), unquote(user))


def apprise_scheme(target: str) -> str:
    """Return the scheme of a URL of Apprise. Raise ``ValueError`` if no channel may use the URL."""
    found = _SCHEME.match(target)
    if found is None or is_suspicious(target) or re.search(r"\s|,[a-z0-9]+://", target, re.IGNORECASE):
        raise Fault(gettext_noop("enter one URL such as slack://…, without spaces"))
    if "${" in unquote(target):
        raise Fault(gettext_noop("it contains a variable (${…}); enter its value"))
    scheme = found[0].lower()
    if scheme in _LOCAL_SCHEMES:
        text = gettext_noop(
            "%(scheme)s:// acts on the machine of the worker, which nobody watches; use another service"
        )
        raise Fault(text, scheme=scheme)
    if scheme in _REQUEST_SCHEMES:
        text = gettext_noop("%(scheme)s:// requests any URL; create a channel of the kind webhook")
        raise Fault(text, scheme=scheme)
    names = {unquote(name).lower() for name in re.findall(r"[?&]([^=&]+)", target)}
    if files := sorted(names & _FILE_PARAMETERS):
        text = gettext_noop("the parameter %(name)s names a file of the worker, which channels must not read")
        raise Fault(text, name=files[0])
    return scheme


def validate_target(kind: str, target: str) -> None:
    """Validate ``Channel.target`` for this kind. Raise ``ValidationError``."""
    try:
        match kind:
            case "email":
                parse_recipients(target)
            case "webhook":
                parse_webhook(target)
            case "apprise":
                apprise_scheme(target)
    except ValueError as error:
        raise ValidationError(
            _("This target cannot be used: %(why)s."),
            code="invalid_target",
            params={"why": fault_text(error)},
        ) from None


def masked_target(kind: str, target: str) -> str:
    """Return what people are shown of a saved target: enough to know which one it is."""
    match kind:
        case "email":
            addresses = list(filter(None, map(str.strip, re.split(r"[,;\n]", target))))
            shown = [re.sub(r"^(.).*(?=@)", r"\1…", address) for address in addresses[:_SHOWN_ADDRESSES]]
            more = len(addresses) - len(shown)
            names = ", ".join(shown)
            return (
                gettext("%(names)s and %(count)s more") % {"names": names, "count": more} if more else names
            )
        case "webhook":
            try:
                url, path, user = parse_webhook(target)
            except ValueError:
                return "…"
            return f"{url.scheme}://{'…@' if user else ''}{url.netloc}{'/…' if path != '/' else ''}"
    found = _SCHEME.match(target)
    return f"{found[0].lower()}://…" if found else "…"


def secret_parts(kind: str, target: str) -> set[str]:
    """Return the parts of ``target`` that no message may repeat, as they are and percent-decoded."""
    if kind == "email":
        return set()
    if kind == "webhook":
        _, _, rest = target.partition("://")
        authority, _, path = rest.partition("/")
        target = authority.rpartition("@")[0] + "/" + path + "/" + authority.partition("?")[2]
    else:
        target = target.partition("://")[2]
    parts = {part for text in (target, unquote(target)) for part in _DELIMITERS.split(text)}
    return {part for part in parts if len(part) >= _SHORTEST_SECRET}


def without_secrets(text: str, parts: Iterable[str]) -> str:
    """Return ``text`` with ``***`` for each of ``parts``, the longest first."""
    for part in sorted(parts, key=len, reverse=True):
        text = text.replace(part, "***")
    return text
