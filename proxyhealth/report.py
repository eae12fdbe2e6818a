"""What is known of proxies, as frozen values. Pure Python: no Django, no I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from proxyhealth.exceptions import BadReport
from proxyhealth.statuses import Reason

MAX_ITEMS = 50
MAX_ITEM_LENGTH = 1_000
MAX_BRACKETS = 4_096

_WHITE_SPACE = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+")
# C0 and C1 controls, the marks that turn text around, and lone surrogates, which UTF-8 cannot carry.
_UNWANTED = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What a proxy says of itself: at most 50 items a list, 1,000 characters an item, no controls."""

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def sanitized(cls, errors: Sequence[str] = (), warnings: Sequence[str] = ()) -> Self:
        """A report of texts from anywhere, made safe to keep and to show; what is cut is marked."""
        return cls(_clean_items(errors), _clean_items(warnings))

    @classmethod
    def parse(cls, body: bytes, warnings: Sequence[str] = ()) -> Self:
        """The report in the body of a response, behind ``warnings`` of ours.

        Raises :class:`BadReport` if there is none.
        """
        beginning = body.strip()[:60].decode(errors="replace")
        try:
            text = body.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BadReport(Reason.NOT_JSON, "the body is not UTF-8", beginning) from None
        del body  # while the text is taken apart, there is no room for it
        if not text.strip():
            raise BadReport(Reason.NOT_JSON, "the body is empty")
        if text.count("[") + text.count("{") > MAX_BRACKETS:
            # Depth, and empty lists, cost much more memory than they take room.
            raise BadReport(Reason.BAD_REPORT, "the JSON is nested too deeply, or has too many parts")
        try:
            # Numbers have no place in a report; converting one of a million digits would only cost.
            document = json.loads(
                text,
                object_pairs_hook=_Object,
                parse_int=_ignore,
                parse_float=_ignore,
                parse_constant=_refuse_constant,
            )
        except RecursionError:
            raise BadReport(
                Reason.BAD_REPORT, "the JSON is nested too deeply, or has too many parts"
            ) from None
        except ValueError as error:
            raise BadReport(Reason.NOT_JSON, f"the body is not JSON ({error})", beginning) from None
        if not isinstance(document, _Object):
            raise BadReport(Reason.BAD_REPORT, "the JSON is not an object")
        own = document.texts("warnings")
        return cls.sanitized(document.texts("errors"), [*warnings, *own] if warnings else own)


EMPTY_REPORT = HealthReport()


class _Object(list[tuple[str, Any]]):
    """A JSON object as its pairs, so that no repeated key is lost."""

    __slots__ = ()

    def texts(self, key: str) -> list[str]:
        found: list[str] = []
        for name, value in self:
            if name.lower() != key or value is None:
                continue
            if (
                isinstance(value, _Object)
                or not isinstance(value, list)
                or not all(isinstance(item, str) for item in value)
            ):
                raise BadReport(Reason.BAD_REPORT, f'"{key}" is not a list of strings')
            # Two lists under one key are both heard: no error may hide behind a second key.
            found = [*found, *value] if found else value
        return found


def _ignore(digits: str) -> float:
    return 0.0


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _clean_items(items: Sequence[str]) -> tuple[str, ...]:
    if len(items) <= MAX_ITEMS:
        return tuple(_clean_item(item) for item in items)
    kept = MAX_ITEMS - 1
    return (*(_clean_item(item) for item in items[:kept]), f"… and {len(items) - kept:,} more")


def _clean_item(item: str) -> str:
    text = clean(item)
    return "(empty)" if text.isspace() or not text else text  # a blank line explains nothing


def clean(text: str, length: int = MAX_ITEM_LENGTH) -> str:
    """``text`` on one line, without control characters, ``length`` characters at most; a cut ends in …."""
    cut = text[: 8 * length]  # a megabyte of controls is not worth a look
    result = _UNWANTED.sub("", _WHITE_SPACE.sub(" ", cut))
    if len(result) > length or len(cut) < len(text):
        result = result[: length - 1] + "…"
    return result
