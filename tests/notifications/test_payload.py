"""The JSON that webhooks get."""

from __future__ import annotations

import json
import re
from pathlib import Path
from uuid import UUID

from proxyhealth.notifications import forms
from proxyhealth.notifications.messages import Event
from proxyhealth.report import HealthReport
from tests.notifications.made_up import BASE_URL, alarm, begin, end, message, test_message

DOCUMENT = (Path(__file__).parents[2] / "docs" / "notifications.md").read_text()
REPORT = HealthReport(("no response within 5 s",), ("certificate expires in 3 days",))


def example():
    return message(
        begin(
            8841,
            display_name="Paris",
            proxy_id=UUID("0f8b7c1e-5a44-4a36-9f0e-2f6a3f1b9f01"),
            outage=12,
            report=REPORT,
        ),
        id=UUID("7f0c1b9e-6f0a-4a54-8d0f-0d6f1c2b3a4d"),
        event=Event.STATUS_CHANGED,
    )


def test_payload__is_the_example_of_the_document(configure):
    configure(BASE_URL=BASE_URL)
    (text,) = re.findall(r"```json\n(\{\n  \"id\".*?)```", DOCUMENT, re.DOTALL)
    documented = json.loads(text)
    sent = json.loads(json.dumps(forms.payload(example())))
    assert documented | {"text": ""} == sent | {"text": ""}
    assert sent["text"].startswith(documented["text"].rstrip("…"))


def test_payload__has_exactly_the_documented_fields():
    sent = forms.payload(message(begin(), alarms=(alarm(),)))
    paths = {
        *sent,
        *(f"changes[].{key}" for key in sent["changes"][0]),
        *(f"alarms[].{key}" for key in sent["alarms"][0]),
    }
    documented = set()
    for cell in re.findall(
        r"^\| ((?:`[^`]+`(?:, )?)+) \|", DOCUMENT.partition("## The JSON of webhooks")[2], re.MULTILINE
    ):
        documented.update(re.findall(r"`([^`]+)`", cell))
    assert paths <= documented


def test_payload__keeps_the_order_and_repeats_are_equal():
    sent = message(begin(1), end(1, transition=2), begin(3, "oslo"))
    assert [change["transition"] for change in forms.payload(sent)["changes"]] == [1, 2, 3]
    assert forms.payload(sent) == forms.payload(sent)


def test_payload__of_an_end_has_the_length():
    change = forms.payload(message(end()))["changes"][0]
    assert (change["before"], change["after"], change["outage_seconds"]) == ("unreachable", "ok", 2520.0)
    assert change["since"] == "2026-11-27T02:18:35.000000Z"


def test_payload__of_an_alarm_has_its_times():
    begun, ended = (
        forms.payload(message(alarms=(alarm(ended=ended),)))["alarms"][0] for ended in (False, True)
    )
    assert begun == {
        "alarm": 1,
        "kind": "no_rounds",
        "detail": "No worker responds.",
        "began_at": "2026-11-27T02:56:40.000000Z",
        "ended_at": None,
    }
    assert ended["ended_at"] == "2026-11-27T03:00:40.000000Z"


def test_payload__of_a_test_has_no_changes():
    sent = forms.payload(test_message())
    assert sent["event"] == "test"
    assert sent["changes"] == sent["alarms"] == []
    assert "This is a test of the channel on-call." in sent["text"]


def test_payload__of_2000_changes_is_below_1_mb(configure):
    """The limit of nginx for a request. Each proxy is in it, and each has the begin of its report."""
    configure(BASE_URL=BASE_URL)
    report = HealthReport(tuple("an error of the proxy " * 40 for _ in range(4)))
    changes = [
        begin(i, f"eu-paris-{i:04}", display_name=f"Paris {i}", report=report)
        for i in range(100_000, 102_000)
    ]
    sent = forms.payload(message(*changes, total=2_500))
    assert len(json.dumps(sent, separators=(",", ":")).encode()) < 1_000_000
    assert [change["proxy"]["name"] for change in sent["changes"]] == [
        change.proxy_name for change in changes
    ]
    assert all(change["report"]["errors"][0].startswith("an error") for change in sent["changes"])


def test_payload__of_one_change_has_the_whole_report():
    report = HealthReport.sanitized([f"error {i} " + "x" * 60 for i in range(50)], ["warning"])
    change = forms.payload(message(begin(report=report)))["changes"][0]
    assert change["report"] == {"errors": list(report.errors), "warnings": list(report.warnings)}


def test_payload__of_hostile_texts_is_json_on_one_line_each():
    text = "a\r\nb\x00\u202e\ud800"
    report = HealthReport((text,), (text,))
    sent = message(begin(1, text, display_name=text, reason=text, before=text, report=report), channel=text)
    encoded = json.dumps(forms.payload(sent), ensure_ascii=False).encode()  # raises for a lone surrogate
    assert b"\\r" not in encoded
    assert b"\\u0000" not in encoded
    assert forms.payload(sent)["changes"][0]["proxy"]["name"] == "a b"
