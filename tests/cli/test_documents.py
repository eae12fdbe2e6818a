"""The examples of docs/command-line.md, entered as they are."""

from __future__ import annotations

import re
import shlex
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from proxyhealth.cli import commands
from proxyhealth.models import Outage, Silence
from proxyhealth.tasks import record_history
from tests.cli.conftest import run

TEXT = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
LINES = re.findall(r"^\$ python manage\.py proxyhealth (.*)$", TEXT, re.MULTILINE)
EXAMPLES = [shlex.split(line) for line in LINES]


@pytest.mark.django_db
def test_examples__work(fleet, monkeypatch):
    from project.celery import app

    monkeypatch.setitem(app.conf, "task_always_eager", True)
    User.objects.create_user("ada")
    fleet["paris"].report["errors"] = ["disk full"]
    assert run("check", "--local").status == 1
    record_history()
    Outage.objects.filter(proxy_name="paris").update(id=12)
    now = timezone.now()
    Silence.objects.create(id=3, proxies="*", starts=now, ends=now + timedelta(days=1), reason="x")
    assert {example[0] for example in EXAMPLES} == set(commands.MODULES)
    for example in EXAMPLES:
        if example[0] != "watch":
            result = run(*example)
            assert result.status in (0, 1), (example, result)
    assert Silence.objects.filter(ends__gt=timezone.now()).count() == 2


@pytest.mark.django_db
def test_table__is_as_in_the_document(fleet):
    block = re.findall(r"\$ python manage\.py proxyhealth status\n(.*?)```", TEXT, re.DOTALL)[0].splitlines()
    lines = run("status").lines
    assert [line.split()[:2] for line in block[3:]] == [line.split()[:2] for line in lines[3:]]
    assert block[2].split() == lines[2].split()
