"""The examples and lists in the documents, compared with the code."""

import json
import re
import sys
import types
from datetime import datetime
from pathlib import Path

import pytest
from django.contrib.auth.models import Permission, User
from django.core import signing
from django.test import Client

from proxyhealth import health
from proxyhealth.checks import SETTINGS, check_settings
from proxyhealth.conf import NAMES, conf
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage.document import PreviousLines, decode, dump
from proxyhealth.storage.merge import Results, merged
from tests.support.api import LIST, REGIONS, assert_error, signed_in
from tests.support.values import make_proxy, make_status

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture
def host_api(configure, monkeypatch):
    """The module ``host.api`` of the example in docs/json.md."""
    (code,) = re.findall(r"```python\n# host/api\.py\n(.*?)```", (DOCS / "json.md").read_text(), re.DOTALL)
    module = types.ModuleType("host.api")
    exec(code, vars(module))
    monkeypatch.setitem(sys.modules, "host", types.ModuleType("host"))
    monkeypatch.setitem(sys.modules, "host.api", module)
    configure(AUTHENTICATE="host.api.authenticate")


def test_json__token_example_works(paris, sent, host_api):
    robot = User.objects.create_user("robot")
    robot.user_permissions.set(Permission.objects.filter(content_type__app_label="proxyhealth"))
    headers = {"Authorization": f"Bearer {signing.dumps(robot.pk, salt='host.api')}"}
    client = Client(enforce_csrf_checks=True)
    assert client.get(LIST, headers=headers).status_code == 200
    assert client.post(f"{LIST}/paris/check", headers=headers).status_code == 202
    for token in ("forged", signing.dumps(robot.pk, salt="other"), signing.dumps(0, salt="host.api")):
        response = client.get(LIST, headers={"Authorization": f"Bearer {token}"})
        assert_error(response, 401, "Not signed in.")
    assert client.get(REGIONS).status_code == 401
    session = signed_in("change_workspaceproxy", enforce_csrf_checks=True)
    assert session.get(REGIONS).status_code == 200
    assert_error(session.post(f"{LIST}/paris/check"), 403, "CSRF verification failed.")


@pytest.mark.django_db
def test_notifications__sample_silences_proxies(paris):
    (code,) = re.findall(
        r"```python\n([^`]*models import Silence\n.*?)```", (DOCS / "notifications.md").read_text(), re.DOTALL
    )
    exec(code, {})
    assert health.silenced().keys() == {paris.pk}


def test_settings__lists_every_setting_and_its_check():
    text = (DOCS / "settings.md").read_text()
    for name in NAMES:
        assert f"| `{name}` |" in text
        assert f"| `proxyhealth.{SETTINGS[name][0]}` | `{name}` |" in text


def test_statuses__lists_every_status_and_reason():
    text = (DOCS / "statuses.md").read_text()
    for word in [*Status, *filter(None, Reason)]:
        assert f"| `{word}` |" in text


def test_documents__make_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    lines = re.findall(r"^([a-z0-9-]+(?: [a-z0-9-]+)*):", makefile, re.MULTILINE)
    targets = {target for line in lines for target in line.split()}
    text = "".join(
        path.read_text() for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")]
    )
    commands = set(re.findall(r"(?:`|\$ |PORT=\d+ )make ([a-z0-9-]+)", text))
    assert {"run", "test", "deployment", "start-proxy", "stop-proxy"} <= commands <= targets


def test_settings__lists_the_denied_networks(configure):
    text = (DOCS / "settings.md").read_text().partition("## Addresses")[2].partition("\n## ")[0]
    networks = re.findall(r"`([^`]+/\d+)`", text.partition("Your own")[0].partition("| cloud |")[2])
    assert sorted(networks) == sorted(map(str, conf.ADDRESS_DENY))
    for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        namespace = {}
        exec(example, namespace)
        configure(**namespace["PROXYHEALTH"])
        assert check_settings() == []
    assert sorted(map(str, conf.ADDRESS_DENY)) == sorted([*networks, "10.0.0.0/8"])


def test_json__lists_every_error_and_parameter():
    text = (DOCS / "json.md").read_text()
    app = DOCS.parent / "proxyhealth"
    source = (app / "access.py").read_text() + (app / "api" / "views.py").read_text()
    errors = set(re.findall(r'(?:APIError|message)\(\s*([45]\d\d), "([^"]+)"', source))
    assert len(errors) == 9
    for code, words in errors:
        assert f"| {code} | `{words}` |" in text
    for parameter in ("q", "status", "healthy", "limit", "cursor"):
        assert f"| `{parameter}` |" in text


def test_history__example_happens_as_described(configure):
    """Its table has one probe per row, and the statuses after it."""
    configure(FAILURE_THRESHOLD=3, RECOVERY_THRESHOLD=2)
    text = (DOCS / "history.md").read_text()
    rows = re.findall(
        r"^\| (12:\d\d:\d\d) \| .+? \| `(\w+)`.*? \| `(\w+)` \| (.*?) ?\| (.+?) \|$", text, re.MULTILINE
    )
    assert len(rows) == 8
    proxy = make_proxy()
    value, changes = None, []
    for time, result, *expected in [("11:00:00", "ok", "ok", "", "11:00:00"), *rows]:
        at = datetime.fromisoformat(f"2026-11-27T{time}Z")
        token = int(at.timestamp()) * 1_000_000
        document, entries, _ = merged(value, Results([make_status(proxy, Status(result))], token))
        value = dump(document)
        status = decode(value, PreviousLines()).snapshot.statuses[proxy.id]
        raw = f"`{status.raw.status}`" if status.raw else ""
        assert [status.status, raw, f"{status.since:%H:%M:%S}"] == expected, time
        changes += [(entry["before"], entry["after"], entry["at"]) for entry in map(json.loads, entries)]
    assert [(before, after) for before, after, _ in changes[1:]] == [
        ("ok", "unreachable"),
        ("unreachable", "ok"),
    ]
    assert changes[2][2] - changes[1][2] == 120 * 1_000_000, "the outage took two minutes"
