"""Selectors: the texts by which channels and silences choose proxies.

Each line is a pattern of names, such as ``eu-*``, or of a label, such as ``region:eu`` or ``region:*``. A
proxy is chosen if one line matches it, without regard to case. No lines choose all proxies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from re import IGNORECASE, Pattern, compile


@dataclass(frozen=True)
class Selector:
    """The parsed lines of a selector."""

    names: tuple[Pattern[str], ...]
    labels: tuple[tuple[Pattern[str], Pattern[str]], ...]

    @classmethod
    def parse(cls, text: str) -> "Selector":
        """Return the selector of these lines. Any text is one."""
        return _parse(text)

    @property
    def is_empty(self) -> bool:
        return not self.names and not self.labels

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        """Return True if this proxy is chosen."""
        return (
            self.is_empty
            or any(pattern.match(name) for pattern in self.names)
            or any(
                key.match(label) and pattern.match(value)
                for key, pattern in self.labels
                for label, value in labels.items()
            )
        )


@lru_cache(maxsize=1_024)
def _parse(text: str) -> Selector:
    lines = list(filter(None, map(str.strip, text.splitlines())))
    pairs = [line.partition(":") for line in lines]
    return Selector(
        tuple(_pattern(name) for name, colon, _ in pairs if not colon),
        tuple((_pattern(key), _pattern(value)) for key, colon, value in pairs if colon),
    )


def _pattern(text: str) -> Pattern[str]:
    return compile(translate(text.strip()), IGNORECASE)
