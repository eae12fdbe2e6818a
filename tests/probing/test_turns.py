"""Turns: one probe of a process works at a time, and waiting ones do not keep it from working."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from proxyhealth.probing import pool
from proxyhealth.probing.turns import Turns, turns
from proxyhealth.statuses import Reason, Status
from tests.support.proxies import wait_for
from tests.support.values import make_proxy

NOW = datetime.now(UTC)


def is_taken() -> bool:
    return turns.value._turn.locked()


def probe_urls(*urls):
    return pool.probe_all([replace(make_proxy(), url=url) for url in urls], NOW)


def test_turns__one_at_a_time():
    value, working, most = Turns(), [], []

    def work(number):
        with value.begin() as pause:
            for _ in range(5):
                working.append(number)
                most.append(len(working))
                working.remove(number)
                with pause():
                    threading.Event().wait(0.001)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert len(most) == 40
    assert set(most) == {1}


def test_turns__running_probe_competes_with_one_beginner():
    value, begun = Turns(), []

    def begin():
        with value.begin():
            begun.append(True)

    with value.begin() as pause:
        threads = [threading.Thread(target=begin) for _ in range(5)]
        for thread in threads:
            thread.start()
        wait_for(value._next.locked)
        with pause():
            wait_for(lambda: begun)
        assert value._turn.locked()
    for thread in threads:
        thread.join(10)
    assert len(begun) == 5


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_turn__ends_with_an_error(error):
    value = Turns()
    with pytest.raises(error), value.begin() as pause, pause():
        raise error
    assert not value._turn.locked()


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


def test_turn__is_free_after_an_internal_error(serve, configure):
    configure(CA_BUNDLE="/missing")
    failed, good = probe_urls("https://127.0.0.1:1", serve().url)
    assert (failed.reason, good.status) == (Reason.INTERNAL, Status.OK)
    assert not is_taken()
