"""The settings of the app: the dictionary ``PROXYHEALTH``, read at each access."""

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from inspect import isasyncgenfunction
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import NAMESPACE_URL, UUID, uuid5

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

T = TypeVar("T")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_INTERVAL = 60.0
SECONDS_PER_YEAR = 365 * 24 * 3600
LINK_LOCAL_NETWORKS = ("169.254.0.0/16", "fe80::/10")
# Metadata services of clouds. Most others are at a link-local address.
METADATA_NETWORKS = (
    "100.100.100.200/32",  # Alibaba Cloud
    "168.63.129.16/32",  # Azure
    "192.0.0.192/32",  # Oracle Cloud Classic
    "fd00:42::42/128",  # Scaleway
    "fd00:100::100:200/128",  # Alibaba Cloud
    "fd00:a9fe:a9fe::1/128",  # Akamai
    "fd00:c1::a9fe:a9fe/128",  # Oracle Cloud
    "fd00:ec2::/32",  # AWS, also its DNS and EKS Pod Identity
    "fd20:ce::254/128",  # Google Cloud
)
# IPv6 networks whose last 32 bits are an IPv4 address of the same machine: mapped, translated, NAT64.
IPV4_AS_IPV6 = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")))


@dataclass(frozen=True)
class Primary:
    """The control plane, listed as a region beside its proxies."""

    id: UUID
    display_name: str
    icon: str
    url: str
    wildcard_hostname: str
    name: str = "primary"


def interval_of(options: Mapping[str, Any]) -> float:
    """Return ``INTERVAL`` of these options in seconds. Raise ``ImproperlyConfigured``."""
    interval = _convert("INTERVAL", options.get("INTERVAL", DEFAULT_INTERVAL), _seconds)
    return interval if interval > 0 else DEFAULT_INTERVAL


def app_settings() -> Mapping[str, Any]:
    """Return the dictionary ``PROXYHEALTH``. Raise ``ImproperlyConfigured`` if it is not a dictionary."""
    options = getattr(settings, "PROXYHEALTH", {})
    if not isinstance(options, Mapping):
        raise ImproperlyConfigured("PROXYHEALTH must be a dictionary.")
    return options


def _convert(name: str, value: Any, convert: Callable[[Any], T]) -> T:
    try:
        return convert(value)
    except (ValueError, TypeError) as error:
        raise ImproperlyConfigured(f"PROXYHEALTH[{name!r}] {error}, not {value!r}.") from None


# Converters. Their errors complete the sentence "PROXYHEALTH['X'] ...".


def _number(description: str, is_valid: Callable[[float], bool]) -> Callable[[Any], float]:
    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_valid(value):
            raise ValueError(f"must be a number of {description}")
        return float(value)

    return convert


# The upper limits are what dates and timers can hold. Comparisons are False for NaN, so it is invalid.
_seconds = _number("seconds, at most a year", lambda value: abs(value) <= SECONDS_PER_YEAR)
_seconds_or_zero = _number("seconds from 0 to a year", lambda value: 0 <= value <= SECONDS_PER_YEAR)
_positive_seconds = _number("seconds above 0, at most a year", lambda value: 0 < value <= SECONDS_PER_YEAR)
_days = _number("days, 0 or more", lambda value: 0 <= value <= timedelta.max.days)
_days_of_history = _number("days, from 1 to 36,500", lambda value: 1 <= value <= 36_500)


def _positive_integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("must be a whole number, 1 or more")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("must be True or False")
    return value


def _optional(convert: Callable[[Any], T]) -> Callable[[Any], T | None]:
    return lambda value: None if value is None else convert(value)


def _cache_alias(value: Any) -> str:
    if not isinstance(value, str) or value not in settings.CACHES:
        raise ValueError(f"must be an alias in CACHES ({', '.join(settings.CACHES)})")
    return value


def _file(value: Any) -> str:
    if not isinstance(value, str | Path):
        raise TypeError("must be the path of a file")
    if str(value) in ("", "."):  # "." is an empty Path
        return ""
    if not Path(value).is_file():
        raise ValueError("must be the path of a file that exists")
    return str(value)


def _items(value: Any, requirement: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple | set | frozenset):
        raise TypeError(requirement)
    return tuple(value)


