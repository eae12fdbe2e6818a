from __future__ import annotations

import copy
import json
import operator
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import permutations
from typing import Any
from uuid import UUID

import pytest

from proxyhealth.exceptions import BadReport
from proxyhealth.report import HealthReport, clean
from proxyhealth.snapshot import Proxy, ProxyStatus, RoundHistogram, Snapshot
from proxyhealth.statuses import Reason, Status
from proxyhealth.utils import FrozenList, rfc3339

MOMENT = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)


def make_proxy(number: int = 1, **values: Any) -> Proxy:
    defaults: dict[str, Any] = {
        "id": UUID(int=number),
        "name": f"proxy-{number}",
        "display_name": f"Proxy {number}",
        "icon": "/icon.svg",
        "url": f"http://proxy-{number}.example",
        "wildcard_hostname": "*.example",
        "version": "1.2.3",
        "deleted": False,
        "created_at": MOMENT,
        "updated_at": MOMENT + timedelta(seconds=1),
    }
    return Proxy(**{**defaults, **values})


def make_status(number: int = 1, status: Status = Status.OK, **values: Any) -> ProxyStatus:
    defaults: dict[str, Any] = {
        "proxy_host": f"proxy-{number}.example",
        "checked_at": MOMENT,
        "latency": 0.25,
    }
    return ProxyStatus(make_proxy(number), status=status, **{**defaults, **values})


# HealthReport.parse


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
def test_parse__says_that_it_is_not_json(body: bytes, message: str | None) -> None:
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
def test_parse__says_that_it_is_no_report(body: str, message: str) -> None:
    with pytest.raises(BadReport) as caught:
        HealthReport.parse(body.encode())
    assert (caught.value.reason, str(caught.value)) == (Reason.BAD_REPORT, message)


def test_parse__keeps_the_errors_even_beside_huge_numbers() -> None:
    body = '{"n": ' + "1" * 60_000 + ', "errors": ["a"]}'
    assert HealthReport.parse(body.encode()).errors == ("a",)


def test_parse__raises_nothing_but_bad_report_on_random_bytes() -> None:
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


# HealthReport.of and clean


def test_of__keeps_50_items_and_says_how_many_there_were() -> None:
    report = HealthReport.sanitized([str(i) for i in range(10_000)], ["w"] * 51)
    assert report.errors == (*(str(i) for i in range(49)), "… and 9,951 more")
    assert report.warnings == (*["w"] * 49, "… and 2 more")


def test_of__keeps_exactly_50_items_whole() -> None:
    items = tuple(str(i) for i in range(50))
    assert HealthReport.sanitized(items).errors == items


def test_of__is_the_same_again() -> None:
    once = HealthReport.sanitized(["a\nb", "x" * 5000, ""] * 30)
    assert HealthReport.sanitized(once.errors) == once


