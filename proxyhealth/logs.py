"""The values of the app's log messages as fields, for logs in JSON."""

import json
import logging
import re
from contextlib import suppress
from functools import lru_cache
from typing import Any

_PLACEHOLDER = re.compile(r"(?:\b(\w+)=)?%[-+ #0]*\d*(?:\.\d+)?[a-z]", re.IGNORECASE)


class AddFields(logging.Filter):
    """A filter that adds the attribute ``proxyhealth`` to the records of this app.

    It is a dictionary of the values that the message shows as ``key=value``. Formatters for JSON write it as
    an object. The values come from the arguments of the message, so no text in them can forge a field.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("proxyhealth.") and isinstance(record.args, tuple) and record.args:
            keys = _keys(str(record.msg))
            fields = {key: _plain(value) for key, value in zip(keys, record.args, strict=False) if key}
            if fields:
                record.proxyhealth = fields
        return True


@lru_cache(maxsize=256)
def _keys(message: str) -> list[str]:
    """Return the key before each placeholder of a message, or an empty string."""
    return _PLACEHOLDER.findall(message.replace("%%", ""))


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON can have it, without the quotes that keep a text in its place in the line."""
    if isinstance(value, bool | int | float):
        return value
    text = str(value)
    with suppress(ValueError):
        return json.loads(text) if text.startswith('"') else text
    return text
