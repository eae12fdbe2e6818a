from __future__ import annotations

import json

import pytest

from tests.probing.asking import (
    BAD,
    BAD_REPORT,
    ERRORS,
    HINT,
    NOT_JSON,
    TOO_LARGE,
    ask,
    not_json,
    verdict,
)
from tests.support.servers import (
    Server,
    report,
    response,
    send,
)

# Bodies that are not a report.


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "the body is empty"),
        (b" \r\n", "the body is empty"),
        (b"<!doctype html>", "the body is not JSON (Expecting value: line 1 column 1 (char 0))"),
        (b"OK", "the body is not JSON (Expecting value: line 1 column 1 (char 0))"),
        (b"NaN", "the body is not JSON (NaN is not JSON)"),
        (b"{}{}", "the body is not JSON (Extra data: line 1 column 3 (char 2))"),
        (b'{"errors": ["\xff\xfe"]}', "the body is not UTF-8"),
        (b'{"errors": ["\xed\xa0\x80"]}', "the body is not UTF-8"),
        ("{}".encode("utf-16"), "the body is not UTF-8"),
        (b"{\x00}\x00", None),
        (b'{"errors": ["\x00"]}', None),
    ],
)
def test_probe__body_is_not_json(body: bytes, what: str | None) -> None:
    with Server(send(response(body, content_type="text/html; charset=utf-8"))) as server:
        result = ask(server)
    assert verdict(result) == NOT_JSON
    (message,) = result.report.errors
    if what is not None:
        assert message == not_json(what, "text/html; charset=utf-8", body)
    else:
        assert message.startswith(f"{BAD}the body is not JSON (")
        assert message.endswith(f"; its content type is text/html; charset=utf-8. {HINT}")


def test_probe__body_is_not_json_without_a_content_type() -> None:
    with Server(send(b"HTTP/1.1 200 OK\r\n\r\nhello")) as server:
        (message,) = ask(server).report.errors
    what = "the body is not JSON (Expecting value: line 1 column 1 (char 0))"
    assert message == not_json(what, "none", b"hello")


def test_probe__shows_only_the_beginning_of_a_page() -> None:
    with Server(send(response(b"\n <h1>" + b"x" * 10_000, content_type="text/html"))) as server:
        (message,) = ask(server).report.errors
    assert f"; the body says “{'x' * 299}…”; its content type is text/html" in message


def test_probe__long_content_type_keeps_the_hint() -> None:
    with Server(send(response("hello", content_type="x\x1b" * 5000))) as server:
        (message,) = ask(server).report.errors
    assert message.endswith(HINT)
    assert "\x1b" not in message


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("null", "the JSON is not an object"),
        ("[]", "the JSON is not an object"),
        ('"x"', "the JSON is not an object"),
        ("0", "the JSON is not an object"),
        ("9" * 5000, "the JSON is not an object"),
        ('{"errors": "down"}', '"errors" is not a list of strings'),
        ('{"errors": {"a": "b"}}', '"errors" is not a list of strings'),
        ('{"errors": [1]}', '"errors" is not a list of strings'),
        ('{"errors": [null]}', '"errors" is not a list of strings'),
        ('{"Errors": false}', '"errors" is not a list of strings'),
        ('{"warnings": [[]]}', '"warnings" is not a list of strings'),
        ("[" * 30_000 + "]" * 30_000, "the JSON is nested too deeply, or has too many parts"),
        ("[" * 60_000, "the JSON is nested too deeply, or has too many parts"),
        ('{"errors":' * 6000 + "[]" + "}" * 5000, "the JSON is nested too deeply, or has too many parts"),
    ],
)
def test_probe__json_that_is_not_a_report(body: str, what: str) -> None:
    with Server(send(response(body))) as server:
        result = ask(server)
    assert verdict(result) == BAD_REPORT
    assert result.report.errors[0].startswith(f"{BAD}{what}; the body says “")


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ('{"errors": ["a", "b"], "warnings": []}', ("a", "b")),
        ('{"ERRORS": ["a"]}', ("a",)),
        ('{"errors": ["a"], "errors": []}', ("a",)),
        ('{"errors": [], "Errors": ["a"]}', ("a",)),
        ('{"errors": [""]}', ("(empty)",)),
        (r'{"errors": ["\ud800"]}', ("(empty)",)),
        (r'{"errors": ["a\u0000\u001b[2Jb\nc"]}', ("a[2Jb c",)),
        ('{"errors": ["<script>alert(1)</script>"]}', ("<script>alert(1)</script>",)),
        ('{"errors": ["' + "x" * 50_000 + '"]}', ("x" * 999 + "…",)),
        (json.dumps({"errors": ["e"] * 10_000}), (*["e"] * 49, "… and 9,951 more")),
    ],
)
def test_probe__report_with_errors(body: str, errors: tuple[str, ...]) -> None:
    with Server(send(response(body))) as server:
        result = ask(server)
    assert (*verdict(result), result.report.errors) == (*ERRORS, errors)


def test_probe__one_megabyte_error_is_too_large() -> None:
    with Server(send(report(["x" * 1_000_000]))) as server:
        assert verdict(ask(server)) == TOO_LARGE


def test_probe__hundred_thousand_brackets_are_too_large() -> None:
    with Server(send(response("[" * 100_000))) as server:
        assert verdict(ask(server)) == TOO_LARGE
