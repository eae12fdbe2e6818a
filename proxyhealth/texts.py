"""The removal of passwords and of invisible or misleading characters from texts."""

import re

# For classes of regular expressions. First the controls of lines, terminals, and directions, and halves of
# surrogate pairs, which UTF-8 cannot encode. Then what fonts draw as nothing (Default_Ignorable_Code_Point).
INVISIBLE = (
    r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff"
    r"\xad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b\u2060-\u2065\u3164\ufeff\uffa0\ufff0-\ufffb"
    r"\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Persian, many scripts of India, and emoji need these, but never after Latin letters, at an end, or twice.
SELECTORS = r"\u180b-\u180d\u180f\ufe00-\ufe0f"
_JOINERS = "\u200c\u200d"

_NOT_LATIN = (
    rf"(?![{SELECTORS}])"
    r"[\xa9\xae\u0600-\u1fff\u203c\u2049\u20d0-\ud7ff\uf900-\ufdff\ufe20-\uffef\U00010000-\U000dffff]"
)

MAX_LABELS = 32  # of a proxy
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}", re.ASCII)

_INVISIBLE = re.compile(f"[{INVISIBLE}]")
_ASCII_CONTROLS = dict.fromkeys([*range(32), 127])
_SUSPICIOUS = re.compile(f"[{INVISIBLE}{SELECTORS}{_JOINERS}\u2800]")
_PLACED_OR_MISPLACED = re.compile(
    rf"({_NOT_LATIN}[{SELECTORS}]?(?:[{_JOINERS}](?={_NOT_LATIN}))?)|[{SELECTORS}{_JOINERS}]"
)
_WHITE_SPACE = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029\u2800]+")

# What precedes the last @ of a URL, whatever characters its password has, but not that of the next URL.
_USER = re.compile(r"(?<=://)(?:(?!://)\S)*@")
_PASSWORD = re.compile(
    r"""((?:password|passwd|pwd|secret)["']?\s*[=:]\s*)("[^"]*"|'[^']*'|[^\s,;&)}\]>'"]+)""", re.IGNORECASE
)
# The errors for a URL with a password that contains a slash or another special character repeat a part of it.
_PART = re.compile(
    r"(Port could not be cast to integer value as|Database is int between 0 and limit - 1, not) .*"
)


def is_plain(text: str) -> bool:
    """Return True if ``text`` is printable ASCII, as almost all texts are."""
    return text.isascii() and text.isprintable()


def is_label(text: object) -> bool:
    """Return True if ``text`` may be the key or the value of a label."""
    return isinstance(text, str) and _LABEL.fullmatch(text) is not None


def is_suspicious(text: str) -> bool:
    """Return True if ``text`` may contain invisible characters."""
    return not is_plain(text) and _SUSPICIOUS.search(text) is not None


def without_controls(text: str) -> str:
    """Return ``text`` without control characters, direction marks, and other invisible characters."""
    if not is_suspicious(text):
        return text
    if text.isascii():
        return text.translate(_ASCII_CONTROLS)  # faster
    # A function takes half the time of a template.
    return _PLACED_OR_MISPLACED.sub(lambda match: match[1] or "", _INVISIBLE.sub("", text))


def clean(text: str, length: int) -> str:
    """Return ``text`` on one line without invisible characters, cut to ``length`` with a final …."""
    head = text[: length * 5 // 4]  # limits the work for a megabyte of controls
    result = without_controls(_WHITE_SPACE.sub(" ", head)) if is_suspicious(head) else head
    if len(head) < len(text):
        result = result[: length - 1].rstrip(_JOINERS) + "…"
    return cut(result, length)


def cut(text: str, length: int) -> str:
    """Return ``text``, cut to ``length`` characters with a final … if it is longer."""
    return text if len(text) <= length else text[: length - 1].rstrip(_JOINERS) + "…"


def without_passwords(message: object) -> str:
    """Return the text of an error or a URL, with ``***`` for the users and passwords in it."""
    text = _PART.sub(r"\1 ***. Percent-encode its special characters", str(message))
    return _PASSWORD.sub(r"\1***", _USER.sub("***@", text))
