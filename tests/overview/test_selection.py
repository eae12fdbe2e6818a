"""The filters, the order, and the addresses of the proxies that a page shows."""

from dataclasses import replace
from datetime import timedelta

import pytest
from django.http import QueryDict

from proxyhealth.exceptions import InvalidQuery
from proxyhealth.notifications.marks import Acknowledgement, Marks
from proxyhealth.overview.selection import Selection
from proxyhealth.statuses import Reason, Status
from tests.support.values import NOW, make_proxy, make_status

EU, US = {"region": "eu"}, {"region": "us", "tier": "gold"}


def make(name, status=Status.OK, labels=EU, display_name="", **values):
    proxy = replace(make_proxy(name), labels=labels, display_name=display_name)
    return make_status(proxy, status, **values)


PARIS = make("paris", display_name="Île-de-France")
OSLO = make("Oslo", Status.UNHEALTHY, reason=Reason.REPORT_ERRORS)
LIMA = make("lima", Status.UNREACHABLE, US, reason=Reason.TIMEOUT)
ROME = make("rome", Status.UNKNOWN, US)
ALL = [LIMA, OSLO, PARIS, ROME]
MARKS = Marks({LIMA.proxy.id: NOW}, {OSLO.proxy.id: Acknowledgement("ana", NOW, "")})


def parse(query):
    return Selection.parse(QueryDict(query))


def names(statuses):
    return [status.proxy.name for status in statuses]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["lima", "Oslo", "paris", "rome"]),
        ("status=ok&status=unknown", ["paris", "rome"]),
        ("label=Region:EU", ["Oslo", "paris"]),
        ("label=region:us&label=tier:gold", ["lima", "rome"]),
        ("label=region:eu&label=tier:gold", []),
        ("label=region", []),
        ("q=OSLO", ["Oslo"]),
        ("q=france%20ÎLE", ["paris"]),
        ("q=lima.example.com", ["lima"]),
        ("q=timeout", ["lima"]),
        ("q=region:us", ["lima", "rome"]),
        ("silenced=yes", ["lima"]),
        ("silenced=no&acknowledged=no", ["paris", "rome"]),
        ("acknowledged=yes", ["Oslo"]),
        ("status=&label=&q=&silenced=&acknowledged=&sort=&window=&page=", ["lima", "Oslo", "paris", "rome"]),
        ("of_another_app=1", ["lima", "Oslo", "paris", "rome"]),
    ],
)
def test_filter(query, found):
    selection = parse(query)
    assert names(selection.filter(ALL, MARKS)) == found
    assert selection.is_filtered is (len(found) < 4)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("status=<x>", "status cannot be '<x>'. Valid: ok, unhealthy, unreachable, unregistered, unknown."),
        ("silenced=true", "silenced cannot be 'true'. Valid: yes, no."),
        (
            "sort=--name",
            "sort cannot be '-name'. Valid: urgency, since, name, latency, certificate, checked.",
        ),
        ("window=1y", "window cannot be '1y'. Valid: 24h, 90d."),
    ],
)
def test_parse__invalid_value(query, message):
    with pytest.raises(InvalidQuery) as error:
        parse(query)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "page"), [("3", 3), ("x", 1), ("-1", 1), ("0", 1), ("9" * 4000, 1_000_000), ("²", 1)]
)
def test_parse__page(text, page):
    assert parse(f"page={text[:4000]}").page == page


def test_parse__cuts_and_cleans_texts():
    selection = parse("q=%E2%80%AE" + "a" * 300 + "&label=%00" + "b" * 300)
    assert (len(selection.text), len(selection.labels[0])) == (200, 130)
    assert "\u202e" not in selection.text


def test_sorted__worst_first():
    assert names(Selection().sorted(ALL)) == ["lima", "Oslo", "rome", "paris"]
    assert names(parse("sort=-urgency").sorted(ALL)) == ["paris", "rome", "Oslo", "lima"]


def test_sorted__marked_proxies_and_contradicted_statuses():
    """What nobody takes care of comes first; then statuses that the last probe contradicts."""
    statuses = [make(name, Status.UNREACHABLE) for name in ("a", "b", "c")]
    statuses[2] = replace(statuses[2], raw=PARIS)
    assert names(Selection().sorted(statuses, Marks({statuses[0].proxy.id: NOW}, {}))) == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("field", "sort", "smallest_first"),
    [
        ("since", "since", True),
        ("latency", "latency", False),
        ("tls_expires_at", "certificate", True),
        ("checked_at", "checked", True),
    ],
)
def test_sorted__by_a_value_that_may_be_missing(field, sort, smallest_first):
    small, large = (0.1, 0.2) if field == "latency" else (NOW, NOW + timedelta(hours=1))
    statuses = [make("none"), make("small"), make("large")]
    values = (None, small, large)
    statuses = [replace(s, **{field: value}) for s, value in zip(statuses, values, strict=True)]
    order = ["small", "large"] if smallest_first else ["large", "small"]
    assert names(parse(f"sort={sort}").sorted(statuses)) == [*order, "none"]
    assert names(parse(f"sort=-{sort}").sorted(statuses)) == [*order[::-1], "none"]


def test_sorted__by_name_ignores_case():
    assert names(parse("sort=name").sorted(ALL)) == ["lima", "Oslo", "paris", "rome"]
    assert names(parse("sort=-name").sorted(ALL)) == ["rome", "paris", "Oslo", "lima"]


def test_query__keeps_everything_and_returns_to_the_first_page():
    query = (
        "status=ok&label=a%3Ab&label=c%3Ad&q=x+%26y&silenced=yes&acknowledged=no&sort=-name&window=90d&page=3"
    )
    selection = parse(query)
    assert selection.query(page=3) == f"?{query}"
    assert selection.query() == f"?{query.removesuffix('&page=3')}"
    assert parse(selection.query(labels=())[1:]).labels == ()
    assert Selection().query() == "?"
