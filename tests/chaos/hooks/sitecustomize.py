"""Changes to Python itself. Each Python process with this folder on its path loads this module first.

``HOSTS_FILE`` names a file with a host name and its addresses. Each look-up of that name reads it anew, so a
test can move a host. libfaketime breaks ``time.sleep()`` when it leaves the monotonic clock alone, so
``select()`` sleeps instead.
"""

import os
import select
import socket
import time

_getaddrinfo = socket.getaddrinfo


def _getaddrinfo_with_file(host, *args, **kwargs):
    with open(os.environ["HOSTS_FILE"]) as file:
        name, *addresses = file.read().split()
    if host != name:
        return _getaddrinfo(host, *args, **kwargs)
    return [info for address in addresses for info in _getaddrinfo(address, *args, **kwargs)]


if "HOSTS_FILE" in os.environ:
    socket.getaddrinfo = _getaddrinfo_with_file

if "FAKETIME_TIMESTAMP_FILE" in os.environ:
    time.sleep = lambda seconds: select.select([], [], [], seconds) and None
