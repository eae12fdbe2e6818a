"""The settings of the app: ``PROXYHEALTH = {...}``, read at access."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any, TypeVar
from uuid import NAMESPACE_URL, UUID, uuid5

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

T = TypeVar("T")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_INTERVAL = 60.0
A_YEAR = 365 * 24 * 3600
LINK_LOCAL = ("169.254.0.0/16", "fe80::/10")


@dataclass(frozen=True)
class Primary:
    """The control plane itself, as a region beside its proxies."""

    id: UUID
    display_name: str
    icon: str
    url: str
    wildcard_hostname: str
    name: str = "primary"


class Settings:
    """One typed property a setting. A wrong value raises ``ImproperlyConfigured``, with what to do."""

    @property
    def INTERVAL(self) -> float:
        """Seconds between two rounds; 0 or less means 60."""
        return interval_of(app_settings())

    @property
    def TIMEOUT(self) -> float:
        """Seconds that a whole probe may take."""
        return _get("TIMEOUT", 5.0, _positive)

    @property
    def CONCURRENCY(self) -> int:
        """Probes at once in a process."""
        return _get("CONCURRENCY", 512, _count)

    @property
    def SHARD_SIZE(self) -> int:
        """Proxies that one task of a round takes."""
        return _get("SHARD_SIZE", 1000, _count)

    @property
    def CACHE(self) -> str:
        """Alias, in ``CACHES``, of the Redis cache that holds the snapshot."""
        return _get("CACHE", "default", _cache_alias)

    @property
    def READ_INTERVAL(self) -> float:
        """Seconds for which a process reads its copy of the snapshot before it asks for a newer one."""
        return _get("READ_INTERVAL", 0.5, _not_negative)

    @property
    def STALE_AFTER(self) -> float:
        """Seconds after which a snapshot without a full round is stale; default three intervals."""
        return _get("STALE_AFTER", None, _optional(_positive)) or 3 * self.INTERVAL

    @property
    def CA_BUNDLE(self) -> str:
        """Path of a PEM file with certificate authorities to trust besides the public ones, or empty."""
        return _get("CA_BUNDLE", "", _file)

    @property
    def TLS_EXPIRY_WARNING(self) -> float:
        """Days before the end of a certificate from which on it is a warning; 0 for never."""
        return _get("TLS_EXPIRY_WARNING", 14, _days)

    @property
    def ADDRESS_DENY(self) -> tuple[Network, ...]:
        """Networks that no probe may connect to."""
        return _get("ADDRESS_DENY", LINK_LOCAL, _networks)

    @property
    def ADDRESS_ALLOW(self) -> tuple[Network, ...]:
        """If not empty, the only networks that a probe may connect to; goes before ADDRESS_DENY."""
        return _get("ADDRESS_ALLOW", (), _networks)

    @property
    def CANARY_URLS(self) -> tuple[str, ...]:
        """URLs that always answer; if none does, it is the workers' own network that is gone."""
        return _get("CANARY_URLS", (), _urls)

    @property
    def METRICS_NAMESPACE(self) -> str:
        """Put, with an underscore, in front of the names of all metrics."""
        return _get("METRICS_NAMESPACE", "", _metric_prefix)

    @property
    def PRIMARY(self) -> Primary | None:
        """The control plane itself, if it is to be a region too."""
        return _get("PRIMARY", None, _optional(_primary))

    @property
    def PUBLIC_REGIONS(self) -> bool:
        """Whether the regions are for everybody, and not only for who is signed in."""
        return _get("PUBLIC_REGIONS", False, _flag)

    @property
    def AUTHENTICATE(self) -> Callable[[Any], Any] | None:
        """A function of the host that says whose a request is, instead of Django's session."""
        return _get("AUTHENTICATE", None, _optional(_function))

    @property
    def METRICS_TOKEN(self) -> str:
        """What whoever scrapes has to know; empty if the metrics are open."""
        return _get("METRICS_TOKEN", "", _token)


conf = Settings()

NAMES = tuple(name for name in vars(Settings) if name.isupper())


def interval_of(options: Mapping[str, Any]) -> float:
    """``INTERVAL`` of these options, in seconds."""
    interval = _convert("INTERVAL", options.get("INTERVAL", DEFAULT_INTERVAL), _number)
    return interval if interval > 0 else DEFAULT_INTERVAL


def app_settings() -> Mapping[str, Any]:
    options = getattr(settings, "PROXYHEALTH", {})
    if not isinstance(options, Mapping):
        raise ImproperlyConfigured("PROXYHEALTH must be a dictionary.")
    return options


