from __future__ import annotations

import json
import random
from html import escape

import pytest

from proxyhealth.exceptions import BadReport
from proxyhealth.report import MAX_SIZE, HealthReport, clean
from proxyhealth.statuses import Reason


@pytest.mark.parametrize(
    ("body", "errors", "warnings"),
    [
        ("{}", [], []),
        ('{"errors": null, "warnings": null}', [], []),
        ('{"errors": [], "warnings": []}', [], []),
        ('{"errors": ["a"], "warnings": ["b", "c"]}', ["a"], ["b", "c"]),
        ('{"warnings": ["b"]}', [], ["b"]),
        ('{"ERRORS": ["a"], "Warnings": ["b"]}', ["a"], ["b"]),
        ('{"errors": ["a"], "errors": ["b"]}', ["a", "b"], []),
        ('{"errors": ["a"], "Errors": null}', ["a"], []),
        ('{"errors": ["a"], "Errors": []}', ["a"], []),
        ('{"unknown": {"errors": 1}, "a": [1, null, [{}]]}', [], []),
        ('{"unknown": 1e999, "b": -0.0}', [], []),
        ('{"unknown": ' + "9" * 5000 + "}", [], []),
        (' \r\n\t{"errors":["a"]}\n ', ["a"], []),
        ('\ufeff{"errors": ["a"]}', ["a"], []),
        ('{"errors": ["é ☃ 😀"]}', ["é ☃ 😀"], []),
        (r'{"errors": ["\u00e9 \ud83d\ude00"]}', ["é 😀"], []),
        (r'{"errors": ["a\ud800b\udc00c"]}', ["abc"], []),
        (r'{"errors": ["a\u0000b\u0007c\u001b[31md\u007f\u0085e"]}', ["abc[31md e"], []),
        (r'{"errors": ["a\nb\r\n\tc\u2028d"]}', ["a b c d"], []),
        (r'{"errors": ["a\u202eb\u2066c\u200fd"]}', ["abcd"], []),
        ('{"errors": ["<script>alert(1)</script>"]}', ["<script>alert(1)</script>"], []),
        ('{"errors": [""]}', ["(empty)"], []),
        (r'{"warnings": ["\u0000", "  "]}', [], ["(empty)", "(empty)"]),
    ],
)
def test_parse__reads_reports(body: str, errors: list[str], warnings: list[str]) -> None:
    assert HealthReport.parse(body.encode()) == HealthReport(tuple(errors), tuple(warnings))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty"),
        (b" \n", "the body is empty"),
        (b"\xef\xbb\xbf", "the body is empty"),
        (b"<html>", "the body is not JSON (Expecting value: line 1 column 1 (char 0))"),
        (b"nul", "the body is not JSON (Expecting value: line 1 column 1 (char 0))"),
        (b"{'errors': []}", None),
        (b'{"errors": [],}', None),
        (b'{"errors": []', None),
        (b"{} {}", "the body is not JSON (Extra data: line 1 column 4 (char 3))"),
        (b"{}\x00", "the body is not JSON (Extra data: line 1 column 3 (char 2))"),
        (b'{"errors": ["a\nb"]}', None),
        (b"NaN", "the body is not JSON (NaN is not JSON)"),
        (b"-Infinity", "the body is not JSON (-Infinity is not JSON)"),
        (b'{"a": Infinity}', "the body is not JSON (Infinity is not JSON)"),
        (b'{"errors": ["\xff"]}', "the body is not UTF-8"),
        (b'{"errors": ["\xed\xa0\x80"]}', "the body is not UTF-8"),
        ("{}".encode("utf-16"), "the body is not UTF-8"),
        ("{}".encode("utf-16-le"), None),
        ("{}".encode("utf-32-be"), None),
        ('{"errors": ["é"]}'.encode("latin-1"), "the body is not UTF-8"),
    ],
)
def test_parse__body_that_is_not_json(body: bytes, message: str | None) -> None:
    with pytest.raises(BadReport) as caught:
        HealthReport.parse(body)
    assert caught.value.reason is Reason.NOT_JSON
    if message is None:
        assert str(caught.value).startswith("the body is not JSON (")
    else:
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("null", "the JSON is not an object"),
        ("[]", "the JSON is not an object"),
        ('[["errors", ["a"]]]', "the JSON is not an object"),
        ('"x"', "the JSON is not an object"),
        ("true", "the JSON is not an object"),
        ("1", "the JSON is not an object"),
        ("9" * 5000, "the JSON is not an object"),
        ('{"errors": "a"}', '"errors" is not a list of strings'),
        ('{"errors": 0}', '"errors" is not a list of strings'),
        ('{"errors": false}', '"errors" is not a list of strings'),
        ('{"errors": {}}', '"errors" is not a list of strings'),
        ('{"errors": {"a": "b"}}', '"errors" is not a list of strings'),
        ('{"errors": [1]}', '"errors" is not a list of strings'),
        ('{"errors": [null]}', '"errors" is not a list of strings'),
        ('{"errors": ["a", ["b"]]}', '"errors" is not a list of strings'),
        ('{"errors": [{}]}', '"errors" is not a list of strings'),
        ('{"errors": ["a"], "Errors": 1}', '"errors" is not a list of strings'),
        ('{"warnings": "a"}', '"warnings" is not a list of strings'),
        ('{"WARNINGS": [1.5]}', '"warnings" is not a list of strings'),
        ("[" * 100_000 + "]" * 100_000, "the JSON is nested too deeply, or has too many parts"),
        ("[" * 100_000, "the JSON is nested too deeply, or has too many parts"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "the JSON is nested too deeply, or has too many parts"),
    ],
)
def test_parse__json_that_is_not_a_report(body: str, message: str) -> None:
    with pytest.raises(BadReport) as caught:
        HealthReport.parse(body.encode())
    assert (caught.value.reason, str(caught.value)) == (Reason.BAD_REPORT, message)


