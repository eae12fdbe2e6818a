"""The traces in the cache: the last one of each proxy."""

import json
from uuid import uuid4

import pytest
from django.conf import settings as django_settings
from django.core.cache import caches

from proxyhealth.exceptions import StoreError
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.traces import _MAX_BYTES, add_traces, read_trace
from proxyhealth.trace import MAX_PHASES, MAX_TEXT, Phase, ProbeTrace, encode
from tests.settings import REDIS_PORT
from tests.support.redis_relay import RedisRelay
from tests.support.values import COURSE, NOW, TRACE, make_proxy, make_status

PARIS = make_proxy()


def traced(proxy=PARIS, **changes):
    return make_status(proxy, course={**COURSE, **changes})


def key(proxy=PARIS):
    return caches["default"].make_key(f"proxyhealth:trace:{proxy.id}")


def test_trace__is_read_as_it_was_stored():
    add_traces([traced(), make_status(make_proxy("oslo"))], take_token())
    assert read_trace(PARIS.id) == TRACE
    assert read_trace(uuid4()) is None


def test_trace__newest_token_wins():
    earlier, later = take_token(), take_token()
    add_traces([traced()], later)
    add_traces([traced(error="other")], earlier)
    assert read_trace(PARIS.id) == TRACE
    add_traces([traced(error="other")], take_token())
    assert read_trace(PARIS.id).error == "other"


def test_trace__without_a_new_one_stays():
    add_traces([traced()], take_token())
    add_traces([make_status(PARIS)], take_token())
    assert read_trace(PARIS.id) == TRACE


def test_trace__expires_after_a_day(redis_client):
    add_traces([traced()], take_token())
    assert 86_300 < redis_client.ttl(key()) <= 86_400


def test_traces__of_many_proxies_are_stored_in_parts(redis_client):
    fleet = [make_proxy(f"p{number}") for number in range(501)]
    add_traces([traced(proxy) for proxy in fleet], take_token())
    assert len(redis_client.keys(caches["default"].make_key("proxyhealth:trace:*"))) == 501
    assert read_trace(fleet[500].id) == TRACE


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"rubbish",
        b"9" * 20 + b" {}",
        b"8999999999999999 {}",
        b"1 {}",
        b"1 null",
        b"1 [" * 3_000,
        b"1 " + b"x" * 2 * _MAX_BYTES,
        b'1 {"checked_at": 5}',
        b'1 {"checked_at": null}',
        b'1 {"checked_at": "\\ud800"}',
        b"1 \xff",
    ],
)
def test_damaged_value__is_ignored_and_replaced(redis_client, value):
    redis_client.set(key(), value)
    assert read_trace(PARIS.id) is None
    add_traces([traced()], take_token())
    assert read_trace(PARIS.id) == TRACE


def test_damaged_key__is_ignored_and_replaced(redis_client):
    redis_client.hset(key(), "x", "y")
    assert read_trace(PARIS.id) is None
    add_traces([traced()], take_token())
    assert read_trace(PARIS.id) == TRACE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("requests", [5]),
        ("requests", [{"marks": ["look_up", "x", "", "", 1, ""]}]),
        ("requests", [{"marks": ["look_up", 1, "", "", 1e15, ""]}]),
        ("requests", [{"marks": ["look_up", float("nan"), "", "", 1, ""]}]),
        ("requests", [{"marks": ["look_up", 1]}]),
        ("requests", [{"status_code": "x"}]),
        ("requests", [{"sent": 5}]),
        ("requests", 5),
        ("status", []),
        ("error", 5),
    ],
)
def test_damaged_field__is_ignored(redis_client, field, value):
    redis_client.set(key(), b"1 " + json.dumps({**json.loads(encode(COURSE)), field: value}).encode())
    assert read_trace(PARIS.id) is None


def test_version__later_one_is_read(redis_client):
    data = {**json.loads(encode(COURSE)), "status": "tired", "reason": "new", "more": {}}
    data["requests"][0] |= {
        "marks": ["quic", 1, "192.0.2.3", "", 500_001, ""],
        "more": [],
    }
    redis_client.set(key(), b"1 " + json.dumps(data).encode())
    trace = read_trace(PARIS.id)
    assert (trace.status, trace.reason) == ("unknown", "")
    assert trace.requests[0].phases == (Phase("quic", 0.5, "192.0.2.3"),)


def test_version__earlier_one_with_fewer_fields_is_read(redis_client):
    redis_client.set(key(), b'1 {"checked_at": "2026-11-22T08:00:00.000000Z", "requests": [{}]}')
    trace = read_trace(PARIS.id)
    assert (trace.checked_at, trace.requests[0].address, trace.failed_in) == (NOW, "", "")


def test_texts__are_cut_and_without_invisible_characters(redis_client):
    long = "\u202e<b>" + "x" * 3 * MAX_TEXT
    data = {**json.loads(encode(COURSE)), "error": long}
    data["requests"] = [{"url": long, "sent": f"{long}\n" * 30, "marks": ["a", 1, ""] * 20}] * 7
    redis_client.set(key(), b"1 " + json.dumps(data).encode()[:_MAX_BYTES])
    assert read_trace(PARIS.id) is None, "the value is too long"
    trace = ProbeTrace.from_json(json.dumps(data).encode())
    (request, *others) = trace.requests
    assert len(others) == 4
    assert len(request.phases) == MAX_PHASES
    assert [len(line) for line in request.sent.splitlines()] == [MAX_TEXT] * 20
    assert len(trace.error) == len(request.url) == MAX_TEXT
    assert "\u202e" not in trace.error + request.url + request.sent


def test_reply__that_is_lost_repeats_nothing(settings):
    relay = RedisRelay(REDIS_PORT)
    with relay.running() as location:
        settings.CACHES = {"default": {**django_settings.CACHES["default"], "LOCATION": location}}
        relay.lose(b":trace:", 1)
        add_traces([traced()], take_token())
        assert relay.left == 0
        assert read_trace(PARIS.id) == TRACE


def test_cache_down__raises_store_error(settings):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    with pytest.raises(StoreError):
        add_traces([traced()], 1)
    with pytest.raises(StoreError):
        read_trace(PARIS.id)