def _networks(value: Any) -> tuple[Network, ...]:
    requirement = "must be a list of networks such as ['10.0.0.0/8']"
    items = _items(value, requirement)
    try:
        return _parse_networks(items)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{requirement} ({error})") from None


@lru_cache(maxsize=16)
def _parse_networks(items: tuple[Any, ...]) -> tuple[Network, ...]:
    return tuple(map(_network, items))


def _network(item: Any) -> Network:
    network = ipaddress.ip_network(item)
    if network.prefixlen > 96 and any(network.network_address in form for form in IPV4_AS_IPV6):
        address = int(network.network_address) & 0xFFFFFFFF
        return ipaddress.IPv4Network((address, network.prefixlen - 96))
    return network


def is_within(network: Network, others: Iterable[Network]) -> bool:
    """Return True if all addresses of ``network`` are in one of ``others``."""
    return any(
        network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]
        for other in others
    )


def _urls(value: Any) -> tuple[str, ...]:
    requirement = "must be a list of URLs such as ['https://example.com/']"
    urls = _items(value, requirement)
    if not all(map(_is_url, urls)):
        raise ValueError(requirement)
    return urls


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"https?://[^\s/@]+(/\S*)?", value) is not None


def _secret_urls(value: Any) -> tuple[str, ...]:
    try:
        return _urls(value)
    except (ValueError, TypeError):
        # Neither of them: its message would include the value, whose paths are secrets.
        raise ImproperlyConfigured(
            "PROXYHEALTH['HEARTBEAT_URLS'] must be a list of URLs such as ['https://example.com/']."
        ) from None


def _metric_prefix(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"([a-zA-Z_][a-zA-Z0-9_]*)?", value):
        raise ValueError("must consist of letters, digits and underscores, and not begin with a digit")
    return value


def _page_url(value: Any) -> str:
    # In an annotation of an alert, braces begin a template. The fragment is the section of the alert.
    if not isinstance(value, str) or (value and not (_is_url(value) and re.fullmatch(r"[^#{}\\\"]+", value))):
        raise ValueError("must be the URL of a page, without a fragment")
    return value


_PRIMARY_KEYS = ("id", "display_name", "icon", "url", "wildcard_hostname")


def _primary(value: Any) -> Primary:
    if not isinstance(value, Mapping):
        raise TypeError("must be a dictionary such as {'url': 'https://example.com'}")
    for key, item in value.items():
        if key not in _PRIMARY_KEYS:
            raise ValueError(f"must have only the keys {', '.join(_PRIMARY_KEYS)}")
        if not isinstance(item, str) and not (key == "id" and isinstance(item, UUID)):
            raise TypeError(f"must have a string as {key!r}")
    url = value.get("url", "")
    if not _is_url(url):
        raise ValueError("must have a 'url' such as 'https://example.com'")
    try:
        # Clients remember a region by its id, so a derived id must always be the same.
        id = UUID(str(value["id"])) if "id" in value else uuid5(NAMESPACE_URL, url)
    except ValueError:
        raise ValueError("must have a UUID as 'id', or no 'id'") from None
    return Primary(
        id=id,
        display_name=value.get("display_name") or "Primary",
        icon=value.get("icon", ""),
        url=url,
        wildcard_hostname=value.get("wildcard_hostname", ""),
    )


def _function(value: Any) -> Callable[[Any], Any]:
    requirement = "must be the dotted path of a function such as 'host.api.authenticate'"
    if not isinstance(value, str):
        raise TypeError(requirement)
    try:
        function = import_string(value)
    except ImportError as error:
        raise ValueError(f"{requirement} ({error})") from None
    if not callable(function) or any(map(isasyncgenfunction, (function, type(function).__call__))):
        raise TypeError(requirement)
    return function  # type: ignore[no-any-return]  # its signature is unknown


def _token(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]*", value):
        # Not a ValueError: its message would include the value, which is a secret.
        raise ImproperlyConfigured(
            "PROXYHEALTH['METRICS_TOKEN'] must consist of printable ASCII characters without spaces."
        )
    return value


class _Setting(Generic[T]):
    """A descriptor that reads and converts a setting at each access."""

    def __init__(self, default: Any, convert: Callable[[Any], T]) -> None:
        self._default = default
        self._converter = convert

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> T:
        value = app_settings().get(self._name, self._default)
        return _convert(self._name, value, self._converter)


