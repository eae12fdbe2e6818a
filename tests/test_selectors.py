"""Selectors: the lines by which channels and silences choose proxies, and their errors."""

from __future__ import annotations

import pytest
from django.core.exceptions import ValidationError

from proxyhealth.models import Channel, Silence
from proxyhealth.selectors import Selector, validate_selectors


def matches(text: str, name: str, **labels: str) -> bool:
    return Selector.parse(text).matches(name, labels)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("", "paris", True),
        ("*", "paris", True),
        ("paris", "paris", True),
        ("PARIS", "paris", True),
        ("paris", "paris-2", False),
        ("eu-*", "eu-west", True),
        ("eu-*", "neu-1", False),
        ("eu-?", "eu-12", False),
        ("eu-[12]", "eu-2", True),
        ("oslo\n  paris  \n", "paris", True),
        ("region:*", "paris", False),
    ],
)
def test_names__match_without_regard_to_case(text, name, expected):
    assert matches(text, name) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("region:eu", True),
        ("Region:EU", True),
        ("region : eu", True),
        ("region:us", False),
        ("region:e*", True),
        ("*:eu", True),
        ("zone:*", False),
        ("zone:*\nregion:eu", True),
        ("eu", False),
    ],
)
def test_labels__match_key_and_value(text, expected):
    assert matches(text, "paris", region="eu", tier="gold") is expected


@pytest.mark.parametrize(
    "text", ["paris", "eu-*\nregion:eu", "x_1-[!a]?", "\n region : eu-*/a.b \n", "nothing"]
)
def test_validate__valid_lines(text):
    validate_selectors(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paris\neu west", "Line 2, “eu west”: a name has letters"),
        ("paris, oslo", "Line 1, “paris, oslo”: write each pattern on a line of its own."),
        ("région", "a name has letters"),
        ("eu.west", "a name has letters"),
        (":eu", "a label is a key and a value"),
        ("region:", "a label is a key and a value"),
        ("region:e u", "a label has letters"),
        ("a:b:c", "a label has letters"),
        ("pa\u200bris", "a name has letters"),
        (" \n", "Give at least one line. * matches all proxies."),
    ],
)
def test_validate__invalid_lines(text, message):
    with pytest.raises(ValidationError) as caught:
        validate_selectors(text)
    (shown,) = caught.value.messages
    assert message in shown


def test_validate__names_each_bad_line():
    with pytest.raises(ValidationError) as caught:
        validate_selectors("a b\nparis\nc d")
    assert [message.split(",")[0] for message in caught.value.messages] == ["Line 1", "Line 3"]


@pytest.mark.parametrize("model", [Channel, Silence])
def test_validate__channels_and_silences(model):
    others = [field.name for field in model._meta.fields if field.name != "proxies"]
    with pytest.raises(ValidationError, match="Line 1, “eu west”"):
        model(proxies="eu west").clean_fields(exclude=others)
    model(proxies="eu-*\nregion:eu").clean_fields(exclude=others)
