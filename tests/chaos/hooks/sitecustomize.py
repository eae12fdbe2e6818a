"""A name service of the test's own, for the processes of a deployment.

``HOSTS_FILE`` has a name and its addresses, as of now; it is read at every look-up.
"""

import os
import socket

_real = socket.getaddrinfo


def _getaddrinfo(host, *args, **kwargs):
    with open(os.environ["HOSTS_FILE"]) as file:
        name, *addresses = file.read().split()
    if host != name:
        return _real(host, *args, **kwargs)
    return [info for address in addresses for info in _real(address, *args, **kwargs)]


if "HOSTS_FILE" in os.environ:
    socket.getaddrinfo = _getaddrinfo
