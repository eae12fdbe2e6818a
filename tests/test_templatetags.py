from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from django.template import Context, Template
from django.utils.functional import SimpleLazyObject
from django.utils.safestring import mark_safe

from proxyhealth import health
from proxyhealth.models import WorkspaceProxy
from proxyhealth.report import HealthReport
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from tests.support.values import a_round, make_proxy, make_status


def badge(status):
    return f'<span class="proxyhealth-badge proxyhealth-{status}">{status}</span>'


def stale_badge(status):
    return (
        f'<span class="proxyhealth-badge proxyhealth-{status} proxyhealth-badge-stale">{status}, stale</span>'
    )


def render(proxy):
    template = Template("{% load proxyhealth %}{% proxy_badge proxy %}")
    return template.render(Context({"proxy": proxy})).strip()


def commit_statuses(*statuses):
    commit(statuses, take_token(), full_round=a_round())


@pytest.fixture
def paris():
    """A row whose proxy has a status in the snapshot."""
    row = WorkspaceProxy(name="Paris", url="https://paris.example.com")
    proxy = replace(make_proxy("Paris", row.pk), url=row.url)
    commit_statuses(make_status(proxy, Status.UNREACHABLE, reason=Reason.DNS))
    return row


FORMS = {
    "row": lambda row: row,
    "lazy row": lambda row: SimpleLazyObject(lambda: row),
    "status": health.status_of,
    "id": lambda row: row.pk,
    "id as text": lambda row: str(row.pk),
    "ID as text": lambda row: str(row.pk).upper(),
    "hex": lambda row: row.pk.hex,
    "name": lambda row: "Paris",
    "name in lower case": lambda row: "paris",
    "name in upper case": lambda row: "PARIS",
    "safe text": lambda row: mark_safe("paris"),
}


@pytest.mark.parametrize("form", FORMS)
def test_badge__every_form_of_a_proxy(paris, form):
    assert render(FORMS[form](paris)) == badge("unreachable")


@pytest.mark.parametrize("status", Status)
def test_badge__every_status(status):
    proxy_status = make_status(make_proxy(), status)
    commit_statuses()
    assert render(proxy_status) == badge(status)


@pytest.mark.parametrize(
    "proxy",
    [
        *(None, "", " ", "oslo", "\0", "{" * 40, "x" * 100_000, "é", "<b>", b"paris", 0, 7, True, 1.5),
        *(UUID(int=7), str(UUID(int=7)), [], ["Paris"], {}, {"name": "Paris"}, object(), WorkspaceProxy),
    ],
    ids=lambda value: str(value)[:20],
)
def test_badge__other_values_are_unknown(paris, proxy):
    assert render(proxy) == badge("unknown")


def test_badge__name_that_looks_like_an_id():
    name = uuid4().hex
    commit_statuses(make_status(make_proxy(name)))
    assert render(name) == badge("ok")


def test_badge__row_with_a_changed_url_is_unknown(paris):
    paris.url = "https://elsewhere.example.com"
    assert render(paris) == badge("unknown")
    assert render(paris.pk) == badge("unreachable")


def test_badge__row_without_a_status_is_unknown(paris):
    assert render(WorkspaceProxy(name="paris", url=paris.url)) == badge("unknown")


@pytest.mark.django_db
def test_badge__makes_no_query(paris, django_assert_num_queries):
    paris.save()
    rows = WorkspaceProxy.objects.all()
    full, partial, without_url = rows.get(), rows.only("url").get(), rows.only("name").get()
    with django_assert_num_queries(0):
        for form in FORMS.values():
            assert render(form(full)) == badge("unreachable")
        assert render(partial) == badge("unreachable")
        assert render(without_url) == badge("unknown")
        assert render("nobody") == badge("unknown")


def test_badge__stale_snapshot(paris, redis_client):
    assert render(paris) == badge("unreachable")
    redis_client.flushall()
    for form in FORMS.values():
        assert render(form(paris)) == stale_badge("unreachable")


def test_badge__before_the_first_round():
    assert render("paris") == stale_badge("unknown")


def test_badge__redis_down(paris, stopped):
    assert render("paris") == badge("unreachable")
    stopped()
    assert render("paris") == stale_badge("unreachable")


def test_badge__shows_no_text_of_the_proxy(redis_client):
    proxy = replace(make_proxy("paris"), display_name="<script>")
    status = make_status(
        proxy, Status.UNHEALTHY, reason=Reason.REPORT_ERRORS, report=HealthReport(("<b>secret",), ("hidden",))
    )
    commit_statuses(status)
    assert render(status) == render("paris") == badge("unhealthy")
    redis_client.flushall()
    assert render("paris") == stale_badge("unhealthy")


@pytest.mark.parametrize("autoescape", [True, False])
def test_badge__ignores_autoescape_and_context(paris, autoescape):
    context = Context({"proxy": paris, "status": "<b>", "stale": True}, autoescape=autoescape)
    template = Template("{% load proxyhealth %}{% proxy_badge proxy %}|{{ status }}")
    rendered, _, own = template.render(context).partition("|")
    assert rendered.strip() == badge("unreachable")
    assert own == ("&lt;b&gt;" if autoescape else "<b>")


def test_badge__literal_in_a_template(paris):
    template = Template("{% load proxyhealth %}{% proxy_badge 'paris' %}{% proxy_badge nobody.name %}")
    rendered = template.render(Context()).replace("\n", "")
    assert rendered == badge("unreachable") + badge("unknown")


def test_by_name__keys_are_lower_case_names():
    commit_statuses(make_status(make_proxy("Paris")), make_status(make_proxy("oslo")))
    snapshot = health.snapshot()
    assert list(snapshot.by_name) == ["oslo", "paris"]
    assert snapshot.by_name["paris"] in snapshot.statuses.values()
    assert snapshot.by_name is snapshot.by_name
    with pytest.raises(TypeError):
        snapshot.by_name["paris"] = None
