"""Selectors: the texts by which channels and silences choose proxies.

Each line is a pattern of names, such as ``eu-*``, or of a label, such as ``region:eu`` or ``region:*``. A
proxy is chosen if one line matches it, without regard to case. No lines choose all proxies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from re import ASCII, IGNORECASE, Pattern, compile

from django.core.exceptions import ValidationError

from proxyhealth.texts import cut

# What names and labels may have, and the characters of patterns.
_NAME = compile(r"[\w*?\[\]!-]+", ASCII)
_LABEL = compile(r"[\w*?\[\]!./-]+", ASCII)


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


def validate_selectors(text: str) -> None:
    """Validate the lines of a selector. A line may match no proxy, but it must be able to match one.

    Raise one ``ValidationError`` with the errors of all lines.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    faults = [(number, line, _fault(line)) for number, line in lines if line]
    errors = [
        ValidationError(
            "Line %(number)s, “%(line)s”: %(fault)s",
            code="invalid_selector",
            params={"number": number, "line": cut(line, 64), "fault": fault},
        )
        for number, line, fault in faults
        if fault
    ]
    if not any(line for _, line in lines):
        errors.append(ValidationError("Give at least one line. * matches all proxies.", code="no_selector"))
    if errors:
        raise ValidationError(errors)


def _fault(line: str) -> str:
    key, colon, value = (part.strip() for part in line.partition(":"))
    if "," in line or ";" in line:
        return "write each pattern on a line of its own."
    if not colon:
        if _NAME.fullmatch(line):
            return ""
        return "a name has letters, digits, - and _. In a pattern, * stands for any characters, ? for one."
    if not key or not value:
        return "a label is a key and a value, such as region:eu or region:*."
    if _LABEL.fullmatch(key) and _LABEL.fullmatch(value):
        return ""
    return "a label has letters, digits, and . _ - / in its key and its value."
