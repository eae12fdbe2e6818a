"""The labels of proxies: in rows that skipped validation, in Python, in JSON, and in its filter."""

from __future__ import annotations

import json

import pytest
from django.core.exceptions import ValidationError
from django.db import connection

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.snapshot import NO_LABELS, Proxy, labels_of
from proxyhealth.storage import reader
from proxyhealth.testing import FakeStatus, fake_snapshot
from proxyhealth.validators import validate_labels
from tests.support.api import LIST, REGIONS
from tests.support.values import make_proxy

FLEET = {
    "paris": {"region": "eu", "tier": "gold"},
    "oslo": {"region": "eu"},
    "sydney": {"Region": "AU"},
    "new": {},
}


@pytest.fixture
def fleet(db):
    for name, labels in FLEET.items():
        WorkspaceProxy.objects.create(name=name, labels=labels)


def names(response):
    assert response.status_code == 200, response.content
    return {region["name"] for region in response.json()["regions"]}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("label=region:eu", {"paris", "oslo"}),
        ("label=region:au", {"sydney"}),
        ("label=REGION:Eu", {"paris", "oslo"}),
        ("label=region:eu&label=tier:gold", {"paris"}),
        ("label=region:eu&label=region:au", set()),
        ("label=region:eu&q=OSL", {"oslo"}),
        ("label=tier:silver", set()),
    ],
)
def test_list__filtered_by_label(admin_client, fleet, query, expected):
    assert names(admin_client.get(f"{LIST}?{query}")) == expected


def test_list__filtered_pages(admin_client, fleet):
    first = admin_client.get(f"{LIST}?label=region:eu&limit=1").json()
    assert [region["name"] for region in first["regions"]] == ["oslo"]
    query = {"label": "region:eu", "limit": 1, "cursor": first["next_cursor"]}
    assert names(admin_client.get(LIST, query)) == {"paris"}


def test_regions__reveal_no_labels(admin_client, fleet):
    assert "label" not in admin_client.get(REGIONS).content.decode()
    response = admin_client.get(f"{REGIONS}?label=region:eu")
    assert response.status_code == 400
    assert response.json()["detail"].startswith("Unknown parameter 'label'.")


def test_list__a_changed_label_is_visible_at_once(admin_client, fleet):
    assert names(admin_client.get(f"{LIST}?label=region:eu")) == {"paris", "oslo"}
    oslo = WorkspaceProxy.objects.get(name="oslo")
    oslo.labels = {"region": "no"}
    oslo.save()
    assert names(admin_client.get(f"{LIST}?label=region:eu")) == {"paris"}


def test_python__labels_are_in_the_snapshot(fleet):
    health.force_update()
    reader.forget()
    proxies = {status.proxy.name: status.proxy for status in health.health_status().values()}
    assert {name: dict(proxy.labels) for name, proxy in proxies.items()} == FLEET
    rows = WorkspaceProxy.objects.active()
    for status in health.statuses_of(rows):
        assert status is health.health_status()[status.proxy.id], "equal rows need no copy"
    hash(proxies["paris"])
    with pytest.raises(TypeError):
        proxies["paris"].labels["region"] = "us"


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (
            {"region": "eu", "bad key": "x", "number": 1, "empty": "", "list": ["x"], "null": None},
            {"region": "eu"},
        ),
        ("region", {}),
        (["region"], {}),
        (1, {}),
        (
            {f"key-{number:02}": "x" for number in range(50)},
            {f"key-{number:02}": "x" for number in range(32)},
        ),
    ],
)
def test_invalid_rows__only_valid_labels_count(admin_client, fleet, value, labels):
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE proxyhealth_workspaceproxy SET labels = %s WHERE name = 'new'", [json.dumps(value)]
        )
    health.force_update()
    (status,) = (status for status in health.health_status().values() if status.proxy.name == "new")
    assert dict(status.proxy.labels) == labels
    (region,) = (row for row in admin_client.get(LIST).json()["regions"] if row["name"] == "new")
    assert region["labels"] == labels
    assert WorkspaceProxy.objects.get(name="new").as_proxy().labels == labels


def test_insert__of_the_version_before(db):
    """During an upgrade, processes of that version insert rows without labels."""
    row = WorkspaceProxy.objects.create(name="paris")
    with connection.cursor() as cursor:
        columns = [field.column for field in WorkspaceProxy._meta.fields if field.name != "labels"]
        names = ", ".join(columns)
        cursor.execute(f"CREATE TABLE copy AS SELECT {names} FROM proxyhealth_workspaceproxy")
        row.delete()
        cursor.execute(f"INSERT INTO proxyhealth_workspaceproxy ({names}) SELECT {names} FROM copy")
    assert WorkspaceProxy.objects.get().labels == {}


def test_json__without_labels_has_no_field():
    proxy = make_proxy()
    assert "labels" not in proxy.to_json(), "the documents of most fleets stay as they were"
    assert Proxy.from_json(proxy.to_json()) == proxy
    assert labels_of({}) is labels_of(None) is NO_LABELS


@pytest.mark.parametrize(
    "labels", [{"region": "eu"}, {"a/b.c_d-e": "1.2.3"}, {str(n): "x" for n in range(32)}]
)
def test_validate__valid_labels(labels):
    validate_labels(labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["region"], 'Labels must be a dictionary such as {"region": "eu"}.'),
        ({str(n): "x" for n in range(33)}, "A proxy may have at most 32 labels."),
        ({"region": 1}, "The label 'region: 1' cannot be used."),
        ({"-region": "eu"}, "The label '-region: eu' cannot be used."),
        ({"region": "é"}, "cannot be used"),
        ({"region": ""}, "cannot be used"),
    ],
)
def test_validate__invalid_labels(labels, message):
    with pytest.raises(ValidationError) as caught:
        validate_labels(labels)
    assert message in caught.value.messages[0]


def test_fakes__with_labels(db, admin_client):
    with fake_snapshot(paris=FakeStatus("ok", labels={"region": "eu"})):
        (status,) = health.health_status().values()
        assert status.proxy.labels == {"region": "eu"}
        WorkspaceProxy.objects.create(name="paris", labels={"region": "us"})
        (status,) = health.health_status().values()
        assert status.proxy.labels == {"region": "us"}, "a row has its own"
    with pytest.raises(ValueError, match="The label"):
        FakeStatus("ok", labels={"region": "e u"})
