"""The admin of silences and labels."""

from __future__ import annotations

import re
from datetime import time, timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.utils import timezone

from proxyhealth.models import Silence, WorkspaceProxy

pytestmark = pytest.mark.django_db

PROXIES = "/admin/proxyhealth/workspaceproxy/"
LIST = "/admin/proxyhealth/silence/"
ADD = f"{LIST}add/"


@pytest.fixture
def fleet():
    for name, region in (("paris", "eu"), ("oslo", "eu"), ("sydney", "au")):
        WorkspaceProxy.objects.create(name=name, labels={"region": region})
    WorkspaceProxy.objects.create(name="gone", labels={"region": "eu"}, deleted=True)


def staff(*permissions: str) -> Client:
    user = User.objects.create_user("staff", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def make(minutes: float = -1, length: float = 60, **values: object) -> Silence:
    """Make a silence that starts in so many minutes."""
    starts = timezone.now() + timedelta(minutes=minutes)
    row = {"proxies": "*", "starts": starts, "ends": starts + timedelta(minutes=length), "reason": "work"}
    return Silence.objects.create(**{**row, **values})


def form(**values: object) -> dict[str, object]:
    now = timezone.localtime()
    end = now + timedelta(hours=2)
    return {
        "proxies": "region:eu",
        "reason": "upgrade",
        "starts_0": f"{now:%Y-%m-%d}",
        "starts_1": f"{now:%H:%M:%S}",
        "ends_0": f"{end:%Y-%m-%d}",
        "ends_1": f"{end:%H:%M:%S}",
        **values,
    }


def errors(response) -> dict[str, list[str]]:
    assert response.status_code == 200
    return {name: list(texts) for name, texts in response.context["adminform"].form.errors.items()}


def messages(response) -> list[str]:
    return [str(message) for message in response.context["messages"]]


def state_of(client: Client, query: str = "") -> str:
    """Return the text of the first state in the list."""
    text = client.get(LIST + query).content.decode()
    return re.sub(r"<[^>]+>", "", re.search(r'field-state">(.*?)</td>', text, re.DOTALL)[1])


def test_add__has_its_author_and_names_the_proxies(admin_client, admin_user, fleet):
    response = admin_client.post(ADD, form(), follow=True)
    silence = Silence.objects.get()
    assert silence.created_by == admin_user
    assert (silence.weekdays, silence.begin, silence.end) == ([], None, None)
    assert messages(response)[0].startswith("It silences 2 of 3 proxies: ")
    assert "in force until" in state_of(admin_client)


def test_add__warns_if_it_matches_no_proxy(admin_client, fleet):
    response = admin_client.post(ADD, form(proxies="nothing-*"), follow=True)
    assert messages(response)[0] == "It matches no proxy now."
    assert Silence.objects.count() == 1


def test_add__weekly(admin_client):
    values = form(weekdays=["4", "0"], begin="22:00", end="06:00", time_zone="Europe/Paris")
    assert admin_client.post(ADD, values).status_code == 302
    silence = Silence.objects.get()
    assert (sorted(silence.weekdays), silence.begin, silence.end) == ([0, 4], time(22), time(6))
    assert "Mon, Fri 22:00–06:00 Europe/Paris" in admin_client.get(LIST).content.decode()
    page = admin_client.get(f"{LIST}{silence.pk}/change/").content.decode()
    assert re.findall(r'name="weekdays" value="(\d)"[^>]* checked', page) == ["0", "4"]


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"proxies": "paris\neu west"}, "proxies", "Line 2, “eu west”: a name has letters"),
        ({"proxies": "  "}, "proxies", "This field is required."),
        ({"ends_0": "2020-01-01"}, "ends", "It must end after it starts."),
        ({"ends_0": ""}, "ends", "This field is required."),
        ({"ends_0": "2099-01-01"}, "ends", "A silence lasts a year at most."),
        ({"begin": "01:00"}, "begin", "A time needs weekdays."),
        ({"weekdays": ["1"], "begin": "01:00", "time_zone": "UTC"}, "end", "Give both times"),
        ({"weekdays": ["1"], "time_zone": ""}, "time_zone", "Weekdays need a time zone"),
        ({"weekdays": ["7"]}, "weekdays", "Select a valid choice."),
        ({"time_zone": "Mars/Base"}, "time_zone", "Select a valid choice."),
        ({"reason": ""}, "reason", "This field is required."),
    ],
)
def test_add__errors_are_at_their_field(admin_client, values, field, message):
    found = errors(admin_client.post(ADD, form(**values)))
    assert found.keys() == {field}
    assert message in found[field][0]


