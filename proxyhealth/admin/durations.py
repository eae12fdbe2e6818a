"""Durations as people write them: ``5 min``, ``2 h``, ``1 h 30 min``."""

import re
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

_UNITS = {"d": 86_400, "h": 3_600, "min": 60, "s": 1}
_WORDS = {
    **dict.fromkeys(("d", "day", "days"), 86_400),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3_600),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
}
_PART = re.compile(r"\s*(\d{1,9}(?:[.,]\d{1,3})?)\s*([a-z]+)\.?", re.ASCII | re.IGNORECASE)

WEEK = 7 * 86_400


def parse_duration(text: str) -> int:
    """Return the seconds of a duration. Raise ``ValueError`` if it cannot be read."""
    text = text.strip()
    if text == "0":
        return 0
    seconds, end = 0.0, 0
    while end < len(text):
        part = _PART.match(text, end)
        if part is None or part[2].lower() not in _WORDS:
            raise ValueError(text)
        seconds += float(part[1].replace(",", ".")) * _WORDS[part[2].lower()]
        end = part.end()
    return round(seconds)


def duration_text(seconds: int) -> str:
    """Return a duration such as ``1 h 30 min``, or "" for 0."""
    parts = []
    for unit, length in _UNITS.items():
        count, seconds = divmod(seconds, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts)


class HumanDurationField(forms.CharField):
    """A number of seconds that people read and write as a duration. Empty is 0."""

    def __init__(self, *, lowest: int = 0, highest: int = WEEK, **options: Any) -> None:
        super().__init__(required=False, max_length=64, **options)
        self._lowest = lowest
        self._highest = highest

    def prepare_value(self, value: Any) -> Any:
        return duration_text(value) if isinstance(value, int) else value

    def clean(self, value: Any) -> Any:
        text = super().clean(value)
        try:
            seconds = parse_duration(text)
        except ValueError:
            raise ValidationError(
                "Enter a number with a unit (s, min, h, or d), for example 5 min.", code="invalid_duration"
            ) from None
        if 0 < seconds < self._lowest:
            text = duration_text(self._lowest)
            raise ValidationError(f"The shortest duration is {text}.", code="too_short")
        if seconds > self._highest:
            text = duration_text(self._highest)
            raise ValidationError(f"The longest duration is {text}.", code="too_long")
        return seconds

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return bool(parse_duration(data or "") != (initial or 0))
        except ValueError:
            return True
