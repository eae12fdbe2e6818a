"""The filters and pages of the lists, through the views."""

import pytest

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from tests.support.api import LIST, REGIONS, assert_error


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
    ("query", "expected"),
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
def test_list__filtered(viewer, fleet, query, expected):
    response = viewer.get(f"{LIST}?{query}")
    assert names(response) == expected.split()
    assert "next_cursor" not in response.json()
    assert response.json()["snapshot"]["number"] >= 1


@pytest.mark.parametrize(("query", "expected"), [("healthy=true", "amsterdam essen"), ("q=fargo", "fargo")])
def test_regions__filtered(viewer, fleet, query, expected):
    assert names(viewer.get(f"{REGIONS}?{query}")) == expected.split()


def test_regions__filters_reveal_no_details(viewer, fleet):
    response = viewer.get(f"{REGIONS}?status=unreachable")
    detail = "Unknown parameter 'status'. Valid parameters: healthy, q, limit, cursor."
    assert_error(response, 400, "Bad query.", detail)
    for secret in ("kaputt", "unreachable", "connect"):
        assert names(viewer.get(f"{REGIONS}?q={secret}")) == []


@pytest.mark.parametrize("path", [LIST, REGIONS])
def test_pages__together_are_the_whole_list(viewer, fleet, path):
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


def test_pages__of_a_filtered_list(viewer, fleet):
    first = viewer.get(f"{LIST}?status=ok&limit=1")
    assert names(first) == ["amsterdam"]
    second = viewer.get(f"{LIST}?status=ok&limit=1&cursor={first.json()['next_cursor']}")
    assert names(second) == ["essen"]
    assert second.json()["next_cursor"] is None


def test_pages__continue_after_the_list_changes(viewer, fleet):
    first = viewer.get(f"{LIST}?limit=2").json()
    WorkspaceProxy.objects.filter(name="Berlin").delete()  # the cursor's own
    WorkspaceProxy.objects.create(name="aachen")
    assert names(viewer.get(f"{LIST}?cursor={first['next_cursor']}")) == ["cairo", "dakar", "essen", "fargo"]


def test_pages__names_that_only_the_form_rejects(viewer):
    all_names = ["!", "Oslo 2", " x", "0", "é", "1"]
    WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=name) for name in all_names)
    pages, cursor = [], ""
    while cursor is not None and len(pages) <= len(all_names):
        body = viewer.get(LIST, {"limit": 1, **({"cursor": cursor} if cursor else {})}).json()
        pages += [region["name"] for region in body["regions"]]
        cursor = body["next_cursor"]
    assert pages == sorted(all_names, key=str.lower)


def test_pages__after_a_cursor_have_a_limit(viewer):
    WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=f"p{i}") for i in range(1_002))
    body = viewer.get(f"{REGIONS}?cursor=0").json()
    assert len(body["regions"]) == 1_000
    assert len(viewer.get(f"{REGIONS}?cursor={body['next_cursor']}").json()["regions"]) == 2


# Equal in lower case for Python, but not for SQLite, which ignores only the case of A to Z. "\u212a" is the
# sign of the unit Kelvin. PostgreSQL refuses them, as names that are taken.
CASE_PAIRS = ["É", "é", "ẞ", "ß", "İ", "i̇", "\u212a", "k"]


@pytest.mark.sqlite
def test_pages__names_that_differ_only_in_case(viewer):
    WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=name) for name in [*CASE_PAIRS, "z"])
    ids = [region["id"] for region in viewer.get(LIST).json()["regions"]]
    for limit in (1, 2, 3):
        seen, cursor = [], ""
        while cursor is not None:
            body = viewer.get(LIST, {"limit": limit, **({"cursor": cursor} if cursor else {})}).json()
            seen += [region["id"] for region in body["regions"]]
            cursor = body["next_cursor"]
        assert seen == ids
    first = viewer.get(LIST, {"limit": 1}).json()
    WorkspaceProxy.objects.filter(pk=ids[0]).delete()
    rest = viewer.get(LIST, {"cursor": first["next_cursor"]}).json()["regions"]
    assert [region["id"] for region in rest] == ids[1:]


@pytest.mark.sqlite
def test_proxy__of_names_that_differ_only_in_case(viewer):
    WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=name) for name in [*CASE_PAIRS, "Rome"])
    for name in [*CASE_PAIRS, "Rome"]:
        assert viewer.get(f"{LIST}/{name}").json()["name"] == name
    assert viewer.get(f"{LIST}/rOME").json()["name"] == "Rome"


@pytest.mark.parametrize("path", [LIST, REGIONS])
def test_invalid_query__is_400(viewer, path):
    response = viewer.get(f"{path}?limit=many")
    detail = "'limit' must be a number from 1 to 1,000, not 'many'."
    assert_error(response, 400, "Bad query.", detail)
