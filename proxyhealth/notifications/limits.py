"""A time limit for calls that have none of their own, such as those of email backends."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from django.db import connections

from proxyhealth.exceptions import DeliveryFailed
from proxyhealth.utils import PerProcess

T = TypeVar("T")

TIMEOUT = 10.0  # seconds for one message to one channel


class _Calls:
    """The calls of this process that have not returned, by the id of their channel."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: set[int] = set()


_calls = PerProcess(_Calls)


def within_limit(channel: int | None, call: Callable[[], T]) -> T:
    """Return the result of ``call``, or raise ``DeliveryFailed`` after ``TIMEOUT``.

    Nothing can end a call that hangs. Its thread stays, and until it returns, the channel gets no other one:
    a service that hangs for a day must not collect a thread for each attempt.
    """
    calls = _calls.value
    if channel is not None:
        with calls.lock:
            if channel in calls.running:
                raise DeliveryFailed("the last attempt of this process still waits for an answer")
            calls.running.add(channel)
    future: Future[T] = Future()

    def work() -> None:
        try:
            try:
                result = call()
            finally:
                connections.close_all()  # those of this thread: some email backends write to the database
                with calls.lock:
                    calls.running.discard(channel)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    thread = threading.Thread(target=work, name=f"proxyhealth channel {channel}", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # this machine has no more threads
        with calls.lock:
            calls.running.discard(channel)
        raise
    try:
        return future.result(TIMEOUT)
    except TimeoutError:
        if future.done():
            raise  # that of the call
        raise DeliveryFailed(f"no answer within {TIMEOUT:g} s") from None
