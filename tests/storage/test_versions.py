"""Documents that an older or a newer version of the app has written."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from proxyhealth.report import HealthReport
from proxyhealth.snapshot import NO_LABELS, RoundHistogram
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage.confirmation import moment
from proxyhealth.storage.document import PreviousLines, decode, dump
from proxyhealth.storage.merge import Results, merged
from proxyhealth.utils import FrozenMapping
from tests.storage.documents import TOKEN, changed_json, commit_statuses
from tests.support.values import NOW, a_round, make_proxy, make_status

HEAD_DEFAULTS = {
    "number": ("number", 0),
    "committed_at": ("committed_at", None),
    "checked_at": ("checked_at", None),
    "duration": ("duration", None),
    "stale_at": ("stale_at", None),
    "rounds": ("rounds", RoundHistogram()),
    "removed": ("offline", ""),  # only merges use it
    "deployment": ("offline", ""),  # it is beside the snapshot
    "watched": ("watched", None),
}
COLUMN_DEFAULTS = {
    "checked_at": ("checked_at", None),
    "proxy_host": ("proxy_host", ""),
    "reason": ("reason", Reason.NONE),
    "errors": ("report", HealthReport((), ("warm",))),
    "warnings": ("report", HealthReport(("kaputt",), ())),
    "latency": ("latency", None),
    "tls_expires_at": ("tls_expires_at", None),
    "since": ("since", None),
}
LINE_DEFAULTS = {
    "display_name": "",
    "icon": "",
    "url": "",
    "wildcard_hostname": "",
    "version": "",
    "deleted": False,
    "created_at": datetime(1970, 1, 1, tzinfo=UTC),
    "updated_at": datetime(1970, 1, 1, tzinfo=UTC),
    "labels": NO_LABELS,
}


@pytest.fixture(scope="module")
def status():
    report = HealthReport(("kaputt",), ("warm",))
    return make_status(
        replace(make_proxy(), labels=FrozenMapping({"region": "eu"})),
        Status.UNHEALTHY,
        reason=Reason.REPORT_ERRORS,
        report=report,
        latency=0.25,
        tls_expires_at=NOW,
        since=moment(TOKEN),
    )


@pytest.fixture(scope="module")
def value(status):
    return commit_statuses(None, status, full_round=a_round())


def read(value):
    return decode(value, PreviousLines()).snapshot


def read_status(value):
    (status,) = read(value).statuses.values()
    return status


def merge_around(value):
    """Commit another proxy, so that the first one is left as it is."""
    other = make_status(make_proxy("zzz"))
    document, entries, _ = merged(value, Results([other], TOKEN + 1))
    assert [json.loads(entry)["name"] for entry in entries] == ["zzz"]
    return dump(document)


def without(part, name):
    """Drop a field from the head, the columns, or the line of the proxy."""

    def drop(whole):
        target = {"head": whole, "columns": whole["judgements"], "line": whole["proxies"][0]}[part]
        del target[name]

    return changed_json(drop)


def test_tables__name_every_field(value):
    whole = json.loads(value)
    assert {*HEAD_DEFAULTS, "format", "commit", "ticket", "judgements", "proxies"} == whole.keys()
    assert {*COLUMN_DEFAULTS, "name", "ticket", "status"} == whole["judgements"].keys()
    assert {*LINE_DEFAULTS, "id", "name"} == whole["proxies"][0].keys()


@pytest.mark.parametrize("name", HEAD_DEFAULTS)
def test_decode__without_a_field_of_the_head(value, status, name):
    older = without("head", name)(value)
    attribute, default = HEAD_DEFAULTS[name]
    assert getattr(read(older), attribute) == default
    assert read_status(older) == status


@pytest.mark.parametrize("name", COLUMN_DEFAULTS)
def test_decode__without_a_column(value, name):
    attribute, default = COLUMN_DEFAULTS[name]
    assert getattr(read_status(without("columns", name)(value)), attribute) == default


@pytest.mark.parametrize("name", LINE_DEFAULTS)
def test_decode__without_a_field_of_a_proxy(value, name):
    assert getattr(read_status(without("line", name)(value)).proxy, name) == LINE_DEFAULTS[name]


@pytest.mark.parametrize("name", ["counts", "sum"])
def test_decode__without_a_field_of_the_histogram(value, name):
    older = changed_json(lambda whole: whole["rounds"].pop(name))(value)
    assert getattr(read(older).rounds, name) == getattr(RoundHistogram(), name)


OPTIONAL = [
    *(("head", name) for name in HEAD_DEFAULTS),
    *(("columns", name) for name in COLUMN_DEFAULTS),
    *(("line", name) for name in LINE_DEFAULTS),
]


@pytest.mark.parametrize(("part", "name"), OPTIONAL)
def test_merged__without_a_field(value, status, part, name, caplog):
    older = without(part, name)(value)
    after = read(merge_around(older))
    assert after.statuses[status.proxy.id] == read_status(older)
    assert len(after.statuses) == 2
    healed = commit_statuses(older, status, token=TOKEN + 1, full_round=a_round())
    assert replace(read_status(healed), since=status.since) == status
    assert not caplog.text


ESSENTIAL = [
    ("head", "format"),
    ("head", "commit"),
    ("head", "ticket"),
    ("columns", "name"),
    ("columns", "ticket"),
    ("columns", "status"),
    ("line", "id"),
    ("line", "name"),
]


@pytest.mark.parametrize(("part", "name"), ESSENTIAL)
def test_decode__without_an_essential_field_is_a_value_error(value, part, name):
    with pytest.raises(ValueError, match=r"."):
        read(without(part, name)(value))


NEWER = {
    "head": lambda whole: whole.update(colour="red"),
    "columns": lambda whole: whole["judgements"].update(colour=["red"]),
    "line": lambda whole: whole["proxies"][0].update(colour="red"),
    "histogram": lambda whole: whole["rounds"].update(colour="red"),
    "first in the columns": lambda whole: whole.update(judgements={"colour": ["red"], **whole["judgements"]}),
}


def test_decode__with_unknown_values(value, status):
    """Only the proxies that a newer version judged in its own words suffer."""

    def judge(whole):
        whole["judgements"].update(status=["degraded"], reason=["quota"])

    read_anew = read_status(changed_json(judge)(value))
    assert (read_anew.status, read_anew.reason) == (Status.UNKNOWN, Reason.NONE)
    assert read_anew.report == status.report
    after = json.loads(merge_around(changed_json(judge)(value)))["judgements"]
    assert (after["status"][0], after["reason"][0]) == ("degraded", "quota"), "a merge keeps them"


def test_decode__with_other_bounds_of_the_histogram(value, status):
    newer = changed_json(lambda whole: whole["rounds"]["counts"].append(0))(value)
    assert read(newer).rounds == RoundHistogram()
    later = commit_statuses(newer, status, token=TOKEN + 1, full_round=a_round())
    assert sum(read(later).rounds.counts) == 1


@pytest.mark.parametrize("change", NEWER.values(), ids=NEWER)
def test_decode__with_an_unknown_field(value, change):
    assert read(changed_json(change)(value)) == read(value)


@pytest.mark.parametrize("change", NEWER.values(), ids=NEWER)
def test_merged__keeps_unknown_fields(value, change, caplog):
    after = merge_around(changed_json(change)(value))
    assert b'"red"' in after
    assert len(read(after).statuses) == 2
    assert not caplog.text


def test_merged__a_round_keeps_unknown_fields_of_the_head(value, status):
    newer = changed_json(NEWER["head"])(value)
    later = commit_statuses(newer, status, token=TOKEN + 1, full_round=a_round())
    assert json.loads(later)["colour"] == "red"


def test_merged__a_check_replaces_unknown_values_of_its_proxy(value, status):
    newer = changed_json(NEWER["line"])(changed_json(NEWER["columns"])(value))
    assert b'"red"' not in commit_statuses(newer, status, token=TOKEN + 1)
