import pytest
from django.http import QueryDict

from proxyhealth.api.query import EVERYTHING, Selection, cursor_after, parse_selection
from proxyhealth.exceptions import InvalidQuery
from proxyhealth.statuses import Status


@pytest.mark.parametrize("query", ["", "q="])
def test_parse_selection__of_an_empty_query_is_everything(query):
    assert parse_selection(QueryDict(query), "status") == EVERYTHING


@pytest.mark.parametrize(
    ("query", "selection"),
    [
        ("status=ok", Selection(statuses=frozenset({Status.OK}))),
        ("status=ok&status=unknown", Selection(statuses=frozenset({Status.OK, Status.UNKNOWN}))),
        ("label=Region%3AEU", Selection(labels=frozenset({("region", "eu")}))),
        ("label=a:b&label=c:d", Selection(labels=frozenset({("a", "b"), ("c", "d")}))),
        ("q=STRASSE", Selection(text="strasse")),
        ("q=Stra%C3%9Fe", Selection(text="strasse")),
        ("limit=1", Selection(limit=1)),
        ("limit=1000", Selection(limit=1000)),
        ("limit=007", Selection(limit=7)),
        (f"cursor={cursor_after('paris-2_x')}", Selection(after="paris-2_x", limit=1000)),
        ("limit=2&cursor=" + cursor_after("oslo 2\té"), Selection(after="oslo 2\té", limit=2)),
        ("cursor=0", Selection(after="", limit=1000)),
    ],
)
def test_parse_selection__valid_values(query, selection):
    assert parse_selection(QueryDict(query), "status", "label") == selection


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "status=bad",
            "'status' must be one of ok, unhealthy, unreachable, unregistered, unknown, not 'bad'.",
        ),
        ("status=", "'status' must be one of ok, unhealthy, unreachable, unregistered, unknown, not ''."),
        ("status=ok&status=OK", "'status' must be one of"),
        ("healthy=true", "Unknown parameter 'healthy'. Valid parameters: status, label, q, limit, cursor."),
        ("stauts=ok", "Unknown parameter 'stauts'. Valid parameters: status, label, q, limit, cursor."),
        ("label=region", "'label' must be a key and a value, such as region:eu, not 'region'."),
        ("label=:eu", "'label' must be a key and a value"),
        ("label=region:", "'label' must be a key and a value"),
        ("label=region:e*", "'label' must be a key and a value"),
        ("label=a:b:c", "'label' must be a key and a value"),
        ("=", "Unknown parameter ''. Valid parameters: "),
        ("q=a&q=b", "'q' must be given once, not 2 times."),
        (f"q={'x' * 201}", "'q' must have at most 200 characters, not 201."),
        ("limit=0", "'limit' must be a number from 1 to 1,000, not '0'."),
        ("limit=1001", "'limit' must be a number from 1 to 1,000, not '1001'."),
        ("limit=-1", "'limit' must be a number from 1 to 1,000, not '-1'."),
        ("limit=1.5", "'limit' must be a number from 1 to 1,000, not '1.5'."),
        ("limit=", "'limit' must be a number from 1 to 1,000, not ''."),
        ("limit=%EF%BC%91", "'limit' must be a number from 1 to 1,000"),
        (f"limit={'9' * 5000}", f"not '{'9' * 63}…'."),
        ("limit=1&limit=2", "'limit' must be given once, not 2 times."),
        ("cursor=", "'cursor' must be the next_cursor of a page, not ''."),
        ("cursor=paris", "'cursor' must be"),
        ("cursor=2", "'cursor' must be"),
        ("cursor=00", "'cursor' must be"),
        ("cursor=%00", "'cursor' must be"),
        ("cursor=%C3%A9", "'cursor' must be"),
        (f"cursor=2{'x' * 501}", "'cursor' must be"),
        ("cursor=2paris%09", "'cursor' must be"),
        ("cursor=2_w", "'cursor' must be"),  # not UTF-8
        ("cursor=2a", "'cursor' must be"),  # not Base64
        ("cursor=1paris", "'cursor' must be"),  # of an earlier version
        ("cursor=a&cursor=b", "'cursor' must be given once, not 2 times."),
    ],
)
def test_parse_selection__invalid_values(query, message):
    with pytest.raises(InvalidQuery) as caught:
        parse_selection(QueryDict(query), "status", "label")
    assert message in str(caught.value)


def test_parse_selection__filter_of_the_other_list():
    assert parse_selection(QueryDict("healthy=false"), "healthy") == Selection(healthy=False)
    with pytest.raises(InvalidQuery, match=r"'status'\. Valid parameters: healthy, q, limit, cursor\."):
        parse_selection(QueryDict("status=ok"), "healthy")
    with pytest.raises(InvalidQuery, match=r"'healthy' must be true or false, not 'yes'\."):
        parse_selection(QueryDict("healthy=yes"), "healthy")
