"""Heartbeats of real rounds at real HTTP servers."""

import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest
from django.core.cache import caches
from django.db import connection

from proxyhealth.conf import conf
from proxyhealth.exceptions import RoundFailed
from proxyhealth.models import WorkspaceProxy
from proxyhealth.notifications import heartbeats
from proxyhealth.rounds import runner, sharing
from proxyhealth.rounds.recheck import run_check
from proxyhealth.rounds.shards import Plan
from proxyhealth.storage import presence, reader
from proxyhealth.storage.plan import load_plan
from tests.support.machine import at_most
from tests.support.proxies import wait_for
from tests.support.servers import Server, redirect, refusing, response, send, silent
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db

KEY = caches["default"].make_key("proxyhealth:presence")
SECRET = "0a1b2c3d-secret"
OK = send(response(b"OK"))


@pytest.fixture(autouse=True)
def heart(monkeypatch):
    """The heartbeats of this process, which try again at once."""
    monkeypatch.setattr(heartbeats, "_PAUSE", 0.0)
    heartbeats._heartbeats.reset()
    yield heartbeats._heartbeats.value
    heartbeats._heartbeats.value.wait(10)


@pytest.fixture
def listen(configure):
    """``listen(script, …)`` starts a server per script. The heartbeats go to all of them."""
    with ExitStack() as stack:

        def start(*scripts):
            servers = [stack.enter_context(Server(script)) for script in scripts]
            configure(HEARTBEAT_URLS=[f"{server.url}/ping/{SECRET}?a=b" for server in servers])
            return servers

        yield start


def beat(heart):
    heartbeats.send()
    heart.wait(10)


def test_heartbeat__last_result_is_in_the_cache(listen, heart, redis_client):
    """The page of the prober shows it, and no part of the URL but its host."""
    servers = listen(OK, send(response(b"", status=500)))
    beat(heart)
    good, bad = (presence.read().heartbeats[heartbeats.id_of(url)] for url in conf.HEARTBEAT_URLS)
    assert (good.text("error"), bad.text("error")) == ("", "status 500")
    assert (good.since, bad.since is None) == (None, False)
    assert heartbeats.host_of(conf.HEARTBEAT_URLS[1]) == f"127.0.0.1:{servers[1].port}"
    stored = b"".join(value for pair in redis_client.hgetall(KEY).items() for value in pair)
    assert SECRET.encode() not in stored


def test_heartbeat__after_each_full_round(listen, heart):
    first, second = listen(OK, OK)
    for _ in range(2):
        runner.run_round()
        heart.wait(10)
    assert first.paths == second.paths == 2 * [f"/ping/{SECRET}?a=b"]


def test_heartbeat__not_after_checks_and_failures(listen, heart, serve):
    (server,) = listen(OK)
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    run_check([proxy.pk])
    with connection.execute_wrapper(refuse_queries), pytest.raises(RoundFailed):
        runner.run_round()
    heart.wait(10)
    assert server.paths == []


def test_heartbeat__not_while_the_prober_is_offline(listen, heart, configure, settings):
    (server,) = listen(OK)
    with refusing() as port:
        settings.PROXYHEALTH = {**settings.PROXYHEALTH, "CANARY_URLS": [f"http://127.0.0.1:{port}/"]}
        WorkspaceProxy.objects.create(name="paris", url=f"http://127.0.0.1:{port}")
        with pytest.raises(RoundFailed):
            runner.run_round()
    heart.wait(10)
    assert server.paths == []


@pytest.mark.parametrize("is_complete", [True, False])
def test_heartbeat__once_per_shared_round(listen, heart, serve, settings, monkeypatch, is_complete):
    (server,) = listen(OK)
    settings.PROXYHEALTH = {**settings.PROXYHEALTH, "SHARD_SIZE": 2}
    url = serve().url
    for i in range(4):
        WorkspaceProxy.objects.create(name=f"p{i}", url=url)
    monkeypatch.setattr(sharing, "chord", lambda shards: lambda end: None)
    assert runner.run_round(share=True) == "shared"
    plan = Plan.load(load_plan())
    parts = [
        sharing.run_shard(plan.token, index, plan.checked_at, shard)
        for index, shard in enumerate(plan.shards if is_complete else plan.shards[:1])
    ]
    for _ in range(2):  # a task may be delivered twice
        sharing.finish_shared_round(plan.token, parts)
    heart.wait(10)
    assert len(server.paths) == is_complete


