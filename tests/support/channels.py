"""Channels, their deliveries, and the forms of the admin, as a browser sends them."""

from __future__ import annotations

import re

from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from proxyhealth.models import Channel, Delivery, Transition
from tests.support.values import NOW

LIST = "/admin/proxyhealth/channel/"
BAD = ["unreachable", "unhealthy"]
HIDDEN = "T0PSECRET"


def make(name="ops", kind="webhook", **values):
    values = {"target": f"http://127.0.0.1:9/{HIDDEN}/x", "secret": HIDDEN, **values}
    return Channel.objects.create(name=name, kind=kind, **{"listens_since": NOW, **values})


def address(channel):
    return f"{LIST}{channel.pk}/change/"


def form(channel=None, **values):
    """Return the fields of the form, as a browser sends them."""
    base = {"name": "ops", "target": "", "proxies": "", "statuses": BAD, "delay": "", "remind_every": ""}
    if channel:
        enabled = {"enabled": "on", "initial-enabled": "True"} if channel.enabled else {}
        base |= {"name": channel.name, **enabled}
    return {**base, **values}


def staff(*permissions):
    user = User.objects.create_user(f"staff{User.objects.count()}", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def post(client, path, data):
    """Post a form. Return the text of the page that follows."""
    response = client.post(path, data, follow=True)
    assert response.status_code == 200
    return response.content.decode()


def text_of(client, path):
    response = client.get(path)
    assert response.status_code == 200
    return re.sub(r"\s+", " ", response.content.decode())


def insert(channel, **values):
    row = Transition.objects.create(
        proxy_uuid="0" * 32,
        proxy_name="paris",
        before="ok",
        after="unreachable",
        token=Transition.objects.count(),
        at=NOW,
        watched=0,
    )
    return Delivery.objects.create(
        channel=channel,
        transition=row,
        **{"created_at": timezone.now(), "next_attempt_at": NOW, **values},
    )
