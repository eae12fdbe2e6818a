"""Types of arguments: their errors say what is wrong, and what to write."""

from argparse import ArgumentTypeError
from collections.abc import Callable

from django.utils.translation import gettext as _

from proxyhealth.durations import parse_duration
from proxyhealth.texts import is_label
from proxyhealth.validators import short

# Of a row in the database.
MAX_ID = 2**63 - 1


def label(text: str) -> str:
    key, _colon, value = text.partition(":")
    if not (is_label(key) and is_label(value)):
        message = _("a label is a key and a value, such as region:eu, not %(value)s")
        raise ArgumentTypeError(message % {"value": short(text)})
    return text


def seconds(lowest: float, highest: float) -> Callable[[str], float]:
    """Return the type of a number of seconds, which may also be a duration, such as ``2 min``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = duration(text)
        if not lowest <= value <= highest:
            message = _("it must be from %(lowest)g to %(highest)g seconds")
            raise ArgumentTypeError(message % {"lowest": lowest, "highest": highest})
        return value

    return parse


def duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError:
        message = _("write a number and a unit (s, min, h or d), such as 2h or 90min, not %(value)s")
        raise ArgumentTypeError(message % {"value": short(text)}) from None


def count(lowest: int, highest: int) -> Callable[[str], int]:
    """Return the type of a whole number."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20 and lowest <= int(text) <= highest):
            message = _("it must be a number from %(lowest)d to %(highest)d, not %(value)s")
            raise ArgumentTypeError(message % {"lowest": lowest, "highest": highest, "value": short(text)})
        return int(text)

    return parse
