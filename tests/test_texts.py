"""Invisible characters in texts from outside."""

from __future__ import annotations

import sys
from unicodedata import category

import pytest
from django.core.exceptions import ValidationError
from hypothesis import given
from hypothesis import strategies as st

from proxyhealth.texts import clean, without_controls
from proxyhealth.validators import validate_text

# Signs that are drawn around or over numbers and abbreviations. Unicode calls them format characters, too.
DRAWN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
# Letters and marks that are drawn as nothing.
INVISIBLE = {
    *(0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, 0xFFF0, 0xE0000, 0xE01EF, 0xE0FFF),
    *(0x180B, 0x180C, 0x180D, 0x180F, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)),
}
# The range of the controls of Egyptian hieroglyphs has marks, too.
INVISIBLE |= set(range(0x13430, 0x13440))


def test_without_controls__removes_only_invisible_characters():
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    visible = []
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        kind = category(character)
        if code in INVISIBLE or (kind in kinds and code not in DRAWN):
            assert without_controls(f"a{character}b") == "ab", f"{code:04X}"
        elif kind not in ("Cn", "Co"):
            visible.append(character)
    text = "".join(visible)
    assert without_controls(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم",  # Persian
        "क\u094d\u200dष",  # Hindi
        "👩🏽\u200d💻 🏳\ufe0f\u200d🌈 ❤\ufe0f ⚠\ufe0f ©\ufe0f",
        "ᠠ\u180b",  # Mongolian
        "שלום, سلام, Grüße, 東京, 서울",
    ],
)
def test_without_controls__keeps_what_scripts_need(text):
    assert without_controls(text) == clean(text, 100) == text
    validate_text(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("pay\u200dpal\u200c.com\ufe0f", "paypal.com"),
        ("\u200dab\ufe0f", "ab"),
        ("می\u200c\u200c\u200dخ\u200c", "میخ"),
        ("❤\ufe0f\ufe0f\ufe0e\u200d", "❤\ufe0f"),
        ("❤\ufe0f\u200d x", "❤\ufe0f x"),
        ("🏴\U000e0067\U000e0062\U000e007f", "🏴"),
        ("1\ufe0f\u20e3", "1\u20e3"),
    ],
)
def test_without_controls__misplaced_joiners(text, shown):
    assert without_controls(text) == without_controls(shown) == shown


def test_clean__lines_and_blanks_become_spaces():
    assert clean("a\r\nb\u2028c\u2029d\x85e\u2800\u2800f", 100) == "a b c d e f"
    assert clean("श\u200dश" * 4, 3) == "श…", "a joiner before the cut would join nothing"


@given(st.text(alphabet=st.sampled_from("aش❤\u200c\u200d\ufe0f\u180b\u3164\u202e\u2028 \ud800"), max_size=12))
def test_clean__is_idempotent_with_joiners(text):
    once = clean(text, 8)
    assert clean(once, 8) == once
    once.encode()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Par\u202eis", "(U+202E) at position 4."),
        ("\u3164", "(U+3164) at position 1."),
        ("Paris\u200b", "(U+200B) at position 6."),
        ("Pa\u200dris", "(U+200D) at position 3."),
        ("a\nb", "(U+000A) at position 2."),
        ("ab\U000e0041", "(U+E0041) at position 3."),
    ],
)
def test_validate_text__names_the_character_and_its_place(text, why):
    with pytest.raises(ValidationError) as caught:
        validate_text(text)
    assert why in caught.value.messages[0]
