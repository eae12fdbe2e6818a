"""The signatures of webhooks, verified by the programs in docs/notifications.md."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proxyhealth.notifications import transport
from proxyhealth.notifications.webhook import signature
from proxyhealth.targets import new_secret
from tests.notifications.messages import make_message, webhook
from tests.support.receivers import WebhookReceiver

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "notifications.md").read_text()
BODY = b'{"id": "7"}'


def example(start):
    (code,) = re.findall(rf"```\w+\n{start}\n(.*?)```", DOCS, re.DOTALL)
    return code


@pytest.fixture(scope="module")
def verify():
    namespace = {}
    exec(example(r"# verify\.py"), namespace)
    return namespace["verify"]


@pytest.fixture(scope="module")
def request_sent():
    """A secret, and the header and the body of a request that was really sent."""
    with WebhookReceiver() as server:
        channel = webhook(server.url)
        transport.send(channel, make_message())
    ((_, headers, body),) = server.received
    return channel.secret, headers["proxyhealth-signature"], body


def test_signature__verified_by_the_documented_program(verify, request_sent):
    secret, header, body = request_sent
    verify(secret, header, body)
    for wrong in (
        (new_secret(), header, body),
        (secret, header, body + b" "),
        (secret, header, body[:-1]),
        (secret, header.replace("v1=", "v2="), body),
        (secret, header.replace("t=1", "t=01"), body),
        (secret, header[:-1], body),
        (secret, header.partition(",")[0], body),
    ):
        with pytest.raises(ValueError, match="not valid"):
            verify(*wrong)


@pytest.mark.parametrize("age", [-301, 301, 86_400])
def test_signature__replay_outside_the_clock_window(age, verify):
    secret = new_secret()
    header = signature(secret, BODY, int(time.time()) - age)
    with pytest.raises(ValueError, match="too old"):
        verify(secret, header, BODY)
    fresh = header.replace(header.partition(",")[0], f"t={int(time.time())}")
    with pytest.raises(ValueError, match="not valid"):
        verify(secret, fresh, BODY)


@pytest.mark.parametrize("header", ["", "t=", "v1=a", "t=x,v1=é", "t=1,t=2", ",=,"])
def test_signature__malformed_header(header, verify):
    with pytest.raises(ValueError, match=r"too old|not valid"):
        verify(new_secret(), header, BODY)


def test_signature__both_secrets_while_one_is_replaced(verify):
    old, new = new_secret(), new_secret()
    with WebhookReceiver() as server:
        transport.send(webhook(server.url, secret=f"{new} {old}"), make_message())
    ((_, headers, body),) = server.received
    for secret in (old, new):
        verify(secret, headers["proxyhealth-signature"], body)


def test_signature__verified_by_node(request_sent, tmp_path):
    secret, header, body = request_sent
    old = signature(secret, body, int(time.time()) - 301)
    (tmp_path / "verify.mjs").write_text(example(r"// verify\.mjs"))
    (tmp_path / "body").write_bytes(body)
    (tmp_path / "run.mjs").write_text(
        """
        import { readFileSync } from "node:fs";
        import { verify } from "./verify.mjs";
        const body = readFileSync("body");
        for (const [secret, header] of JSON.parse(process.argv[2])) {
          try { verify(secret, header, body); console.log("valid"); }
          catch (error) { console.log(error.message); }
        }
        """
    )
    calls = [[secret, header], [new_secret(), header], [secret, old], [secret, "t=x"], [secret, header + "0"]]
    done = subprocess.run(
        [Path(sys.executable).parent / "node", "run.mjs", json.dumps(calls)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    not_valid, too_old = "The signature is not valid.", "The signature is too old, or the clocks differ."
    assert done.stdout.splitlines() == ["valid", not_valid, too_old, too_old, not_valid]
