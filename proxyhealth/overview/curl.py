"""The request of a probe as a command that people run in a shell."""

import shlex

from proxyhealth.conf import conf
from proxyhealth.probing.probe import MAX_REDIRECTS, first_request


def curl_command(proxy_url: str) -> str:
    """Return the command of curl that sends the request of a probe, or '' if none can be sent to the URL.

    It has the address, the headers, the time limit, and the certificate authorities of the probe. Neither the
    environment nor files of the user change the request.
    """
    if not proxy_url:
        return ""
    try:
        url, headers = first_request(proxy_url)
    except ValueError:
        return ""
    arguments = ["--disable", "--globoff", "--http1.1", "--include", "--noproxy", "*"]
    arguments += ["--location", "--max-redirs", str(MAX_REDIRECTS), "--max-time", f"{conf.TIMEOUT:g}"]
    if conf.CA_BUNDLE and url.startswith("https:"):
        arguments += ["--cacert", str(conf.CA_BUNDLE)]
    for name, value in headers.items():
        arguments += ["--header", f"{name}: {value}"]
    return shlex.join(["curl", *arguments, url])
