"""An HTTP proxy in front of an object store that fails on request."""

import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "date", "server"}


@dataclass
class Fault:
    """What the proxy does to the next `n_requests` requests."""

    status: int = 0  # answer with this status and `code` instead of asking the store
    code: str = ""
    delay_s: float = 0.0
    drop: bool = False  # close the connection instead of answering
    cut: bool = False  # close it in the middle of the answer
    skew_s: float = 0.0  # added to the Date of answers
    without_header: str = ""  # of requests, in lower case
    rewrite: Callable[[bytes], bytes] | None = None  # of the content of answers
    n_requests: float = field(default=float("inf"))


class FaultyProxy:
    """Forwards to the store at `url`; `fault` says what goes wrong."""

    def __init__(self, url: str) -> None:
        self.fault = Fault()
        self.n_requests = 0
        proxy, target = self, urlsplit(url)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_request(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.n_requests += 1
                fault = proxy.fault if proxy.fault.n_requests > 0 else Fault()
                fault.n_requests -= 1
                time.sleep(fault.delay_s)
                if fault.drop:
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

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()
