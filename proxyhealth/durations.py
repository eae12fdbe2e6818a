"""Durations as people write them: ``5 min``, ``2 h``, ``1 h 30 min``."""

import re

_UNITS = {"d": 86_400, "h": 3_600, "min": 60, "s": 1}
_WORDS = {
    **dict.fromkeys(("d", "day", "days"), 86_400),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3_600),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
}
_PART = re.compile(r"\s*(\d{1,9}(?:[.,]\d{1,3})?)\s*([a-z]+)\.?", re.ASCII | re.IGNORECASE)


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
