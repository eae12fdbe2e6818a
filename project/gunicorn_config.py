"""The configuration of gunicorn: ``gunicorn --config python:project.gunicorn_config project.wsgi``.

Gunicorn itself reads WEB_CONCURRENCY (processes), FORWARDED_ALLOW_IPS, and GUNICORN_CMD_ARGS, such as --bind.
"""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

# In the master, too: an invalid environment ends it at once, and its lines have the format of the others.
from project.settings import LOGGING

logconfig_dict = LOGGING
worker_class = "gthread"
threads = 4
# Longer than that of a server in front, which otherwise sends requests on connections that just closed.
keepalive = 75
control_socket_disable = True  # it would be in the home directory, which a service may not have
# The files of the heartbeat must not wait for a disk.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108
