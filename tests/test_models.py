import pytest
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import IntegrityError, connection
from django.db.models.functions import Lower
from django.db.models.lookups import Exact

from proxyhealth.models import WorkspaceProxy

pytestmark = pytest.mark.django_db


def errors_of(**values):
    with pytest.raises(ValidationError) as caught:
        WorkspaceProxy(**values).full_clean()
    return caught.value.message_dict


def test_full_clean__only_a_name():
    WorkspaceProxy(name="paris").full_clean()


def test_full_clean__all_fields():
    WorkspaceProxy(
        name="Paris_2",
        display_name="Paris №2",
        icon="/emojis/1f1eb.png",
        url="https://paris.example.com:8443/",
        wildcard_hostname="*.paris.example.com",
        version="v2.29.1",
    ).full_clean()


@pytest.mark.parametrize("name", ["primary", "Primary", "PRIMARY"])
def test_full_clean__primary_is_reserved(name):
    assert errors_of(name=name) == {
        "name": [f"The name “{name}” is reserved for the control plane itself."],
    }


@pytest.mark.parametrize("name", ["", "a b", "paris/1", "zürich", "a" * 65])
def test_full_clean__invalid_name(name):
    assert list(errors_of(name=name)) == ["name"]


def test_full_clean__invalid_url():
    assert errors_of(name="paris", url="ftp://paris.example.com") == {
        "url": ["This URL cannot be used: it must begin with http:// or https://."]
    }
    assert errors_of(name="paris", url="https://paris.example.com/path") == {
        "url": ["This URL cannot be used: it must not contain a path."]
    }


def test_full_clean__name_taken_in_other_case():
    WorkspaceProxy.objects.create(name="paris")
    assert errors_of(name="PARIS") == {
        "__all__": ["There is already a proxy with this name (upper and lower case are the same)."]
    }


def test_database__name_taken_in_other_case():
    WorkspaceProxy.objects.create(name="paris")
    with pytest.raises(IntegrityError):
        WorkspaceProxy.objects.create(name="Paris")


@pytest.mark.parametrize("condition", ["NOT deleted", pytest.param("deleted = 0", marks=pytest.mark.sqlite)])
def test_database__unique_whatever_django_migrated_it(condition):
    """Django 5.2 and 6.1 write the condition of the index differently."""
    with connection.cursor() as cursor:
        cursor.execute("DROP INDEX proxyhealth_unique_name")
        cursor.execute(
            "CREATE UNIQUE INDEX proxyhealth_unique_name ON proxyhealth_workspaceproxy (lower(name)) "
            f"WHERE {condition}"
        )
    WorkspaceProxy.objects.create(name="paris", deleted=True)
    WorkspaceProxy.objects.create(name="Paris")
    assert list(errors_of(name="paris")) == ["__all__"]
    with pytest.raises(IntegrityError):
        WorkspaceProxy.objects.create(name="PARIS")


def test_database__name_of_a_deleted_proxy_is_free():
    WorkspaceProxy.objects.create(name="paris", deleted=True)
    new = WorkspaceProxy(name="Paris")
    new.full_clean()
    new.save()
    assert list(WorkspaceProxy.objects.active()) == [new]


def test_active__excludes_deleted_proxies():
    active = WorkspaceProxy.objects.create(name="paris")
    WorkspaceProxy.objects.create(name="oslo", deleted=True)
    assert list(WorkspaceProxy.objects.active()) == [active]


def test_str__display_name_or_name():
    assert str(WorkspaceProxy(name="paris")) == "paris"
    assert str(WorkspaceProxy(name="paris", display_name="Paris")) == "Paris"


def test_unique_name__uses_an_index():
    same_name = WorkspaceProxy.objects.active().filter(Exact(Lower("name"), "paris"))
    assert "proxyhealth_unique_name" in same_name.explain()


def test_migrations__are_complete():
    call_command("makemigrations", check=True, dry_run=True)


@pytest.mark.parametrize(
    "icon", ["javascript:alert(1)", "data:text/html,x", "emojis/fr.png", '/a"onload=', "/a b", "ftp://x/y"]
)
def test_full_clean__invalid_icon(icon):
    assert errors_of(name="paris", icon=icon) == {
        "icon": ["An icon is a path that begins with / or a URL that begins with http:// or https://."]
    }


@pytest.mark.parametrize("icon", ["/emojis/fr.png", "https://example.com/a.png?b=c", "http://example.com/a"])
def test_full_clean__valid_icon(icon):
    WorkspaceProxy(name="paris", icon=icon).full_clean()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("paris.example.com", "its first part must contain one *, and there must be others"),
        ("*.*.example.com", "'x.*.example.com' is not a host name"),
        ("http://*.example.com", "its port must be a number from 1 to 65535"),
        ("*.example.com/x", "it must not contain a path"),
        ("*.", "and there must be others"),
        ("*.exa mple.com", "it contains a space, a control character or a backslash"),
    ],
)
def test_full_clean__invalid_wildcard_hostname(name, reason):
    (message,) = errors_of(name="paris", wildcard_hostname=name)["wildcard_hostname"]
    assert message.startswith("This wildcard host name cannot be used: ")
    assert reason in message


@pytest.mark.parametrize("name", ["*.paris.example.com", "*--apps.example.com", "*.example.com:8443"])
def test_full_clean__valid_wildcard_hostname(name):
    WorkspaceProxy(name="paris", wildcard_hostname=name).full_clean()
