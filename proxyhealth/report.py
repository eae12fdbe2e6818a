"""The health report of a proxy: parsing it, and making its texts safe."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from proxyhealth.exceptions import BadReport
from proxyhealth.statuses import Reason

MAX_ITEMS = 50
MAX_ITEM_LENGTH = 1_000
MAX_PARTS = 4_096
MAX_BEGINNING_BYTES = 4 * 1024

_WHITE_SPACE = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+")
# C0 and C1 controls, bidirectional marks, and lone surrogates, which UTF-8 cannot encode.
_UNWANTED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The errors and warnings of a proxy: at most 50 each, of 1,000 characters, without controls."""

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def sanitized(cls, errors: Sequence[str] = (), warnings: Sequence[str] = ()) -> Self:
        """Return a report of untrusted texts, made safe to store and to show. Mark what is cut with …."""
        return cls(_clean_items(errors), _clean_items(warnings))

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
    texts: list[str] = []
    for name, value in pairs:
        if len(name) != len(key) or name.lower() != key or value is None:
            continue
        if type(value) is not list or set(map(type, value)) - {str}:
            raise BadReport(Reason.BAD_REPORT, f'"{key}" is not a list of strings')
        if texts:
            texts += value
        else:
            texts = value
    return texts


def _parse_json(text: str) -> Any:
    if not text.strip():
        raise BadReport(Reason.NOT_JSON, "the body is empty")
    parts = sum(map(text.count, ("[", "{", ",", '":')))
    if 3 * parts - 2 * text.count('",') > 3 * MAX_PARTS:  # a string in a list counts as a third
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


def _clean_items(items: Sequence[str]) -> tuple[str, ...]:
    if len(items) <= MAX_ITEMS:
        return tuple(_clean_item(item) for item in items)
    kept = MAX_ITEMS - 1
    return (*(_clean_item(item) for item in items[:kept]), f"… and {len(items) - kept:,} more")


def _clean_item(item: str) -> str:
    text = clean(item)
    return text if text.strip() else "(empty)"  # a blank line would explain nothing


def clean(text: str, length: int = MAX_ITEM_LENGTH) -> str:
    """Return ``text`` on one line without control characters, cut to ``length`` characters with a final …."""
    cut = text[: 8 * length]  # limits the work for a megabyte of controls
    result = without_controls(_WHITE_SPACE.sub(" ", cut))
    if len(result) > length or len(cut) < len(text):
        result = result[: length - 1] + "…"
    return result


def without_controls(text: str) -> str:
    """Return ``text`` without control characters, direction marks, and lone surrogates."""
    return text if text.isprintable() else _UNWANTED.sub("", text)
