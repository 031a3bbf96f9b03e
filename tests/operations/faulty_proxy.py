"""An HTTP proxy in front of an object store that fails on request."""

import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "date", "server"}


@dataclass
class Fault:
    """What the proxy does to the next `n_requests` requests (of `method`, after `n_before` of them that it forwards)."""

    status: int = 0  # answer with this status and `code` instead of asking the store
    code: str = ""
    delay_s: float = 0.0
    drop: bool = False  # close the connection instead of answering
    cut: bool = False  # close it in the middle of the answer
    cut_upload: bool = False  # close it when half of the request's content has arrived
    skew_s: float = 0.0  # added to the Date of answers
    without_header: str = ""  # of requests, in lower case
    rewrite: Callable[[bytes], bytes] | None = None  # of the content of answers
    n_requests: float = field(default=float("inf"))
    method: str = ""  # such as PUT; empty: all
    n_before: int = 0


class FaultyProxy:
    """Forwards to the store at `url`; `fault` says what goes wrong."""

    def __init__(self, url: str) -> None:
        self.fault = Fault()
        self.n_requests = 0
        self.lock = Lock()
        proxy, target = self, urlsplit(url)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                fault, n_bytes = proxy.next_fault(self.command), int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(n_bytes // 2 if fault.cut_upload else n_bytes)
                time.sleep(fault.delay_s)
                if fault.drop or fault.cut_upload:
                    self.close_connection = True
                    return
                if fault.status:
                    content = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>as asked</Message></Error>".encode()
                    self.answer(fault.status, {"Content-Type": "application/xml"}, content, fault)
                    return
                headers = {key: value for key, value in self.headers.items() if key.lower() != fault.without_header}
                store = http.client.HTTPConnection(str(target.hostname), target.port, timeout=20)
                store.request(self.command, self.path, body, headers)
                response = store.getresponse()
                content = response.read()
                store.close()
                self.answer(
                    response.status, dict(response.getheaders()), fault.rewrite(content) if fault.rewrite else content, fault
                )

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_request

            def answer(self, status: int, headers: dict[str, str], content: bytes, fault: Fault) -> None:
                self.send_response_only(status)
                self.send_header("Date", self.date_time_string(round(time.time() + fault.skew_s)))
                for key, value in headers.items():
                    if key.lower() not in HOP_BY_HOP:
                        self.send_header(key, value)
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content) + 100 * fault.cut)
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(content if self.command != "HEAD" else b"")
                self.close_connection = self.close_connection or fault.cut

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def next_fault(self, method: str) -> Fault:
        """What goes wrong with a request that has just come. Clients send several at once, each in a thread of the proxy."""
        with self.lock:
            self.n_requests += 1
            if self.fault.method not in ("", method) or self.fault.n_requests <= 0:
                return Fault()
            if self.fault.n_before > 0:
                self.fault.n_before -= 1
                return Fault()
            self.fault.n_requests -= 1
            return self.fault

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()
