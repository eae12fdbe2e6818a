"""A response that must be complete, and that can be read in only one way."""

import http.client
import re
from contextlib import suppress

from proxyhealth.exceptions import TooManyBytes
from proxyhealth.probing.sockets import PlainSocket
from proxyhealth.trace import HEADERS

MAX_HEADERS = 100
MAX_CHUNK_LINE = 4 * 1024

# Bytes of another protocol that tell which one it is, and seconds to wait for them.
_FRAME_HEADER = 9
_FRAME_TIMEOUT = 0.2

_VERSION = re.compile(rb"HTTP/1\.[0-9]")
_STATUS_LINE = re.compile(rb"(HTTP/[0-9.]{3}) ([1-9][0-9]{2})(?: ([^\0\r\n]*))?(\r?\n)")
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\0\r\n]*)(\r?\n)")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,16})[ \t]*(?:;[^\0\r\n]*)?\r\n")
_CONTENT_LENGTH = re.compile(r"[0-9]{1,18}")

_CLOSED = "the connection was closed"
_BAD_CHUNKS = "the chunks of the body are malformed"


class Response:
    """An HTTP response. It is refused if clients could read it in different ways.

    ``http.client`` also guesses the length of a body from invalid headers, and accepts what a closed
    connection cuts off.
    """

    def __init__(self, sock: PlainSocket) -> None:
        self.status = 0
        self.reason = ""
        self.headers: dict[str, str] = {}  # by name in lower case
        self.deadline = sock.deadline
        self._sock = sock
        self._file = sock.makefile("rb")
        self._chunked = False
        self._in_chunk = False  # a chunk has begun, so its line end is still to come
        self._left: int | None = None  # bytes of the body, or of the chunk; None: until the connection ends

    def begin(self) -> None:
        """Read the headers. Raise ``HTTPException`` if they are malformed or ambiguous, or ``OSError``."""
        version = self._read_head()
        while 100 <= self.status < 200 and self.status != 101:
            if "content-length" in self.headers or "transfer-encoding" in self.headers:
                raise http.client.HTTPException(f"a response {self.status} with a body")
            version = self._read_head()
        coding = self.headers.get("transfer-encoding")
        length = self.headers.get("content-length")
        if coding is not None:
            self._chunked = True
            self._left = 0
            if coding.lower() != "chunked":
                raise http.client.HTTPException("Transfer-Encoding is not chunked")
            if length is not None:
                raise http.client.HTTPException("both Transfer-Encoding and Content-Length")
            if version == b"HTTP/1.0":
                raise http.client.HTTPException("Transfer-Encoding in HTTP/1.0")
        elif length is not None:
            if not _CONTENT_LENGTH.fullmatch(length):
                raise http.client.HTTPException("Content-Length is not a number of bytes")
            self._left = int(length)

    def read(self, size: int) -> bytes:
        """Return the next bytes of the body, at most ``size``, or nothing at its end.

        Raise ``HTTPException`` if the body is malformed, or ``OSError``, also if it is cut off.
        """
        if self._chunked and self._left == 0:
            self._begin_chunk()
        if self._left == 0:
            return b""
        data = self._file.read1(size if self._left is None else min(size, self._left))
        if self._left is not None:
            if not data:
                raise ConnectionResetError(_CLOSED)
            self._left -= len(data)
        return data

    def close(self) -> None:
        """Close the file of the connection."""
        self._file.close()

    def _read_head(self) -> bytes:
        """Read a status line and headers. Return the version."""
        start = self._file.peek(1)[:5]
        if not start:
            raise http.client.RemoteDisconnected("Remote end closed connection without response")
        if not self.status:  # else it follows an interim response
            self.deadline.mark(HEADERS)
        if not b"HTTP/".startswith(start):
            raise http.client.BadStatusLine(self._read_frame_header().decode("latin-1"))
        line = self._read_line()
        version = line.split(None, 1)[0]
        if not _VERSION.fullmatch(version):
            raise http.client.UnknownProtocol(version.decode("latin-1"))
        status_line = _STATUS_LINE.fullmatch(line)
        if status_line is None:
            raise http.client.BadStatusLine(line.decode("latin-1"))
        self.status = int(status_line[2])
        self.reason = (status_line[3] or b"").decode("latin-1").strip()
        self._read_headers(status_line[4])
        return version

    def _read_frame_header(self) -> bytes:
        """Return the beginning of a response that is not HTTP. Its first line may never end."""
        start = b""
        with suppress(OSError):
            self.deadline.shorten(_FRAME_TIMEOUT)
            while len(start) < _FRAME_HEADER and (piece := self._file.read1(64)):
                start += piece
        return start

    def _read_headers(self, line_end: bytes) -> None:
        """Read header lines. A line with another end than the status line could be one line or two."""
        headers: dict[str, str] = {}
        count = 0
        while (line := self._read_line()) != line_end:
            count += 1
            if count > MAX_HEADERS:
                raise http.client.HTTPException(f"got more than {MAX_HEADERS} headers")
            header = _HEADER.fullmatch(line)
            if header is None or header[3] != line_end:
                raise http.client.HTTPException("malformed header line")
            name, value = header[1].decode("ascii").lower(), header[2].strip(b" \t").decode("latin-1")
            if name == "transfer-encoding" and header[2][-1:].isspace():
                value += " "  # Python's http.client takes "chunked " for another coding
            if name in headers:
                value = _combined(name, headers[name], value)
            headers[name] = value
        self.headers = headers

    def _read_line(self) -> bytes:
        line = self.deadline.read_line(self._file.readline)
        if not line.endswith(b"\n"):
            raise ConnectionResetError(f"{_CLOSED} in the middle of the headers")
        return line

    def _begin_chunk(self) -> None:
        """Read the size of the next chunk. After the last one, read the trailers and end the body."""
        if self._in_chunk and (line := self._file.readline(3)) != b"\r\n":
            raise self._bad_chunks(line)
        self._in_chunk = True
        line = self.deadline.read_line(self._file.readline, MAX_CHUNK_LINE)
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None or len(line) > MAX_CHUNK_LINE:
            raise self._bad_chunks(line)
        self._left = int(size[1], 16)
        if self._left == 0:
            self._chunked = False
            self._read_trailers()

    def _read_trailers(self) -> None:
        for _ in range(MAX_HEADERS):
            line = self.deadline.read_line(self._file.readline)
            if line == b"\r\n":
                return
            trailer = _HEADER.fullmatch(line)
            if trailer is None or trailer[3] != b"\r\n":
                raise self._bad_chunks(line)
        raise TooManyBytes(f"more than {MAX_HEADERS} trailers")

    def _bad_chunks(self, line: bytes) -> Exception:
        if self._sock.ended and not line.endswith(b"\n"):
            return ConnectionResetError(_CLOSED)
        return http.client.HTTPException(_BAD_CHUNKS)


def _combined(name: str, first: str, second: str) -> str:
    """Return the value of a repeated header. Raise ``HTTPException`` if only one of the values can count."""
    match name:
        case "transfer-encoding" | "content-encoding" | "server":
            return f"{first}, {second}"
        case "content-length" | "location" if first != second:
            raise http.client.HTTPException(f"different values of {name.title()}")
    return second
