"""The task that beat sends, on the connection that beat keeps."""

import pytest
from kombu import Connection

from project.celery import app
from proxyhealth.task_names import TaskName
from tests.settings import REDIS_PORT
from tests.support.forwarder import Forwarder
from tests.support.proxies import queued


def test_tick__next_one_finds_the_new_primary(redis_client):
    task = app.tasks[TaskName.CHECK_ALL]
    with Forwarder(REDIS_PORT) as broker, Connection(f"redis://127.0.0.1:{broker.port}/0") as connection:
        producer = app.amqp.Producer(connection, auto_declare=False)  # as beat makes it
        task.apply_async((), {"gap": 1}, producer=producer, retry=False)
        broker.refuse(b"-READONLY You can't write against a read only replica.\r\n")
        with pytest.raises(Exception, match="read only replica"):
            task.apply_async((), {"gap": 2}, producer=producer, retry=False)
        task.apply_async((), {"gap": 3}, producer=producer, retry=False)
    assert [header["kwargsrepr"] for header in queued(redis_client)] == ["{'gap': 3}", "{'gap': 1}"]