def test_of__of_nothing_is_empty() -> None:
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
def test_clean__leaves_one_short_harmless_line(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_clean__cuts_to_the_length_asked_for() -> None:
    assert clean("x" * 10, 10) == "x" * 10
    assert clean("x" * 11, 10) == "x" * 9 + "…"


# Status


def test_status__has_its_number_in_metrics() -> None:
    numbers = {"unknown": -3, "unreachable": -2, "unhealthy": -1, "unregistered": 0, "ok": 1}
    assert {status.value: status.number for status in Status} == numbers


def test_proxy_status__is_healthy_only_if_ok() -> None:
    assert [status for status in Status if make_status(status=status).healthy] == [Status.OK]


# JSON and back


def from_json(proxy: Proxy, checked_at: datetime | None, status: ProxyStatus) -> ProxyStatus:
    return ProxyStatus.from_judgement(proxy, checked_at, json.loads(json.dumps(status.judgement())))


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("reason", Reason)
def test_proxy_status__survives_json(status: Status, reason: Reason) -> None:
    before = make_status(
        status=status, reason=reason, report=HealthReport(("é", "<b>"), ("w",)), tls_expires_at=MOMENT
    )
    assert from_json(before.proxy, before.checked_at, before) == before


def test_proxy_status__survives_json_without_check_and_latency() -> None:
    before = make_status(status=Status.UNKNOWN, checked_at=None, latency=None, proxy_host="")
    assert before.judgement() == {"status": "unknown"}
    assert from_json(before.proxy, None, before) == before


def test_proxy_status__as_json_is_plain() -> None:
    assert json.loads(json.dumps(make_status(report=HealthReport(("e",))).judgement())) == {
        "proxy_host": "proxy-1.example",
        "status": "ok",
        "errors": ["e"],
        "latency": 0.25,
    }


@pytest.mark.parametrize("data", [{"status": "fine"}, {"status": "ok", "reason": "why not"}])
def test_proxy_status__of_words_that_are_not_ours_is_a_value_error(data: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is not a valid"):
        ProxyStatus.from_judgement(make_proxy(), MOMENT, data)


def test_proxy_status__reads_what_it_wrote_with_one_empty_report_for_all() -> None:
    one, other = make_status(1), make_status(2)
    assert from_json(one.proxy, MOMENT, one).report is from_json(other.proxy, MOMENT, other).report


def test_proxy_status__judgement_is_what_the_probe_found_and_small() -> None:
    status = make_status(report=HealthReport(("e",), ("w",)), reason=Reason.REPORT_ERRORS)
    data = json.loads(json.dumps(status.judgement()))
    assert data.keys() == {"proxy_host", "status", "reason", "errors", "warnings", "latency"}
    assert ProxyStatus.from_judgement(status.proxy, status.checked_at, data) == status
    assert len(json.dumps(make_status().judgement())) < 100


def test_proxy_status__judgement_keeps_a_latency_of_nothing() -> None:
    status = make_status(latency=0.0)
    assert ProxyStatus.from_judgement(status.proxy, status.checked_at, status.judgement()) == status


def test_proxy__as_json_is_plain() -> None:
    assert json.loads(json.dumps(make_proxy().to_json())) == {
        "id": "00000000-0000-0000-0000-000000000001",
        "name": "proxy-1",
        "display_name": "Proxy 1",
        "icon": "/icon.svg",
        "url": "http://proxy-1.example",
        "wildcard_hostname": "*.example",
        "version": "1.2.3",
        "deleted": False,
        "created_at": "2024-02-29T23:59:59.123456Z",
        "updated_at": "2024-03-01T00:00:00.123456Z",
    }


def test_proxy__survives_json() -> None:
    before = make_proxy(name="x", display_name="Zürich “1”", url="", deleted=True)
    assert Proxy.from_json(json.loads(json.dumps(before.to_json()))) == before


def test_rfc3339__is_utc_to_the_microsecond() -> None:
    whole = datetime(2024, 1, 1, 12, 0, 0, tzinfo=timezone(timedelta(hours=2)))
    assert rfc3339(whole) == "2024-01-01T10:00:00.000000Z"
    assert datetime.fromisoformat(rfc3339(whole)) == whole


# Snapshot


def test_snapshot_stale__before_the_first_round() -> None:
    snapshot = Snapshot()
    assert snapshot.stale
    assert snapshot.stale_reason == "No round has ended yet. Are the Celery worker and beat running?"


def test_snapshot_stale__not_while_rounds_arrive() -> None:
    now = datetime.now(UTC)
    snapshot = Snapshot(checked_at=now, stale_at=now + timedelta(minutes=3))
    assert not snapshot.stale
    assert snapshot.stale_reason == ""


def test_snapshot_stale__when_rounds_stopped_arriving() -> None:
    snapshot = Snapshot(checked_at=MOMENT, stale_at=MOMENT + timedelta(minutes=3))
    assert snapshot.stale
    assert snapshot.stale_reason == (
        "No round has ended since the one of 2024-02-29 23:59:59 UTC. "
        "Are the Celery worker and beat running, and does the last round's error say more?"
    )


def test_snapshot_stale__as_soon_as_its_moment_has_come() -> None:
    moment = datetime.now(UTC)
    assert Snapshot(checked_at=moment, stale_at=moment).stale


def test_snapshot_stale__when_it_is_only_the_last_copy() -> None:
    now = datetime.now(UTC)
    snapshot = Snapshot(checked_at=now, stale_at=now + timedelta(minutes=3), fault="Redis is away.")
    assert snapshot.stale
    assert snapshot.stale_reason == "Redis is away."


def test_snapshot_stale__follows_the_clock_not_the_moment_of_the_first_look() -> None:
    now = datetime.now(UTC)
    fresh = Snapshot(checked_at=now, stale_at=now + timedelta(hours=1))
    assert not fresh.stale
    assert replace(fresh, stale_at=now).stale


def test_snapshot_hosts__are_those_of_registered_proxies_each_once() -> None:
    statuses = [
        make_status(1, Status.OK),
        make_status(2, Status.UNREACHABLE),
        make_status(3, Status.UNREGISTERED, proxy_host=""),
        make_status(4, Status.OK, proxy_host="proxy-1.example"),
        make_status(5, Status.UNKNOWN),
        make_status(6, Status.OK, proxy_host="[::1]:80"),
    ]
    snapshot = Snapshot({status.proxy.id: status for status in statuses})
    assert snapshot.hosts == ["proxy-1.example", "proxy-2.example", "proxy-5.example", "[::1]:80"]
    assert snapshot.healthy_hosts == ["proxy-1.example", "[::1]:80"]


def test_snapshot_hosts__of_an_empty_snapshot_are_none() -> None:
    assert Snapshot().hosts == []
    assert Snapshot().healthy_hosts == []


def test_snapshot_by_name__is_of_lower_case_and_made_once() -> None:
    paris = replace(make_status(1), proxy=make_proxy(1, name="Paris"))
    oslo = replace(make_status(2), proxy=make_proxy(2, name="oslo"))
    snapshot = Snapshot({status.proxy.id: status for status in (oslo, paris)})
    assert dict(snapshot.by_name) == {"paris": paris, "oslo": oslo}
    assert snapshot.by_name is snapshot.by_name
    assert Snapshot().by_name == {}


def test_snapshot_by_name__a_name_that_went_to_another_proxy_is_of_the_later_check() -> None:
    before = make_status(1)
    after = replace(
        make_status(2), proxy=make_proxy(2, name="Proxy-1"), checked_at=MOMENT + timedelta(seconds=1)
    )
    unchecked = replace(make_status(3, Status.UNKNOWN, checked_at=None), proxy=make_proxy(3, name="proxy-1"))
    for order in permutations((before, after, unchecked)):
        snapshot = Snapshot({status.proxy.id: status for status in order})
        assert dict(snapshot.by_name) == {"proxy-1": after}


# FrozenList


@pytest.mark.parametrize(
    "write",
    [
        lambda items: items.append("c"),
        lambda items: items.extend(["c"]),
        lambda items: items.insert(0, "c"),
        lambda items: items.remove("a"),
        lambda items: items.pop(),
        lambda items: items.clear(),
        lambda items: items.sort(key=str, reverse=True),
        lambda items: items.reverse(),
        lambda items: operator.setitem(items, 0, "c"),
        lambda items: operator.setitem(items, slice(0, 1), ["c"]),
        lambda items: operator.delitem(items, 0),
        lambda items: operator.iadd(items, ["c"]),
        lambda items: operator.imul(items, 2),
    ],
)
def test_frozen_list__cannot_be_written_to(write: Callable[[list[str]], Any]) -> None:
    items = FrozenList(["b", "a"])
    with pytest.raises(TypeError, match="cannot be written to: make a copy of it"):
        write(items)
    assert items == ["b", "a"]


def test_frozen_list__has_no_method_of_a_list_that_writes() -> None:
    reading = {"copy", "count", "index", "__add__", "__mul__", "__rmul__"}
    own = set(vars(FrozenList))
    assert {name for name in vars(list) if not name.startswith("__")} <= own | reading
    assert {"__setitem__", "__delitem__", "__iadd__", "__imul__"} <= own


@pytest.mark.parametrize(
    "make",
    [
        list,
        list.copy,
        copy.copy,
        copy.deepcopy,
        lambda items: pickle.loads(pickle.dumps(items)),
        lambda items: json.loads(json.dumps(items)),
        lambda items: items[:],
        lambda items: [*items],
        sorted,
    ],
)
def test_frozen_list__a_copy_of_it_is_a_plain_list(make: Callable[[list[str]], list[str]]) -> None:
    items = FrozenList(["a", "b"])
    made = make(items)
    assert made == items == ["a", "b"]
    assert type(made) is list
    made.append("c")
    assert items == ["a", "b"]


# RoundHistogram


@pytest.mark.parametrize(
    ("seconds", "place"),
    [
        (0, 0),
        (0.001, 0),
        (0.0011, 1),
        (0.1, 5),
        (0.3, 6),
        (1, 7),
        (4.99, 8),
        (30, 10),
        (30.01, 11),
        (1e9, 11),
    ],
)
def test_round_histogram__counts_a_round_where_it_belongs(seconds: float, place: int) -> None:
    histogram = RoundHistogram().observe(seconds)
    assert [i for i, count in enumerate(histogram.counts) if count] == [place]
    assert histogram.counts[place] == 1
    assert histogram.sum == seconds


def test_round_histogram__adds_up() -> None:
    empty = RoundHistogram()
    histogram = empty.observe(0.2).observe(0.3).observe(40)
    assert sum(histogram.counts) == 3
    assert histogram.sum == pytest.approx(40.5)
    assert len(histogram.counts) == len(RoundHistogram.BOUNDS) + 1
    assert empty == RoundHistogram()
