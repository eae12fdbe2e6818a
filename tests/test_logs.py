"""The values of log messages as fields, and the log of the project as JSON."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import uuid
from datetime import datetime

import pytest

from project.logs import logging_config
from proxyhealth import health
from proxyhealth.history.records import record_history
from proxyhealth.logs import AddFields
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from tests.support.values import make_proxy, make_status

PARIS = uuid.UUID("6a3f25bf-ea91-43a1-9955-5cb7034c04ce")


def fields_of(message, *args, name="proxyhealth.tests"):
    record = logging.LogRecord(name, logging.INFO, __file__, 1, message, args, None)
    text = record.getMessage()
    assert AddFields().filter(record)
    assert record.getMessage() == text, "the message stays as it is"
    return getattr(record, "proxyhealth", None)


@pytest.mark.parametrize(
    ("message", "args", "fields"),
    [
        ("round start token=%d proxies=%d", (17, 8), {"token": 17, "proxies": 8}),
        ("round end duration=%.3f", (1.5,), {"duration": 1.5}),
        ("probe failed proxy=%s name=%s", (PARIS, "paris"), {"proxy": str(PARIS), "name": "paris"}),
        ("status change to=%s", (Status.OK,), {"to": "ok"}),
        ("status change error=%s", ('"two \\"words\\""',), {"error": 'two "words"'}),
        ("status change error=%s", ('"no end',), {"error": '"no end'}),
        ("canary silent error=%s", (OSError("refused"),), {"error": "refused"}),
        ("snapshot stale: %s", ("token=5",), None),
        ("%s failed: %s proxy=%s", ("round", "x=%s", 5), {"proxy": 5}),
        ("100%% of rounds token=%d", (17,), {"token": 17}),
        ("the database token=5", (), None),
    ],
)
def test_fields__of(message, args, fields):
    assert fields_of(message, *args) == fields


def test_fields__only_of_our_messages():
    assert fields_of("token=%d", 5, name="host.app") is None
    assert fields_of("token=%d", 5, name="proxyhealthy") is None
    assert fields_of("token=%(token)d", {"token": 5}) is None


@pytest.fixture
def log(caplog):
    """The lines that the project's log has with LOG_FORMAT=json."""
    config = logging_config("json", "INFO")
    stream = io.StringIO()
    configurator = logging.config.DictConfigurator({**config, "filters": {}})
    handler = logging.StreamHandler(stream)
    handler.setFormatter(configurator.configure_formatter(config["formatters"]["json"]))
    handler.addFilter(AddFields())
    logger = logging.getLogger("proxyhealth")
    logger.addHandler(handler)
    # The level of the root logger may be that of a Celery worker in another test.
    caplog.set_level(logging.INFO, logger.name)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)


@pytest.mark.django_db
def test_json__round(log):
    health.force_update()
    start, end = log()
    assert (start["message"].partition(" token")[0], start["level"]) == ("round start", "INFO")
    assert start["logger"] == "proxyhealth.rounds.runner"
    assert datetime.fromisoformat(start["time"]).tzinfo
    assert end["proxyhealth"].pop("duration") >= 0
    token = start["proxyhealth"]["token"]
    counts = {"proxies": 0, "ok": 0, "unregistered": 0, "unhealthy": 0, "unreachable": 0}
    assert end["proxyhealth"] == {"token": token, **counts}


@pytest.mark.django_db
def test_json__change_of_a_status(log, redis_client):
    proxy = make_proxy('paris "token=1', id=PARIS)
    report = health.HealthReport.sanitized(['"to=ok"\n{'])
    commit([make_status(proxy)], take_token())
    commit([make_status(proxy, Status.UNHEALTHY, reason=Reason.REPORT_ERRORS, report=report)], take_token())
    record_history()
    first, line = log()
    assert (first["proxyhealth"]["from"], first["proxyhealth"]["to"]) == ("unknown", "ok")
    assert line["proxyhealth"] == {
        "proxy": str(PARIS),
        "name": 'paris "token=1',
        "from": "ok",
        "to": "unhealthy",
        "reason": "report_errors",
        "error": '"to=ok" {',
    }


def test_json__exception(log, caplog):
    try:
        raise ValueError("kaputt")
    except ValueError:
        logging.getLogger("proxyhealth.tests").exception("probe failed proxy=%s", PARIS)
    (line,) = log()
    assert line["proxyhealth"] == {"proxy": str(PARIS)}
    assert line["exc_info"].endswith("ValueError: kaputt")