def test_heartbeat__hanging_url_delays_nothing(configure, heart, monkeypatch):
    monkeypatch.setattr(heartbeats, "_TIMEOUT", 0.1)
    with silent() as port, Server(OK) as server:
        configure(HEARTBEAT_URLS=[f"http://127.0.0.1:{port}/{SECRET}", server.url])
        with at_most(0.2):
            for _ in range(3):
                heartbeats.send()
        threads = [each for each in threading.enumerate() if each.name == "proxyhealth heartbeat"]
        assert len(threads) <= 2
        wait_for(lambda: server.paths)
        with at_most(2):
            heart.wait(10)


def test_heartbeat__endless_response_ends(listen, heart, monkeypatch, caplog):
    monkeypatch.setattr(heartbeats, "_TIMEOUT", 0.1)
    over = threading.Event()

    def trickle(sock):
        sock.sendall(b"HTTP/1.1 200 OK\r\n")
        while not over.wait(0.02):
            sock.sendall(b"X: y\r\n")

    listen(trickle)
    with at_most(2):
        beat(heart)
    over.set()
    assert "error=" in caplog.text


def test_heartbeat__body_is_not_read(listen, heart, caplog):
    listen(send(response(b"x", length=10**12)))
    beat(heart)
    assert "heartbeat" not in caplog.text


def test_heartbeat__second_attempt(listen, heart, caplog):
    answers = [response(b"", status="503 Busy"), response(b"OK")]
    (server,) = listen(lambda sock: sock.sendall(answers.pop(0)))
    beat(heart)
    assert len(server.paths) == 2
    assert "heartbeat" not in caplog.text


def test_heartbeat__failure_is_logged_once(listen, heart, caplog):
    caplog.set_level("INFO")
    answers = 4 * [response(SECRET, status="404 Not Found")] + [response(b"OK")]
    (server,) = listen(lambda sock: sock.sendall(answers.pop(0)))
    for _ in range(3):
        beat(heart)
    assert [record.getMessage() for record in caplog.records if "heartbeat" in record.getMessage()] == [
        f"heartbeat failed host={server.netloc} error=status 404",
        f"heartbeat accepted again host={server.netloc}",
    ]
    assert SECRET not in caplog.text


def test_heartbeat__three_redirects(listen, heart, caplog):
    answers = 3 * [redirect(f"/moved/{SECRET}")] + [response(b"OK")]
    (server,) = listen(lambda sock: sock.sendall(answers.pop(0)))
    beat(heart)
    assert server.paths == [f"/ping/{SECRET}?a=b", *3 * [f"/moved/{SECRET}"]]
    assert "heartbeat" not in caplog.text


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            send(redirect(f"ftp://example.com/{SECRET}")),
            "the URL, or one that it redirects to, cannot be used",
        ),
        (send(redirect(f"http://[{SECRET}/")), "the URL, or one that it redirects to, cannot be used"),
        (send(redirect(f"/moved/{SECRET}")), "more than 3 redirects"),
        (send(SECRET.encode()), "BadStatusLine while waiting for 127.0.0.1"),
        (send(b""), "RemoteDisconnected while waiting for 127.0.0.1"),
    ],
)
def test_heartbeat__error_shows_no_secret(listen, heart, caplog, script, words):
    listen(script)
    beat(heart)
    assert words in caplog.text
    assert SECRET not in caplog.text


def test_heartbeat__invalid_setting_fails_no_round(configure, caplog):
    configure(HEARTBEAT_URLS=f"https://hc.example.com/{SECRET}")
    assert runner.run_round() == "success"
    assert not reader.read().stale
    assert "no heartbeat was sent: PROXYHEALTH['HEARTBEAT_URLS'] must be a list" in caplog.text
    assert SECRET not in caplog.text


def test_heartbeat__of_a_process_that_ends():
    def answer_late(sock):
        time.sleep(0.1)
        sock.sendall(response(b"OK"))
        answered.set()

    answered = threading.Event()
    with Server(answer_late) as server:
        code = (
            f"from proxyhealth.notifications.heartbeats import _heartbeats as h; h.value.send({server.url!r})"
        )
        subprocess.run([sys.executable, "-c", code], timeout=30, check=True)
        assert answered.is_set()
