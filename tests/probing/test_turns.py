"""Turns: one probe of a process works at a time, and waiting ones do not keep it from working."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from proxyhealth.probing import pool, tls
from proxyhealth.probing.deadline import Deadline
from proxyhealth.probing.probe import probe
from proxyhealth.probing.turns import Turn, Turns, turns
from proxyhealth.statuses import Reason, Status
from tests.support.proxies import wait_for
from tests.support.values import make_proxy

NOW = datetime.now(UTC)


def is_taken() -> bool:
    return turns.value.lock.locked()


def probe_urls(*urls):
    return pool.probe_all([replace(make_proxy(), url=url) for url in urls], NOW)


def test_turns__one_at_a_time(configure):
    configure(TIMEOUT=60)
    value, working, most = Turns(), [], []

    def work(number):
        turn = Turn(value)
        for _ in range(2):
            with turn:
                for _ in range(5):
                    working.append(number)
                    most.append(len(working))
                    working.remove(number)
                    with turn.pause():
                        threading.Event().wait(0.001)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert len(most) == 80
    assert set(most) == {1}


def test_turns__running_probe_competes_with_one_beginner(configure):
    configure(TIMEOUT=60)
    value, begun = Turns(), []

    def begin():
        with Turn(value):
            begun.append(True)

    turn = Turn(value)
    with turn:
        threads = [threading.Thread(target=begin) for _ in range(5)]
        for thread in threads:
            thread.start()
        wait_for(value.next.locked)
        with turn.pause():
            wait_for(lambda: begun)
        assert value.lock.locked()
    for thread in threads:
        thread.join(10)
    assert len(begun) == 5


def test_turn__that_hangs_ends(configure):
    """Otherwise one probe that hangs would make all others time out."""
    configure(TIMEOUT=0.1)
    value = Turns()
    first, others = Turn(value), [Turn(value), Turn(value)]
    with first:
        for other in others:
            with other, other.pause():
                pass
        assert not value.lock.locked()
    with first, first.pause():
        pass
    assert not value.lock.locked()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_turn__ends_with_an_error(error):
    value = Turns()
    turn = Turn(value)
    with pytest.raises(error), turn, turn.pause():
        raise error
    assert not value.lock.locked()


def test_turn__is_free_while_a_proxy_is_silent(serve):
    silent, good = serve(), serve()
    silent.gate.clear()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(probe_urls, silent.url)
        wait_for(lambda: silent.requests)
        wait_for(lambda: not is_taken())
        (status,) = probe_urls(good.url)
        assert status.status is Status.OK
        assert not waiting.done()
        silent.gate.set()
        assert waiting.result()[0].status is Status.OK


def test_turn__is_free_while_a_file_hangs(serve):
    """CA_BUNDLE may be on a network file system."""
    lock = turns.value.lock
    with ThreadPoolExecutor(1) as thread:
        with tls._build_lock.value:
            waiting = thread.submit(probe_urls, "https://127.0.0.1:1")
            wait_for(lambda: turns.value.lock.locked() or waiting.running())
            assert [status.status for status in probe_urls(*3 * [serve().url])] == 3 * [Status.OK]
            assert turns.value.lock is lock, "no turn was too long"
            assert not waiting.done()
        assert waiting.result()[0].reason is Reason.CONNECT


def test_turn__is_free_after_an_internal_error(serve, configure):
    configure(CA_BUNDLE="/missing")
    failed, good = probe_urls("https://127.0.0.1:1", serve().url)
    assert (failed.reason, good.status) == (Reason.INTERNAL, Status.OK)
    assert not is_taken()


def test_turn__waiting_for_it_does_not_count(serve, configure, monkeypatch):
    """The response arrives in time, but another probe works until after the deadline."""
    configure(TIMEOUT=1)
    turn, taken = Turn(Turns()), Turns.take

    def take_late(value):
        time.sleep(0.6)
        return taken(value)

    monkeypatch.setattr(Turns, "take", take_late)
    with turn:
        status = probe(replace(make_proxy(), url=serve().url), NOW, turn)
    assert turn.waited > 1
    assert (status.status, status.reason) == (Status.OK, Reason.NONE)
    assert status.latency < 0.5


def test_turn__waiting_counts_after_a_timeout():
    """A probe ends after twice the TIMEOUT at the latest."""
    turn = Turn(Turns())
    deadline = Deadline(0.1, turn)
    turn.waited = 60.0
    assert 0.1 < deadline.remaining() <= 0.2
    turn.waited = 0.0
    deadline.shorten(0.05)
    assert deadline.remaining() <= 0.05