def test_add__prefilled_from_its_address(admin_client, settings):
    settings.TIME_ZONE = "Europe/Paris"
    initial = admin_client.get(ADD, {"proxies": "paris\noslo", "starts": "x", "ends": "y"}).context[
        "adminform"
    ]
    values = initial.form.initial
    assert values["proxies"] == "paris\noslo"
    assert values["ends"] - values["starts"] == timedelta(hours=1)
    assert values["time_zone"] == "Europe/Paris"


@pytest.mark.parametrize("use_tz", [True, False])
def test_list__states(admin_client, settings, use_tz):
    settings.USE_TZ = use_tz
    make(-120)
    assert not admin_client.get(LIST).context["cl"].result_list
    assert state_of(admin_client, "?ended=yes").startswith("ended ")
    Silence.objects.all().delete()
    make(60)
    assert state_of(admin_client).startswith("next: ")
    Silence.objects.all().delete()
    make(-1)
    assert state_of(admin_client, "?ended=all").startswith("in force until ")


def test_list__an_ignored_row_says_why(admin_client):
    row = make(weekdays=[0], begin=time(1), end=time(2), time_zone="UTC")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE proxyhealth_silence SET time_zone = 'Mars/Base', weekdays = '[0, 9]'")
    assert "ignored: " in state_of(admin_client)
    assert "There is no time zone &#x27;Mars/Base&#x27;" in state_of(admin_client)
    assert admin_client.get(f"{LIST}{row.pk}/change/").status_code == 200


def test_list__no_query_per_row(admin_client, fleet, django_assert_max_num_queries):
    for _ in range(30):
        make(created_by=User.objects.first())
    with django_assert_max_num_queries(8):
        text = admin_client.get(LIST).content.decode()
    assert text.count('<td class="field-matches">3</td>') == 30


def test_end_now__only_what_is_in_force(admin_client):
    current, coming, over = make(), make(60), make(-120)
    data = {"action": "end_now", "_selected_action": [current.pk, coming.pk, over.pk]}
    response = admin_client.post(f"{LIST}?ended=all", data, follow=True)
    assert messages(response) == [
        "1 silence ended.",
        "2 silences had not started, or had ended before. To cancel one, delete it.",
    ]
    current.refresh_from_db()
    assert current.ends <= timezone.now()
    assert LogEntry.objects.get().get_change_message() == "Ended."


