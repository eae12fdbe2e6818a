"""The health report of a proxy: parsing it, and making its texts safe and small."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Self

from proxyhealth import texts
from proxyhealth.exceptions import BadReport
from proxyhealth.statuses import Reason

MAX_ITEMS = 50
MAX_ITEM_LENGTH = 1_000
MAX_PARTS = 2_048
MAX_BEGINNING_BYTES = 4 * 1024

# Bytes of a report, escaped for JSON and HTML, where a character takes up to twelve.
MAX_SIZE = 4 * 1024
_SMALL = (MAX_SIZE - 2 * MAX_ITEMS * len('"", ')) // 12  # characters that need no count of their bytes
_WORTH_KEEPING = 20  # characters of a cut text


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The errors and warnings of a proxy: at most 50 each, of 1,000 characters, and 4 KiB in all."""

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def sanitized(cls, errors: Sequence[str] = (), warnings: Sequence[str] = ()) -> Self:
        """Return a report of untrusted texts, made safe to store and to show. Mark what is cut with …."""
        shown = _clean_items(errors, MAX_SIZE)
        # As below: half of the size, or what the errors leave.
        noted = _clean_items(warnings, max(MAX_SIZE // 2, MAX_SIZE - sum(map(len, shown))))
        if sum(map(len, (*shown, *noted))) > _SMALL:
            # Each list has half of the size, and what the other one leaves.
            errors_size, warnings_size = _size(shown), _size(noted)
            half = MAX_SIZE // 2
            shown = _fit(shown, len(errors), max(half, MAX_SIZE - warnings_size))
            noted = _fit(noted, len(warnings), max(half, MAX_SIZE - errors_size))
        return cls(shown, noted)

    @classmethod
    def stored(cls, errors: Sequence[str], warnings: Sequence[str]) -> Self:
        """Return a report that was sanitized before it was stored, perhaps by a version without a limit."""
        small = sum(map(len, (*errors, *warnings))) <= _SMALL
        return cls(tuple(errors), tuple(warnings)) if small else cls.sanitized(errors, warnings)

    @classmethod
    def parse(cls, body: bytes, warnings: Sequence[str] = ()) -> Self:
        """Return the report in ``body``, with our own ``warnings`` first. Raise :class:`BadReport`."""
        beginning = body[:MAX_BEGINNING_BYTES]
        try:
            text = body.decode("utf-8-sig")
            del body  # parsing the text needs the memory
            document = _parse_json(text)
            if not isinstance(document, tuple):
                raise BadReport(Reason.BAD_REPORT, "the JSON is not an object")
            reported = _texts_of(document, "warnings")
            errors = _texts_of(document, "errors")
            return cls.sanitized(errors, [*warnings, *reported] if warnings else reported)
        except UnicodeDecodeError:
            raise BadReport(Reason.NOT_JSON, "the body is not UTF-8", beginning) from None
        except BadReport as bad:
            bad.beginning = beginning
            raise


EMPTY_REPORT = HealthReport()

_TOO_COMPLEX = "the JSON is nested too deeply, or has too many parts"


def _texts_of(pairs: tuple[tuple[str, Any], ...], key: str) -> list[str]:
    """Return the strings of all lists under ``key``, in any case, so that no second key hides errors."""
    found: list[str] = []
    for name, value in pairs:
        if len(name) != len(key) or name.lower() != key or value is None:
            continue
        if type(value) is not list or set(map(type, value)) - {str}:
            raise BadReport(Reason.BAD_REPORT, f'"{key}" is not a list of strings')
        if found:
            found += value
        else:
            found = value
    return found


def _parse_json(text: str) -> Any:
    if not text.strip():
        raise BadReport(Reason.NOT_JSON, "the body is empty")
    parts = sum(map(text.count, ("[", "{", ",", '":')))
    if 5 * parts - 4 * text.count('",') > 5 * MAX_PARTS:  # a string in a list counts as a fifth
        # Many small parts need much more time and memory than their text.
        raise BadReport(Reason.BAD_REPORT, _TOO_COMPLEX)
    try:
        # Tuples of pairs lose no repeated key. Not int(), which takes quadratic time.
        return json.loads(text, object_pairs_hook=tuple, parse_int=float, parse_constant=_refuse_constant)
    except RecursionError:
        raise BadReport(Reason.BAD_REPORT, _TOO_COMPLEX) from None
    except ValueError as error:
        raise BadReport(Reason.NOT_JSON, f"the body is not JSON ({error})") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _clean_items(items: Sequence[str], size: int) -> tuple[str, ...]:
    """Return the first ``items``, made safe, that can fill ``size``, and the number of the others."""
    cleaned: list[str] = []
    length = 0
    for item in items if len(items) <= MAX_ITEMS else items[: MAX_ITEMS - 1]:
        if length > size:
            break  # it is full, unless many of the characters are invisible
        length += len(item[: MAX_ITEM_LENGTH * 5 // 4].encode(errors="surrogatepass"))
        cleaned.append(_clean_item(item))
    left = len(items) - len(cleaned)
    return (*cleaned, _rest(left)) if left else tuple(cleaned)


def _clean_item(item: str) -> str:
    text = clean(item)
    return text if text.strip() else "(empty)"  # a blank line would explain nothing


def clean(text: str, length: int = MAX_ITEM_LENGTH) -> str:
    """Return ``text`` on one line without invisible characters, cut to ``length`` with a final …."""
    return texts.clean(text, length)


def _rest(count: int) -> str:
    return f"… and {count:,} more"


def _size(items: Sequence[str]) -> int:
    """Return the bytes of ``items`` where they take most, escaped for HTML and for JSON in ASCII.

    If that is above ``MAX_SIZE``, return only a number above it.
    """
    size = 0
    for item in items:
        size += len(json.dumps(escape(item))) + 2
        if size > MAX_SIZE:
            break
    return size


def _fit(items: tuple[str, ...], count: int, size: int) -> tuple[str, ...]:
    """Return the first ``items`` that fit into ``size``, with the number of the others, of ``count``."""
    if _size(items) <= size:
        return items
    room = size - _size([_rest(count)])
    kept: list[str] = []
    for item in items:
        before, room = room, room - _size([item])
        if room < 0:
            sizes = range(len(item))
            length = bisect_right(sizes, before, key=lambda end: _size([texts.cut(item, end)])) - 1
            if not kept or length >= _WORTH_KEEPING:
                kept.append(texts.cut(item, length))
            break
        kept.append(item)
    return (*kept, _rest(count - len(kept))) if len(kept) < count else tuple(kept)
