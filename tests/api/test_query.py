import pytest
from django.http import QueryDict

from proxyhealth import health
from proxyhealth.api.query import EVERYTHING, Selection, parse_selection
from proxyhealth.exceptions import InvalidQuery
from proxyhealth.models import WorkspaceProxy
from proxyhealth.statuses import Status
from tests.support.api import LIST, REGIONS, assert_error


@pytest.mark.parametrize("query", ["", "q="])
def test_parse__nothing_is_everything(query):
    assert parse_selection(QueryDict(query), "status") == EVERYTHING


@pytest.mark.parametrize(
    ("query", "selection"),
    [
        ("status=ok", Selection(statuses=frozenset({Status.OK}))),
        ("status=ok&status=unknown", Selection(statuses=frozenset({Status.OK, Status.UNKNOWN}))),
        ("q=STRASSE", Selection(text="strasse")),
        ("q=Stra%C3%9Fe", Selection(text="strasse")),
        ("limit=1", Selection(limit=1)),
        ("limit=1000", Selection(limit=1000)),
        ("limit=007", Selection(limit=7)),
        ("cursor=1paris-2_x", Selection(after="paris-2_x")),
        ("cursor=1oslo%202%0A%C3%A9", Selection(after="oslo 2\né")),
        ("cursor=0", Selection(after="")),
    ],
)
def test_parse__good(query, selection):
    assert parse_selection(QueryDict(query), "status") == selection


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "status=bad",
            "'status' must be one of ok, unhealthy, unreachable, unregistered, unknown, not 'bad'.",
        ),
        ("status=", "'status' must be one of ok, unhealthy, unreachable, unregistered, unknown, not ''."),
        ("status=ok&status=OK", "'status' must be one of"),
        ("healthy=true", "There is no 'healthy'; there are status, q, limit, cursor."),
        ("stauts=ok", "There is no 'stauts'; there are status, q, limit, cursor."),
        ("=", "There is no ''; there are"),
        ("q=a&q=b", "'q' is given 2 times."),
        (f"q={'x' * 201}", "'q' must have 200 characters at most, not 201."),
        ("limit=0", "'limit' must be a number from 1 to 1,000, not '0'."),
        ("limit=1001", "'limit' must be a number from 1 to 1,000, not '1001'."),
        ("limit=-1", "'limit' must be a number from 1 to 1,000, not '-1'."),
        ("limit=1.5", "'limit' must be a number from 1 to 1,000, not '1.5'."),
        ("limit=", "'limit' must be a number from 1 to 1,000, not ''."),
        ("limit=%EF%BC%91", "'limit' must be a number from 1 to 1,000"),
        (f"limit={'9' * 5000}", f"not '{'9' * 63}…'."),
        ("limit=1&limit=2", "'limit' is given 2 times."),
        ("cursor=", "'cursor' must be the next_cursor of another page, not ''."),
        ("cursor=paris", "'cursor' must be"),
        ("cursor=1", "'cursor' must be"),
        ("cursor=00", "'cursor' must be"),
        ("cursor=%00", "'cursor' must be"),
        ("cursor=%C3%A9", "'cursor' must be"),
        (f"cursor=1{'x' * 201}", "'cursor' must be"),
        ("cursor=a&cursor=b", "'cursor' is given 2 times."),
    ],
)
def test_parse__bad(query, message):
    with pytest.raises(InvalidQuery) as caught:
        parse_selection(QueryDict(query), "status")
    assert message in str(caught.value)


def test_parse__the_filter_of_the_other_list():
    assert parse_selection(QueryDict("healthy=false"), "healthy") == Selection(healthy=False)
    with pytest.raises(InvalidQuery, match="There is no 'status'; there are healthy, q, limit, cursor"):
        parse_selection(QueryDict("status=ok"), "healthy")
    with pytest.raises(InvalidQuery, match=r"'healthy' must be true or false, not 'yes'\."):
        parse_selection(QueryDict("healthy=yes"), "healthy")


# Through the views