class Settings:
    """All settings. An invalid value raises ``ImproperlyConfigured``."""

    @property
    def INTERVAL(self) -> float:
        """Seconds between two rounds. 0 or less means 60."""
        return interval_of(app_settings())

    TIMEOUT = _Setting(5.0, _positive_seconds)
    """Seconds that a whole probe may take."""
    FAILURE_THRESHOLD = _Setting(1, _positive_integer)
    """Number of failed probes in a row after which a proxy that was ``ok`` is not."""
    RECOVERY_THRESHOLD = _Setting(1, _positive_integer)
    """Number of successful probes in a row after which a proxy that failed is ``ok``."""
    RECHECK_AFTER = _Setting(5.0, _positive_seconds)
    """Seconds after which a proxy is probed again whose result contradicts its status."""
    HISTORY_DAYS = _Setting(400, _days_of_history)
    """Days for which transitions and gaps are kept."""
    GROUP_INTERVAL = _Setting(30.0, _seconds_or_zero)
    """Seconds after a message in which a channel rests. What happens meanwhile goes into the next message."""
    HEARTBEAT_URLS = _Setting((), _secret_urls)
    """URLs that a worker requests after each full round, so that a service there notices when none ends."""
    BASE_URL = _Setting("", _page_url)
    """Address of the site in messages, such as ``https://control.example.com``, or empty: no links to it."""
    CONCURRENCY = _Setting(512, _positive_integer)
    """Number of probes that run at once in a process."""
    SHARD_SIZE = _Setting(1000, _positive_integer)
    """Number of proxies that one task of a round probes."""
    CACHE = _Setting("default", _cache_alias)
    """Alias in ``CACHES`` of the Redis cache that holds the snapshot."""
    READ_INTERVAL = _Setting(0.5, _seconds_or_zero)
    """Age in seconds at which a process refreshes its copy of the snapshot."""

    @property
    def STALE_AFTER(self) -> float:
        """Seconds from the start of a full round until its statuses are stale. Default: three intervals."""
        value = app_settings().get("STALE_AFTER")
        return _convert("STALE_AFTER", value, _optional(_positive_seconds)) or 3 * self.INTERVAL

    CA_BUNDLE = _Setting("", _file)
    """Path of a PEM file with certificate authorities to trust besides the public ones, or empty."""
    TLS_EXPIRY_WARNING = _Setting(14, _days)
    """Days before the expiry of a certificate at which warnings begin. 0 turns them off."""
    ADDRESS_DENY = _Setting(LINK_LOCAL_NETWORKS + METADATA_NETWORKS, _networks)
    """Networks that probes and webhooks must not connect to."""
    ADDRESS_ALLOW = _Setting((), _networks)
    """Only networks that probes may connect to, unless empty. Takes precedence over ADDRESS_DENY."""
    CANARY_URLS = _Setting((), _urls)
    """URLs that always respond. If none does, the workers' own network has failed."""
    METRICS_NAMESPACE = _Setting("", _metric_prefix)
    """Prefix of all metric names, without the underscore that follows it."""
    RUNBOOK_URL = _Setting("", _page_url)
    """Address of your copy of docs/runbook.md, or empty: no link from an alert or from the health page."""
    PRIMARY = _Setting(None, _optional(_primary))
    """The control plane, if it is listed as a region."""
    PUBLIC_REGIONS = _Setting(False, _boolean)
    """True if the regions are readable without authentication."""
    STATUS_PAGE = _Setting(False, _boolean)
    """True if everyone may see the names and the statuses of the proxies on the status page."""
    STATUS_PAGE_INDEX = _Setting(False, _boolean)
    """True if search engines may list the status page."""
    PUBLIC_CSP = _Setting(False, _boolean)
    """True if the middleware adds the proxies to the policy of every response, whoever requests it."""
    AUTHENTICATE = _Setting(None, _optional(_function))
    """A function of the host, plain or async, that authenticates requests, or None for Django's session."""
    METRICS_TOKEN = _Setting("", _token)
    """Bearer token that ``/metrics`` requires, or empty if the metrics are public."""


conf = Settings()

NAMES = tuple(name for name in vars(Settings) if name.isupper())
