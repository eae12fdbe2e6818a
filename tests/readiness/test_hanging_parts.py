"""Parts that hang: the answer comes in time, no threads pile up, and an event loop goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncClient, Client

from proxyhealth.readiness import parts
from tests.support.machine import at_most
from tests.support.servers import Server

LIMIT = 0.2


@pytest.fixture
def hanging(use_database, monkeypatch, django_db_blocker):
    """A real client of PostgreSQL, whose server accepts the connection and says nothing."""

    def say_nothing(sock):
        sock.recv(1)
        sock.recv(1 << 16)
        sock.recv(1)  # until the test ends, or the client

    monkeypatch.setattr(parts, "LIMIT", LIMIT)
    with Server(say_nothing, read=False) as server, django_db_blocker.unblock():
        use_database(
            ENGINE="django.db.backends.postgresql",
            HOST="127.0.0.1",
            PORT=server.port,
            OPTIONS={"connect_timeout": 2, "sslmode": "disable"},
        )
        yield


def our_threads():
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith("proxyhealth readiness")
    ]


def test_readyz__database_hangs(hanging, redis_client):
    with at_most(LIMIT + 1):
        response = Client().get("/readyz")
    assert response.status_code == 503
    assert response.json()["parts"]["database"] == {
        "ok": False,
        "required": True,
        "message": "It does not respond within 0.2 s.",
    }
    with at_most(2, "60 times the limit is 12 s"), ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: Client().get("/readyz?require=cache").status_code, range(60)))
        assert our_threads().count("proxyhealth readiness database") == 1
    assert set(answers) == {200}


def test_readyz__database_hangs_under_asgi(hanging, redis_client):
    client = AsyncClient()
    before = threading.active_count()
    most_threads = 0

    async def count_threads(end):
        nonlocal most_threads
        while not end.is_set():
            most_threads = max(most_threads, threading.active_count() - before)
            await asyncio.sleep(0.005)

    async def main():
        end = asyncio.Event()
        counter = asyncio.create_task(count_threads(end))
        answers = await asyncio.gather(*(client.get("/readyz") for _ in range(100)))
        end.set()
        await counter
        return {answer.status_code for answer in answers}

    assert async_to_sync(main)() == {503}
    assert most_threads < 50, "Django itself uses some for a moment"


def test_aexamine__the_event_loop_goes_on(hanging, redis_client):
    async def main():
        examining = asyncio.create_task(parts.aexamine())
        turns = 0
        while not examining.done():
            await asyncio.sleep(0.01)
            turns += 1
        return turns

    assert async_to_sync(main)() > 3


def test_examine__a_result_that_comes_too_late(monkeypatch):
    monkeypatch.setattr(parts, "LIMIT", 0.01)
    check = parts._Check("slow", lambda: time.sleep(0.05) or {})
    future = check.begin()
    assert check.result(future).message == "It does not respond within 0.01 s."
    assert future.result(10).message.startswith("It took 0.")
    assert not check.result(future).ok


def test_examine__no_more_threads(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert not any(part.ok for part in parts.examine().values())


def test_examine__results_are_shared_for_a_second(monkeypatch):
    calls = []
    check = parts._Check("counted", lambda: calls.append(1) or {})
    future = check.begin()
    future.result(10)
    assert check.begin() is future
    check._fresh_until = 0
    assert check.begin() is not future
