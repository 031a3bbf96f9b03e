"""Servers that answer as broken ones do: with a status, with what is not theirs, or never."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class BrokenServer(ThreadingHTTPServer):
    """Answers every request with one status and body; the status 0 never answers."""

    daemon_threads = True

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), BrokenHandler)
        self.status, self.body = status, body
        self.is_over = threading.Event()
        self.n_requests = 0


class BrokenHandler(BaseHTTPRequestHandler):
    server: BrokenServer

    def answer(self) -> None:
        self.server.n_requests += 1
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.status == 0:
            self.server.is_over.wait(120)
            return
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST = do_PATCH = do_DELETE = answer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        pass


@contextmanager
def broken_server(status: int, body: bytes = b"") -> Iterator[str]:
    """The URL of such a server."""
    server = BrokenServer(status, body)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.is_over.set()
        server.shutdown()
        thread.join()
        server.server_close()
