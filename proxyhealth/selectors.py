"""Selectors: the texts by which channels and silences choose proxies.

Each line is a pattern of names, such as ``eu-*``, or of a label, such as ``region:eu`` or ``region:*``. A
proxy is chosen if one line matches it, without regard to case. No lines choose all proxies.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from re import ASCII, Pattern, compile

from django.core.exceptions import ValidationError
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from proxyhealth.texts import cut

# What names and labels may have, and the characters of patterns.
_NAME = compile(r"[\w*?\[\]!-]+", ASCII)
_WILD = frozenset("*?[")
_LABEL = compile(r"[\w*?\[\]!./-]+", ASCII)


@dataclass(frozen=True)
class Selector:
    """The parsed lines of a selector, in lower case. A label is ``key:value``."""

    names: frozenset[str] = frozenset()
    name_pattern: Pattern[str] | None = None
    labels: frozenset[str] = frozenset()
    label_pattern: Pattern[str] | None = None

    @classmethod
    def parse(cls, text: str) -> "Selector":
        """Return the selector of these lines. Any text is one."""
        return _parse(text)

    @classmethod
    def union(cls, selectors: Iterable["Selector"]) -> "Selector":
        """Return a selector that chooses what one of these chooses. None of them may be empty."""
        every = list(selectors)
        return cls(
            frozenset().union(*(each.names for each in every)),
            _any_of(each.name_pattern.pattern for each in every if each.name_pattern),
            frozenset().union(*(each.labels for each in every)),
            _any_of(each.label_pattern.pattern for each in every if each.label_pattern),
        )

    @property
    def is_empty(self) -> bool:
        return self == _EMPTY

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        """Return True if this proxy is chosen."""
        name = name.lower()
        if name in self.names or (self.name_pattern and self.name_pattern.match(name)):
            return True
        if self.labels or self.label_pattern:
            texts = [f"{key}:{value}".lower() for key, value in labels.items()]
            pattern = self.label_pattern
            return not self.labels.isdisjoint(texts) or bool(pattern and any(map(pattern.match, texts)))
        return not self.names and not self.name_pattern  # no lines choose all


_EMPTY = Selector()


@lru_cache(maxsize=1_024)
def _parse(text: str) -> Selector:
    lines = list(filter(None, map(str.strip, text.lower().splitlines())))
    names = [line for line in lines if ":" not in line]
    labels = [":".join(map(str.strip, line.split(":", 1))) for line in lines if ":" in line]
    return Selector(*_split(names), *_split(labels))


def _split(texts: list[str]) -> tuple[frozenset[str], Pattern[str] | None]:
    """Return the texts without a character of patterns, and a pattern for the others."""
    patterns = [text for text in texts if not _WILD.isdisjoint(text)]
    return frozenset(texts).difference(patterns), _any_of(map(translate, patterns))


def _any_of(patterns: Iterable[str]) -> Pattern[str] | None:
    joined = "|".join(patterns)
    return compile(joined) if joined else None


def validate_selectors(text: str) -> None:
    """Validate the lines of a selector. A line may match no proxy, but it must be able to match one.

    Raise one ``ValidationError`` with the errors of all lines.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    faults = [(number, line, _fault(line)) for number, line in lines if line]
    errors = [
        ValidationError(
            _("Line %(number)s, “%(line)s”: %(fault)s"),
            code="invalid_selector",
            params={"number": number, "line": cut(line, 64), "fault": fault},
        )
        for number, line, fault in faults
        if fault
    ]
    if not any(line for _, line in lines):
        errors.append(
            ValidationError(_("Give at least one line. * matches all proxies."), code="no_selector")
        )
    if errors:
        raise ValidationError(errors)


def _fault(line: str) -> str:
    key, colon, value = (part.strip() for part in line.partition(":"))
    if "," in line or ";" in line:
        return gettext("write each pattern on a line of its own.")
    if not colon:
        if _NAME.fullmatch(line):
            return ""
        return gettext(
            "a name has letters, digits, - and _. In a pattern, * stands for any characters, ? for one."
        )
    if not key or not value:
        return gettext("a label is a key and a value, such as region:eu or region:*.")
    if _LABEL.fullmatch(key) and _LABEL.fullmatch(value):
        return ""
    return gettext("a label has letters, digits, and . _ - / in its key and its value.")
