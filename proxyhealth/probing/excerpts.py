"""Messages about responses without a report: the text of the server, and the usual sender of its code."""

import html
import json
import re
from typing import Any

import requests

from proxyhealth.exceptions import BadReport
from proxyhealth.report import MAX_BEGINNING_BYTES, clean
from proxyhealth.statuses import Reason

MAX_EXCERPT = 300

# Parts of error messages in JSON, in this order.
_TEXT_KEYS = (
    "message",
    "msg",
    "error",
    "errors",
    "title",
    "detail",
    "error_description",
    "error_message",
    "errormessage",
    "description",
    "reason",
)
_MAX_DEPTH = 3
_MAX_TEXTS = 5

_HIDDEN = re.compile(
    r"<(script|style|svg|template)\b.*?(?:</\1[^>]*>?|\Z)|<!--.*?(?:-->|\Z)", re.DOTALL | re.IGNORECASE
)
_TEXT_OF_PAGE = 1_000  # characters whose entities are replaced
_TAG = re.compile(r"<[^>]*(?:>|\Z)")

# Other encodings that pages may declare. Python has more, and some of them take quadratic time.
_CHARSET = re.compile(
    r"""charset=["']?(iso-8859-\d+|windows-125\d|koi8-[ru]|utf-16(?:[bl]e)?|shift_jis|euc-(?:jp|kr)|big5"""
    r"""|gbk|gb2312|gb18030)\b""",
    re.IGNORECASE,
)

_NO_HTTP_1 = "a server that does not accept HTTP/1.1, but perhaps HTTP/2"
_USUAL_SENDERS = {
    401: "a sign-in in front of the proxy",
    403: "a firewall or an access list in front of the proxy that refuses the worker",
    404: "a server that is not a workspace proxy, or an old version of one",
    407: "another HTTP proxy between the worker and this one",
    421: "a server that is not configured for this host name",
    426: _NO_HTTP_1,
    429: "a limit of requests in front of the proxy",
    464: "an AWS load balancer whose targets need another version of HTTP, such as HTTP/2 for gRPC",
    502: "a load balancer that cannot connect to the proxy behind it, or gets no valid response from it",
    503: "a load balancer without a healthy server behind it, or a server in maintenance",
    504: "a load balancer that gets no response in time from the proxy behind it",
    505: _NO_HTTP_1,
    **dict.fromkeys((*range(520, 528), 530), "Cloudflare, if the proxy behind it does not respond to it"),
}


def describe_status(response: requests.Response, beginning: bytes) -> str:
    """Describe a response with another status code than 200 for operators."""
    code = response.status_code
    reason = f": {response.reason}" if response.reason else ""
    sender = f"; this usually comes from {_USUAL_SENDERS[code]}" if code in _USUAL_SENDERS else ""
    return (
        clean(f"unexpected status code {code}{reason}", 200)
        + sender
        + _server(response)
        + _says(response, beginning)
    )


def describe_bad_report(bad: BadReport, response: requests.Response) -> str:
    """Describe a body that is not a report for operators."""
    says = _says(response, bad.beginning)
    if bad.reason is not Reason.NOT_JSON:
        return str(bad) + _server(response) + says
    content_type = clean(response.headers.get("content-type", "none"), 100)
    beginning = bad.beginning.strip()[:60].decode(errors="replace")
    if not says or not beginning.startswith("<"):
        says = f", it begins with {beginning!r}" if beginning else ""
    return (
        f"{clean(str(bad), 200)}{says}; its content type is {content_type}{_server(response)}. "
        "A page that is not JSON usually means that the URL is not that of a workspace proxy"
    )


def _server(response: requests.Response) -> str:
    server = clean(response.headers.get("server", ""), 100)
    return f"; its header Server is {server}" if server else ""


def _says(response: requests.Response, body: bytes) -> str:
    text = excerpt(body, response.headers.get("content-type", ""))
    return f"; the body says “{text}”" if text else ""


def excerpt(body: bytes, content_type: str = "") -> str:
    """Return the message in ``body``, the text of a page, or the beginning, without control characters."""
    cut = body[:MAX_BEGINNING_BYTES]
    if charset := _CHARSET.search(content_type[:200]):
        text = _decode(cut[: MAX_BEGINNING_BYTES // 2], charset[1])  # replacing invalid bytes is slow
    else:
        text = _decode(cut, "utf-8-sig")
    if "\0" in text or 10 * text.count("\ufffd") > len(text):
        return ""  # binary data
    if text.startswith("<"):
        words = _TAG.sub(" ", _HIDDEN.sub(" ", text)).split()
        text = html.unescape(" ".join(words)[:_TEXT_OF_PAGE])
    elif len(cut) < MAX_BEGINNING_BYTES:
        text = _message_of(text) or text
    return clean(" ".join(text.split()), MAX_EXCERPT).strip()


def _decode(text: bytes, encoding: str) -> str:
    try:
        return text.decode(encoding, "replace").strip("\ufeff \t\r\n").rstrip("\ufffd")
    except LookupError:  # for example, there is no ISO-8859-12
        return _decode(text, "utf-8-sig")


def _message_of(text: str) -> str:
    """Return the message of an error in JSON, or an empty string."""
    try:
        document = json.loads(text, parse_int=str)
        return " ".join(dict.fromkeys(_texts(document, _MAX_DEPTH))).strip()
    except (ValueError, RecursionError):
        return ""


def _texts(value: Any, depth: int) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts: list[Any] = []
    if isinstance(value, list):
        parts = value[:_MAX_TEXTS]
    elif isinstance(value, dict):
        by_name = {name.lower(): part for name, part in value.items()}
        parts = [by_name[key] for key in _TEXT_KEYS if key in by_name]
    return [text for part in parts if depth for text in _texts(part, depth - 1)]
