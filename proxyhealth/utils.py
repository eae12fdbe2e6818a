"""Frozen collections, JSON, times as text, objects per process, and the detection of green threads."""

import json
import os
import re
import sys
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from datetime import UTC, datetime
from typing import Any, Generic, NoReturn, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class FrozenMapping(Mapping[K, V]):
    """A read-only mapping. Unlike ``MappingProxyType``, it can be copied and pickled."""

    __slots__ = ("_data",)

    def __init__(self, data: Mapping[K, V] | None = None) -> None:
        self._data = dict(data or {})

    def __getitem__(self, key: K) -> V:
        return self._data[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        return repr(self._data)

    def __eq__(self, other: object) -> bool:
        # That of Mapping copies both.
        return self._data == other._data if isinstance(other, FrozenMapping) else super().__eq__(other)

    def __hash__(self) -> int:
        return hash(frozenset(self._data.items()))

    # The views of a dictionary are also read-only, and faster than those of Mapping.

    def keys(self) -> KeysView[K]:
        return self._data.keys()

    def values(self) -> ValuesView[V]:
        return self._data.values()

    def items(self) -> ItemsView[K, V]:
        return self._data.items()


class FrozenList(list[V]):
    """A read-only list. Copies and unpickled lists are plain lists."""

    __slots__ = ()

    def _refuse(self, *args: Any, **options: Any) -> NoReturn:
        raise TypeError("this list is shared and cannot be written to: make a copy of it with list()")

    append = extend = insert = remove = pop = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def aware(moment: datetime) -> datetime:
    """Return ``moment`` with a time zone. Without ``USE_TZ``, rows have local times without one."""
    if moment.tzinfo:
        return moment
    try:
        return moment.astimezone(UTC)
    except (OverflowError, ValueError, OSError):  # the first or the last year of all; on Windows, before 1970
        return moment.replace(tzinfo=UTC)


def rfc3339(moment: datetime) -> str:
    """Return an aware ``moment`` as RFC 3339 in UTC, to the microsecond."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_json(text: bytes) -> Any:
    """Parse JSON. Raise ``ValueError`` also for a lone surrogate, which no page and no metric can show."""
    value = json.loads(text)
    if b"\\" in text and _SURROGATE.search(text):  # the first search is much faster
        json.dumps(value, ensure_ascii=False).encode()  # raises UnicodeEncodeError
    return value


def parse_rfc3339(text: str | None) -> datetime | None:
    """Return the time of a text from :func:`rfc3339`, or None. Raise ``ValueError`` for any other text."""
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is UTC:
        return moment
    try:
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except OverflowError:  # near the first or the last year of all
        pass
    raise ValueError(f"{text[:40]} is not a time in UTC")


class PerProcess(Generic[V]):
    """An object that each process makes for itself, because it has locks or threads.

    A fork copies locks but no threads, so a lock that another thread holds stays locked in the child forever.
    Therefore the child makes a new object.
    """

    __slots__ = ("_make", "value")

    def __init__(self, make: Callable[[], V]) -> None:
        self._make = make
        self.reset()
        if hasattr(os, "register_at_fork"):  # Windows has no forks
            os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        """Replace the object with a new one."""
        self.value = self._make()


# What probes need. Hosts may replace only a part of it.
_REPLACED = ("socket", "ssl", "select", "thread", "threading", "queue")


def green_threads() -> str:
    """Return the library that replaced the threads or sockets of this process, or an empty string."""
    gevent: Any = sys.modules.get("gevent.monkey")
    if gevent and any(map(gevent.is_module_patched, _REPLACED)):
        return "gevent"
    eventlet: Any = sys.modules.get("eventlet.patcher")
    if eventlet and any(map(eventlet.is_monkey_patched, _REPLACED)):
        return "eventlet"
    return ""


class LazyProperty(Generic[V]):
    """A property that is computed once per object.

    Before Python 3.12, ``functools.cached_property`` computes under a lock, which a fork would copy.
    """

    def __init__(self, function: Callable[[Any], V]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: type) -> V:
        value = instance.__dict__[self._function.__name__] = self._function(instance)
        return value
