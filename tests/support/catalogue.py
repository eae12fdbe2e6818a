"""The German catalogue. ``make messages`` runs this module, which brings the catalogue up to date.

It needs no program of GNU gettext: Django turns a template into a source that looks like a program, and Babel
extracts the texts.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from babel.messages import Catalog, Message
from babel.messages.extract import extract as extract_texts
from babel.messages.mofile import read_mo, write_mo
from babel.messages.pofile import read_po, write_po
from django.utils.translation.template import templatize

PACKAGE = Path(__file__).parents[2] / "proxyhealth"
PO = PACKAGE / "locale" / "de" / "LC_MESSAGES" / "django.po"
MO = PO.with_suffix(".mo")

# The functions of Django, with the places of their texts.
_FUNCTIONS: dict[str, tuple | None] = {
    **dict.fromkeys(("_", "gettext", "gettext_lazy", "gettext_noop"), None),
    **dict.fromkeys(("ngettext", "ngettext_lazy"), (1, 2)),
    **dict.fromkeys(("pgettext", "pgettext_lazy"), ((1, "c"), 2)),
}

# What a translation has to repeat: placeholders of both kinds, and the tags of HTML.
_FIXED = re.compile(r"%\(\w+\)[sd]|%%|\{[^{}]*\}|</?\w+[^>]*>")

# The same texts make the same file, whenever it is written.
_DATE = datetime(2026, 11, 27, tzinfo=UTC)
_HEADER: dict[str, Any] = {
    **dict.fromkeys(("version", "msgid_bugs_address", "last_translator", "language_team"), ""),
    "project": "proxyhealth",
    "charset": "utf-8",
    "creation_date": _DATE,
    "revision_date": _DATE,
}


def extract() -> Catalog:
    """Return all texts of the package that are marked as translatable."""
    found = Catalog()
    for path in sorted(PACKAGE.rglob("*.py")):
        if b"gettext" in (source := path.read_bytes()):  # most modules have no texts, and Babel is slow
            _add(found, "python", source)
    for path in sorted((PACKAGE / "templates").rglob("*.*")):
        _add(found, "javascript", templatize(path.read_text(), origin=str(path)).encode())
    return found


def _add(catalogue: Catalog, method: str, source: bytes) -> None:
    for _, text, _, context in extract_texts(method, io.BytesIO(source), _FUNCTIONS):
        catalogue.add(text, context=context)


def read(path: Path = PO) -> Catalog:
    with path.open("rb") as file:
        return read_mo(file) if path.suffix == ".mo" else read_po(file, locale="de")


def update() -> Catalog:
    """Add new texts to the catalogue, remove those that nothing uses, compile it, and return it."""
    found, old = extract(), read()
    new = Catalog(locale="de", header_comment="", fuzzy=False, **_HEADER)
    for message in found:
        if message.id:
            known = old.get(_key(message), message.context)
            new.add(message.id, known.string if known else "", context=message.context)
    with PO.open("wb") as file:
        write_po(file, new, width=0, no_location=True, sort_output=True, omit_header=False)
    with MO.open("wb") as file:
        write_mo(file, new)
    return new


def faults(catalogue: Catalog) -> Iterator[str]:
    """Yield what is missing or wrong in the translations."""
    for message in catalogue:
        if not message.id:
            continue
        name = _key(message)
        texts = message.id if message.pluralizable else (message.id,)
        strings = message.string if message.pluralizable else (message.string,)
        if message.fuzzy or len(strings) != len(texts) or not all(strings):
            yield f"not translated: {name!r}"
            continue
        for text, string in zip(texts, strings, strict=True):
            # A singular may have its number as a word.
            if _fixed(text) != _fixed(string):
                yield f"other placeholders or tags: {text!r} {string!r}"
            if _edges(text) != _edges(string):
                yield f"another beginning or end: {text!r} {string!r}"


def _key(message: Message) -> str:
    return message.id[0] if message.pluralizable else message.id


def _fixed(text: str) -> list[str]:
    return sorted(_FIXED.findall(text))


def _edges(text: str) -> tuple[bool, bool, str]:
    """Return whether spaces surround ``text``, and the punctuation at its end."""
    end = text[-1:] if text[-1:] in ".:…?!;" else ""
    return text[:1].isspace(), text[-1:].isspace(), end


def main() -> int:
    problems = list(faults(update()))
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    sys.stdout.write(f"{PO}: {len(problems)} to translate or to correct\n")
    return min(len(problems), 1)


if __name__ == "__main__":
    sys.exit(main())
