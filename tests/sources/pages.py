"""A web server that behaves, and one that does not."""

from __future__ import annotations

import contextlib
import http.server
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


class Pages:
    """What a web server has, and what it was asked for.

    Attributes:
        content: Files by their paths.
        asked: Methods and paths, in their order.
        ranges: Whether it knows of parts of files.
        down: GETs after which it fails, or 0.
        failing: What it answers to the next requests from then on, the last for ever: a status, or None for nothing.
        address: Where it is.
    """

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.ranges = True
        self.down = 0
        self.failing: Sequence[int | None] = ()
        self.address = ""

    def fails(self) -> bool:
        return bool(self.failing) and sum(method == "GET" for method, _ in self.asked) > self.down


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, pages: Pages, *arguments: Any) -> None:
        self.pages = pages
        super().__init__(*arguments)

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.pages.asked.append((self.command, self.path))
        if self.pages.fails():
            status = self.pages.failing[0]
            if len(self.pages.failing) > 1:
                self.pages.failing = self.pages.failing[1:]
            if status is None:
                self.close_connection = True
                return
            if status != 200:
                self.answer(status, b"down")
                return
        if path.startswith("/closed"):
            self.answer(403, b"closed")
        elif path == "/endless.jpg":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                while self.command == "GET":
                    self.wfile.write(bytes(1 << 16))
        elif path not in self.pages.content:
            self.answer(404, b"none")
        else:
            self.answer(200, self.pages.content[path])

    def answer(self, status: int, data: bytes) -> None:
        span = self.headers.get("Range", "").removeprefix("bytes=")
        if span and status == 200 and self.pages.ranges:
            first, last = span.split("-")
            data, status = data[int(first) : int(last) + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "text/html" if data.startswith(b"<") else "image/png")
        self.send_header("ETag", f'"{hash(data)}"')
        if not self.pages.ranges:
            self.send_header("Accept-Ranges", "none")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