@pytest.fixture
def fleet(db, serve):
    good, bad = serve(), serve(report={"errors": ["x"]})
    for name, display_name, url in [
        ("amsterdam", "Amsterdam", good.url),
        ("Berlin", "Berlin Straße", bad.url),
        ("cairo", "", "http://127.0.0.1:1"),
        ("dakar", "Dakar", ""),
        ("essen", "Essen", good.url),
    ]:
        WorkspaceProxy.objects.create(name=name, display_name=display_name, url=url)
    health.force_update()
    WorkspaceProxy.objects.create(name="fargo")


def names(response):
    assert response.status_code == 200, response.content
    return [region["name"] for region in response.json()["regions"]]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("status=ok", "amsterdam essen"),
        ("status=unhealthy&status=unreachable", "Berlin cairo"),
        ("status=unregistered", "dakar"),
        ("status=unknown", "fargo"),
        ("q=ERLI", "Berlin"),
        ("q=strasse", "Berlin"),
        ("q=cairo", "cairo"),
        ("q=http%3A%2F%2F127.0.0.1%3A1&status=unreachable", "cairo"),
        ("q=essen&status=unhealthy", ""),
        ("q=dam%0Aber", ""),
        ("q=%00", ""),
    ],
)
def test_list__filtered(viewer, fleet, query, found):
    response = viewer.get(f"{LIST}?{query}")
    assert names(response) == found.split()
    assert "next_cursor" not in response.json()
    assert response.json()["snapshot"]["number"] >= 1


@pytest.mark.parametrize(("query", "found"), [("healthy=true", "amsterdam essen"), ("q=fargo", "fargo")])
def test_regions__filtered(viewer, fleet, query, found):
    assert names(viewer.get(f"{REGIONS}?{query}")) == found.split()


def test_regions__cannot_be_filtered_by_what_not_everybody_may_see(viewer, fleet):
    response = viewer.get(f"{REGIONS}?status=unreachable")
    assert_error(response, 400, "Bad query.", "There is no 'status'; there are healthy, q, limit, cursor.")
    for secret in ("kaputt", "unreachable", "connect"):
        assert names(viewer.get(f"{REGIONS}?q={secret}")) == []


@pytest.mark.parametrize("path", [LIST, REGIONS])
def test_pages__are_the_whole_list(viewer, fleet, path):
    everything = viewer.get(path).json()["regions"]
    for limit in (1, 2, 3, 4, 5, 6, 7):
        pages, cursor = [], ""
        while cursor is not None:
            body = viewer.get(f"{path}?limit={limit}{cursor and f'&cursor={cursor}'}").json()
            assert len(body["regions"]) <= limit
            pages.append(body["regions"])
            cursor = body["next_cursor"]
        assert [region for page in pages for region in page] == everything
        assert len(pages) == -(-len(everything) // limit), "no empty page at the end"


def test_pages__of_a_filter(viewer, fleet):
    first = viewer.get(f"{LIST}?status=ok&limit=1")
    assert names(first) == ["amsterdam"]
    second = viewer.get(f"{LIST}?status=ok&limit=1&cursor={first.json()['next_cursor']}")
    assert names(second) == ["essen"]
    assert second.json()["next_cursor"] is None


def test_pages__go_on_where_they_were_although_the_list_changes(viewer, fleet):
    first = viewer.get(f"{LIST}?limit=2").json()
    WorkspaceProxy.objects.filter(name="Berlin").delete()  # the cursor's own
    WorkspaceProxy.objects.create(name="aachen")
    assert names(viewer.get(f"{LIST}?cursor={first['next_cursor']}")) == ["cairo", "dakar", "essen", "fargo"]


def test_pages__of_names_that_only_forms_forbid(viewer):
    found = ["!", "Oslo 2", " x", "0", "é", "1"]
    WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=name) for name in found)
    pages, cursor = [], ""
    while cursor is not None and len(pages) <= len(found):
        body = viewer.get(LIST, {"limit": 1, **({"cursor": cursor} if cursor else {})}).json()
        pages += [region["name"] for region in body["regions"]]
        cursor = body["next_cursor"]
    assert pages == sorted(found, key=str.lower)


@pytest.mark.parametrize("path", [LIST, REGIONS])
def test_bad_query__is_400(viewer, path):
    response = viewer.get(f"{path}?limit=many")
    detail = "'limit' must be a number from 1 to 1,000, not 'many'."
    assert_error(response, 400, "Bad query.", detail)
