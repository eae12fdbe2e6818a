"""The mailbox of the demo, without a browser."""

from __future__ import annotations

import pytest
from django.urls import path

from project import mailbox, urls, views
from project.mailbox import FOLDER, MAX_MAILS, Mailbox
from tests.support.api import signed_in

# As while `make run` has a mail server.
urlpatterns = [
    *urls.urlpatterns,
    path("mailbox/", views.mailbox, name="mailbox"),
    path("mailbox/<int:id>/", views.mail_as_html, name="mail-as-html"),
]

TEXT = b"Subject: =?utf-8?q?S=C3=A3o_Paulo?=\r\nFrom: a@b\r\nTo: c@d\r\n\r\nIt fails.\r\n"


@pytest.mark.django_db
def test_mailbox__is_no_page_of_a_deployment(admin_client):
    assert admin_client.get("/mailbox/").status_code == 404
    assert "Mailbox" not in admin_client.get("/").text


@pytest.mark.django_db
@pytest.mark.urls(__name__)
def test_mailbox__is_for_staff(admin_client, client, monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    Mailbox.of_demo().add(TEXT)
    (mail,) = Mailbox.of_demo().read()
    for page in ("/mailbox/", f"/mailbox/{mail.id}/"):
        for stranger in (client, signed_in("view_channel")):
            assert stranger.get(page).status_code == 302
        assert admin_client.get(page).status_code == 200
    assert "<strong>São Paulo</strong>" in admin_client.get("/mailbox/").text
    assert 'href="/mailbox/">Mailbox' in admin_client.get("/").text
    assert admin_client.get("/mailbox/1/").status_code == 404


def test_mailbox__keeps_the_newest(tmp_path, monkeypatch):
    times = iter(range(10**18, 10**18 + 1_000))
    monkeypatch.setattr(mailbox.time, "time_ns", lambda: next(times))
    box = Mailbox(tmp_path / "mails")
    assert box.read() == []
    for i in range(MAX_MAILS + 5):
        box.add(b"Subject: %d\r\n\r\n" % i)
    subjects = [mail.subject for mail in box.read()]
    assert subjects == [str(i) for i in range(MAX_MAILS + 4, 4, -1)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff" * 100,
        b"Content-Type: text/plain; charset=nonsense\r\n\r\n\xff",
        b"Subject: =?nonsense?q?x?=\r\nContent-Type: multipart/mixed\r\n\r\nx",
    ],
)
def test_mailbox__mail_that_nobody_can_read(tmp_path, content):
    box = Mailbox(tmp_path)
    box.add(content)
    (mail,) = box.read()
    assert isinstance(mail.text, str)