def _get(name: str, default: Any, convert: Callable[[Any], T]) -> T:
    return _convert(name, app_settings().get(name, default), convert)


def _convert(name: str, value: Any, convert: Callable[[Any], T]) -> T:
    try:
        return convert(value)
    except (ValueError, TypeError) as error:
        raise ImproperlyConfigured(f"PROXYHEALTH[{name!r}] {error}, not {value!r}.") from None


# Converters. What they raise completes the sentence "PROXYHEALTH['X'] ...".


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("must be a number of seconds")
    if value > A_YEAR:  # dates and timers end somewhere
        raise ValueError("must be a number of seconds, a year at most")
    return float(value)


def _positive(value: Any) -> float:
    number = _number(value)
    if number <= 0:
        raise ValueError("must be a number of seconds above 0")
    return number


def _not_negative(value: Any) -> float:
    number = _number(value)
    if number < 0:
        raise ValueError("must be a number of seconds, 0 or more")
    return number


def _days(value: Any) -> float:
    try:
        return _not_negative(value)
    except ValueError:
        raise ValueError("must be a number of days, 0 or more") from None


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("must be a whole number, 1 or more")
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
    if str(value) in ("", "."):
        return ""
    if not Path(value).is_file():
        raise ValueError("must be the path of a file that exists")
    return str(value)


def _networks(value: Any) -> tuple[Network, ...]:
    if isinstance(value, str) or not isinstance(value, list | tuple | set | frozenset):
        raise TypeError("must be a list of networks such as '10.0.0.0/8'")
    return _parse_networks(tuple(value))


@lru_cache(maxsize=16)
def _parse_networks(value: tuple[Any, ...]) -> tuple[Network, ...]:
    networks = []
    for item in value:
        try:
            networks.append(ipaddress.ip_network(item))
        except ValueError as error:
            raise ValueError(f"must be a list of networks such as '10.0.0.0/8' ({error})") from None
    return tuple(networks)


def _urls(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, list | tuple | set | frozenset):
        raise TypeError("must be a list of URLs")
    for item in value:
        if not _is_url(item):
            raise ValueError("must be a list of URLs such as 'https://example.com/'")
    return tuple(value)


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"https?://[^\s/@]+(/\S*)?", value) is not None


def _metric_prefix(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"([a-zA-Z_][a-zA-Z0-9_]*)?", value):
        raise ValueError("must be empty, or letters, digits and underscores, and not begin with a digit")
    return value


_PRIMARY_KEYS = ("id", "display_name", "icon", "url", "wildcard_hostname")


def _primary(value: Any) -> Primary:
    if not isinstance(value, Mapping):
        raise TypeError("must be a dictionary such as {'url': 'https://example.com'}")
    for key, item in value.items():
        if key not in _PRIMARY_KEYS:
            raise ValueError(f"must have no keys but {', '.join(_PRIMARY_KEYS)}")
        if not isinstance(item, str) and not (key == "id" and isinstance(item, UUID)):
            raise TypeError(f"must have a text as its {key!r}")
    url = value.get("url", "")
    if not _is_url(url):
        raise ValueError("must have a 'url' such as 'https://example.com'")
    try:
        # Clients remember a region by its id, so one that is made up is always the same.
        id = UUID(str(value["id"])) if "id" in value else uuid5(NAMESPACE_URL, url)
    except ValueError:
        raise ValueError("must have a UUID as its 'id', or none") from None
    return Primary(
        id=id,
        display_name=value.get("display_name") or "Primary",
        icon=value.get("icon", ""),
        url=url,
        wildcard_hostname=value.get("wildcard_hostname", ""),
    )


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("must be True or False")
    return value


def _function(value: Any) -> Callable[[Any], Any]:
    wanted = "must be the dotted path of a function, and no coroutine, such as 'host.api.authenticate'"
    if not isinstance(value, str):
        raise TypeError(wanted)
    try:
        function = import_string(value)
    except ImportError as error:
        raise ValueError(f"{wanted} ({error})") from None
    if not callable(function) or iscoroutinefunction(function):
        raise TypeError(wanted)
    return function  # type: ignore[no-any-return]  # callable() is all that can be known of it


def _token(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]*", value):
        # Not a ValueError: that would show it, and it is a secret.
        raise ImproperlyConfigured(
            "PROXYHEALTH['METRICS_TOKEN'] must be empty, or letters, digits and signs of ASCII without a "
            "space or the end of a line."
        )
    return value