def test_permissions__of_each_page(client, fleet):
    row = make()
    viewer = staff("view_silence", "view_workspaceproxy")
    assert viewer.get(LIST).status_code == 200
    assert viewer.get(ADD).status_code == 403
    assert 'value="end_now"' not in viewer.get(LIST).content.decode()
    assert viewer.post(f"{LIST}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    paris = WorkspaceProxy.objects.get(name="paris")
    assert ADD not in viewer.get(f"{PROXIES}{paris.pk}/change/").content.decode()
    assert 'value="silence"' not in viewer.get(PROXIES).content.decode()


# From the proxies


def test_proxy__links_to_a_silence_of_it(admin_client, fleet):
    paris = WorkspaceProxy.objects.get(name="paris")
    assert f'href="{ADD}?proxies=paris"' in admin_client.get(f"{PROXIES}{paris.pk}/change/").content.decode()


def test_action__silences_the_chosen_proxies(admin_client, fleet):
    ids = [str(row.pk) for row in WorkspaceProxy.objects.filter(name__in=["paris", "oslo"])]
    response = admin_client.post(PROXIES, {"action": "silence", "_selected_action": ids})
    text = response.content.decode()
    assert f'action="{ADD}"' in text
    assert ">\noslo\nparis</textarea>" in text
    assert "errorlist" not in text, "nothing has been entered yet"


def test_action__silences_more_than_an_address_can_hold(admin_client):
    rows = [WorkspaceProxy(name=f"proxy-with-a-long-name-{i:03}") for i in range(300)]
    WorkspaceProxy.objects.bulk_create(rows)
    everything = {"action": "silence", "_selected_action": rows[0].pk, "select_across": 1}
    assert rows[299].name in admin_client.post(PROXIES, everything).content.decode()
    WorkspaceProxy.objects.bulk_create(WorkspaceProxy(name=f"another-long-name-{i:03}") for i in range(300))
    response = admin_client.post(PROXIES, everything, follow=True)
    (message,) = response.context["messages"]
    assert str(message).startswith("The names of 600 proxies are too long for one silence.")


# Labels


def test_labels__one_on_each_line(admin_client, fleet, sent):
    paris = WorkspaceProxy.objects.get(name="paris")
    page = f"{PROXIES}{paris.pk}/change/"
    assert ">\nregion: eu</textarea>" in admin_client.get(page).content.decode()
    values = {"name": "paris", "labels": "region: eu\r\n\r\n tier:gold \r\n"}
    assert admin_client.post(page, values).status_code == 302
    paris.refresh_from_db()
    assert paris.labels == {"region": "eu", "tier": "gold"}
    assert '?label=tier%3Agold"><bdi>tier: gold</bdi></a>' in admin_client.get(PROXIES).content.decode()
    assert admin_client.post(page, {"name": "paris", "labels": ""}).status_code == 302
    paris.refresh_from_db()
    assert paris.labels == {}


def test_labels__errors_name_each_line(admin_client, fleet):
    paris = WorkspaceProxy.objects.get(name="paris")
    lines = "\r\nregion eu\r\ntier: gold\r\ntier: silver\r\nkey: é\r\n: x"
    found = errors(admin_client.post(f"{PROXIES}{paris.pk}/change/", {"name": "paris", "labels": lines}))
    characters = (
        "a key and a value have 1 to 63 letters, digits, and the characters . _ - /, "
        "and begin with a letter or a digit."
    )
    assert found == {
        "labels": [
            "Line 2, 'region eu': write a key, a colon, and a value, such as region: eu.",
            "Line 4, 'tier: silver': the key 'tier' is already in another line.",
            f"Line 5, 'key: é': {characters}",
            "Line 6, ': x': write a key, a colon, and a value, such as region: eu.",
        ]
    }


def test_labels__invalid_rows_can_be_corrected(admin_client, fleet):
    paris = WorkspaceProxy.objects.get(name="paris")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE proxyhealth_workspaceproxy SET labels = '[1]' WHERE name = 'paris'")
    page = f"{PROXIES}{paris.pk}/change/"
    assert admin_client.get(page).status_code == 200
    assert admin_client.get(PROXIES).status_code == 200
    assert admin_client.post(page, {"name": "paris", "labels": "region: eu"}).status_code == 302


def test_health_page__filtered_by_label(admin_client, fleet):
    text = admin_client.get(f"{PROXIES}health/").content.decode()
    assert 'href="?label=region%3Aeu"' in text
    response = admin_client.get(f"{PROXIES}health/?label=Region:EU")
    assert [row.proxy.name for row in response.context["page"]] == ["oslo", "paris"]
    assert response.context["total"] == 2
    assert "?status=unknown&amp;label=Region%3AEU" in response.content.decode()
    assert "No proxy matches these filters." in admin_client.get(f"{PROXIES}health/?label=x").content.decode()