def test_parse__keeps_errors_beside_huge_numbers() -> None:
    body = '{"n": ' + "1" * 60_000 + ', "errors": ["a"]}'
    assert HealthReport.parse(body.encode()).errors == ("a",)


def test_parse__random_bytes_raise_only_bad_report() -> None:
    generator = random.Random(7)
    seed = b'{"errors": ["a\\u00e9"], "warnings": [null, 1.5e9, {"a": true}]}'
    for _ in range(3000):
        body = bytearray(seed)
        for _ in range(generator.randrange(1, 6)):
            body[generator.randrange(len(body))] = generator.randrange(256)
        try:
            report = HealthReport.parse(bytes(body[: generator.randrange(1, len(body) + 1)]))
        except BadReport:
            continue
        json.dumps([*report.errors, *report.warnings]).encode()


def test_sanitized__keeps_50_items_and_counts_the_rest() -> None:
    report = HealthReport.sanitized([str(i) for i in range(10_000)], ["w"] * 51)
    assert report.errors == (*(str(i) for i in range(49)), "… and 9,951 more")
    assert report.warnings == (*["w"] * 49, "… and 2 more")


def test_sanitized__keeps_exactly_50_items() -> None:
    items = tuple(str(i) for i in range(50))
    assert HealthReport.sanitized(items).errors == items


def test_sanitized__is_idempotent() -> None:
    once = HealthReport.sanitized(["a\nb", "x" * 5000, ""] * 30)
    assert HealthReport.sanitized(once.errors) == once


@pytest.mark.parametrize("errors", [0, 2, 64])
@pytest.mark.parametrize("character", ["'", '"', "\\", "<&", "é", "東", "😀", "\u202ex", "\x00", "x"])
def test_sanitized__keeps_4_kib(character: str, errors: int) -> None:
    """Measured where the texts take most: as JSON, with or without ASCII escapes, and as HTML."""
    for size, warnings in ((0, 64), (9, 64), (400, 0), (1001, 1), (30_000, 2)):
        report = HealthReport.sanitized([character * size] * errors, [character * size] * warnings)
        texts = (*report.errors, *report.warnings)
        as_json = (json.dumps(texts, ensure_ascii=ascii_only).encode() for ascii_only in (True, False))
        assert max(map(len, (*as_json, escape("".join(texts)).encode()))) <= MAX_SIZE
        assert (bool(report.errors), bool(report.warnings)) == (bool(errors), bool(warnings))
        assert HealthReport.sanitized(report.errors, report.warnings) == report
        assert HealthReport.stored(report.errors, report.warnings) == report


def test_sanitized__says_what_does_not_fit() -> None:
    report = HealthReport.sanitized(["the cause", *["'" * 1000] * 63], ["renew the certificate"])
    assert report.errors == ("the cause", "'" * 671 + "…", "… and 62 more")
    assert report.warnings == ("renew the certificate",)
    both = HealthReport.sanitized(["e" * 1000] * 5, ["w" * 1000] * 5)
    assert [len(text) for text in both.errors] == [1000, 1000, 12]
    assert [len(text) for text in both.warnings] == [1000, 1000, 12]
    assert HealthReport.sanitized(["😀" * 1000]).errors == ("😀" * 338 + "…",)
    assert HealthReport.sanitized(["x" * 1000] * 4).errors == ("x" * 1000,) * 4, "it fits"


def test_stored__bounds_the_report_of_another_version() -> None:
    report = HealthReport.stored(["'" * 1000] * 50, [])
    assert report == HealthReport.sanitized(["'" * 1000] * 50)
    assert len(report.errors) == 2


def test_sanitized__of_nothing_is_empty() -> None:
    assert HealthReport.sanitized() == HealthReport() == HealthReport((), ())


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain", "plain"),
        ("", ""),
        ("a\r\n\t\v\fb", "a b"),
        ("a\u2029b", "a b"),
        ("".join(map(chr, range(9))) + "x" + "".join(map(chr, range(14, 32))), "x"),
        ("".join(map(chr, range(0x7F, 0x85))) + "x" + "".join(map(chr, range(0x86, 0xA0))), "x"),
        ("\u202a\u202b\u202c\u202d\u202ex\u2066\u2067\u2068\u2069\u200e\u200f", "x"),
        ("\ud800x\udfff", "x"),
        ("😀 é", "😀 é"),
        ("x" * 1000, "x" * 1000),
        ("x" * 1001, "x" * 999 + "…"),
        ("x" * 1_000_000, "x" * 999 + "…"),
        ("\x00" * 1_000_000, "…"),
        ("ab" + "\x00" * 1_000_000, "ab…"),
    ],
)
def test_clean__returns_one_short_safe_line(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_clean__cuts_to_the_given_length() -> None:
    assert clean("x" * 10, 10) == "x" * 10
    assert clean("x" * 11, 10) == "x" * 9 + "…"
