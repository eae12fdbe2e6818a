"""Loaded first of all by the Python processes of a deployment that has this folder on its path.

``HOSTS_FILE`` is a name service of the test's own: a name and its addresses as of now, read at every
look-up. With libfaketime, whose absolute sleeps fail if the monotonic clock is left alone,
``time.sleep()`` is made of something else.
"""

import os
import select
import socket
import time

_getaddrinfo = socket.getaddrinfo


def _by_file(host, *args, **kwargs):
    with open(os.environ["HOSTS_FILE"]) as file:
        name, *addresses = file.read().split()
    if host != name:
        return _getaddrinfo(host, *args, **kwargs)
    return [info for address in addresses for info in _getaddrinfo(address, *args, **kwargs)]


if "HOSTS_FILE" in os.environ:
    socket.getaddrinfo = _by_file

if "FAKETIME_TIMESTAMP_FILE" in os.environ:
    time.sleep = lambda seconds: select.select([], [], [], seconds) and None
