"""An ASGI server in a thread of the test process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from tests.support.proxies import wait_for
from tests.support.servers import listener


@contextmanager
def serving(application: Any) -> Iterator[str]:
    """Serve ``application`` with uvicorn, and yield its address, ``host:port``."""
    sock = listener()
    server = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        wait_for(lambda: server.started, 10)
        yield "{}:{}".format(*sock.getsockname())
    finally:
        server.should_exit = True
        thread.join(30)
        sock.close()
